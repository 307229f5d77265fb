"""From a bank to networks for new data."""

import random
from itertools import pairwise

import pytest
import torch
from test_bank import HOW, WORDS, tasks

from nni_bayes_nas.config_plans import PredictConfig
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.analysis import errors_of
from nni_bayes_nas.prediction.bank import entry_of
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.encoder import condition_of, with_classes
from nni_bayes_nas.prediction.inner_search import strongest, train_all
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.predictor import KINDS, REFINE_STEPS, Fitting, Predictor, soft_targets
from nni_bayes_nas.prediction.random_nets import completed, random_net
from nni_bayes_nas.prediction.ranker import SHORT
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture, from_sources, of_classes, of_columns
from nni_bayes_nas.prediction.training import seeds_of


def bank(n, seed=0):
    drawn = tasks(n, seed)
    entries = [entry_of(task, data, 20, HOW, (8,), seed=i) for i, (task, data) in enumerate(drawn)]
    data = {entry.task: data for entry, (_, data) in zip(entries, drawn, strict=True)}
    return entries, lambda entry: data[entry.task]


def predictor(kind="seq2seq"):
    return Predictor(kind, max_features=12, max_classes=4, vocabulary=WORDS, dim=32)


def _most(net):
    return sum(a * b for a, b in pairwise(net.sizes))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fitted_predicts_within_the_budget_and_is_saved(kind, tmp_path):
    entries, data_of = bank(4)
    model = predictor(kind)
    losses = model.fit(entries, data_of, Fitting(steps=60, batch_size=4, learning_rate=0.01))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    ((task, data),) = tasks(1, seed=9)
    found = model.predict(data, 15, len(task.classes), n=6)
    assert 1 <= len(found) <= 7 and len({one.net for one in found}) == len(found)
    assert all(one.net.n_inputs == data.x.shape[1] for one in found)
    assert all(one.net.n_connections == min(15, _most(one.net)) for one in found)
    assert [one.score for one in found] == sorted(one.score for one in found)
    assert found == model.predict(data, 15, len(task.classes), n=6)
    assert 1 <= len(model.predict(data, 15, len(task.classes), n=1)) <= 2
    model.save(tmp_path / "meta.pt")
    again = Predictor.load(tmp_path / "meta.pt")
    assert again.kind == kind and again.ranker is None
    # Without a ranker there is nothing to choose between what was drawn and what was refined.
    nets = {one.net: one.log_prob for one in found if not one.drawn}
    others = again.predict(data, 15, len(task.classes), n=6)
    assert {one.net: one.log_prob for one in others if one.net in nets} == pytest.approx(nets)
    assert not any(one.drawn for one in others)
    assert [one.log_prob for one in others] == sorted((one.log_prob for one in others), reverse=True)
    again.fit_ranker(entries, data_of)
    assert [one.score for one in again.predict(data, 15, len(task.classes), n=6)] == [one.score for one in found]
    assert found[0].net.build()(data.x).shape == (len(data.x), len(task.classes))


def test_errors_are_judged_as_the_search_judged(monkeypatch):
    """A decoder that gives what was found is measured on the objects that chose it, and by the accuracy of others."""
    entries, data_of = bank(3)
    model = predictor()
    model.fit(entries, data_of, Fitting(steps=2, batch_size=2))
    best = entries[2].found[0].net
    monkeypatch.setattr(model.model, "sample", lambda *rest, **more: [(best, 0.0)])
    (row,) = errors_of(model, entries[2:], entries[:2], data_of, HOW.training, seed=2)
    data, k = data_of(entries[2]), len(entries[2].task.classes)
    first = model.predict(data, 20, k, seed=2)[0].net
    apart = train_all([first] * 2, [2, 33], data, HOW.training, apart=True)
    assert row["loss"] == pytest.approx(sum(loss for loss, _ in apart) / 2)
    assert row["accuracy"] == pytest.approx(sum(accuracy for _, accuracy in apart) / 2)
    assert row["loss"] != pytest.approx(train_all([first], [2], data, HOW.training)[0][0])
    assert row["length"] == 0 and row["inputs"] == 1 and set(row["layers"]) == {1.0}
    assert row["loss_found"] == entries[2].found[0].loss and row["accuracy_found"] == entries[2].found[0].accuracy


def test_what_is_shown_in_place_of_data_keeps_their_sizes(monkeypatch):
    """Of shown objects those and how well features tell them apart; numbers of objects, features and classes stay."""
    model, asked = predictor(), []
    sample = model.model.sample
    monkeypatch.setattr(
        model.model,
        "sample",
        lambda condition, *rest, **more: (asked.append(condition), sample(condition, *rest, **more))[1],
    )
    (_, data), (_, other) = tasks(2, seed=9)
    for seen in (None, other):
        model.predict(data, 15, data.n_classes, n=2, seen=seen)
    own, shown = asked
    assert torch.equal(own.scalars[:4], shown.scalars[:4]) and not torch.equal(own.scalars[4:], shown.scalars[4:])
    assert torch.equal(shown.objects, model.condition(other, 15, other.n_classes).objects)


def test_networks_of_ranks_are_those_of_columns():
    net = from_sources(3, 2, (2,), ("relu",), [[(0, 1), (2,)], [(0,), (0, 1)]])
    moved = of_columns(net, [2, 0, 1])
    assert moved.sources(0) == [(0, 2), (1,)] and moved.edges[1] == net.edges[1]


def test_classes_that_are_numbered_otherwise_are_the_same_task():
    """What is seen of it, and its networks: as if the data had come with these numbers."""
    generator = torch.Generator().manual_seed(0)
    x, y, places = torch.randn(40, 5, generator=generator), torch.arange(40) % 3, [2, 0, 1]
    sizes = {"max_features": 6, "max_classes": 4, "n_classes": 3}
    one, other = condition_of(x, y, 9, **sizes), condition_of(x, torch.tensor(places)[y], 9, **sizes)
    found = with_classes(one, places, 6)
    assert torch.equal(found.scalars, other.scalars) and torch.equal(found.order, other.order)
    rows = {tuple(row.tolist()) for row in found.objects}
    assert rows == {tuple(row.tolist()) for row in other.objects} and len(rows) == 40
    net = SparseArchitecture(5, 3, (2,), ("relu",), (((0, 0), (3, 1)), ((0, 0), (0, 2), (1, 1), (1, 2))))
    moved = of_classes(net, places)
    assert [moved.sources(1)[places[b]] for b in range(3)] == net.sources(1)
    assert of_classes(moved, [1, 2, 0]) == net


def test_targets_are_the_better_the_more_probable():
    entry = bank(1)[0][0]
    chances = soft_targets(entry, 0.5)
    assert float(chances.sum()) == pytest.approx(1) and bool((chances.diff() <= 0).all())
    assert soft_targets(entry, 1e6).tolist() == pytest.approx([1 / 3] * 3, rel=1e-3)


def test_layers_that_are_drawn_get_the_largest_weights_on_the_data(monkeypatch):
    """Of the most probable eighth the connections that were drawn stand beside them."""
    entries, data_of = bank(4)
    model = predictor()
    model.fit(entries, data_of, Fitting(steps=5))
    ((task, data),) = tasks(1, seed=9)
    k, condition = len(task.classes), model.condition(data, 15, len(task.classes))
    # In the order in which they are drawn, as their seeds are.
    filling, drawn = random.Random(3), {}
    for net, log_prob in model.model.sample(condition, 16, torch.Generator().manual_seed(3), greedy=1):
        drawn.setdefault(canonical(completed(net, 15, filling)), log_prob)
    how = Training(80, learning_rate=0.06)
    refined = strongest(list(drawn), data.in_order(condition.order), 15, seeds_of(3, len(drawn)), how)
    stay = sorted(drawn, key=drawn.__getitem__)[-2:]
    expected = {net: drawn[net] for net in stay}
    for net, better in zip(drawn, refined, strict=True):
        expected.setdefault(canonical(better), drawn[net])
    found = model.predict(data, 15, k, n=16, seed=3)
    columns = {of_columns(net, condition.order.tolist()): log_prob for net, log_prob in expected.items()}
    assert {one.net: one.log_prob for one in found} == pytest.approx(columns)
    assert {one.net for one in found if one.drawn} == {of_columns(net, condition.order.tolist()) for net in stay}
    as_drawn = model.predict(data, 15, k, n=16, seed=3, refine=False)
    assert {one.net for one in as_drawn} == {of_columns(net, condition.order.tolist()) for net in drawn}
    # A dense network that diverges leaves what was drawn.
    with monkeypatch.context() as patched:
        patched.setattr("nni_bayes_nas.prediction.predictor.SHORT", Training(learning_rate=1e30))
        stayed = model.predict(data, 15, k, n=16, seed=3)
    assert {(one.net, one.drawn) for one in stayed} == {(one.net, one.drawn) for one in as_drawn}
    model.refine_steps = 0
    assert model.predict(data, 15, k, n=16, seed=3) == as_drawn
    settings = PredictConfig()
    assert (settings.rank_steps, settings.refine_steps) == (SHORT.steps, REFINE_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_predicted_networks_are_better_than_random_ones(kind):
    """On 6 new tasks of the same family, by the mean loss of the best-ranked three; the same number at random."""
    entries, data_of = bank(24)
    model = predictor(kind)
    model.fit(entries, data_of, Fitting(steps=300, learning_rate=5e-3))
    ours, theirs = [], []
    for i, (task, data) in enumerate(tasks(6, seed=77)):
        # Refined ones would be good whatever is drawn.
        found = [one.net for one in model.predict(data, 20, len(task.classes), n=16, refine=False)[:3]]
        generator = random.Random(i)
        drawn = [random_net(len(task.features), len(task.classes), 20, WORDS, generator) for _ in range(3)]
        for nets, into in ((found, ours), (drawn, theirs)):
            results = train_all(nets, [5] * len(nets), data, Training(steps=120))
            into.append(sum(loss for loss, _ in results) / len(results))
    assert sum(o < t for o, t in zip(ours, theirs, strict=True)) >= 5
    assert sum(ours) < sum(theirs) - 0.3


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="kind"):
        Predictor("transformer")
    with pytest.raises(ConfigError, match="temperature"):
        Fitting(temperature=0.0)
    entries, data_of = bank(1)
    with pytest.raises(ConfigError, match="at least two different best networks"):
        predictor().fit(entries, data_of, Fitting(steps=1))
    (tmp_path / "none.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="must be what `save` wrote"):
        Predictor.load(tmp_path / "none.pt")
    ((_, data),) = tasks(1)
    with pytest.raises(ConfigError, match="built for 12 features and 2 classes"):
        Predictor(max_features=12, max_classes=2, vocabulary=WORDS, dim=32).predict(data, 20, 4)
    with pytest.raises(ConfigError, match="`dim` must be a multiple of the 4 heads"):
        Predictor(dim=30)
    for wrong in ({"budget": 0}, {"n": 0}, {"n_objects": -3}):
        (name,) = wrong
        with pytest.raises(ConfigError, match=f"`{name}` must be at least 1"):
            predictor().predict(data, **{"budget": 20, "n_classes": 4, **wrong})
