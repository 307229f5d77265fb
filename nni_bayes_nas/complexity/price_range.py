"""The range of lambda that matters to a penalty: from the slopes of validation loss against cost."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

_WIDENING = 2.0
_DECADES = 3.0
_LEAST_STEP = 0.01
GRID_POINTS = 9


def hull_slopes(costs: Tensor, losses: Tensor) -> Tensor:
    """-dL/dE along the lower convex hull of the points (E, L), from the dearest to the cheapest; `(m,)`, growing.

    What minimizes L + lambda E over the points is a corner of the hull: the dearest point while lambda is smaller than
    the first slope, the cheapest once it is larger than the last.

    Args:
        costs: E, `(n,)`, n >= 2, not all equal.
        losses: L, `(n,)`.
    """
    points = sorted(zip(costs.tolist(), losses.tolist(), strict=True), key=lambda point: (-point[0], point[1]))
    hull: list[tuple[float, float]] = []
    for point in points:
        if hull and hull[-1][0] == point[0]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    # Corners at nearly equal costs would turn the noise of the loss into slopes; both ends stay.
    apart = hull[:1]
    for point in hull[1:-1]:
        if min(apart[-1][0] - point[0], point[0] - hull[-1][0]) >= _LEAST_STEP:
            apart.append(point)
    hull = [*apart, *hull[1:][-1:]]
    return costs.new_tensor([_slope(a, b) for a, b in itertools.pairwise(hull)])


def _slope(dear: tuple[float, float], cheap: tuple[float, float]) -> float:
    return (cheap[1] - dear[1]) / (dear[0] - cheap[0])


class PriceRange(nn.Module):
    """Means of validation loss and normalized cost on a grid of positions of lambda, and the range they give.

    Its state is in buffers, so that a resumed search goes on with it.
    """

    losses: Tensor
    costs: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("losses", "costs"):
            self.register_buffer(name, torch.zeros(GRID_POINTS, dtype=torch.float64))
        self.register_buffer("n", torch.zeros((), dtype=torch.int64))

    def observe(self, costs: Tensor, losses: Tensor) -> None:
        """Add one observation of the grid, both `(GRID_POINTS,)`."""
        self.costs += costs.to(self.costs)
        self.losses += losses.to(self.losses)
        self.n += 1

    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest lambda that matter, a factor of 2 beyond the first and the last slope.

        The slopes span at most three decades. None while nothing was observed, or where larger networks are no better.
        """
        if int(self.n) == 0 or float(self.costs.max() - self.costs.min()) < 1e-9:
            return None
        slopes = hull_slopes(self.costs / self.n, self.losses / self.n)
        if len(slopes) == 0:
            return None
        last = float(slopes[-1])
        if not last > 0:
            return None
        first = max(float(slopes[0]), last * 10**-_DECADES)
        return first / _WIDENING, last * _WIDENING
