"""Cost of every part of a supernet: parameters, multiply-accumulates, milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nni.nas.space import model_context
from torch import Tensor, nn

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.expected import CostModel
from nni_bayes_nas.complexity.latency import LatencyTable, read_latency_table
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.errors import SpaceError

from .cost_walk import Candidate, CostKind, CostWalk, probe_supernet, shape_key, uniform_weights
from .supernet import Binding

__all__ = ["CostKind", "NetworkCounts", "cost_models", "extreme_architecture", "latency_candidates", "uniform_weights"]

_NAMED_MISSING = 5


def cost_models(
    model: nn.Module,
    binding: Binding,
    input_shape: Sequence[int],
    latency_table: LatencyTable | str | Path | None = None,
) -> dict[CostKind, CostModel]:
    """Parameters and multiply-accumulates of every part of a supernet, measured on its real modules and shapes.

    With a latency table also the milliseconds of every part: the table's entry of each candidate that is there, the
    candidates inside it added, and the entry `fixed`.

    Args:
        model: The supernet, as `mutate_model` left it.
        binding: Its binding; the weights are replaced during the measurement.
        input_shape: Shape of one object, without the batch axis.
        latency_table: The table, or its file.

    Raises:
        SpaceError: If the table lacks a candidate; it names the candidate.
        ConfigError: If the table cannot be read.
    """
    if latency_table is not None and not isinstance(latency_table, LatencyTable):
        latency_table = read_latency_table(latency_table)
    units = list(binding.units.values())
    # Normalization by the batch, where guards put it, needs two objects.
    probe = probe_supernet(model, binding, input_shape, batch_size=2)
    entries = _Entries(latency_table, probe.inputs) if latency_table is not None else None
    walk = CostWalk(model, units, {module: macs // 2 for module, macs in probe.macs.items()}, entries)
    walk.visit(model, {})
    kinds: list[CostKind] = ["params", "macs"]
    if entries is not None and latency_table is not None:
        entries.check(latency_table.source)
        walk.constant["latency"] += latency_table.fixed
        kinds.append("latency")
    n_options = tuple(law.n_options(unit) for unit in units)
    return {kind: CostModel(tuple(walk.terms[kind]), walk.constant[kind], n_options, walk.kind) for kind in kinds}


def latency_candidates(model: nn.Module, binding: Binding) -> list[Candidate]:
    """Every candidate of a supernet that a latency table may have an entry for; what is used twice occurs twice."""
    found: list[Candidate] = []

    def note(candidate: Candidate) -> float:
        found.append(candidate)
        return 0.0

    CostWalk(model, list(binding.units.values()), {}, note).visit(model, {})
    return found


class _Entries:
    """What a latency table says of the candidates of a space, and which of them it lacks."""

    def __init__(self, table: LatencyTable, inputs: dict[nn.Module, tuple[Any, ...]]) -> None:
        self.table = table
        self.inputs = inputs
        self.missing: dict[str, None] = {}

    def __call__(self, candidate: Candidate) -> float:
        # A wildcard means operations, not what has choices of its own inside: these have their entries.
        shape = shape_key(self.inputs.get(candidate.module))
        value = self.table.find(candidate.place, candidate.name, shape, wildcards=candidate.needs_an_entry)
        if value is None and candidate.needs_an_entry:
            self.missing[f"{candidate.place}/{candidate.name}"] = None
        return value or 0.0

    def check(self, source: str) -> None:
        """Refuse a table that lacks a candidate."""
        if not self.missing:
            return
        names = list(self.missing)
        more = f" and {len(names) - _NAMED_MISSING} more" if len(names) > _NAMED_MISSING else ""
        raise SpaceError(
            f"every candidate operation needs a latency, but {source} lacks {', '.join(names[:_NAMED_MISSING])}{more}; "
            "add lines for them (the place before the slash may be left out), or measure a table with measure_latency."
        )


class NetworkCounts:
    """Parameters and multiply-accumulates of single architectures, counted on their networks, each of them once.

    Args:
        space: A model space, or the supernet that became of it; it is left alone.
        input_shape: Shape of one object, without the batch axis.
    """

    def __init__(self, space: nn.Module, input_shape: Sequence[int]) -> None:
        self._space: Any = space
        self._input_shape = input_shape
        self._known: dict[tuple[CostKind, str], int] = {}

    def __call__(self, kind: CostKind, choices: dict[str, Any]) -> int:
        """The count of one architecture; its network is built for that and thrown away."""
        key = kind, Architecture(choices).key
        if key not in self._known:
            # New weights are drawn; MixedOperation.freeze of NNI v3.0, which would keep some, fails without a bias.
            with torch.random.fork_rng(devices=[]):
                with model_context(choices):
                    network = type(self._space)(*self._space.trace_args, **self._space.trace_kwargs)
                count = count_parameters(network) if kind == "params" else count_macs(network, self._input_shape)
            self._known[key] = count
        return self._known[key]


def extreme_architecture(cost: CostModel, units: Sequence[law.Unit], sign: float) -> tuple[dict[str, Any], float]:
    """The cheapest (sign -1) or dearest (sign +1) architecture and its cost, by best responses of single units.

    Exact where the cost is a sum over units; the better of two local optima where units multiply (nested choices).
    """
    equal = [law.marginals(u, torch.full(u.shape, 1.0 / u.shape[1], dtype=torch.float64)) for u in units]
    starts = [
        [law.derive(unit, torch.ones(unit.shape)) for unit in units],
        [law.best_response(u, sign * gain) for u, gain in zip(units, _gains(cost, equal)[0], strict=True)],
    ]
    found = [_climb(cost, units, start, sign) for start in starts]
    samples, value = max(found, key=lambda one: sign * one[1])
    return {label: choice for sample in samples for label, choice in sample.items()}, value


def _climb(
    cost: CostModel, units: Sequence[law.Unit], samples: list[dict[str, Any]], sign: float
) -> tuple[list[dict[str, Any]], float]:
    marginals = [law.one_hot(u, s).double() for u, s in zip(units, samples, strict=True)]
    gains, value = _gains(cost, marginals)
    for _ in range(20):
        before = value
        for i, unit in enumerate(units):
            # Gates of a term belong to different units: the gain of a unit does not depend on what it takes now.
            best = law.best_response(unit, sign * gains[i])
            if best == samples[i]:
                continue
            samples[i], marginals[i] = best, law.one_hot(unit, best).double()
            gains, value = _gains(cost, marginals)
        if value == before:
            break
    return samples, value


def _gains(cost: CostModel, marginals: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], float]:
    """d E[cost] / d marginals, and E[cost]."""
    with torch.enable_grad():
        inputs = [m.detach().requires_grad_(True) for m in marginals]
        expected = cost.expected(inputs)
        return torch.autograd.grad(expected, inputs), float(expected.detach())
