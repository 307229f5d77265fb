"""One compression: from a configuration to networks at some lambda, and what they are worth with fewer weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_bayes_nas import registry
from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.coercion import closest
from nni_bayes_nas.compression.hyper_variational import WITH_SD, HyperVariational
from nni_bayes_nas.compression.networks import Stored
from nni_bayes_nas.compression.pruning import last_layer, prunable
from nni_bayes_nas.compression.shrink import shrink
from nni_bayes_nas.compression.training import HyperVariationalModule
from nni_bayes_nas.compression.weight_hypernet import options_of, unused_option
from nni_bayes_nas.config import CompressConfig, Config
from nni_bayes_nas.errors import ConfigError, NniBayesNasError, SpaceError
from nni_bayes_nas.experiment import evaluator as evaluation
from nni_bayes_nas.experiment.build import build_space, call_user, drop_training_parts
from nni_bayes_nas.experiment.callbacks import EpochLog, SeedEpochs
from nni_bayes_nas.experiment.compressed import with_architecture
from nni_bayes_nas.experiment.data import DataSplits, batches, load_data_on
from nni_bayes_nas.experiment.pruned import calibration, clipping, every_batch, log_likelihood, look_at, trained_on
from nni_bayes_nas.experiment.retrained import save
from nni_bayes_nas.experiment.stopwatch import Stopwatch

# Where the network lies beside the standardization that is taken back.
_STANDARDIZED = "1."


def run_compress(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train weights as a function of lambda, read networks off, prune them; goes on from a checkpoint.

    Args:
        config: The configuration.
        parameters: Of the trial; "hypernet" (its kind, or "constant"), "lambda" (of a direct run), "prior" and
            "seed".
        directory: Where checkpoint, metrics, data.json, model.pt (of the hypernetwork) and networks/ (those of the
            curves) are written.
        report: Called after every epoch with the intermediate result.

    Returns:
        "default", the best validation accuracy of a network of means; "compression": a row for every lambda, see
        `look_at`, with the evidence on the training set, and the same as "posterior_finetuned" after epochs of the
        bound at this lambda, if there are any; "seconds" of the training, and of all.

    Raises:
        NumericsError: A term of the loss is not finite.
    """
    started, watch = time.perf_counter(), Stopwatch()
    settings, seed = config.compress, int(parameters["seed"])
    device = evaluation.pick_device(config.experiment.device)
    with watch.stage("data"):
        data = load_data_on(device, config.data)
    with watch.stage("building"):
        model = build_model(config, data, parameters)
        module = HyperVariationalModule(model, n_objects=len(data.train), seed=seed, **module_options(settings))

    def intermediate(terms: dict[str, Any]) -> None:
        best = max(value for name, value in terms.items() if name.startswith("val_accuracy/"))
        report({"default": best, "epoch": terms["epoch"]})

    callbacks: list[Any] = [SeedEpochs(seed), EpochLog(directory, "compress", intermediate, watch=watch)]
    clip, by = clipping(settings)
    trainer = evaluation.trainer(directory, settings.epochs, device, callbacks, clip=clip, clip_by=by, watch=watch)
    trainer.fit(
        module,
        batches(data.train, settings.batch_size, seed=seed),
        every_batch(data.val),
        **evaluation.resume_arguments(directory),
    )
    if device == "gpu":
        model.to("cuda")  # Lightning has moved it back
    with watch.stage("reading"):
        lams = settings.lambdas if parameters.get("lambda") is None else (float(parameters["lambda"]),)
        rows = [_row(model, lam, data, settings, seed, directory / "networks") for lam in lams]
    with watch.stage("saving"):
        save(model.cpu(), data, directory)
    return {
        "default": max(row["val_accuracy"] for row in rows),
        "hypernet": parameters["hypernet"],
        "seed": seed,
        "compression": rows,
        "training_seconds": round(module.seconds, 2),
        "seconds": round(time.perf_counter() - started, 2),
        "device": device,
        "stage_seconds": watch.seconds,
    }


def build_model(config: Config, data: DataSplits, parameters: dict[str, Any]) -> HyperVariational:
    """The network of the configuration with weights that are a function of lambda, before training.

    Raises:
        ConfigError: Options that cannot be.
    """
    settings, raw = config.compress, config.compress.inputs == "raw"
    direct = parameters.get("lambda")
    network = build_network(config, data, int(parameters["seed"]))
    skip = [_STANDARDIZED + name if raw else name for name in settings.skip or ()]
    known = [name for name, _ in network.named_modules()]
    for name, layer in prunable(network).items():
        if not layer.weight.requires_grad and not any(f"{name}.".startswith(f"{whole}.") for whole in skip):
            raise ConfigError(
                f"`compress.network` must have weights that learn, but those of "
                f"{name.removeprefix(_STANDARDIZED) if raw else name} are frozen\nname it in compress.skip"
            )
    if unknown := [name for name in skip if name not in known]:
        inside = [name for name in known if name.startswith(_STANDARDIZED)] if raw else known
        names = [name.removeprefix(_STANDARDIZED) if raw else name for name in inside if name]
        given = unknown[0].removeprefix(_STANDARDIZED)
        raise ConfigError(f"`compress.skip` must name modules of the network, {closest(given, names)}")
    kind, prior = parameters["hypernet"], parameters.get("prior", settings.priors[0])
    return HyperVariational(
        network,
        kind=kind,
        weights=settings.weights,
        prior=prior,
        prior_sd=settings.prior_sd if prior in WITH_SD else 1.0,
        lambda_range=settings.lambda_range if direct is None else float(direct),
        axis=settings.axis,
        rho=settings.rho,
        skip=skip,
        seed=int(parameters["seed"]),
        **options_of(kind, _hypernet_options(settings)),
    )


def _hypernet_options(settings: CompressConfig) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("knots", "shared_knots", "rank", "hidden")}


def build_network(config: Config, data: DataSplits, seed: int) -> nn.Module:
    """The network that is compressed, with new weights that depend on the seed alone.

    Raises:
        ConfigError: An unknown network or argument; data that are no classes.
    """
    settings = config.compress
    if data.task != "classification":
        raise ConfigError(f"`compress` is for classes, but data `{config.data.name}` are a {data.task}\nuse retrain")
    torch.manual_seed(seed)
    make = registry.resolve("network", settings.network, registry.NETWORKS)
    if settings.network == "space":
        network = make(config, data, seed)
    else:
        given = ("shape", "num_classes")
        if clash := [name for name in given if name in settings.network_args]:
            raise ConfigError(f"`compress.network_args.{clash[0]}` comes from the data\nleave it out")
        args = registry.fill_args(make, settings.network_args, "compress.network_args", given=given)
        args |= {"shape": data.shape, "num_classes": data.num_classes}
        network = call_user(make, args, ConfigError, f"network `{settings.network}`")
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"`compress.network` must name what gives a torch.nn.Module, `{settings.network}` gives a "
                f"{type(network).__name__}\nreturn the network"
            )
    if settings.inputs == "standardized":
        return network  # type: ignore[no-any-return]
    return nn.Sequential(Stored(data.mean, data.sd), network)


def derived(config: Config, data: DataSplits, seed: int) -> nn.Module:
    """The network of `compress.architecture` in the space of the configuration, with new weights.

    Raises:
        ConfigError: The file cannot be read.
    """
    choices: Any = with_architecture(config).compress.architecture
    network: nn.Module = Architecture(choices).build(build_space(config, data, seed, retraining=True))
    drop_training_parts(network)
    return network


def check(config: Config, data: DataSplits) -> None:
    """Build every model of the plan once, and run one pass.

    Raises:
        ConfigError: Options that cannot be, or a network that does not give a number for every class.
        SpaceError: Layers that cannot be treated.
    """
    settings = config.compress
    _check_used(settings)
    runs: list[dict[str, Any]] = [{"hypernet": kind, "lambda": None} for kind in settings.kinds]
    runs += [{"hypernet": "constant", "lambda": lam} for lam in settings.direct]
    for prior, parameters in itertools.product(settings.priors, runs):
        model = build_model(config, data, {**parameters, "prior": prior, "seed": config.seed}).eval()
        layers = {*prunable(model.network)} - {last_layer(model.network)}
        if settings.structured and not any(f"{name}.weight" in model.prunable for name in layers):
            raise ConfigError(
                "`compress.structured` must have a layer before the last one whose neurons can go, but there is none\n"
                "set it to false, or leave compress.skip out"
            )
        module = HyperVariationalModule(model, n_objects=len(data.train), **module_options(settings))
        outputs = _passed(model, data, 2)
        if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, data.num_classes):
            given = tuple(outputs.shape[1:]) if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
            raise ConfigError(
                f"`compress.network` must give {data.num_classes} outputs for one object, `{settings.network}` gives "
                f"{given}\nend it in a layer with one output per class"
            )
        share = module.lambdas_per_step if settings.divide_batch else 1
        smallest = [settings.batch_size // share]
        if settings.finetune_epochs and settings.finetune_batch_size is not None:
            smallest.append(settings.finetune_batch_size)
        _passed(model.train(), data, min(2, *smallest))
        if settings.structured:
            _check_chain(model.network.get_submodule("" if settings.inputs == "standardized" else _STANDARDIZED[:-1]))
    for name, size in (("batch_size", settings.batch_size), ("finetune_batch_size", settings.finetune_batch_size or 1)):
        if size > len(data.train):
            raise ConfigError(
                f"`compress.{name}` must be at most the {len(data.train)} training objects, got {size}\nlower it"
            )


def _check_chain(network: nn.Module) -> None:
    try:
        shrink(network)
    except SpaceError as error:
        raise ConfigError(f"`compress.structured` must have a chain: {error}\nset it to false") from error


def _check_used(settings: CompressConfig) -> None:
    """Refuse options that no run of the plan has."""
    options = _hypernet_options(settings)
    if (name := unused_option(settings.kinds, options)) is not None:
        raise ConfigError(
            f"`compress.{name}` must be left out of kinds that have none, {list(settings.kinds)}, got {options[name]}\n"
            "see compress.kinds"
        )
    if settings.prior_sd != 1 and not {*settings.priors} & {*WITH_SD}:
        raise ConfigError(
            f"`compress.prior_sd` is of the priors {' and '.join(WITH_SD)}, got {settings.prior_sd} with priors "
            f"{list(settings.priors)}\nleave it out, or name one"
        )
    if settings.lambdas_per_step > 1 and not settings.kinds:
        raise ConfigError(
            f"`compress.lambdas_per_step` is of hypernetworks, got {settings.lambdas_per_step} and no kinds\n"
            "leave it out: a direct run has one lambda"
        )


def _passed(model: HyperVariational, data: DataSplits, n: int) -> Any:
    """What a network gives for `n` objects, in the mode that it is in."""
    try:
        with torch.no_grad():
            return model(data.train[:n][0], model.single if model.axis is None else model.axis.low)
    except NniBayesNasError:
        raise
    except Exception as error:  # whatever the user's own network does
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ConfigError(
            f"`compress.network` must take the data, but a pass of {n} object{'s' if n > 1 else ''} of shape "
            f"{data.shape} failed: {said}\ngive its first layer their shape, and batch normalization 2 objects of a "
            "batch for every lambda"
        ) from error


def _row(
    model: HyperVariational, lam: float, data: DataSplits, settings: CompressConfig, seed: int, folder: Path
) -> dict[str, Any]:
    """Evidence at one lambda, and what the network there is worth."""
    torch.manual_seed(seed)
    inputs = calibration(data, model.device)
    evidence = model.elbo(lam, every_batch(data.train), log_likelihood, calibration=inputs)
    network = model.materialize(lam, inputs).eval()
    row: dict[str, Any] = {"lambda": lam, **{name: round(value, 3) for name, value in evidence.items()}}
    row |= look_at(network, f"lambda{lam}", data, settings, seed, folder)
    if settings.posterior_finetune_epochs:
        evidence = trained_on(network, 1.0 if model.prior == "scaled" else lam, data, settings, seed, inputs)
        found = look_at(network, f"lambda{lam}-trained-on", data, settings, seed, folder)
        row["posterior_finetuned"] = {**{name: round(value, 3) for name, value in evidence.items()}, **found}
    return row


def module_options(settings: CompressConfig) -> dict[str, Any]:
    """Arguments of `HyperVariationalModule`."""
    names = ("learning_rate", "rho_learning_rate", "lambdas_per_step", "divide_batch", "warmup", "shared_until")
    return {name: getattr(settings, name) for name in (*names, "optimizer", "schedule")}
