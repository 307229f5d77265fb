"""Which parameters to go on optimizing, and which to keep: scores of single ones, and exact choices of k of them.

Everything here is a function of tensors by the name of a parameter. Parameters go together as `groups` says: each on
its own, by neurons or filters, by layers, or as a suffix of the network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim.moments import AdamMoments
from nni_bayes_nas.optim.statistics import GradientStatistics, Part

Criterion = Literal["random", "gradient", "preconditioner", "snr", "effective_perturbation", "gain", "gain_per_flop"]
Granularity = Literal["weight", "neuron", "layer", "prefix"]
Keeping = Literal["magnitude", "z", "random"]
Scope = Literal["global", "layer"]
NEEDS: dict[Criterion, tuple[Part, ...]] = {
    "random": (),
    "gradient": ("moments",),
    "preconditioner": ("moments", "noise"),
    "snr": ("moments", "noise"),
    "effective_perturbation": ("path",),
    "gain": ("moments",),
    "gain_per_flop": ("moments",),
}
"""Criteria, and the statistics that each is made of."""
GRANULARITIES: tuple[Granularity, ...] = ("weight", "neuron", "layer", "prefix")
KEEPING: dict[Keeping, tuple[Part, ...]] = {"magnitude": (), "z": ("chain",), "random": ()}
"""What weights that are kept are ranked by, and the statistics for it."""
_TINY = 1e-30
# Of variances, in units of their mean.
_LEAST_VARIANCE = 1e-3
# What tells entries of a group apart that have one random number, and groups never.
_TIE = 1e-9


def scores(
    criterion: Criterion,
    statistics: GradientStatistics | AdamMoments,
    generator: torch.Generator,
    together: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """How much is to be expected of optimizing each single parameter further; larger: go on.

    - `random`: uniform numbers, one for each group, so that large and small ones have the same chance;
    - `gradient`: mean |g| over the steps that were counted;
    - `preconditioner`: |E g| / Var(g), the step of the optimal preconditioner (`ConstantSGD`), of variances of at least
      a thousandth of the mean of all, as H has a largest entry there;
    - `snr`: |E g| / sqrt(Var(g));
    - `effective_perturbation`: see `GradientStatistics`;
    - `gain`: (E g)^2 / sqrt(E g^2), by how much a step of a rate that is scaled as Adam's lowers the loss;
    - `gain_per_flop`: the same; `choose` divides it by what a group costs.

    Args:
        criterion: One of these.
        statistics: Of some steps; or Adam's own moments, of which there is neither `gradient` nor
            `effective_perturbation`.
        generator: Of `random`.
        together: Of `groups`; None: every entry by itself.

    Raises:
        ConfigError: An unknown criterion, or statistics that were not gathered.
    """
    check_criterion(criterion)
    if criterion == "random":
        if together is None:
            return {n: torch.rand(p.shape, generator=generator).to(p) for n, p in statistics.parameters.items()}
        number = 1 + max((int(ids.max()) for ids in together.values() if ids.numel()), default=-1)
        drawn = torch.rand(number, generator=generator, dtype=torch.float64)
        # Of the group that fits in part, entries at random too.
        own = {n: _TIE * torch.rand(p.shape, generator=generator) for n, p in statistics.parameters.items()}
        return {n: (drawn[together[n].cpu()] + own[n]).to(p.device) for n, p in statistics.parameters.items()}
    if criterion in ("effective_perturbation", "gradient"):
        if isinstance(statistics, AdamMoments):
            raise ConfigError(f"{criterion} is none of moments of gradients; give statistics of steps.")
        return statistics.absolute() if criterion == "gradient" else statistics.effective_perturbation()
    mean = statistics.mean()
    if criterion in ("gain", "gain_per_flop"):
        squares = statistics.second_moment()
        return {name: g.square() / squares[name].clamp_min(_TINY).sqrt() for name, g in mean.items()}
    variance = statistics.variance()
    if criterion == "preconditioner":
        every = sum(float(v.sum()) for v in variance.values()) / sum(v.numel() for v in variance.values())
        least = max(_LEAST_VARIANCE * every, _TINY)
        return {name: g.abs() / variance[name].clamp_min(least) for name, g in mean.items()}
    # Where there is no noise and no gradient, that of a dead input, there is nothing to gain.
    return {
        name: torch.where(g == 0, 0.0, g.abs() / variance[name].clamp_min(_TINY).sqrt()) for name, g in mean.items()
    }


def keeping_scores(by: Keeping, statistics: GradientStatistics, generator: torch.Generator) -> dict[str, Tensor]:
    """How much each parameter is worth keeping.

    |w|; |mean| / sd of w along the steps ("z"), 0 where it has not moved; or chance.

    Raises:
        ConfigError: An unknown rule, or statistics that were not gathered.
    """
    if by not in KEEPING:
        raise ConfigError(f"weights are kept by one of {', '.join(KEEPING)}, got {by!r}.")
    if by == "random":
        return {n: torch.rand(p.shape, generator=generator).to(p) for n, p in statistics.parameters.items()}
    if by == "magnitude":
        return {name: p.detach().abs() for name, p in statistics.parameters.items()}
    # What no step has moved, the weight of an input that is always 0, say, does nothing.
    return {
        name: torch.where(sd > 0, mean.abs() / sd.clamp_min(_TINY), 0.0)
        for name, (mean, sd) in statistics.weights().items()
    }


def groups(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
    """The number of the group of every entry of every parameter, in the order of the network's parameters.

    "neuron": a row of a weight matrix or a filter with its bias; of other parameters, normalization say, an entry each.
    "layer" and "prefix": what a module holds itself. "weight": every entry by itself.

    Returns:
        By name, of the shape of the parameter.

    Raises:
        ConfigError: An unknown granularity.
    """
    if granularity not in GRANULARITIES:
        raise ConfigError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}.")
    found: dict[str, Tensor] = {}
    first, modules = 0, dict[str, int]()
    for name, p in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if granularity == "weight":
            found[name], size = first + torch.arange(p.numel()).reshape(p.shape), p.numel()
        elif granularity == "neuron":
            rows = len(p) if p.dim() else 1
            sibling = found.get(f"{owner}.weight" if owner else "weight")
            if last == "bias" and sibling is not None and len(sibling) == rows:
                found[name], size = sibling.reshape(rows, -1)[:, 0].reshape(p.shape), 0
            else:
                column = torch.arange(rows).reshape(-1, *[1] * (p.dim() - 1)) if p.dim() else torch.tensor(0)
                found[name], size = first + column.expand(p.shape), rows
        else:
            size = int(owner not in modules)
            found[name] = torch.full(p.shape, modules.setdefault(owner, first))
        first += size
    return found


def choose(
    k: int,
    values: Mapping[str, Tensor],
    together: Mapping[str, Tensor] | None = None,
    *,
    allowed: Mapping[str, Tensor] | None = None,
    always: Collection[str] = (),
    costs: Tensor | None = None,
    in_order: bool = False,
) -> dict[str, Tensor]:
    """Exactly k entries: groups of the largest score per entry, as many as fit, and of the next one its best entries.

    Of a budget of entries that is the greedy choice of the largest sum; a large group is not better for being large.

    Args:
        k: How many.
        values: Scores.
        together: Of `groups`; None: every entry by itself.
        allowed: Those that may be chosen, booleans; None: all.
        always: Names of parameters that are chosen before all others.
        costs: Of every group: sums of scores are divided by it, not by the number of entries that may be chosen.
        in_order: Take the last groups, a suffix of the network, whatever the scores.

    Returns:
        Booleans, by name.

    Raises:
        ConfigError: k is negative, or more than may be chosen.
    """
    flat = torch.cat([v.detach().flatten().double() for v in values.values()])
    may = torch.ones_like(flat, dtype=torch.bool)
    if allowed is not None:
        may = torch.cat([allowed[name].flatten() for name in values]).to(flat.device)
    n = int(may.sum())
    if not 0 <= k <= n:
        raise ConfigError(f"what is chosen must be between 0 and {n} parameters, got {k}.")
    ids = torch.arange(len(flat))
    if together is not None:
        ids = torch.cat([together[name].flatten() for name in values])
    ids = ids.to(flat.device)
    first = torch.cat([torch.full((v.numel(),), name in always) for name, v in values.items()]).to(flat.device)
    number = int(ids.max()) + 1 if len(ids) else 0
    sums = flat.new_zeros(number).index_add(0, ids[may], flat[may])
    sizes = torch.bincount(ids[may], minlength=number).clamp_min(1) if costs is None else costs[:number]
    sums = sums / sizes.to(sums)
    rank = torch.arange(number, device=flat.device) if in_order else _places(sums)
    # Sorted by: always, place of the group, own score; stable, so that ties fall to what comes first.
    order = flat.argsort(descending=True, stable=True)
    group_place = -rank[ids] if in_order else rank[ids]
    order = order[group_place[order].argsort(stable=True)]
    order = order[first[order].int().argsort(descending=True, stable=True)]
    order = order[may[order].int().argsort(descending=True, stable=True)]
    chosen = torch.zeros_like(may)
    chosen[order[:k]] = True
    parts = torch.split(chosen, [v.numel() for v in values.values()])
    return {name: part.reshape(v.shape) for (name, v), part in zip(values.items(), parts, strict=True)}


def choose_in_layers(
    k: int,
    values: Mapping[str, Tensor],
    layers: Mapping[str, Tensor],
    together: Mapping[str, Tensor] | None = None,
    *,
    allowed: Mapping[str, Tensor] | None = None,
    always: Collection[str] = (),
    costs: Tensor | None = None,
) -> dict[str, Tensor]:
    """As `choose`, with one share for all layers: of each k times its part of what may be chosen, up to rounding.

    Args:
        k: How many in all.
        values: Scores.
        layers: Of `groups` with granularity "layer".
        together: As there, of groups that lie in one layer.
        allowed: As there.
        always: As there.
        costs: As there.

    Raises:
        ConfigError: k is negative, or more than may be chosen.
    """
    members: dict[int, list[str]] = {}
    for name in values:
        members.setdefault(int(layers[name].flatten()[0]), []).append(name)
    counts = {n: v.numel() if allowed is None else int(allowed[n].sum()) for n, v in values.items()}
    sizes = [sum(counts[name] for name in names) for names in members.values()]
    if not 0 <= k <= sum(sizes):
        raise ConfigError(f"what is chosen must be between 0 and {sum(sizes)} parameters, got {k}.")
    found: dict[str, Tensor] = {}
    for names, share in zip(members.values(), _quotas(k, sizes), strict=True):
        of_layer = [
            None if part is None else {name: part[name] for name in names} for part in (values, together, allowed)
        ]
        found |= choose(share, of_layer[0] or {}, of_layer[1], allowed=of_layer[2], always=always, costs=costs)
    return {name: found[name] for name in values}


def check_criterion(criterion: str) -> None:
    """Raise ConfigError for one that is not known."""
    if criterion not in NEEDS:
        raise ConfigError(f"criterion must be one of {', '.join(NEEDS)}, got {criterion!r}.")


def _quotas(k: int, sizes: list[int]) -> list[int]:
    """Whole numbers with sum k, in proportion to the sizes: rounded down, and up where most is lost."""
    total = max(1, sum(sizes))
    found = [k * size // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: -(k * sizes[i] % total))
    for i in order[: k - sum(found)]:
        found[i] += 1
    return found


def _places(values: Tensor) -> Tensor:
    """The place of each value if the largest is first; ties in their order."""
    order = values.argsort(descending=True, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places
