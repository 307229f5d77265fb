"""Weighted sampling without replacement against enumeration and Monte Carlo."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.bayes import subsets

weights_and_k = st.integers(2, 5).flatmap(
    lambda n: st.tuples(st.lists(st.floats(0.01, 10.0), min_size=n, max_size=n), st.integers(1, n))
)


@given(weights_and_k)
def test_sets_sum_to_one_and_give_the_inclusion_probabilities(case: tuple[list[float], int]) -> None:
    values, k = case
    weights = torch.tensor(values, dtype=torch.float64)
    expected = torch.zeros_like(weights)
    total = 0.0
    for subset in itertools.combinations(range(len(values)), k):
        p = subsets.log_prob(weights.log(), subset).exp()
        total += float(p)
        expected[list(subset)] += p
    assert total == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(subsets.inclusion_probabilities(weights.log(), k), expected, rtol=1e-10, atol=1e-12)


def test_two_of_three_by_hand() -> None:
    # P({0, 1}) = 1/2 * (1/3)/(1/2) + 1/3 * (1/2)/(2/3) with weights 3, 2, 1
    weights = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    assert float(subsets.log_prob(weights.log(), [0, 1]).exp()) == pytest.approx(1 / 3 + 1 / 4, abs=1e-12)


def test_inclusion_is_stable_when_one_weight_dominates() -> None:
    log_weights = torch.tensor([0.0, -500.0, -500.0 + math.log(2)], requires_grad=True)
    p = subsets.inclusion_probabilities(log_weights, 2)
    torch.testing.assert_close(p, torch.tensor([1.0, 1 / 3, 2 / 3]), rtol=1e-4, atol=1e-6)
    p[1].backward()
    assert log_weights.grad is not None and torch.isfinite(log_weights.grad).all()


def test_sampling_follows_the_inclusion_probabilities() -> None:
    weights = torch.tensor([0.5, 0.2, 0.2, 0.1])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    n = 4000
    for _ in range(n):
        counts[subsets.sample(weights.log(), 2, generator)] += 1
    p = subsets.inclusion_probabilities(weights.log(), 2)
    assert ((counts / n - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


def test_entropy_of_equal_weights_is_the_log_of_the_number_of_sets() -> None:
    assert float(subsets.entropy(torch.zeros(4, dtype=torch.float64), 2)) == pytest.approx(math.log(6))


@pytest.mark.parametrize("k", [0, 4])
def test_impossible_sizes_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="1 <= k <= n"):
        subsets.inclusion_probabilities(torch.ones(3), k)
