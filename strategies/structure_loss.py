"""What the structure step minimizes beside the task loss: complexity, monotonicity, L1, the zero-one loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nni_bayes_nas.complexity.expected import CostModel

from .relaxations import zero_one_loss
from .structure import Structure

Scale = Literal["linear", "log"]
Complexity = Literal["none", "penalty", "target"]
_MONOTONICITY_POINTS = 65
# Factor of the target, here while a range is looked for and in HyperDARTS.
TARGET_WEIGHT = 20.0


@dataclass(frozen=True)
class StructureLoss:
    """Named terms of the structure step and their factors.

    Attributes:
        complexity: "none"; "penalty": lambda * E[cost]; "target": (E[cost] - c(u))^2 with c falling linearly in u.
            E[cost] is normalized to [0, 1] between the cheapest and the dearest architecture. At a price there is no
            such term: prices are solved for, so that sizes are the targets, see `SizeControl`.
        target_scale: Whether the target is set on the normalized cost or on its normalized logarithm: then the same
            step of u divides the size by the same factor.
        complexity_weight: Factor of the complexity term.
        target_range: c(0) and c(1).
        temperature: At which the law is sharpened by the end of the search; it falls from 1. The complexity
            term is the mean of that under the law and that under the sharpened one, which sees the derived networks.
        monotonicity: Factor of sum_i max(0, E[cost](u_{i+1}) - E[cost](u_i)) over a grid of lambda: sizes that grow
            with lambda are punished while searching, so that nothing has to be sorted afterwards.
        penalty: lambda of a structure without an axis.
        l1: Factor of sum |alpha|.
        zero_one: Factor of the zero-one loss of Fair DARTS, for relaxation "sigmoid".
    """

    complexity: Complexity = "none"
    complexity_weight: float = 1.0
    target_scale: Scale = "linear"
    target_range: tuple[float, float] = (0.95, 0.05)
    temperature: float = 1.0
    monotonicity: float = 0.0
    penalty: float = 0.0
    l1: float = 0.0
    zero_one: float = 0.0

    def factors(self) -> dict[str, float]:
        """Factors by term."""
        return {
            "complexity": self.complexity_weight,
            "monotonicity": self.monotonicity,
            "l1": self.l1,
            "zero_one": self.zero_one,
        }

    def target(self, fractions: Tensor) -> Tensor:
        """c at fractions of the range of lambda, 0 at the lowest and 1 at the highest."""
        first, last = self.target_range
        return first + (last - first) * fractions

    def terms(
        self, costs: NormalizedCost, positions: list[Tensor], temperature: float, *, exploring: bool = False
    ) -> dict[str, Tensor]:
        """The terms at the positions of a step, `()` or `(batch,)` each.

        Args:
            costs: E[cost] of the structure.
            positions: Of lambda, one tensor per pass.
            temperature: Of the sharpened law in this step.
            exploring: Whether the range of lambda is still looked for: until it is known, sizes follow the target.
        """
        structure, terms = costs.structure, {}
        if self.complexity != "none":
            if not structure.per_node:
                term = self._exploration if exploring else self._complexity
                terms["complexity"] = torch.stack([term(costs, u, temperature) for u in positions]).mean()
            # At a price sizes cannot grow where they are sums.
            guaranteed = structure.per_node and costs.cost.is_sum
            if self.monotonicity and structure.axis is not None and not guaranteed:
                grid = structure.axis.positions(torch.linspace(0, 1, _MONOTONICITY_POINTS)).to(structure.reference)
                terms["monotonicity"] = costs.expected(grid, temperature).diff().clamp_min(0).sum()
        if self.l1:
            terms["l1"] = torch.stack([structure.logits(u).abs().sum(-1).mean() for u in positions]).mean()
        if self.zero_one:
            terms["zero_one"] = torch.stack([zero_one_loss(structure.logits(u)).mean() for u in positions]).mean()
        return terms

    def _complexity(self, costs: NormalizedCost, u: Tensor, temperature: float) -> Tensor:
        if self.complexity == "target":
            return self._miss(costs, u, temperature)
        axis = costs.structure.axis
        price = self.penalty if axis is None else axis.to_lambda(u)
        return torch.stack([(price * costs.expected(u, t)).mean() for t in _laws(temperature)]).mean()

    def _exploration(self, costs: NormalizedCost, u: Tensor, temperature: float) -> Tensor:
        return TARGET_WEIGHT * self._miss(costs, u, temperature)

    def _miss(self, costs: NormalizedCost, u: Tensor, temperature: float) -> Tensor:
        axis = costs.structure.axis
        target = self.target(u if axis is None else axis.fractions(u))
        expected = [costs.expected(u, t, self.target_scale) for t in _laws(temperature)]
        return torch.stack([(cost - target).square().mean() for cost in expected]).mean()

    def size(self, costs: NormalizedCost, flat: Tensor, temperature: float) -> Tensor:
        """What the target is compared with, from outputs of the hypernetwork: the mean of both laws; `(*batch,)`."""
        sizes = [costs.expected_of(flat, t, self.target_scale) for t in _laws(temperature)]
        return torch.stack(sizes).mean(0)


def _laws(temperature: float) -> list[float]:
    """The law itself and the sharpened one, once if they are the same."""
    return list(dict.fromkeys((1.0, temperature)))


@dataclass(frozen=True)
class NormalizedCost:
    """E[cost] of a structure on the scale from the cheapest architecture, 0, to the dearest, 1."""

    structure: Structure
    cost: CostModel
    bounds: tuple[float, float]

    def expected(self, u: Tensor, temperature: float = 1.0, scale: Scale = "linear") -> Tensor:
        """E[cost] at u under the law sharpened by the temperature, normalized on a linear or log scale; `(*batch,)`."""
        return self.expected_of(self.structure.logits(u), temperature, scale)

    def expected_of(self, flat: Tensor, temperature: float = 1.0, scale: Scale = "linear") -> Tensor:
        """As `expected`, from outputs of the hypernetwork, `(*batch, n)`."""
        low, high = self.bounds
        cost = self.structure.expected_of(self.cost, flat, temperature)
        if scale == "linear":
            return (cost - low) / (high - low)
        offset = self._offset
        return ((cost + offset) / (low + offset)).log() / math.log((high + offset) / (low + offset))

    @property
    def _offset(self) -> float:
        # The cheapest architecture may cost nothing at all.
        low, high = self.bounds
        return 0.0 if low > 1e-3 * high else 1e-3 * high
