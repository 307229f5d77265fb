"""Scores of probabilities by hand, and ensembles."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.uncertainty import ensemble, scores

Y = torch.tensor([0, 1, 1, 0])
P = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])


def test_scores_by_hand():
    found = scores(P.log(), Y)
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.7)) / 4)
    assert found["brier"] == pytest.approx(2 * (0.1**2 + 0.2**2 + 0.6**2 + 0.3**2) / 4)
    # Each confidence in a bin of its own: |.9 - 1| + |.8 - 1| + |.6 - 0| + |.7 - 1| over 4.
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4, abs=1e-6)


def test_a_sure_and_right_classifier_has_no_loss():
    found = scores(torch.tensor([[0.0, -100.0], [-100.0, 0.0]]), torch.tensor([0, 1]))
    assert found == {"accuracy": 1.0, "nll": pytest.approx(0), "ece": pytest.approx(0), "brier": pytest.approx(0)}


def test_equal_probabilities():
    found = scores(torch.zeros(40, 4), torch.arange(40) % 4)
    assert found["nll"] == pytest.approx(math.log(4)) and found["brier"] == pytest.approx(0.75)
    assert found["ece"] == pytest.approx(0, abs=1e-6)


@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=5), st.integers(0, 1000))
def test_an_ensemble_is_the_mixture(weights, seed):
    generator = torch.Generator().manual_seed(seed)
    members = [torch.randn(6, 3, generator=generator).log_softmax(-1) for _ in weights]
    total = sum(w / sum(weights) * m.double().exp() for w, m in zip(weights, members, strict=True))
    torch.testing.assert_close(ensemble(members, weights).exp(), total, rtol=1e-6, atol=1e-8)


@given(st.integers(0, 1000))
def test_an_ensemble_is_no_worse_than_its_members_in_the_mean(seed):
    """Jensen: the log of a mean is at least the mean of the logs."""
    generator = torch.Generator().manual_seed(seed)
    members = [torch.randn(20, 4, generator=generator).log_softmax(-1) for _ in range(3)]
    y = torch.randint(0, 4, (20,), generator=generator)
    alone = [scores(m, y)["nll"] for m in members]
    assert scores(ensemble(members), y)["nll"] <= sum(alone) / 3 + 1e-9


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [math.nan, 1.0]])
def test_weights_that_cannot_be(weights):
    with pytest.raises(ConfigError, match="as many weights"):
        ensemble([P.log(), P.log()], weights)


def test_no_members():
    with pytest.raises(ConfigError, match="at least one member"):
        ensemble([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_probabilities_on_a_gpu():
    members = [P.log(), P.flip(0).log()]
    there = [m.cuda() for m in members]
    assert scores(ensemble(there, [1.0, 2.0]), Y.cuda()) == pytest.approx(scores(ensemble(members, [1.0, 2.0]), Y))
