"""Outputs that fall in proportion to cost, at a price that grows with u: sizes cannot grow with lambda."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nni_bayes_nas.complexity.hypernet import hat_basis

_LARGEST_PRICE = 30.0
_BISECTIONS = 50


class PriceHypernet(nn.Module):
    """Map u to alpha(u) = b - p(u) c: one learned score per option, and one price p(u) on its cost c.

    It is the seed's linear family alpha = lambda b1 + b2 with the direction b1 = -c given and a learned, never
    falling, scale of lambda. Whatever maximizes <alpha(u), z> over a set of architectures z, the cost <c, z> of the
    maximizer never grows with u: for u < v with maximizers y, z, adding <alpha(u), y> >= <alpha(u), z> and
    <alpha(v), z> >= <alpha(v), y> gives (p(v) - p(u)) (<c, y> - <c, z>) >= 0. So sizes as derived cannot grow with
    lambda where the cost is a sum over the options.

    Args:
        n_outputs: Number of options.
        n_knots: Knots of the price, which is piecewise linear in u.

    Attributes:
        costs: c, non-negative, the largest of them 1; `(n_outputs,)`.
        scores: b, `(n_outputs,)`.
    """

    costs: Tensor

    def __init__(self, n_outputs: int, *, n_knots: int = 5) -> None:
        super().__init__()
        if n_knots < 2:
            raise ValueError(f"n_knots must be at least 2, got {n_knots}.")
        self.scores = nn.Parameter(torch.zeros(n_outputs))
        self.first = nn.Parameter(torch.zeros(()))
        self.steps = nn.Parameter(torch.zeros(n_knots - 1))
        self.register_buffer("costs", torch.zeros(n_outputs))

    @property
    def reference(self) -> Tensor:
        """A tensor of the device and dtype of the outputs."""
        return self.scores

    def initialize(self, values: Tensor) -> None:
        """Set the scores b to these values, `(n_outputs,)`."""
        with torch.no_grad():
            self.scores.copy_(values)

    def set_costs(self, costs: Tensor, expected: Callable[[Tensor], Tensor], targets: Sequence[float]) -> None:
        """Set c, and prices at the knots with which E[cost] is what is asked for.

        Args:
            costs: Cost of every option, `(n_outputs,)`.
            expected: E[cost] of outputs `(n_outputs,)`; falls in the price.
            targets: E[cost] at the knots, falling.
        """
        with torch.no_grad():
            self.costs.copy_(costs / costs.max().clamp_min(1e-12))
            prices = torch.stack([self._price_for(expected, target) for target in targets])
            self.first.copy_(prices[0])
            # softplus^-1 of the increments
            self.steps.copy_(prices.diff().clamp_min(1e-3).expm1().log())

    def _price_for(self, expected: Callable[[Tensor], Tensor], target: float) -> Tensor:
        low, high = -_LARGEST_PRICE, _LARGEST_PRICE
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = float(expected(self.scores - middle * self.costs)) > target
            low, high = (middle, high) if above else (low, middle)
        return self.scores.new_tensor((low + high) / 2)

    def prices(self, u: Tensor, *, extrapolate: bool = False) -> Tensor:
        """p(u), never falling; any shape. Raises ValueError outside [0, 1] unless asked to extrapolate."""
        knots = torch.cat([self.first.unsqueeze(0), self.first + nn.functional.softplus(self.steps).cumsum(0)])
        return hat_basis(u.to(knots.dtype), len(knots), extrapolate=extrapolate) @ knots

    def forward(self, u: Tensor, *, extrapolate: bool = False) -> Tensor:
        """alpha(u); `(*batch,)` -> `(*batch, n_outputs)`."""
        return self.scores - self.prices(u, extrapolate=extrapolate).unsqueeze(-1) * self.costs
