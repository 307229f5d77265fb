"""What the structure step minimizes beside the task loss: complexity, monotonicity, L1, the zero-one loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nni_bayes_nas.complexity.expected import CostModel

from .relaxations import zero_one_loss
from .structure import Structure

Complexity = Literal["none", "penalty", "target"]
_MONOTONICITY_POINTS = 65


@dataclass(frozen=True)
class StructureLoss:
    """Named terms of the structure step and their factors.

    Attributes:
        complexity: "none"; "penalty": lambda * E[cost]; "target": (E[cost] - c(u))^2 with c falling linearly in u.
            E[cost] is normalized to [0, 1] between the cheapest and the dearest architecture.
        complexity_weight: Factor of the complexity term.
        target_range: c(0) and c(1). With an automatic range of lambda, what its two ends are moved to.
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

    def terms(self, costs: NormalizedCost, positions: list[Tensor], temperature: float) -> dict[str, Tensor]:
        """The terms at the positions of a step, `()` or `(batch,)` each.

        Args:
            costs: E[cost] of the structure.
            positions: Of lambda, one tensor per pass.
            temperature: Of the sharpened law in this step.
        """
        structure, terms = costs.structure, {}
        if self.complexity != "none":
            terms["complexity"] = torch.stack([self._complexity(costs, u, temperature) for u in positions]).mean()
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
        expected = [costs.expected(u, t) for t in dict.fromkeys((1.0, temperature))]
        axis = costs.structure.axis
        if self.complexity == "target":
            target = self.target(u if axis is None else axis.fractions(u))
            return torch.stack([(cost - target).square().mean() for cost in expected]).mean()
        price = self.penalty if axis is None else axis.to_lambda(u)
        return torch.stack([(price * cost).mean() for cost in expected]).mean()


@dataclass(frozen=True)
class NormalizedCost:
    """E[cost] of a structure on the scale from the cheapest architecture, 0, to the dearest, 1."""

    structure: Structure
    cost: CostModel
    bounds: tuple[float, float]

    def expected(self, u: Tensor, temperature: float = 1.0) -> Tensor:
        """E[cost] at u under the law sharpened by the temperature; `(*batch,)`."""
        low, high = self.bounds
        return (self.structure.expected_cost(self.cost, u, temperature) - low) / (high - low)
