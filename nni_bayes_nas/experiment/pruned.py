"""What a network with Gaussian layers is worth with ever fewer weights: what is measured of every compression."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.compression.curve import accuracy_pruning_curve, description_length
from nni_bayes_nas.compression.hyper_variational import expected_log_likelihood
from nni_bayes_nas.compression.packing import pack
from nni_bayes_nas.compression.pruning import kept, mean_network, prune
from nni_bayes_nas.compression.shrink import shrink
from nni_bayes_nas.compression.training import finetune
from nni_bayes_nas.config import CompressConfig
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.experiment import evaluator as evaluation
from nni_bayes_nas.experiment.data import DataSplits, batches, first_batches
from nni_bayes_nas.experiment.uncertainty import ensemble, scores
from nni_bayes_nas.layers.normalization import recalibrate
from nni_bayes_nas.layers.variational import collect_kl, variational_layers, weight_noise

# Of what is only looked at: activations of convolutions that are larger than 32 MiB are new pages of memory each time.
_BATCH, _CALIBRATION = 256, 4096


def log_likelihood(outputs: Tensor, y: Tensor) -> Tensor:
    """log p(y | outputs) of classes, summed over a batch; `()`."""
    return -F.cross_entropy(outputs, y, reduction="sum")


def every_batch(objects: Any) -> Any:
    """Batches of all objects of a data set, in order."""
    return batches(objects, _BATCH, seed=None)


def calibration(data: DataSplits, device: torch.device) -> list[Tensor]:
    """Batches of training inputs, for batch normalization."""
    return [x for x, _ in first_batches(data.train, _CALIBRATION, device)]


def look_at(
    network: nn.Module,
    stem: str,
    data: DataSplits,
    settings: CompressConfig,
    seed: int,
    folder: Path,
    tuning: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """What a network is worth; test data are read for the figures alone.

    Every network of the curve is left in `folder`, packed, in a file that is called by `stem` and its share.

    Returns:
        Validation and test scores of the network of the means ("val_accuracy", "test_accuracy", "test_nll",
        "test_ece"); of Gaussian layers those of the predictive distribution ("predictive"), "z_above_1", weights above
        one standard deviation, and "bits", see `description_length`; "curve": by fraction, on validation and test data,
        with the file of the network and its length ("file", "bytes") and the parameters of the smaller dense one
        ("params") where whole neurons go and the network is a chain; "finetuned" with its "learning_rate".
    """
    inputs = calibration(data, next(network.parameters()).device)
    plain = mean_network(network).eval()
    test, y = _predicted(plain, data.test)
    row: dict[str, Any] = {"val_accuracy": _accuracy(plain, data.val)}
    found = scores(test, y)
    row |= {f"test_{name}": found[name] for name in ("accuracy", "nll", "ece")}
    if variational_layers(network):
        with weight_noise(network, True, inputs):
            drawn = [_predicted(network, data.test)[0] for _ in range(settings.draws)]
        row["predictive"] = scores(ensemble(drawn), y)
        cut = copy.deepcopy(network)
        prune(cut, threshold=1.0)
        row["z_above_1"] = kept(cut)
        row["bits"] = {name: round(value) for name, value in description_length(cut).items()}
    parts = {"val": data.val, "test": data.test}

    def tune(pruned: nn.Module, rate: float) -> None:
        evaluation.quiet_lightning()
        # Of its own: a loader goes on from the epoch that it is in.
        loader = batches(data.train, settings.finetune_batch_size or settings.batch_size, seed=seed)
        # The same random numbers for every rate, and for what comes after them.
        with tuning(), torch.random.fork_rng():
            torch.manual_seed(seed)
            finetune(pruned, loader, settings.finetune_epochs, rate)

    def evaluate(pruned: nn.Module) -> dict[str, float]:
        found = {f"{name}_accuracy": _accuracy(pruned, part) for name, part in parts.items()}
        if settings.structured:
            with contextlib.suppress(SpaceError):  # of what is no chain nobody knows
                found["params"] = count_parameters(shrink(pruned))
        return found

    def keep(point: dict[str, Any], pruned: nn.Module) -> None:
        point["file"] = f"{stem}-fraction{point['fraction']}.pt"
        packed = pack(pruned).eval()
        torch.save(packed.cpu().state_dict(), folder / point["file"])
        point["bytes"] = (folder / point["file"]).stat().st_size

    folder.mkdir(exist_ok=True)
    row["curve"] = accuracy_pruning_curve(
        network,
        settings.fractions,
        evaluate,
        scope=settings.scope,
        structured=settings.structured,
        calibration=inputs,
        finetune=tune if settings.finetune_epochs else None,
        learning_rates=settings.finetune_learning_rates,
        prefer=lambda pruned: _accuracy(pruned, data.val),
        keep=keep,
    )
    return row


def trained_on(
    network: nn.Module,
    price: float,
    data: DataSplits,
    settings: CompressConfig,
    seed: int,
    inputs: list[Tensor],
    tuning: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, float]:
    """Train a network that was read off further, in place, by E_q log p(D | w) - price KL; its evidence then.

    With the optimizer, the rates and the clipping of the section: standard deviations have as far to go as at first.
    """
    evaluation.quiet_lightning()
    clip, clip_by = clipping(settings)
    with tuning():
        finetune(
            network,
            batches(data.train, settings.batch_size, seed=seed),
            settings.posterior_finetune_epochs or 0,
            settings.learning_rate,
            lam=price,
            rho_learning_rate=settings.rho_learning_rate,
            optimizer=settings.optimizer,
            gradient_clip=clip,
            clip_by=clip_by,
        )
    recalibrate(network, inputs)
    with torch.no_grad():
        network.eval()
        total = expected_log_likelihood(network, every_batch(data.train), log_likelihood, calibration=inputs)
        kl = float(torch.stack(list(collect_kl(network).values())).sum())
    return {"expected_log_likelihood": total, "kl": kl, "objective": total - price * kl}


def clipping(settings: CompressConfig) -> tuple[float | None, Literal["norm", "value"]]:
    """How far gradients may go, and of what that is."""
    by_value = settings.gradient_clip_value
    return (settings.gradient_clip, "norm") if by_value is None else (by_value, "value")


@torch.no_grad()
def _predicted(network: nn.Module, objects: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities and classes."""
    device = next(network.parameters()).device
    pairs = [(network(x.to(device)).log_softmax(-1).cpu(), y.cpu()) for x, y in every_batch(objects)]
    return torch.cat([p for p, _ in pairs]), torch.cat([y for _, y in pairs])


def _accuracy(network: nn.Module, objects: Any) -> float:
    log_probs, y = _predicted(network, objects)
    return float((log_probs.argmax(-1) == y).double().mean())
