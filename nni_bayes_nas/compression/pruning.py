"""Leaving weights out: which ones, by what score, and what a network is without them.

A pruned `weight` is parametrized (`torch.nn.utils.parametrize`) as the original times a mask: training goes on around
what is left out, copies and state dicts hold both. Of a Gaussian layer a weight that is left out is zero for certain.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.compression.lambda_weights import LambdaWeights
from nni_bayes_nas.errors import ConfigError, NumericsError, SpaceError
from nni_bayes_nas.layers.flow import directly_normalized, last_called
from nni_bayes_nas.layers.masked import Mask, make_plain, mask_of
from nni_bayes_nas.layers.variational import Variational, to_deterministic

Scope = Literal["global", "layer"]


def prunable(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers whose weights can be left out, by name: linear and convolutional ones, Gaussian or not.

    Raises:
        ConfigError: The weights are functions of lambda: what lies in the layers is what they were before training.
    """
    if any(isinstance(m, LambdaWeights) for m in model.modules()):
        raise ConfigError(
            f"weights must be those of one lambda, got a {type(model).__name__}, whose weights are functions of it; "
            "take what materialize(lam) gives."
        )
    return {name: m for name, m in model.named_modules() if _is_layer(m)}


def last_layer(model: nn.Module) -> str:
    """The name of the layer whose rows are outputs: the last one of a pass, or listed last, if it cannot be traced.

    Raises:
        SpaceError: There is no layer.
    """
    names = list(prunable(model))
    if not names:
        raise SpaceError(
            f"a network must have linear or convolutional layers, {type(model).__name__} has none; prune another."
        )
    return last_called(model, _is_layer) or names[-1]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))


@torch.no_grad()
def scores(model: nn.Module) -> dict[str, Tensor]:
    """How much every weight matters, by layer: |mu| / sigma of Gaussian layers; |w| where there is none of these.

    The relative density exp(-mu^2 / (2 sigma^2)) of q at zero (Graves, 2011) falls with it, and underflows where it
    matters most; it is never computed. What is left out already counts as 0. Beside Gaussian layers, points have no
    score.

    Raises:
        ConfigError: The weights are functions of lambda.
    """
    layers = prunable(model)
    gaussian = {name: layer for name, layer in layers.items() if isinstance(layer, Variational)}
    if not gaussian:
        return {name: layer.weight.abs() for name, layer in layers.items()}
    found: dict[str, Tensor] = {}
    for name, layer in gaussian.items():
        weight: Any = layer.weight
        found[name] = (weight / normal.sd(layer.rho)).abs()
    return found


def masks(
    scores: Mapping[str, Tensor],
    *,
    fraction: float | None = None,
    threshold: float | None = None,
    scope: Scope = "global",
    structured: bool = False,
) -> dict[str, Tensor]:
    """What stays, by layer: 1, and 0 for the weights of the smallest scores.

    Args:
        scores: Of the weights, any shapes; rows are neurons or filters.
        fraction: Share that is left out, in [0, 1): round(fraction n) of n weights, exactly, but one stays.
        threshold: Or: what has a score of at most this, of Gaussian weights in standard deviations. One of both.
        scope: Whether the share is that of all layers together, or of each one.
        structured: Whole rows are left out, by the mean of their scores, of every layer all but its best one at most:
            a layer without rows is no network. With scope "global" shares count weights.

    Raises:
        ConfigError: No or both criteria, or one out of its range.
        NumericsError: A score is NaN, which would rank above all others; it names the layer.
    """
    if (fraction is None) == (threshold is None):
        raise ConfigError("fraction or threshold must be given, one of them, to say how many weights are left out.")
    if fraction is not None and not 0 <= fraction < 1:
        raise ConfigError(f"fraction must lie in [0, 1), got {fraction:g}; 0.9 leaves one weight in ten.")
    if threshold is not None and not threshold >= 0:
        raise ConfigError(f"threshold must be at least 0, got {threshold:g}; 1 keeps what is larger than its sd.")
    if scope not in ("global", "layer"):
        raise ConfigError(f"scope must be 'global' or 'layer', got {scope!r}.")
    if bad := [name for name, score in scores.items() if bool(score.isnan().any())]:
        raise NumericsError(
            f"weights must be numbers to be ranked, but {bad[0]} has NaN among its own or their standard deviations; "
            "lower the learning rate, or clip the gradient."
        )
    units = {name: _units(score, structured) for name, score in scores.items()}
    if threshold is not None:
        kept = {name: unit > threshold for name, unit in units.items()}
    elif scope == "layer":
        kept = {name: _largest([unit], [1], float(fraction or 0.0))[0] for name, unit in units.items()}
    else:
        sizes = [scores[name].numel() // len(unit) for name, unit in units.items()]
        found = _largest(list(units.values()), sizes, float(fraction or 0.0))
        kept = dict(zip(units, found, strict=True))
    if structured:
        for name, unit in units.items():
            kept[name] = kept[name].index_fill(0, unit.argmax(), True)
    return {name: _spread(kept[name], score) for name, score in scores.items()}


def prune(
    model: nn.Module,
    *,
    fraction: float | None = None,
    threshold: float | None = None,
    scope: Scope = "global",
    structured: bool = False,
    skip: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Leave weights out, in place; see `masks`. Biases stay, but of filters that go as a whole, see `silence`.

    Args:
        model: With linear or convolutional layers.
        fraction: Share that is left out.
        threshold: Or a score.
        scope: "global" or "layer".
        structured: Whole neurons or filters.
        skip: Names of layers that stay whole and do not count. None: none; where whole neurons go the last layer, whose
            rows are outputs.

    Returns:
        The masks, by layer.

    Raises:
        ConfigError: As `masks`, or a name in `skip` that is none of a layer.
        SpaceError: There is nothing to prune.
    """
    layers = sorted(prunable(model))
    outputs = [last_layer(model)] if structured and skip is None and layers else []
    skip = outputs if skip is None else skip
    if unknown := sorted(set(skip) - set(layers)):
        raise ConfigError(f"skip must name linear or convolutional layers, got {unknown}; there are {layers}.")
    found = {name: score for name, score in scores(model).items() if name not in skip}
    if not found:
        raise SpaceError(
            f"a network must have linear or convolutional layers{' before the last one' if outputs else ''}, "
            f"{type(model).__name__} has none to prune."
        )
    result = masks(found, fraction=fraction, threshold=threshold, scope=scope, structured=structured)
    apply_masks(model, result)
    if structured:
        silence(model)
    return result


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Leave out what masks by layer say, in place; masks that are there already go on to hold.

    Raises:
        ConfigError: A name is none of a layer, or a mask has another shape.
    """
    layers = prunable(model)
    for name, mask in masks.items():
        if name not in layers or layers[name].weight.shape != mask.shape:
            have = {key: tuple(layer.weight.shape) for key, layer in layers.items()}
            raise ConfigError(
                f"masks must be for the layers {have}, got {name!r} of shape {tuple(mask.shape)}; leave it out."
            )
    for name, mask in masks.items():
        layer: Any = layers[name]
        there = mask_of(layer)
        if there is not None:
            there.mul_(mask)
        else:
            parametrize.register_parametrization(layer, "weight", Mask(mask.to(layer.weight).clone()))


@torch.no_grad()
def silence(model: nn.Module) -> None:
    """Filters without weights give zero, in place: their biases go, and their part of normalization right behind.

    A constant other than zero could not go where a convolution with padding follows: at the edge it sees zeros.
    """
    behind = {id(layer): norm for layer, norm in directly_normalized(model, lambda m: isinstance(m, nn.Conv2d))}
    for layer in (m for m in prunable(model).values() if isinstance(m, nn.Conv2d)):
        gone, norm = ~layer.weight.flatten(1).any(1), behind.get(id(layer))
        for parameter in (layer.bias, getattr(norm, "weight", None), getattr(norm, "bias", None)):
            if parameter is not None:
                parameter[gone] = 0.0


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a pruned network, by layer."""
    found = {name: mask_of(layer) for name, layer in prunable(model).items()}
    return {name: mask for name, mask in found.items() if mask is not None}


def load_pruned(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state dict of a pruned network into one that is not pruned yet, with its masks.

    Raises:
        ConfigError: The state is that of another architecture.
    """
    end = "parametrizations.weight.0.mask"
    masks = {name.removesuffix(end).removesuffix("."): mask for name, mask in state.items() if name.endswith(end)}
    for one in (copy.deepcopy(model), model):  # nothing happens to the model where it fails
        apply_masks(one, masks)
        try:
            one.load_state_dict(dict(state))
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"the state must be that of a network like this one, but: {said}; build the network that was pruned."
            ) from error


def make_permanent(model: nn.Module) -> None:
    """Pruned weights become zeros in plain parameters; the masks go.

    Of Gaussian layers their standard deviations become the smallest that there are.
    """
    for layer in prunable(model).values():
        if (mask := mask_of(layer)) is not None:
            if isinstance(layer, Variational):
                layer.rho.data.masked_fill_(mask == 0, normal.RHO_RANGE[0])
            make_plain(layer)


def mean_network(model: nn.Module) -> nn.Module:
    """A plain network with the means of the Gaussian layers, what is left out still so; the model is left alone."""
    network, masks = copy.deepcopy(model), masks_of(model)
    make_permanent(network)
    network = to_deterministic(network)
    apply_masks(network, masks)
    return network


def kept(model: nn.Module) -> int:
    """Weights of linear and convolutional layers that are not zero."""
    return sum(int(torch.count_nonzero(layer.weight)) for layer in prunable(model).values())


def _units(score: Tensor, structured: bool) -> Tensor:
    return score.flatten(1).mean(1) if structured else score.flatten()


def _spread(kept: Tensor, score: Tensor) -> Tensor:
    shape = (len(kept), *[1] * (score.dim() - 1)) if len(kept) != score.numel() else score.shape
    return kept.reshape(shape).expand(score.shape).to(score.dtype).contiguous()


def _largest(units: list[Tensor], sizes: list[int], fraction: float) -> list[Tensor]:
    """What stays when the smallest units go, until the share of the weights is reached, or one is left; ties by order.

    Args:
        units: Scores, by layer.
        sizes: Weights of a unit, by layer.
        fraction: Of the weights.
    """
    flat = torch.cat(units)
    parts = [torch.full((len(unit),), size, device=flat.device) for unit, size in zip(units, sizes, strict=True)]
    weights = torch.cat(parts)
    order = torch.argsort(flat, stable=True)
    out = min(round(fraction * int(weights.sum())), int(weights.sum()) - 1)
    gone = order[weights[order].cumsum(0) <= out]
    stays = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    stays[gone] = False
    return list(torch.split(stays, [len(unit) for unit in units]))
