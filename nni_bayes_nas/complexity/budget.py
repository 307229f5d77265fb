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
        cost: What it costs, in the unit of the budget: parameters and multiply-accumulates of the network itself.
    """

    lam: float | None
    choices: dict[str, Any]
    cost: float


def largest_within(
    size_at: Callable[[float], float], budget: float, what: str, remedy: str = "search again for smaller networks"
) -> float:
    """Fraction of the range of lambda whose derived network is the largest within the budget.

    The sizes on an even grid of 65 fractions are looked at first. Then, wherever one of two neighbours fits and the
    other does not, bisection finds larger ones that the grid has missed. Sizes need not fall with the fraction; what
    comes and goes between two neighbours that both fit is not seen. Among equal sizes the lowest fraction of the grid.

    Args:
        size_at: Size of the network derived at a fraction of the range, in [0, 1].
        budget: Largest size that is allowed.
        what: Unit of the size, for the error.
        remedy: What can be done about a budget that is too small, beside raising it.

    Raises:
        ConfigError: If no network of the grid fits; it names the smallest size.
    """
    sizes = [size_at(i / (GRID_POINTS - 1)) for i in range(GRID_POINTS)]
    fitting = [i for i, size in enumerate(sizes) if size <= budget]
    if not fitting:
        raise ConfigError(
            f"a budget must leave room for the smallest derived network, which has {min(sizes):,.6g} {what}, got "
            f"{budget:,.6g}; raise the budget, or {remedy}."
        )
    best = max(fitting, key=lambda i: (sizes[i], -i))
    fits, largest = best / (GRID_POINTS - 1), sizes[best]
    for i in range(GRID_POINTS - 1):
        if (sizes[i] <= budget) == (sizes[i + 1] <= budget):
            continue
        inside, too_large = (i, i + 1) if sizes[i] <= budget else (i + 1, i)
        low, high = inside / (GRID_POINTS - 1), too_large / (GRID_POINTS - 1)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            size = size_at(middle)
            if size > budget:
                high = middle
                continue
            low = middle
            if size > largest:
                fits, largest = middle, size
    return fits
