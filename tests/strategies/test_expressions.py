"""Probabilities of the values of NNI's expressions: NNI's own traversal is the oracle."""

import pytest
import torch
from nni.mutable import Categorical
from nni.nas.oneshot.pytorch.supermodule._expression_utils import traverse_all_options

from nni_bayes_nas.strategies.expressions import ExpressionTable


def test_probabilities_equal_those_of_nni_and_keep_the_batch() -> None:
    a, b = Categorical([4, 1, 2], label="a"), Categorical([3, 6], label="b")
    table = ExpressionTable(a * b)
    assert table.values == [3, 6, 12, 24]
    weights = {"a": torch.rand(5, 3, dtype=torch.float64), "b": torch.rand(5, 2, dtype=torch.float64)}
    found = table.probabilities(weights)
    for row in range(5):
        oracle = dict(traverse_all_options(a * b, {label: w[row] for label, w in weights.items()}))
        assert {value: float(p[row]) for value, p in found.items()} == pytest.approx(
            {value: float(p) for value, p in oracle.items()}
        )


def test_gradients_pass_after_a_first_look_in_inference_mode() -> None:
    table = ExpressionTable(Categorical([1, 3], label="k") * 2)
    weights = torch.tensor([0.25, 0.75])
    with torch.inference_mode():
        assert {k: float(p) for k, p in table.probabilities({"k": weights}).items()} == {2: 0.25, 6: 0.75}
    logits = weights.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(table.probabilities({"k": logits})[6], logits)
    assert gradient.tolist() == [0.0, 1.0]
