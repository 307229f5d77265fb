"""Entries of a bank, and the order of networks before they are trained."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.prediction.bank import Entry, budgets_of, check_bank, entry_of
from nni_bayes_nas.prediction.inner_search import Search, train_all
from nni_bayes_nas.prediction.many import Many, Training
from nni_bayes_nas.prediction.random_nets import random_net
from nni_bayes_nas.prediction.ranker import (
    NAMES,
    Ranker,
    describe,
    kendall,
    reliability,
    short_losses,
    standardized,
)
from nni_bayes_nas.prediction.sparse_architecture import from_sources
from nni_bayes_nas.prediction.sparse_net import dense
from nni_bayes_nas.prediction.tasks import Source, TaskData, data_of, draw_tasks
from nni_bayes_nas.prediction.tokens import Vocabulary

WORDS = Vocabulary(max_depth=2, widths=(2, 4, 8))
HOW = Search(
    candidates=4, rounds=1, generations=2, top=3, repeats=2, others=2, training=Training(steps=60), vocabulary=WORDS
)


def tasks(n, seed=0, n_features=12):
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(1200) % 4
    centres = torch.randn(4, n_features, generator=generator) * (torch.arange(n_features) < 5)
    x = torch.randn(1200, n_features, generator=generator) + centres[y]
    drawn = draw_tasks([Source("blobs", 1200, n_features, 4)], n, seed)
    return [(task, data_of(task, x, y)) for task in drawn]


def entries(n, seed=0):
    return [entry_of(task, data, 20, HOW, (8, 8), seed=i) for i, (task, data) in enumerate(tasks(n, seed))]


def test_an_entry_is_what_was_found_in_ranks():
    (entry,) = entries(1)
    ((task, data),) = tasks(1)
    assert Entry.from_json(entry.to_json()) == entry
    with pytest.raises(ConfigError, match="a line of a bank must be"):
        Entry.from_dict({**entry.to_dict(), "order": [0, *entry.order[1:-1], 0]})
    assert len(entry.others) == 2 and len(entry.found) == 3 and all(one.net.n_connections <= 20 for one in entry.found)
    assert entry.dense.net.n_connections == len(task.features) * 8 + 64 + 8 * len(task.classes)
    assert sorted(entry.order) == list(range(len(task.features)))
    assert entry.is_as_good_as_dense == (entry.found[0].accuracy >= entry.dense.accuracy - entry.tolerance)
    # Trained again on the features in this order, the network is as good, at the best of three rates.
    order = torch.tensor(entry.order)
    ranked = TaskData(data.x[:, order], data.y, data.x_val[:, order], data.y_val)
    seeds = [0 + 10_007 * (repeat + 1) for repeat in range(2)]
    again = [
        [
            loss
            for loss, _ in train_all([entry.dense.net] * 2, seeds, ranked, Training(60, learning_rate=rate), apart=True)
        ]
        for rate in (0.02, 0.006, 0.002)
    ]
    assert min(again, key=sum) == pytest.approx(entry.dense.losses, rel=1e-5)


def test_as_good_as_dense_by_hand():
    """Dense .8, .9: a mean of .85, sqrt(.005 / 2 + .85 .15 / 51) = .0707 beside it; without objects .05."""
    (entry,) = entries(1)
    assert entry.n_judged == len(tasks(1)[0][1].y_val) - len(tasks(1)[0][1].y_val) // 2
    small, whole = entry.found[0], entry.dense

    def judged(accuracy, n):
        ours = replace(small, accuracies=(accuracy, accuracy))
        return replace(entry, found=(ours,), dense=replace(whole, accuracies=(0.8, 0.9)), n_judged=n)

    assert judged(0.85, 51).tolerance == pytest.approx(math.sqrt(0.0025 + 0.0025))
    assert judged(0.85, 0).tolerance == pytest.approx(0.05)
    assert judged(0.78, 51).is_as_good_as_dense and not judged(0.779, 51).is_as_good_as_dense
    assert judged(0.801, 0).is_as_good_as_dense and not judged(0.78, 0).is_as_good_as_dense


def test_budgets():
    assert budgets_of(64, (1, 2, 5), 15) == [64, 128, 320]
    assert budgets_of(4, (1, 2, 5), 15) == [15, 20]


def test_a_bank_of_one_network_is_refused():
    one, two = entries(2)
    check_bank([one, two])
    with pytest.raises(ConfigError, match=r"at least two different best networks, .* got 1 in 2 entries"):
        check_bank([one, one])
    with pytest.raises(ConfigError, match="a line of a bank must be"):
        Entry.from_json("{}")


def test_what_is_seen_of_a_network():
    x = torch.tensor([[0.0, 1, 5], [0, 2, 5], [1, 1, 5], [1, 2, 5]])
    y = torch.tensor([0, 0, 1, 1])
    data = TaskData(x, y, x, y)
    net = from_sources(3, 2, (2,), ("tanh",), [[(0, 1), (2,)], [(0,), (0, 1)]])
    row = dict(zip(NAMES, describe([net], data)[0], strict=True))
    assert row["connections"] == pytest.approx(np.log(6)) and row["tanh"] == 1 and row["depth"] == 1
    assert row["features seen"] == 1 and row["separation seen"] == pytest.approx(1)
    assert row["separation of connections"] == pytest.approx(1 / 3) and row["most of a feature"] == 1
    assert row["least sources"] == 1 and row["mean sources"] == 1.5 and row["sources of outputs"] == 1.5
    assert row["seen by outputs"] == pytest.approx(1) and row["least own separation"] == pytest.approx(1)
    blind = from_sources(3, 2, (1,), ("relu",), [[(1, 2)], [(0,), (0,)]])
    row = dict(zip(NAMES, describe([blind], data)[0], strict=True))
    assert row["separation seen"] == row["least own separation"] == 0
    seen, unseen = short_losses([net, blind], TaskData(x.repeat(4, 1), y.repeat(4), x, y), 0)
    assert max(seen) < min(unseen)


@pytest.mark.slow
def test_networks_of_a_new_task_are_ranked():
    """Random networks of 16 tasks, four left out, by the mean loss of two seeds; chance has a tau of 0."""
    described, short, losses = [], [], []
    for i, (task, data) in enumerate(tasks(16, seed=5)):
        generator = random.Random(i)
        nets = [random_net(len(task.features), len(task.classes), 16, WORDS, generator) for _ in range(16)]
        described.append(describe(nets, data))
        short.append(short_losses(nets, data, seed=i))
        both = [[loss for loss, _ in train_all(nets, [seed] * 16, data, Training(steps=80))] for seed in (0, 1)]
        losses.append(np.mean(both, 0))
    ranker = Ranker(trees=60).fit(described[:12], losses[:12], [len(data.y) for _, data in tasks(16, seed=5)[:12]])
    left = zip(described[12:], short[12:], losses[12:], strict=True)
    taus = [kendall(ranker.scores(d, own, 40), loss) for d, own, loss in left]
    assert sum(taus) / 4 > 0.35
    assert kendall([1.0, 2.0], [1.0, 1.0]) == 0.0


def test_a_ranker_learns_before_it_ranks():
    with pytest.raises(ConfigError, match="must learn before it ranks"):
        Ranker().scores(np.zeros((2, len(NAMES))), np.zeros((2, 2)), 4)
    with pytest.raises(ConfigError, match="tasks of two networks or more"):
        Ranker().fit([np.zeros((1, len(NAMES)))], [[0.1]], [4])


def test_reliability_by_hand():
    """Of deviations (-1, 0, 1) and (-1, 1, 0), twice: c = 1 / 2, and 2 c / (1 + c) = 2 / 3."""

    def of(a, b):
        return reliability(np.array([a * 2, b * 2], float).T)

    assert of([0, 1, 2], [0, 2, 1]) == pytest.approx(2 / 3)
    assert of([0, 1, 2], [5, 7, 9]) == pytest.approx(1)
    assert of([0, 1, 2], [2, 1, 0]) == of([0, 1, 2], [4, 4, 4]) == 0
    assert reliability(np.array([[0.0, 0.0], [1.0, 1.0]])) == 0


def test_standardized_by_hand():
    assert standardized(np.array([1.0, 3.0])).tolist() == [-1, 1]
    assert standardized(np.array([5.0, 5.0, 5.0])).tolist() == [0, 0, 0]
    assert standardized(np.array([7.0])).tolist() == [0]


@pytest.mark.parametrize(
    ("other", "n_objects", "expected"),
    [
        # The reliability is 2/3: 5/9 of (a, 0, -a), a = sqrt(3/2), and 2/3 of (-sqrt 2, 1/sqrt 2, 1/sqrt 2).
        ([0.0, 2.0, 1.0], 100, [-0.262395, 0.471405, -0.209009]),
        # On no more objects than were learned from trees weigh twice as much as on four times as many.
        ([0.0, 2.0, 1.0], 25, [0.418019, 0.471405, -0.889423]),
        ([0.0, 2.0, 1.0], 5, [0.418019, 0.471405, -0.889423]),
        ([0.0, 1.0, 2.0], 25, [-1.224745, 0, 1.224745]),  # it is 1: losses alone
        ([0.0, 1.0, float("nan")], 25, [-1.224745, 0, 1.224745]),  # what is not finite comes last
        ([2.0, 1.0, 0.0], 100, [1.224745, 0, -1.224745]),  # it is 0: trees alone
    ],
)
def test_scores_by_hand(other, n_objects, expected):
    ranker = Ranker()
    ranker._n_objects = 25
    ranker._model = SimpleNamespace(predict=lambda x: np.array([2.0, 1, 0] * 2))
    found = ranker.scores(np.zeros((6, len(NAMES))), np.array([[0.0, 1, 2] * 2, other * 2]).T, n_objects)
    assert found.tolist() == pytest.approx(expected * 2, abs=1e-5)


def test_what_diverges_alone_comes_last(monkeypatch):
    """Of networks side by side that which diverges has no loss, and the others have theirs."""
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) // 10
    data, nets = TaskData(x, y, x, y), [dense(3, 2, (2,)), dense(3, 2, (4,)), dense(3, 2, (3,))]
    train = Many.train

    def fails(self, *rest):
        if nets[1] in self.nets:
            raise NumericsError("the loss of network 1 is not finite in step 3; lower learning_rate.")
        train(self, *rest)

    expected = short_losses(nets, data, 5, Training(20))
    monkeypatch.setattr(Many, "train", fails)
    found = short_losses(nets, data, 5, Training(20))
    assert np.isinf(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], atol=1e-5)
    scores = Ranker().fit([describe(nets, data)], [[0.3, 0.2, 0.1]], [20]).scores(describe(nets, data), found, 20)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(("most", "every"), [(1000, 1), (10, 1), (9, 2), (4, 3)])
def test_halves_are_scored_by_what_saw_the_other(most, every, monkeypatch):
    """All networks and both halves are trained side by side; each as if it were alone."""
    x, y = torch.randn(21, 3, generator=torch.Generator().manual_seed(0)), torch.arange(21) // 7
    data = TaskData(x, y, torch.full((1, 3), torch.nan), torch.tensor([0]))
    nets, how, seen = [dense(3, 3, (2,)), dense(3, 3, (4,)), dense(3, 3, (2, 2))], Training(20, 4), []
    train = Many.train
    monkeypatch.setattr("nni_bayes_nas.prediction.ranker._MEASURED", most)
    monkeypatch.setattr(Many, "train", lambda self, x, y, *rest: (seen.append((x, y)), train(self, x, y, *rest)))
    found = short_losses(nets, data, 5, how)
    monkeypatch.undo()
    (first, labels), (again, _) = seen
    assert torch.equal(first, again) and first.shape == (2, 10, 3)
    rows = {tuple(row): place for place, row in enumerate(x.tolist())}
    kept = [[rows[tuple(row)] for row in half] for half in first.tolist()]
    assert [y[half].tolist() for half in kept] == labels.tolist() and not set(kept[0]) & set(kept[1])
    assert all(set(y[half].tolist()) == {0, 1, 2} for half in kept)
    for number, (half, other) in enumerate(zip(kept, kept[::-1], strict=True)):
        rest = other[::every]
        for i, net in enumerate(nets):
            alone = Many([net], [1009 * (10 + number) + i])
            alone.train(x[half], y[half], how, 5)
            assert found[i, number] == pytest.approx(float(alone.scores(x[rest], y[rest])[0]), abs=1e-5)
    few = TaskData(x[:3], y[:3], x, y)
    assert short_losses([nets[0]], few, 5).tolist() == [[0, 0]]
