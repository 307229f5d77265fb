"""The largest derived network within a budget: a grid over lambda, then bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nni_bayes_nas.errors import ConfigError

GRID_POINTS = 65
_BISECTIONS = 30


@dataclass(frozen=True)
class WithinBudget:
    """A derived network that keeps to a budget.

    Attributes:
        lam: Value of lambda at which it is derived.
        choices: The architecture, an NNI sample.
        cost: What it costs, in the unit of the budget.
    """

    lam: float | None
    choices: dict[str, Any]
    cost: float


def largest_within(size_at: Callable[[float], float], budget: float, what: str) -> float:
    """Fraction of the range of lambda whose derived network is the largest within the budget.

    The sizes on an even grid of 65 fractions are looked at first. Between the first of the largest that fit and its
    neighbour at smaller lambda, which does not fit, bisection finds larger ones that the grid has missed.

    Args:
        size_at: Size of the network derived at a fraction of the range, in [0, 1].
        budget: Largest size that is allowed.
        what: Unit of the size, for the error.

    Raises:
        ConfigError: If no network of the grid fits; it names the smallest size.
    """
    sizes = [size_at(i / (GRID_POINTS - 1)) for i in range(GRID_POINTS)]
    fitting = [i for i, size in enumerate(sizes) if size <= budget]
    if not fitting:
        raise ConfigError(
            f"a budget must leave room for the smallest derived network, which has {min(sizes):,.6g} {what}, got "
            f"{budget:,.6g}; raise the budget, or search with a smaller end of target_range."
        )
    best = max(fitting, key=lambda i: (sizes[i], -i))
    fits, largest = best / (GRID_POINTS - 1), sizes[best]
    if best == 0 or sizes[best - 1] <= budget:
        return fits
    too_large = (best - 1) / (GRID_POINTS - 1)
    inside = fits
    for _ in range(_BISECTIONS):
        middle = (too_large + inside) / 2
        size = size_at(middle)
        if size > budget:
            too_large = middle
        else:
            inside = middle
            if size > largest:
                fits, largest = middle, size
    return fits
