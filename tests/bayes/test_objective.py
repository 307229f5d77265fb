"""Terms are added and scaled in one place; a term that is not finite is named."""

import math

import pytest
import torch

from nni_bayes_nas.bayes import objective
from nni_bayes_nas.errors import NumericsError


def test_weighted_sum() -> None:
    terms = {"task": torch.tensor(1.5), "complexity": torch.tensor(2.0)}
    assert float(objective.total(terms, {"complexity": 10.0})) == 21.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_bad_term_is_named(bad: float) -> None:
    with pytest.raises(NumericsError, match=r"`complexity` is .* at step 7"):
        objective.total({"task": torch.tensor(1.0), "complexity": torch.tensor(bad)}, step=7)


def test_no_term_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        objective.total({})
