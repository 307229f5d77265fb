"""A posterior over a list of architectures: numbers by hand, and what is no distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_bayes_nas.bayes.candidates import CandidatePosterior
from nni_bayes_nas.errors import ConfigError

CHOICES = [{"a": "x", "b": [0, 1]}, {"a": "y", "b": [0, 1]}, {"a": "x", "b": [1, 2]}]


def posterior(probabilities=(0.5, 0.5, 0.0), mean=(0.1, 0.2, -1.0), choices=CHOICES):
    return CandidatePosterior(choices, probabilities, mean, [0.3] * len(mean))


def test_by_hand():
    q = posterior()
    assert q.log_prob({"b": [0, 1], "a": "y"}) == pytest.approx(math.log(0.5))
    assert q.log_prob(CHOICES[2]) == q.log_prob({"a": "z", "b": [0, 1]}) == -math.inf
    assert q.entropy() == pytest.approx(math.log(2)) and len(q) == 3
    # Of equal ones that of the larger mean.
    assert [one.choices for one in q.top_k(3)] == [CHOICES[1], CHOICES[0], CHOICES[2]]
    assert q.inclusion()["a"] == {"x": 0.5, "y": 0.5} and q.inclusion()["b"] == {"0": 1.0, "1": 1.0, "2": 0.0}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda p: sum(p) > 0.1))
def test_draws_have_the_probabilities(weights):
    q = posterior([w / sum(weights) for w in weights])
    drawn = q.sample(2000, torch.Generator().manual_seed(0))
    for one in CHOICES:
        p = math.exp(q.log_prob(one))
        assert abs(drawn.count(one) / 2000 - p) <= 5 * math.sqrt(p * (1 - p) / 2000) + 1e-9
    assert math.fsum(math.exp(q.log_prob(one)) for one in CHOICES) == pytest.approx(1.0)
    assert 0 <= q.entropy() <= math.log(3) + 1e-9


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"probabilities": (0.5, 0.5)}, "a mean and a standard deviation each, got 3, 2, 3 and 3"),
        ({"probabilities": (0.5, 0.9, 0.0)}, "must sum to one, got 1.4"),
        ({"probabilities": (1.5, -0.5, 0.0)}, "must sum to one, got 1.0 from -0.5 up"),
        ({"choices": [CHOICES[0], CHOICES[0], CHOICES[1]]}, "candidates must differ, got 1 twice"),
    ],
)
def test_what_is_no_distribution(change, match):
    with pytest.raises(ConfigError, match=match):
        posterior(**change)


def test_numbers_that_cannot_be():
    q = posterior()
    for k in (0, 4):
        with pytest.raises(ConfigError, match=f"from 1 to the number of candidates 3, got {k}"):
            q.top_k(k)
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        q.sample(-1, torch.Generator())
    assert q.sample(0, torch.Generator()) == []
