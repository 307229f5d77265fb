"""The range of lambda that matters to a penalty: from the slopes of validation loss against cost."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

_WIDENING = 2.0
_DECADES = 3.0
_LEAST_STEP = 0.01
GRID_POINTS = 9


def hull_corners(costs: Tensor, losses: Tensor) -> list[int]:
    """The corners of the lower convex hull of the points (E, L), from the dearest to the cheapest, as indices.

    What minimizes L + lambda E over the points is a corner of the hull: the dearest one while lambda is smaller than
    the slope -dL/dE to the next, the cheapest once it is larger than the last slope.

    Args:
        costs: E, `(n,)`, n >= 2, not all equal.
        losses: L, `(n,)`.
    """
    points = list(zip(costs.tolist(), losses.tolist(), strict=True))
    hull: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if hull and points[hull[-1]][0] == points[i][0]:
            continue
        while len(hull) > 1 and _slope(points[hull[-2]], points[hull[-1]]) >= _slope(points[hull[-1]], points[i]):
            hull.pop()
        hull.append(i)
    # Corners at nearly equal costs would turn the noise of the loss into slopes; both ends stay.
    apart = hull[:1]
    for i in hull[1:-1]:
        if min(points[apart[-1]][0] - points[i][0], points[i][0] - points[hull[-1]][0]) >= _LEAST_STEP:
            apart.append(i)
    return [*apart, *hull[1:][-1:]]


def hull_slopes(costs: Tensor, losses: Tensor) -> Tensor:
    """-dL/dE between the corners of the lower convex hull, from the dearest to the cheapest; `(m,)`, growing."""
    points = list(zip(costs.tolist(), losses.tolist(), strict=True))
    corners = hull_corners(costs, losses)
    return costs.new_tensor([_slope(points[a], points[b]) for a, b in itertools.pairwise(corners)])


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

    def points(self, positions: Tensor) -> list[tuple[float, float]] | None:
        """Which position of the grid minimizes loss + lambda cost, as a table of (lambda, position), both growing.

        At the slope between two corners of the hull lambda stands halfway between them; the table ends a factor of 2
        beyond the first and the last slope, which span at most three decades. Corners that are dearer and no better
        have no lambda. None while nothing was observed, or where larger networks are no better at all.

        Args:
            positions: Of the grid, growing as costs fall; `(GRID_POINTS,)`.
        """
        if int(self.n) == 0 or float(self.costs.max() - self.costs.min()) < 1e-9:
            return None
        costs, losses, at = self.costs / self.n, self.losses / self.n, positions.tolist()
        slopes = hull_slopes(costs, losses).tolist()
        corners = hull_corners(costs, losses)
        steps = [(s, a, b) for s, (a, b) in zip(slopes, itertools.pairwise(corners), strict=True) if s > 0]
        if not steps:
            return None
        last = steps[-1][0]
        first = max(steps[0][0], last * 10**-_DECADES)
        between = {max(slope, first): (at[a] + at[b]) / 2 for slope, a, b in steps}
        return [(first / _WIDENING, at[steps[0][1]]), *between.items(), (last * _WIDENING, at[steps[-1][2]])]

    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest lambda that matter, or None, as for `points`."""
        points = self.points(torch.linspace(0, 1, GRID_POINTS))
        return None if points is None else (points[0][0], points[-1][0])
