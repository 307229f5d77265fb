"""What a network is worth with ever fewer weights, and how short it can be written down."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_bayes_nas.coercion import require
from nni_bayes_nas.compression.pruning import (
    Scope,
    apply_masks,
    kept,
    last_layer,
    masks,
    mean_network,
    prunable,
    scores,
    silence,
)
from nni_bayes_nas.errors import ConfigError, NumericsError, SpaceError
from nni_bayes_nas.layers.normalization import recalibrate
from nni_bayes_nas.layers.variational import collect_kl, variational_layers


def accuracy_pruning_curve(
    network: nn.Module,
    fractions: Sequence[float],
    evaluate: Callable[[nn.Module], dict[str, float]],
    *,
    scope: Scope = "global",
    structured: bool = False,
    calibration: Iterable[Tensor] = (),
    finetune: Callable[[nn.Module, float], None] | None = None,
    learning_rates: Sequence[float] = (1e-3,),
    prefer: Callable[[nn.Module], float] | None = None,
    keep: Callable[[dict[str, Any], nn.Module], None] | None = None,
) -> list[dict[str, Any]]:
    """What `evaluate` says of the network of the means with shares of its weights left out.

    Args:
        network: With Gaussian layers, ranked by the relative density, or plain, by magnitude; it is left alone.
        fractions: Shares that are left out, in [0, 1).
        evaluate: Gives numbers by name of a network in evaluation mode.
        scope: See `masks`.
        structured: Whole neurons and filters; the last layer, whose rows are outputs, then stays whole.
        calibration: Batches of inputs for batch normalization, whose statistics change with what is left out.
        finetune: Trains a pruned network further, in place, at a rate; None for none.
        learning_rates: For `finetune`. Of several, every network that is cut takes the one that is worth most after it,
            the first of equals, without those whose training fails by its numbers.
        prefer: What a network in evaluation mode is worth, by data that are neither training nor test data; it is asked
            where there are several rates.
        keep: Called with every row and its network, as it is in the end.

    Returns:
        Rows "fraction", "kept" (weights), "compression" (weights / kept), what `evaluate` gives, and with `finetune`
        the same after it, and its "learning_rate", as "finetuned".

    Raises:
        ConfigError: As `masks`, no rate, or several and nothing that prefers one.
        SpaceError: Whole neurons, of a network of one layer.
        NumericsError: Training failed at every rate.
    """
    require(len(learning_rates) > 0, "learning_rates", "must name at least one", learning_rates, "0.001 is usual")
    if len(learning_rates) > 1 and finetune is not None and prefer is None:
        raise ConfigError(
            f"prefer must be given to choose among {len(learning_rates)} learning rates; pass one of them."
        )
    found, inputs = scores(network), list(calibration)
    total = sum(layer.weight.numel() for layer in prunable(network).values())
    if structured:
        found.pop(last_layer(network), None)
        if not found:
            raise SpaceError(
                "whole neurons can go only before the last layer, but the network has no other; set structured to false"
            )
    # All of them before any time is spent.
    left_in = [masks(found, fraction=fraction, scope=scope, structured=structured) for fraction in fractions]

    def ready(pruned: nn.Module) -> nn.Module:
        if structured:  # constants of filters that are gone may have learned, behind other activations than ReLU
            silence(pruned)
        recalibrate(pruned, inputs)
        return pruned.eval()

    rows = []
    for fraction, stays in zip(fractions, left_in, strict=True):
        pruned = mean_network(network)
        apply_masks(pruned, stays)
        ready(pruned)
        left = kept(pruned)
        row: dict[str, Any] = {"fraction": fraction, "kept": left, "compression": total / max(1, left)}
        row |= evaluate(pruned)
        if finetune is not None:
            worth = prefer if prefer is not None and len(learning_rates) > 1 else lambda network: 0.0
            pruned, rate = _preferred(pruned, finetune, learning_rates, ready, worth)
            row["finetuned"] = {**evaluate(pruned), "learning_rate": rate}
        if keep is not None:
            keep(row, pruned)
        rows.append(row)
    return rows


def _preferred(
    network: nn.Module,
    finetune: Callable[[nn.Module, float], None],
    learning_rates: Sequence[float],
    ready: Callable[[nn.Module], nn.Module],
    worth: Callable[[nn.Module], float],
) -> tuple[nn.Module, float]:
    """The copy that is worth most after its training, and its rate; the network is left alone."""
    best: tuple[float, nn.Module, float] | None = None
    failed: NumericsError | None = None
    for rate in learning_rates:
        one = copy.deepcopy(network)
        try:
            finetune(one, rate)
        except NumericsError as error:  # too large a rate is not preferred
            failed = error
            continue
        value = worth(ready(one))
        if math.isnan(value):
            failed = NumericsError(f"what prefers a rate must be a number, got nan at {rate:g}; look at its data.")
        elif best is None or value > best[0]:
            best = value, one, rate
    if best is None:
        assert failed is not None  # of a rate, of which there is one at least
        raise failed
    return best[1:]


def description_length(network: nn.Module, precision: int = 32) -> dict[str, float]:
    """Bits that a network takes: what is left of its weights, where they are, and all that is not a weight.

    Args:
        network: Pruned or not, Gaussian or plain, packed too.
        precision: Bits of a number.

    Returns:
        "values": precision times the weights that are not zero; "positions": log2 of the number of ways to choose
        them, sum_l log2 C(n_l, k_l); "points": precision times biases and normalization, running statistics included;
        "total". For Gaussian layers "information" beside: KL(q || p) / log 2, of a fixed prior the cost of the weights
        by bits-back coding (Hinton & van Camp, 1993); the standard deviations of the other priors are not in it. The
        log-uniform prior has no normalization, and so no information.

    Raises:
        ConfigError: No precision, or weights that are functions of lambda.
    """
    if precision < 1:
        raise ConfigError(f"precision must be at least 1 bit, got {precision}; 32 is single precision.")
    values = positions = 0.0
    of_weights: set[int] = set()
    for layer in prunable(network).values():
        n, k = layer.weight.numel(), int(torch.count_nonzero(layer.weight))
        # As it lies there, or under a mask, or packed.
        of_weights |= {id(p) for name, p in layer.named_parameters() if name != "bias"}
        values += precision * k
        positions += (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    others = sum(p.numel() for p in network.parameters() if id(p) not in of_weights)
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running_" in name)
    points = float(precision * (others + statistics))
    result = {"values": values, "positions": positions, "points": points, "total": values + positions + points}
    divergences = collect_kl(network)
    improper = any(layer.prior == "log_uniform" for layer in variational_layers(network).values())
    if divergences and not improper:
        with torch.no_grad():
            result["information"] = float(torch.stack(list(divergences.values())).sum()) / math.log(2)
    return result
