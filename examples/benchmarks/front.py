"""Fronts of size and accuracy: hypervolume, strata of sizes, paired comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Point(NamedTuple):
    """A trained network."""

    params: float
    accuracy: float


@dataclass(frozen=True)
class Reference:
    """The box in which a front is measured: from `smallest` parameters to `largest`, above `accuracy`.

    A network of `largest` parameters or of `accuracy` adds nothing to a front.
    """

    smallest: float
    largest: float
    accuracy: float


def best_at(points: Sequence[Point], size: float) -> float | None:
    """The best accuracy among networks of at most `size` parameters; None if there are none."""
    return max((point.accuracy for point in points if point.params <= size), default=None)


def hypervolume(points: Sequence[Point], reference: Reference) -> float:
    """Share of the box that the points dominate, the size on a logarithmic axis.

    The integral over log size of max(0, best accuracy up to that size - reference accuracy), divided by the area of
    the box; 1 for a network of the smallest size without an error.
    """
    sizes = sorted({min(max(p.params, reference.smallest), reference.largest) for p in points})
    total = 0.0
    for i, size in enumerate(sizes):
        following = sizes[i + 1] if i + 1 < len(sizes) else reference.largest
        best = best_at(points, size)
        if best is None:  # every point is larger than the box
            continue
        total += max(0.0, best - reference.accuracy) * math.log(following / size)
    return total / ((1 - reference.accuracy) * math.log(reference.largest / reference.smallest))


def chosen(points: Sequence[Point], by: Sequence[float]) -> list[Point]:
    """The points that no smaller or equal one beats in `by` (their validation accuracies): a front chosen without test
    data."""
    order = sorted(range(len(points)), key=lambda i: (points[i].params, -by[i]))
    front, best = [], -math.inf
    for i in order:
        if by[i] > best:
            best = by[i]
            front.append(points[i])
    return front


def chosen_hypervolume(points: Sequence[Point], by: Sequence[float], reference: Reference) -> float:
    """Hypervolume where the network for a size is the best by `by`, and counts with its own accuracy, good or bad."""
    front = chosen(points, by)
    total = 0.0
    for i, point in enumerate(front):
        start = max(point.params, reference.smallest)
        end = min(front[i + 1].params if i + 1 < len(front) else reference.largest, reference.largest)
        if end > start:
            total += max(0.0, point.accuracy - reference.accuracy) * math.log(end / start)
    return total / ((1 - reference.accuracy) * math.log(reference.largest / reference.smallest))


def strata(smallest: float, largest: float, n: int) -> list[tuple[float, float]]:
    """`n` intervals of sizes of equal width in log size; the last one holds its upper end."""
    edges = [smallest * (largest / smallest) ** (i / n) for i in range(n + 1)]
    edges[-1] = largest * (1 + 1e-9)
    return list(pairwise(edges))


@dataclass(frozen=True)
class Paired:
    """First minus second, over the seeds: mean, standard deviation, standard error of the mean."""

    mean: float
    sd: float
    se: float
    n: int


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The difference of two arms that share their seeds; sd and se are 0 for one seed."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    sd = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return Paired(statistics.fmean(differences), sd, sd / math.sqrt(len(differences)), len(differences))
