"""Cells given a part of the data."""

import math

import pytest
import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.cells import key_for
from nni_bayes_nas.prediction.cells import CellPredictor, Example, looked_at, probable_cells
from nni_bayes_nas.prediction.encoder import condition_of


def condition(n_features, seed=0):
    x = torch.randn(40, n_features, generator=torch.Generator().manual_seed(seed))
    return condition_of(x, (x[:, 0] > 0).long(), 1, max_features=8, max_classes=2)


def examples():
    """Few features want a convolution, many a skip connection, larger lambda pooling; `place` is anything."""
    found = []
    for seed in range(8):
        for n, lam in ((3, 0.1), (8, 0.1), (3, 10.0), (8, 10.0)):
            op = "pool" if lam > 1 else "conv" if n == 3 else "skip"
            cells = tuple({"op": op, "place": [(seed + i) % 2]} for i in range(2))
            found.append(Example(condition(n, seed), lam, cells))
    return found


def test_what_searches_chose_is_learned_from_the_task_and_lambda():
    model = CellPredictor(examples(), 8, 2, dim=32)
    losses = model.fit(examples(), steps=200)
    # The place is a coin: its entropy is what is left.
    assert losses[-1] < math.log(2) + 0.15 and losses[0] > 1.2
    for n, lam, op in ((3, 0.1, "conv"), (8, 0.1, "skip"), (3, 10.0, "pool"), (8, 10.0, "pool")):
        found = model.predict(condition(n, 77), lam, 6)
        assert found[0][0]["op"] == op and len(found) == 6
        assert math.fsum(math.exp(log_prob) for _, log_prob in found) == pytest.approx(1.0, abs=1e-5)
        assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
        assert {tuple(choices["place"]) for choices, _ in found} == {(0,), (1,)}


def test_cells_that_are_one_are_predicted_once():
    """Two slots of a node whose order is nothing, and inputs that no search took twice."""
    values = {
        "c/input_2_0": ["[0]", "[1]"],
        "c/input_2_1": ["[0]", "[1]"],
        "c/op_2_0": ['"a"'],
        "c/op_2_1": ['"a"', '"b"'],
    }
    logs = [[math.log(p) for p in each] for each in ((0.6, 0.4), (0.55, 0.45), (1.0,), (0.7, 0.3))]
    every = probable_cells(values, logs, 9)
    assert len(every) == 8 and [p for _, p in every] == sorted((p for _, p in every), reverse=True)
    found = probable_cells(values, logs, 2, key_for([]))
    assert not any(Architecture(cell).takes_an_input_twice for cell, _ in found)
    assert len({Architecture(cell).key for cell, _ in found}) == 2
    # (0, 0) is the most probable pair of inputs, but impossible; (0, 1) and (1, 0) with equal operations are one cell.
    assert [(cell["c/input_2_0"], cell["c/op_2_1"]) for cell, _ in found] == [([0], "a"), ([0], "b")]
    assert len(probable_cells(values, logs, 9, key_for([]))) == 3
    twice = Example(condition(3), None, (every[0][0],))
    assert Architecture(every[0][0]).takes_an_input_twice
    assert probable_cells(values, logs, 1, key_for([twice])) == every[:1]


def test_mistakes():
    one = Example(condition(3), None, ({"op": "conv"},))
    with pytest.raises(ConfigError, match="got one cell"):
        CellPredictor([one, one], 8, 2)
    with pytest.raises(ConfigError, match="equal labels, got 2"):
        CellPredictor([one, Example(condition(3), None, ({"up": "conv"},))], 8, 2)


def test_images_are_grey_and_small():
    assert looked_at(torch.ones(5, 3, 32, 32)).shape == (5, 64)
    assert torch.equal(looked_at(torch.arange(64.0).reshape(1, 1, 8, 8)), torch.arange(64.0).reshape(1, 64))
    assert looked_at(torch.ones(5, 7)).shape == (5, 7)
