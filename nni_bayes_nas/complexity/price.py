"""Outputs that fall in proportion to cost, at prices that are solved for: sizes cannot grow with lambda."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nni_bayes_nas.complexity.hypernet import hat_basis

_LARGEST_PRICE = 1e3
# Prices are looked for this far around the last ones, then further away, and found this exactly.
_BRACKET = 1.0
_PRECISION = 1e-3
# Sizes that answer to their price less than this say nothing about the scores.
_LEAST_SLOPE = 1e-6

Size = Callable[[Tensor], Tensor]


class PriceHypernet(nn.Module):
    """Map u to alpha(u) = b - p(u) c: one learned score per option, and one price p(u) on its cost c.

    It is the original family alpha = lambda b1 + b2 with the direction b1 = -c given and a scale that never falls with
    lambda. Whatever maximizes <alpha(u), z> over a set of architectures z, the cost <c, z> of the
    maximizer never grows with u: for u < v with maximizers y, z, adding <alpha(u), y> >= <alpha(u), z> and
    <alpha(v), z> >= <alpha(v), y> gives (p(v) - p(u)) (<c, y> - <c, z>) >= 0. So sizes as derived cannot grow with
    lambda where the cost is a sum over the options.

    The prices are not learned: `solve_prices` finds those at which sizes are what is asked for, S(b - p_k c) = t_k at
    every knot. They are functions of the scores, and a loss that depends on both has the gradient of
    `reduced_gradient`.

    Args:
        n_outputs: Number of options.
        n_knots: Knots of the price, which is piecewise linear in u.

    Attributes:
        costs: c, non-negative, the largest of them 1; `(n_outputs,)`.
        scores: b, `(n_outputs,)`.
        knots: p at the knots, never falling; `(n_knots,)`.
    """

    costs: Tensor

    def __init__(self, n_outputs: int, *, n_knots: int = 9) -> None:
        super().__init__()
        if n_knots < 2:
            raise ValueError(f"n_knots must be at least 2, got {n_knots}.")
        self.scores = nn.Parameter(torch.zeros(n_outputs))
        self.knots = nn.Parameter(torch.zeros(n_knots))
        self.register_buffer("costs", torch.zeros(n_outputs))

    @property
    def reference(self) -> Tensor:
        """A tensor of the device and dtype of the outputs."""
        return self.scores

    def initialize(self, values: Tensor) -> None:
        """Set the scores b to these values, `(n_outputs,)`."""
        with torch.no_grad():
            self.scores.copy_(values)

    def set_costs(self, costs: Tensor) -> None:
        """Set c in proportion to the cost of every option, `(n_outputs,)`."""
        with torch.no_grad():
            self.costs.copy_(costs / costs.max().clamp_min(1e-12))

    def prices(self, u: Tensor, *, extrapolate: bool = False) -> Tensor:
        """p(u), never falling; any shape. Raises ValueError outside [0, 1] unless asked to extrapolate."""
        return hat_basis(u.to(self.knots.dtype), len(self.knots), extrapolate=extrapolate) @ self.knots

    def forward(self, u: Tensor, *, extrapolate: bool = False) -> Tensor:
        """alpha(u); `(*batch,)` -> `(*batch, n_outputs)`."""
        return self.scores - self.prices(u, extrapolate=extrapolate).unsqueeze(-1) * self.costs


def solve_prices(scores: Tensor, costs: Tensor, prices: Tensor, size: Size, targets: Tensor) -> Tensor:
    """Prices p_k with S(b - p_k c) = t_k by bisection, at all knots, and of several networks, at once.

    Begins around the prices that stand. A target that no price reaches gets the largest or smallest one. What several
    networks share is the call of `size`: each gets what it would get alone.

    Args:
        scores: b, `(*batch, n)`.
        costs: c, `(n,)`.
        prices: Where to begin, `(*batch, k)`.
        size: S, of outputs `(..., n)` -> `(...)`; falls in the price.
        targets: t, falling, `(*batch, k)`.

    Returns:
        `(*batch, k)`, never falling.
    """
    scores = scores.unsqueeze(-2)

    def size_at(trial: Tensor) -> Tensor:
        return size(scores - trial.unsqueeze(-1) * costs)

    def missed(width: Tensor) -> Tensor:
        outside = (size_at(prices - width) < targets) | (size_at(prices + width) > targets)
        return outside.any(-1, keepdim=True) & (width < _LARGEST_PRICE)

    width = torch.full_like(prices[..., :1], _BRACKET)
    while bool((wider := missed(width)).any()):
        width = torch.where(wider, 8 * width, width)
    low, high = prices - width, prices + width
    halvings = (2 * width / _PRECISION).log2().ceil()
    for done in range(int(halvings.max())):
        middle = (low + high) / 2
        too_large, unfinished = size_at(middle) > targets, done < halvings
        low = torch.where(unfinished & too_large, middle, low)
        high = torch.where(unfinished & ~too_large, middle, high)
    return ((low + high) / 2).clamp(-_LARGEST_PRICE, _LARGEST_PRICE).cummax(-1).values


def reduced_gradient(
    scores: Tensor, costs: Tensor, prices: Tensor, size: Size, of_scores: Tensor, of_prices: Tensor
) -> Tensor:
    """Gradient along the scores of a loss whose prices follow them: dL/db + sum_k dL/dp_k dp_k/db, `(*batch, n)`.

    By the implicit function theorem, S(b - p_k c) = t_k gives dp_k/db = -(dS_k/db) / (dS_k/dp_k). It is zero along
    a common multiple of the costs: scores compete at equal size.

    Args:
        scores: b, `(*batch, n)`.
        costs: c, `(n,)`.
        prices: p, `(*batch, k)`.
        size: S, as in `solve_prices`.
        of_scores: dL/db at fixed prices, `(*batch, n)`.
        of_prices: dL/dp at fixed scores, `(*batch, k)`.
    """
    with torch.enable_grad():
        outputs = (scores.detach().unsqueeze(-2) - prices.detach().unsqueeze(-1) * costs).requires_grad_(True)
        (slopes,) = torch.autograd.grad(size(outputs).sum(), outputs)
    of_price = -(slopes @ costs)
    steep = of_price < -_LEAST_SLOPE
    weights = torch.where(steep, -of_prices / torch.where(steep, of_price, -1.0), 0.0)
    return of_scores + (weights.unsqueeze(-2) @ slopes).squeeze(-2)
