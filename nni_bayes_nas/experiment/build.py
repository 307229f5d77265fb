"""From a configuration to space, strategy and data; everything that can be refused is refused here."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import nn

from nni_bayes_nas import registry
from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, DataError, NniBayesNasError, SpaceError
from nni_bayes_nas.experiment.augment import check_augmentation
from nni_bayes_nas.experiment.data import DataSplits, batches, data_arguments, halves, load_data, steps_per_epoch
from nni_bayes_nas.experiment.evaluator import pick_device
from nni_bayes_nas.experiment.posterior_checks import check_refinement, check_samples
from nni_bayes_nas.experiment.selection import check_amounts, selection_arguments
from nni_bayes_nas.experiment.tasks import evaluation_module, task_of
from nni_bayes_nas.layers.replicas import check_stackable
from nni_bayes_nas.variants import varied

with warnings.catch_warnings():
    # nni/nas/nn/pytorch/layers.py (v3.0) warns about classes that torch has gained since; none of them is a layer.
    warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module", category=RuntimeWarning)
    import nni.nas.nn.pytorch
    import nni.nas.strategy

_FROM_DATA = ("in_channels", "in_features", "num_classes", "num_outputs")
_FROM_SEARCH = ("warmup_epochs", "gradient_clip_val", "seed", "input_shape")


def space_arguments(config: Config, data: DataSplits, *, retraining: bool = False) -> tuple[Any, dict[str, Any]]:
    """The class of the space and all its arguments; those of `_FROM_DATA` come from the data unless given."""
    cls = registry.resolve("search space", config.space.name, registry.SEARCH_SPACES)
    args = registry.fill_args(cls, config.space.args, "space.args", given=_FROM_DATA)
    if retraining:
        args = {**args, **_retraining_arguments(cls, config)}
    accepted = registry.accepted_names(cls)
    from_data = {
        "in_channels": data.shape[0],
        "in_features": math.prod(data.shape),
        "num_classes": data.num_classes,
        "num_outputs": data.num_classes,
    }
    return cls, {**{k: v for k, v in from_data.items() if k in accepted}, **args}


def _retraining_arguments(cls: Any, config: Config) -> dict[str, Any]:
    """What retraining changes of the space's arguments, checked against the class."""
    changed = dict(config.retrain.space)
    if config.retrain.drop_path > 0:
        if "drop_path" not in registry.accepted_names(cls):
            raise ConfigError(
                f"`retrain.drop_path` needs a space with an argument drop_path, but `{config.space.name}` has none; "
                "set it to 0, or give your space that argument (final probability) and a method set_progress"
            )
        changed["drop_path"] = config.retrain.drop_path
    filled = registry.fill_args(cls, {**config.space.args, **changed}, "retrain.space", given=_FROM_DATA)
    return {name: filled[name] for name in changed}


def build_space(config: Config, data: DataSplits, seed: int, *, retraining: bool = False) -> Any:
    """A fresh instance of the model space; its initial weights depend on the seed alone.

    Args:
        config: The configuration.
        data: Gives the sizes of inputs and outputs.
        seed: Of the initial weights.
        retraining: At the scale of `retrain.space` instead of that of the search.
    """
    cls, args = space_arguments(config, data, retraining=retraining)
    torch.manual_seed(seed)
    try:
        space = call_user(cls, args, SpaceError, f"space `{config.space.name}`")
    except SpaceError as error:
        if retraining and config.retrain.space:  # the error names an argument, which the space of the search has too
            raise SpaceError(f"`retrain.space`: {error}") from error
        raise
    if not isinstance(space, nni.nas.nn.pytorch.ModelSpace):
        raise SpaceError(
            f"space.name must mean a subclass of nni.nas.nn.pytorch.ModelSpace, but {config.space.name!r} gives "
            f"{type(space).__name__}; derive your class from ModelSpace."
        )
    return space


def build_network(
    config: Config, data: DataSplits, seed: int, architecture: Architecture, *, training: bool = False
) -> nn.Module:
    """The network that is retrained for an architecture: at the scale of `retrain.space`, with new weights.

    Args:
        config: The configuration.
        data: Gives the sizes of inputs and outputs.
        seed: Of the initial weights.
        architecture: Its choices.
        training: Whether to keep what serves in training only (an auxiliary classifier).
    """
    network: nn.Module = architecture.build(build_space(config, data, seed, retraining=True))
    if not training:
        drop_training_parts(network)
    return network


def drop_training_parts(network: Any) -> None:
    """Takes away what serves in training only, if the network has a method `drop_training_parts` that says how."""
    if hasattr(network, "drop_training_parts"):
        network.drop_training_parts()


def build_strategy(config: Config, data: DataSplits, seed: int) -> Any:
    """The strategy; seed, warm-up, clipping and input shape come from the configuration's other sections."""
    cls = registry.resolve("strategy", config.strategy.name, registry.STRATEGIES)
    args = registry.fill_args(cls, config.strategy.args, "strategy.args", given=_FROM_SEARCH)
    accepted = registry.accepted_names(cls)
    given = {
        "warmup_epochs": config.search.warmup_epochs,
        "gradient_clip_val": config.search.gradient_clip,
        "seed": seed,
        "input_shape": data.shape,
    }
    if clash := [name for name in _FROM_SEARCH if name in args]:
        raise ConfigError(
            f"strategy.args may not hold `{clash[0]}`: it comes from other sections; "
            "set search.warmup_epochs, search.gradient_clip, seed or the data instead."
        )
    arguments = {**{k: v for k, v in given.items() if k in accepted}, **args}
    strategy = call_user(cls, arguments, ConfigError, f"strategy `{config.strategy.name}`")
    needed = ("mutate_model", "measure", "check_order", "structure", "export", "lambdas")
    missing = [name for name in needed if not _has(strategy, name)]
    if missing:
        raise ConfigError(
            f"strategy.name must mean a strategy that derives from nni_bayes_nas's DifferentiableStrategy, but "
            f"{config.strategy.name!r} lacks {missing}; NNI's own strategies run through NasExperiment."
        )
    return strategy


def call_user(function: Any, args: dict[str, Any], error: type[NniBayesNasError], what: str) -> Any:
    """Call what the user may have written; whatever it raises becomes an error that says so."""
    try:
        return function(**args)
    except NniBayesNasError:
        raise
    except Exception as cause:
        said = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
        raise error(f"{what} must accept its arguments, but calling it failed: {said}") from cause


def _has(strategy: Any, name: str) -> bool:
    return hasattr(type(strategy), name)


def effective(config: Config) -> Config:
    """The configuration with the defaults of the space's, the strategy's and the data's arguments filled in."""
    space = registry.resolve("search space", config.space.name, registry.SEARCH_SPACES)
    strategy = registry.resolve("strategy", config.strategy.name, registry.STRATEGIES)
    return dataclasses.replace(
        config,
        space=dataclasses.replace(
            config.space, args=registry.fill_args(space, config.space.args, "space.args", given=_FROM_DATA)
        ),
        strategy=dataclasses.replace(
            config.strategy,
            args=registry.fill_args(strategy, config.strategy.args, "strategy.args", given=_FROM_SEARCH),
        ),
        data=dataclasses.replace(config.data, args=data_arguments(config.data)[1]),
        retrain=dataclasses.replace(
            config.retrain,
            space=_retrain_space(space, config),
            selection=selection_arguments(config, "retrain"),
        ),
        search=dataclasses.replace(config.search, selection=selection_arguments(config, "search")),
    )


def _retrain_space(cls: Any, config: Config) -> dict[str, Any]:
    changed = _retraining_arguments(cls, config)
    return {name: changed[name] for name in config.retrain.space}


def validate(config: Config) -> Config:
    """Build everything once and run one forward pass; returns the effective configuration.

    Raises:
        ConfigError: The user's mistake: names, arguments, choices that cannot be relaxed, data that do not fit.
    """
    config = effective(config)
    data = load_data(config.data)
    if config.experiment.plan == "compression":
        from nni_bayes_nas.experiment.compress import check

        check(config, data)
        return config
    if config.experiment.plan == "architecture_prediction":
        from nni_bayes_nas.experiment import cells, predict

        predict.check(config, data)
        if not config.predict.cells:
            return config
        cells.check(config)
    space = build_space(config, data, config.seed)
    _check_image_size(data, space)
    _check_search(config, data, space)
    _check_retraining(config, data, space)
    for changes in config.search.variants:
        variant = varied(config, changes)
        _check_search(variant, load_data(variant.data), space)
    return config


def _check_search(config: Config, data: DataSplits, space: Any) -> None:
    """Refuses a search, or a variant of it, that would fail."""
    strategy = build_strategy(config, data, config.seed)
    _check_replicas(config, strategy)
    if hasattr(strategy, "check_search"):
        strategy.check_search(config.search)
    if hasattr(strategy, "check_device"):
        strategy.check_device("cuda" if pick_device(config.experiment.device) == "gpu" else "cpu")
    parts = halves(data.train, config.search.structure_fraction, config.seed)
    supernet = strategy.mutate_model(copy.deepcopy(space))
    _check_outputs(config, data, space)
    _check_batches(config, data, space, min(map(len, parts)))
    check_samples(config, strategy, space)
    of_lambda = getattr(strategy, "bayes", None) is not None and strategy.bayes.weight_hypernet != "constant"
    if of_lambda and data.task != "classification":
        raise ConfigError(
            f"weights that depend on lambda are read off for classes, but data `{config.data.name}` are a "
            f"{data.task}; leave weight_hypernet out."
        )
    steps = steps_per_epoch(data.train, config.search.structure_fraction, config.search.batch_size)
    total = None if of_lambda else count_parameters(supernet)
    check_amounts(config, "search", total, config.search.epochs * steps)
    strategy.measure(supernet, data.shape)
    check_refinement(config, strategy, space)
    strategy.check_order(supernet, data.shape)
    if option := _side_by_side(config):
        check_stackable(supernet, data.shape, option, strategy.template, strategy.structure.mean(None))


def _check_image_size(data: DataSplits, space: Any) -> None:
    """Refuses images of twice the size that a space says it is made for, and more."""
    size = max(data.shape[1:], default=0)
    if (made_for := getattr(space, "made_for", None)) is not None and size >= 2 * made_for:
        raise ConfigError(
            f"`space.args.stem` must be for images of about {size} pixels, got {made_for}: every cell would have "
            f"{(size // made_for) ** 2} times the work\nset it to a larger one, or data.image_size to a smaller one"
        )


def _check_replicas(config: Config, strategy: Any) -> None:
    """Refuse replicas of what cannot run side by side.

    Raises:
        ConfigError: With the remedy.
    """
    if (option := _side_by_side(config)) is None:
        return
    if config.search.collapse != "ignore":
        raise ConfigError(
            f"searches are watched one by one, got search.collapse {config.search.collapse!r}, and {option} has them "
            "side by side; set collapse to 'ignore', or leave that out."
        )
    if not hasattr(strategy, "beside"):
        raise ConfigError(
            f"{option} needs a strategy with a method `beside`, but strategy {config.strategy.name!r} has none; "
            "derive it from DifferentiableStrategy, or leave that out."
        )
    try:
        strategy.check_beside()
    except ConfigError as error:
        if option == "search.replicas":
            raise
        raise ConfigError(
            f"`{option}` searches side by side: {error}".replace("search.replicas to 1", "it to 0")
        ) from None


def _side_by_side(config: Config) -> str | None:
    """The option by which searches share their passes."""
    if config.experiment.plan == "architecture_prediction":
        return "predict.cells" if config.predict.cells else None
    return "search.replicas" if config.search.replicas > 1 else None


def _check_outputs(config: Config, data: DataSplits, space: nn.Module) -> None:
    logits = _forward(space, data.train[:2][0], data)
    if logits.ndim != 2 or logits.shape[1] != data.num_classes:
        raise DataError(
            f"the {data.task} data must fit the space, but data `{config.data.name}` have "
            f"{task_of(data).misfit(data, tuple(logits.shape[1:]))}"
        )


def _check_batches(config: Config, data: DataSplits, space: nn.Module, smallest_part: int) -> None:
    """Refuses batches of one object, where batch normalization has no more than one value per channel."""
    sizes = {
        "search.batch_size": min(config.search.batch_size, smallest_part),
        "retrain.batch_size": min(config.retrain.batch_size, len(data.train)),
    }
    single = [name for name, size in sizes.items() if size == 1]
    if not single:
        return
    try:
        with torch.no_grad():
            copy.deepcopy(space).train()(data.train[:1][0])
    except ValueError as error:
        raise ConfigError(
            f"batches must have at least 2 objects where batch normalization sees one value of each, but those of "
            f"`{single[0]}` have 1\nraise it; the parts of the data for weights and structure must hold 2 objects too"
        ) from error


def _check_retraining(config: Config, data: DataSplits, space: Any) -> None:
    """Refuses what the retrain trials would stumble over, and parts of a search that only they can use."""
    if parts := getattr(space, "training_parts", ()):
        raise ConfigError(
            f"`space.args.{parts[0]}` serves in retraining only, but it is set for the search; set it in retrain.space"
        )
    settings = config.retrain
    check_augmentation(settings, data.shape)
    evaluation_module(
        data, settings, label_smoothing=settings.label_smoothing, auxiliary_weight=settings.auxiliary_weight
    )
    steps = settings.epochs * len(batches(data.train, settings.batch_size, seed=0))
    if settings.replicas == 1 and not settings.space and not settings.drop_path:
        check_amounts(config, "retrain", count_parameters(space), steps)
        return
    other = build_space(config, data, config.seed, retraining=True)
    check_amounts(config, "retrain", count_parameters(other), steps)
    parts = [name for name in getattr(other, "training_parts", ()) if name != "drop_path"]
    if parts and settings.selection is not None:
        raise ConfigError(
            f"`retrain.selection` chooses among all parameters, but `retrain.space.{parts[0]}` has some that serve in "
            "training only\nleave one of them out"
        )
    if settings.replicas > 1 and parts:
        raise ConfigError(
            f"networks with an output for training only cannot run side by side, got `{parts[0]}` and retrain.replicas="
            f"{settings.replicas}; set retrain.replicas to 1."
        )
    if settings.replicas > 1:
        check_stackable(other, data.shape, "retrain.replicas")
    _check_outputs(config, data, other)
    found, offered = space.simplify(), other.simplify()
    unfit = sorted(str(label) for label in {*found, *offered} if not _fits(found.get(label), offered.get(label)))
    if unfit:
        raise ConfigError(
            f"`retrain.space` must take the architectures that the search finds, but {len(unfit)} of their choices "
            f"are others there: {', '.join(unfit[:3])}{', ...' if len(unfit) > 3 else ''}\n"
            "leave out what decides the choices; for other numbers of cells share them: space.args.share=all or stage"
        )


def _fits(found: Any, offered: Any) -> bool:
    """Whether whatever a search chooses for one label can be chosen in the space of the retraining."""
    if found is None or offered is None or type(found) is not type(offered):
        return False
    values, other = getattr(found, "values", None), getattr(offered, "values", None)
    if values is None or other is None:
        return repr(found) == repr(offered)
    same = getattr(found, "n_chosen", None) == getattr(offered, "n_chosen", None)
    return same and all(value in other for value in values)


def _forward(space: nn.Module, x: torch.Tensor, data: DataSplits) -> torch.Tensor:
    space.eval()
    try:
        with torch.no_grad():
            logits: torch.Tensor = space(x)
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        remedy = "check space.args.in_channels, the stem and the size of the images."
        if len(data.shape) == 1:
            remedy = "vectors need a space of fully connected layers: set space.name=dense, or one of your own."
        raise DataError(
            f"the data must fit the space, but a forward pass of objects of shape {data.shape} failed: {said}; {remedy}"
        ) from error
    return logits
