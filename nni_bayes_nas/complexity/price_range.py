"""What lambda means to a penalty: from the slopes of validation loss against cost."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

_WIDENING = 2.0
_DECADES = 3.0
_LEAST_STEP = 0.01
GRID_POINTS = 9


class HullStep(NamedTuple):
    """From one corner of a hull to the next: the slope -dL/dE, and the indices of the dearer and the cheaper corner."""

    slope: float
    dear: int
    cheap: int


def hull_steps(costs: Tensor, losses: Tensor) -> list[HullStep]:
    """The lower convex hull of the points (E, L), from the dearest to the cheapest; its slopes grow.

    What minimizes L + lambda E over the points is a corner of the hull: the dearest one while lambda is smaller than
    the first slope, the cheapest once it is larger than the last.

    Args:
        costs: E, `(n,)`, n >= 2, not all equal.
        losses: L, `(n,)`.
    """
    points: list[tuple[float, float]] = list(zip(costs.tolist(), losses.tolist(), strict=True))

    def slope(dear: int, cheap: int) -> float:
        return (points[cheap][1] - points[dear][1]) / (points[dear][0] - points[cheap][0])

    hull: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if hull and points[hull[-1]][0] == points[i][0]:
            continue
        while len(hull) > 1 and slope(hull[-2], hull[-1]) >= slope(hull[-1], i):
            hull.pop()
        hull.append(i)
    # Corners at nearly equal costs would turn the noise of the loss into slopes; both ends stay.
    apart = hull[:1]
    for i in hull[1:-1]:
        if min(points[apart[-1]][0] - points[i][0], points[i][0] - points[hull[-1]][0]) >= _LEAST_STEP:
            apart.append(i)
    return [HullStep(slope(a, b), a, b) for a, b in itertools.pairwise([*apart, *hull[1:][-1:]])]


class PriceRange(nn.Module):
    """Means of validation loss and normalized cost on a grid of positions, and the lambda that they give.

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
        at = positions.tolist()
        steps = [step for step in hull_steps(self.costs / self.n, self.losses / self.n) if step.slope > 0]
        if not steps:
            return None
        last = steps[-1].slope
        first = max(steps[0].slope, last * 10**-_DECADES)
        between = {max(slope, first): (at[dear] + at[cheap]) / 2 for slope, dear, cheap in steps}
        return [(first / _WIDENING, at[steps[0].dear]), *between.items(), (last * _WIDENING, at[steps[-1].cheap])]
