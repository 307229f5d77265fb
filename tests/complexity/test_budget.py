"""The largest network within a budget: grid and bisection against a known curve."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.complexity.budget import largest_within
from nni_bayes_nas.errors import ConfigError


@given(
    jumps=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12, unique=True),
    budget=st.floats(1.0, 14.0),
)
def test_finds_the_largest_that_fits(jumps: list[float], budget: float) -> None:
    """A size that falls by one at every jump: what fits is known."""

    def size_at(fraction: float) -> float:
        return 1.0 + sum(fraction < jump for jump in jumps)

    found = size_at(largest_within(size_at, budget, "parameters"))
    possible = [1.0 + n for n in range(len(jumps) + 1)]
    best = max(size for size in possible if size <= budget)
    # Two jumps may lie closer together than bisection can see; nothing else is missed.
    ordered = sorted(jumps)
    apart = all(b - a > 1e-6 for a, b in itertools.pairwise(ordered))
    assert found <= budget
    assert found == best or not apart


def test_refuses_an_impossible_budget_with_the_smallest_size() -> None:
    with pytest.raises(ConfigError, match=r"smallest derived network, which has 500 parameters, got 499"):
        largest_within(lambda fraction: 900.0 - 400.0 * fraction, 499, "parameters")
