"""What is read off a search: derived architectures over the range of lambda, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.coercion import coerce
from nni_bayes_nas.complexity.axis import Axis
from nni_bayes_nas.complexity.budget import WithinBudget, largest_within
from nni_bayes_nas.complexity.expected import CostModel
from nni_bayes_nas.errors import ConfigError

from .costs import CostKind, NetworkCounts, extreme_architecture
from .structure import Structure

_FAMILY_POINTS = 33
_FINEST_POINTS = 257


class DerivedFamily:
    """The part of a `DifferentiableStrategy` that needs no search module; what it reads is that class's."""

    model_space: Any
    _costs: dict[CostKind, CostModel]
    _counts: NetworkCounts

    @property
    def structure(self) -> Structure:
        """The distribution over structures."""
        raise NotImplementedError

    def predicted_cost(self, kind: CostKind, choices: dict[str, Any]) -> float:
        """Cost of one architecture by the model of the expectation; equals the count on the network for cell spaces."""
        return float(self._costs[kind].expected([law.one_hot(unit, choices).double() for unit in self.structure.units]))

    def extreme(self, kind: CostKind, sign: float) -> tuple[dict[str, Any], float]:
        """The cheapest (sign -1) or dearest (sign +1) architecture and its cost, by the model of the expectation."""
        return extreme_architecture(self._costs[kind], self.structure.units, sign)

    def exact_cost(self, kind: CostKind, choices: dict[str, Any]) -> float:
        """The same, but counted on a network built anew where the model is not exact; latency is always the table's."""
        if kind == "latency" or self._costs[kind].kind == "exact":
            return self.predicted_cost(kind, choices)
        return float(self._counts(kind, choices))

    @property
    def axis(self) -> Axis | None:
        """Range of lambda, or None."""
        return self.structure.axis

    def export(self, lam: float | None = None, *, extrapolate: bool = False) -> dict[str, Any]:
        """The derived architecture at lambda, as an NNI sample; costs no optimizer step.

        Raises:
            ConfigError: If lambda lies outside the trained range, unless asked to extrapolate.
        """
        return self.structure.export(lam, extrapolate=extrapolate)

    def posterior(self, lam: float | None = None) -> ArchitecturePosterior:
        """q(architecture) at lambda: the law at the mean probabilities of the structure."""
        structure = self.structure
        with torch.no_grad():
            return ArchitecturePosterior(structure.units, structure.probs(structure.position(lam)))

    def for_budget(
        self, *, max_params: float | None = None, max_macs: float | None = None, max_latency: float | None = None
    ) -> WithinBudget:
        """The largest derived network within a budget, on a grid of 65 lambda and by bisection between them.

        Spaces whose cost model is not exact, as with mutable operations, take time: their networks are built.

        Args:
            max_params: Largest number of parameters.
            max_macs: Largest number of multiply-accumulates for one object.
            max_latency: Largest latency, in the unit of the latency table.

        Raises:
            ConfigError: Unless exactly one budget is given, or if it cannot be met; it names the smallest size.
        """
        budgets: dict[CostKind, float | None] = {"params": max_params, "macs": max_macs, "latency": max_latency}
        given = [(kind, value) for kind, value in budgets.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(
                f"give one budget of max_params, max_macs and max_latency, got {len(given)}; call once for each."
            )
        kind, budget = given[0][0], coerce(given[0][1], float, f"max_{given[0][0]}")
        if not self._costs:
            raise RuntimeError("sizes are known only after the model space was measured; run the strategy first.")
        if kind not in self._costs:
            raise ConfigError("max_latency needs the cost of a latency table; search with cost='latency'.")

        def lam_at(fraction: float) -> float | None:
            axis = self.axis
            return None if axis is None else float(axis.to_lambda(axis.positions(torch.tensor(fraction).double())))

        def size_at(fraction: float) -> float:
            return self.exact_cost(kind, self.export(lam_at(fraction)))

        unit = {"params": "parameters", "macs": "multiply-accumulates", "latency": "of latency"}[kind]
        lam = lam_at(largest_within(size_at, budget, unit, self._smaller_networks()))
        choices = self.export(lam)
        return WithinBudget(lam, choices, self.exact_cost(kind, choices))

    def _smaller_networks(self) -> str:
        """How to get networks that are smaller than the smallest derived one."""
        found = self.structure.found
        if found and self.axis is not None and found[-1][0] > self.axis.high:
            return f"search with a wider lambda_range: sizes fall until lambda is {found[-1][0]:.3g}"
        return "search again for smaller networks"

    def lambdas(self, n: int) -> list[float | None]:
        """`n` values over the range of lambda, or [None] without one."""
        return [None] if self.axis is None else list(self.axis.grid(n))

    def list_models(self, sort: bool = True, limit: int | None = 1) -> Iterator[Any]:
        """`limit` distinct derived architectures over the range of lambda, both ends included, the largest first.

        Fewer if a fine grid of lambda has fewer; a strategy without lambda has one. None gives all of 33 positions.
        """
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be at least 1, got {limit}; None gives all networks of a grid.")
        wanted = points = limit or _FAMILY_POINTS
        family = self._family(points)
        while limit is not None and len(family) < wanted and points < _FINEST_POINTS and self.axis is not None:
            points = 2 * points - 1
            family = self._family(points)
        n = min(wanted, len(family))
        for i in range(n):
            yield self.model_space.freeze(family[round(i * (len(family) - 1) / max(1, n - 1))])

    def _family(self, points: int) -> list[dict[str, Any]]:
        """The distinct architectures on a grid of lambda, in its order."""
        family: dict[str, dict[str, Any]] = {}
        for lam in self.lambdas(points):
            sample = self.export(lam)
            family.setdefault(Architecture(sample).key, sample)
        return list(family.values())
