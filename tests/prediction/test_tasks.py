"""Tasks and the order of features."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.relevance import importance, order_of_features, separation
from nni_bayes_nas.prediction.tasks import Source, Task, data_of, draw_tasks

SOURCES = [Source("a", 1500, 8, 5), Source("b", 120, 13, 3)]


def objects(n=1500, n_features=8, n_classes=5):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % n_classes
    return torch.randn(n, n_features, generator=generator) + y[:, None], y


def test_tasks_differ_and_repeat():
    tasks = draw_tasks(SOURCES, 200, seed=3)
    assert tasks == draw_tasks(SOURCES, 200, seed=3) != draw_tasks(SOURCES, 200, seed=4)
    assert [task.source for task in tasks[:4]] == ["a", "b", "a", "b"]
    assert len(set(tasks)) == 200
    of_a = [task for task in tasks if task.source == "a"]
    for few, kinds in (
        (0.3, [len(task.classes) == 5 for task in of_a]),
        (0.3, [len(task.features) == 8 for task in of_a]),
        (0.3, [task.label_noise == 0 for task in of_a]),
    ):
        assert few * len(of_a) < sum(kinds) < (1 - few + 0.2) * len(of_a)
    for task in tasks:
        assert Task.from_dict(json.loads(task.to_json())) == task
        source = SOURCES["ab".index(task.source)]
        there = source.n_objects * len(task.classes) / source.n_classes
        assert task.share * there >= 31.99 or task.share == 1.0
        assert task.share <= 0.1 or task.share * there <= max(32, 4 * len(task.classes)) + 1e-6


@given(st.integers(0, 10**6))
def test_a_task_has_the_objects_that_it_says(seed):
    x, y = objects()
    task = draw_tasks(SOURCES[:1], 1, seed)[0]
    found = data_of(task, x, y)
    per_class = [round(task.share * 300)] * len(task.classes)
    assert len(found.x) == sum(per_class)
    assert found.x.shape[1] == found.x_val.shape[1] == len(task.features)
    assert set(found.y_val.tolist()) == set(range(len(task.classes)))
    assert len(found.x_val) == min(1000, 300 * len(task.classes) - sum(per_class))
    torch.testing.assert_close(found.x.mean(0), torch.zeros(len(task.features)), atol=1e-4, rtol=0)
    if task.label_noise == 0:
        assert torch.bincount(found.y).tolist() == per_class
    # Both parts have one scale: objects of the validation part are no training objects.
    rows = {tuple(row) for row in found.x.tolist()}
    assert not any(tuple(row) in rows for row in found.x_val.tolist())


def test_so_many_labels_are_replaced():
    x, y = objects(5000)
    task = Task("a", 0.9, tuple(range(5)), tuple(range(8)), 0.2, 0)
    clean = data_of(Task(**{**task.__dict__, "label_noise": 0.0}), x, y)
    share = (data_of(task, x, y).y != clean.y).double().mean().item()
    assert abs(share - 0.2 * 0.8) < 4 * math.sqrt(0.16 * 0.84 / 4500)


def test_features_that_separate_come_first_and_copies_last():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    noise = torch.randn(300, 4, generator=generator)
    first, second = (y == 0).float(), (y == 1).float()
    x = torch.stack(
        [
            noise[:, 0],
            first + 0.1 * noise[:, 1],
            first + 0.1 * noise[:, 1] + 0.01 * noise[:, 3],
            second + 0.3 * noise[:, 2],
            torch.ones(300),
        ],
        1,
    )
    assert set(order_of_features(x, y).tolist()[:2]) in ({1, 3}, {2, 3})
    assert order_of_features(x, y).tolist()[-1] in (4, 0)
    assert sorted(order_of_features(x, y).tolist()) == list(range(5))
    with pytest.raises(ConfigError, match="`features` must be at most 4096, got 4097"):
        order_of_features(torch.zeros(2, 4097), y[:2])
    found = separation(x, y)
    assert found[4] == 0 and found[1] > 0.9 and found[0] < 0.05
    exact = separation(torch.tensor([[0.0], [2.0], [4.0], [6.0]]), torch.tensor([0, 0, 1, 1]))
    assert exact.item() == pytest.approx(16 / 20)


def test_features_that_say_something_together_come_first():
    """The product of two signs: neither says anything alone."""
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 2] * x[:, 5] > 0).long()
    found = importance(x, y)
    assert set(found.argsort(descending=True)[:2].tolist()) == {2, 5} == set(order_of_features(x, y).tolist()[:2])
    assert float(found.sum()) == pytest.approx(1) and float(separation(x, y).max()) < 0.03
    assert not importance(x, torch.zeros(400)).any()
    rows, columns = torch.randperm(400), torch.randperm(8)
    torch.testing.assert_close(importance(x[rows][:, columns], y[rows]), found[columns])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.0}, "share of a task must be above 0"),
        ({"share": 1.5}, "share of a task"),
        ({"label_noise": 1.0}, "label_noise of a task"),
        ({"classes": (1,)}, "classes of a task must be at least two"),
        ({"features": (2, 1)}, "features of a task must be at least one, rising"),
    ],
)
def test_no_task(change, message):
    values = {"source": "a", "share": 0.1, "classes": (0, 1), "features": (0,), "label_noise": 0.0, "seed": 0}
    with pytest.raises(ConfigError, match=message):
        Task(**values | change)


def test_tasks_of_other_data():
    x, y = objects()
    with pytest.raises(ConfigError, match=r"needs feature 8 and classes \[0, 1\], but a has 8 features"):
        data_of(Task("a", 0.1, (0, 1), (0, 8), 0.0, 0), x, y)
    with pytest.raises(ConfigError, match=r"classes \[0, 7\]"):
        data_of(Task("a", 0.1, (0, 7), (0,), 0.0, 0), x, y)
    with pytest.raises(ConfigError, match="tasks need data sets"):
        draw_tasks([], 3, 0)
