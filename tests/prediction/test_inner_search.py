"""The search for small networks on one task."""

import pytest
import torch

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.inner_search import METHODS, Search, search, train_all
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.sparse_net import all_edges, dense
from nni_bayes_nas.prediction.tasks import TaskData
from nni_bayes_nas.prediction.tokens import Vocabulary, decode, encode

WORDS = Vocabulary(max_depth=2, widths=(2, 3, 4, 6))
HOW = Search(
    candidates=6, rounds=1, generations=2, top=3, repeats=2, others=2, training=Training(steps=120), vocabulary=WORDS
)


def task(n_features=12, n=200):
    """Two features of twelve say the class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, n_features, generator=generator)
    y = (x[:, 3] + x[:, 7] > 0).long()
    return TaskData(x[:n], y[:n], x[n:], y[n:])


@pytest.mark.parametrize("methods", [METHODS, *(pytest.param((name,), marks=pytest.mark.slow) for name in METHODS)])
def test_the_best_come_first_and_keep_the_budget(methods):
    how = Search(**{**HOW.__dict__, "methods": methods})
    found, others = search(task(), 16, how, seed=0)
    assert len(found) == 3 and len(others) == 2
    assert not {one.net for one in found} & {one.net for one in others}
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    for one in found + others:
        assert one.net == canonical(one.net) and one.net.n_connections <= 16
        assert len(one.losses) == len(one.accuracies) == 2 and one.losses[0] != one.losses[1]
        assert one.method in methods
    assert (found, others) == search(task(), 16, how, seed=0)


def test_what_matters_is_found():
    """Magnitude sees the two features that say the class; chance sees them now and then."""
    data, hits = task(), {}
    for method in ("random", "snip", "magnitude"):
        how = Search(**{**HOW.__dict__, "methods": (method,), "candidates": 8, "top": 8})
        nets = [one.net for one in search(data, 10, how, seed=1)[0]]
        hits[method] = sum({3, 7} <= {a for a, _ in net.edges[0]} for net in nets) / len(nets)
    assert hits["magnitude"] >= 0.7 > 0.3 > hits["random"], hits
    assert search(data, 10, HOW, seed=1)[0][0].accuracy > 0.93


def test_networks_of_all_depths_are_trained_in_their_places():
    """Each as by itself: the order of the objects is that of the first seed, and equal here."""
    nets = [dense(12, 2, widths) for widths in ((4,), (3, 2), (4,), (6, 2))]
    both = train_all(nets, [0, 1, 2, 3], task(), HOW.training)
    assert both[0] != both[2]
    for own, shared in zip(train_all(nets[::2], [0, 2], task(), HOW.training), both[::2], strict=True):
        assert own == pytest.approx(shared, rel=1e-4)
    assert all(0 < loss < 1 and accuracy > 0.7 for loss, accuracy in both)


def test_mistakes():
    with pytest.raises(ConfigError, match="candidates"):
        Search(candidates=0)
    with pytest.raises(ConfigError, match="methods"):
        Search(methods=("best",))
    with pytest.raises(ConfigError, match="has 4 connections, got a budget of 3"):
        search(task(), 3, HOW, seed=0)


def test_what_chooses_does_not_judge():
    """Losses are of one half of the validation objects, accuracies of the other: labels that are wrong there tell."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    wrong = torch.cat([y[60:90], 1 - y[90:]])
    data = TaskData(x[:60], y[:60], x[60:], wrong)
    net = SparseArchitecture(3, 2, (3,), ("relu",), all_edges((3, 3, 2)))
    how = Training(steps=200)
    ((loss, accuracy),) = train_all([net], [0], data, how, apart=True)
    ((whole_loss, whole_accuracy),) = train_all([net], [0], data, how)
    assert loss < 0.3 < whole_loss and accuracy < 0.2 < whole_accuracy
    few = TaskData(x[:60], y[:60], x[60:66], y[60:66])
    assert train_all([net], [0], few, how, apart=True) == train_all([net], [0], few, how)


@pytest.mark.parametrize("factor", [pytest.param(1, id="n", marks=pytest.mark.slow), pytest.param(5, id="5n")])
def test_objects_of_784_features(factor):
    """As many as images of MNIST have: within the budget, exact as tokens, and better than chance."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (600,), generator=generator)
    x = torch.randn(600, 784, generator=generator) + torch.randn(4, 784, generator=generator)[y] / 2
    data = TaskData(x[:400], y[:400], x[400:], y[400:])
    words = Vocabulary(max_depth=2, widths=(4, 8, 16, 32))
    how = Search(**{**HOW.__dict__, "candidates": 4, "generations": 1, "vocabulary": words})
    found, others = search(data, 784 * factor, how, seed=0, n_outputs=4)
    for one in found + others:
        assert one.net.n_inputs == 784 and one.net.n_connections <= 784 * factor
        assert decode(encode(one.net, words), words, 784, 4) == one.net
    assert found[0].accuracy > 0.6
