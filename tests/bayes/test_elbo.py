"""The bound as a loss: objects are counted once, weights are named, the warm-up ends."""

import math

import pytest
import torch

from nni_bayes_nas.bayes import elbo, objective
from nni_bayes_nas.errors import ConfigError, NumericsError


def test_objects_are_counted_once():
    divergences = {"structure": torch.tensor(30.0), "weights": torch.tensor(200.0)}
    terms = elbo.divergence_terms(divergences, 100, {"weights": 0.5})
    assert {name: float(value) for name, value in terms.items()} == {"structure": pytest.approx(0.3), "weights": 1.0}
    warm = elbo.divergence_terms(divergences, 100, {"weights": 0.5}, warmth=0.1)
    assert float(objective.total(warm)) == pytest.approx(0.13)


def test_a_divergence_that_is_not_finite_is_named():
    terms = elbo.divergence_terms({"KL of cell/op": torch.tensor(math.nan)}, 10)
    with pytest.raises(NumericsError, match="`KL of cell/op` is nan at step 3"):
        objective.total(terms, step=3)


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_weights_below_zero_are_refused(weight):
    with pytest.raises(ConfigError, match="structure weighs a divergence"):
        elbo.divergence_terms({"structure": torch.tensor(1.0)}, 10, {"structure": weight})


def test_no_objects_are_refused():
    with pytest.raises(ConfigError, match="size of the training set, got 0"):
        elbo.divergence_terms({"structure": torch.tensor(1.0)}, 0)


def test_warmth_rises_and_ends():
    assert [elbo.warmth(p, 0.5) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert elbo.warmth(0.0, 0.0) == 1.0
