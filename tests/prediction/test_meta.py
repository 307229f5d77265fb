"""The set encoder, and the decoders of networks given a task."""

import pytest
import torch
from drawn_nets import SMALL, drawn

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.encoder import SetEncoder, condition_of
from nni_bayes_nas.prediction.seq2seq import Seq2Seq
from nni_bayes_nas.prediction.sparse_architecture import from_sources
from nni_bayes_nas.prediction.tokens import Grammar, Vocabulary
from nni_bayes_nas.prediction.tree_meta import DoublyRecurrentMeta, tree_of

KINDS = {"seq2seq": Seq2Seq, "doubly recurrent": DoublyRecurrentMeta}


def objects(seed, n_features=6, n_classes=3, n=30):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    x = torch.randn(n, n_features, generator=generator)
    x[:, seed % n_features] += 2 * y
    return x, y


def condition(seed, budget=20, **how):
    x, y = objects(seed, **how)
    return condition_of(x, y, budget, max_features=8, max_classes=4)


def meta(kind, seed=0):
    torch.manual_seed(seed)
    return KINDS[kind](SetEncoder(8, 4, dim=16, n_seeds=2, heads=2), SMALL, dim=24)


def test_the_order_of_objects_and_how_many_are_padded_change_nothing():
    encoder = meta("seq2seq").encoder
    one, other = condition(0), condition(1, n=12)
    shuffled = type(one)(one.objects[torch.randperm(30)], *list(one.__dict__.values())[1:])
    torch.testing.assert_close(encoder([one]), encoder([shuffled]), atol=1e-5, rtol=1e-4)
    both = encoder([one, other])
    torch.testing.assert_close(both[1:], encoder([other]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_which_objects_are_looked_at_does_not_depend_on_their_order():
    """Of more than are looked at, too: the same ones, of every class as many."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 6, generator=generator), torch.arange(600) % 3
    places = torch.randperm(600, generator=generator)
    shape = {"max_features": 8, "max_classes": 4}
    one, other = condition_of(x, y, 20, **shape), condition_of(x[places], y[places], 20, **shape)
    torch.testing.assert_close(one.objects, other.objects)
    assert len(one.objects) == 128 and sorted(one.objects[:, 8:].sum(0).tolist()) == [0, 42, 43, 43]
    # They are as good as any: the mean of the chosen ones is that of all, up to chance.
    chosen = one.objects[:, :6].mean(0)
    assert float(chosen.abs().max()) < 4 / 128**0.5


def test_a_condition_is_of_ranks():
    x, y = objects(4)
    one = condition(4)
    assert one.order[0] == 4 and sorted(one.order.tolist()) == list(range(6))
    assert torch.equal(one.objects[:, 6:8], torch.zeros(30, 2)) and bool((one.objects[:, 8:].sum(1) == 1).all())
    # Features in another order are the same task.
    moved = torch.tensor([5, 3, 4, 0, 1, 2])
    other = condition_of(x[:, moved], y, 20, max_features=8, max_classes=4)
    torch.testing.assert_close(other.objects, one.objects)
    torch.testing.assert_close(other.scalars, one.scalars)
    more = condition_of(x, y, 20, max_features=8, max_classes=4, n_objects=3000)
    assert more.scalars[0] > one.scalars[0] and torch.equal(more.scalars[1:], one.scalars[1:])
    few = condition_of(x, y, 20, max_features=8, max_classes=4, most=9)
    assert few.objects[:, 8:].sum(0).tolist() == [3, 3, 3, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_predicted_is_a_network_within_the_budget(kind):
    model, generator = meta(kind), torch.Generator().manual_seed(0)
    for budget in (5, 9, 30, 200):
        for temperature in (1.0, 0.0):
            one = condition(0, budget=budget)
            found = model.sample(one, 8, generator, temperature)
            assert all(net.n_connections <= budget for net, _ in found)
            assert {(net.n_inputs, net.n_outputs) for net, _ in found} == {(6, 3)}
            if temperature:
                assert len({net for net, _ in found}) > 1
            else:
                assert len({net for net, _ in found}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_probable_network_comes_first_where_it_is_asked_for(kind):
    model, one = meta(kind), condition(0, budget=30)
    ((surely, log_prob),) = model.sample(one, 1, torch.Generator().manual_seed(0), temperature=0.0)
    drawn = model.sample(one, 6, torch.Generator().manual_seed(0), greedy=1)
    assert drawn[0][0] == surely and drawn[0][1] == pytest.approx(log_prob, abs=1e-4)
    assert len({net for net, _ in drawn}) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_networks_together_have_the_losses_that_they_have_alone(kind):
    model = meta(kind)
    conditions = [condition(seed, budget=200) for seed in range(4)]
    nets = [drawn(seed, budget=200) for seed in range(4)]
    together = model.losses(conditions, nets)
    for i in range(4):
        torch.testing.assert_close(
            together[i], model.losses(conditions[i : i + 1], nets[i : i + 1])[0], rtol=1e-4, atol=1e-4
        )


def test_the_losses_of_sequences_are_those_of_sampling():
    model, generator = meta("seq2seq"), torch.Generator().manual_seed(0)
    one = condition(0, budget=14)
    for net, log_prob in model.sample(one, 6, generator):
        if net == canonical(net):
            assert float(model.losses([one], [net])[0].detach()) == pytest.approx(-log_prob, rel=1e-4)


def test_probabilities_of_sequences_sum_to_one():
    """2 features, 2 classes, at most 5 connections: over all that the grammar lets out."""
    torch.manual_seed(0)
    words = Vocabulary(max_depth=1, widths=(1, 2), base=2)
    model = Seq2Seq(SetEncoder(2, 2, dim=8, n_seeds=1, heads=1), words, dim=8)
    x, y = objects(0, n_features=2, n_classes=2, n=8)
    one = condition_of(x, y, 5, max_features=2, max_classes=2)
    with torch.no_grad():
        memory = model.encoder([one])

        def total(tokens, state):
            grammar = Grammar(words, 2, 2, 5)
            for token in tokens:
                grammar.accept(token)
            if grammar.done:
                return 1.0
            allowed = grammar.allowed()
            step = model.embed(torch.tensor([tokens[-1]])) + model.places(torch.tensor([grammar.place]))
            hidden, after = model.cell(step.unsqueeze(1), state)
            p = model._logits(hidden, memory)[0, 0, allowed].softmax(-1)
            return sum(float(q) * total([*tokens, token], after) for q, token in zip(p, allowed, strict=True))

        assert total([words.BEGIN], model._state(memory)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_task_asks_for_is_learned_and_forgotten_with_another_condition(kind):
    """The best feature alone, by one unit or two, as the classes are 2 or 3: shuffled conditions lose the gain."""
    model = meta(kind)
    conditions = [condition(seed, budget=12, n_classes=2 + seed % 2) for seed in range(12)]
    nets = [
        from_sources(6, n, (n - 1,), ("relu",), [[(0,)] * (n - 1), [tuple(range(n - 1))] * n])
        for n in (one.n_classes for one in conditions)
    ]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        model.losses(conditions, nets).mean().backward()
        optimizer.step()
    generator = torch.Generator().manual_seed(0)
    for seed in (20, 21):
        new = condition(seed, budget=12, n_classes=2 + seed % 2)
        ((net, log_prob),) = model.sample(new, 1, generator, temperature=0.0)
        assert net == nets[seed % 2] and log_prob > -1.5
    with torch.no_grad():
        right = float(model.losses(conditions, nets).mean())
        # Of another number of classes the encoder says so, and the other network is expected.
        other = [
            type(one)(two.objects, two.scalars, one.order, one.n_classes, one.budget)
            for one, two in zip(conditions, conditions[1:] + conditions[:1], strict=True)
        ]
        assert float(model.losses(other, nets).mean()) > right + 1.0


# Units that differ in their sources, outputs too; and layers that differ in their widths and sources alone.
UNLIKE = {
    "units": from_sources(6, 3, (2,), ("relu",), [[(0, 1), (2, 3)], [(0,), (1,), (0, 1)]]),
    "layers": from_sources(
        *(6, 3, (3, 2), ("relu", "relu")), [[(0,), (1,), (2, 3)], [(0, 1), (1, 2)], [(0,), (1,), (0, 1)]]
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize("kind", KINDS)
def test_units_and_layers_of_one_network_can_differ(kind, name):
    """A decoder that is shown one network alone says it, with all but no doubt."""
    net, model = canonical(UNLIKE[name]), meta(kind)
    conditions = [condition(seed, budget=30) for seed in range(4)]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.losses(conditions, [net] * 4).mean().backward()
        optimizer.step()
    ((found, log_prob),) = model.sample(conditions[0], 1, torch.Generator().manual_seed(0), temperature=0.0)
    assert found == net and log_prob > -0.5


def test_a_tree_says_the_whole_network():
    one, other, labels = drawn(3), drawn(4), meta("doubly recurrent").labels
    assert tree_of(one, labels) == tree_of(canonical(one), labels) != tree_of(other, labels)
    assert tree_of(one, labels).size == 1 + len(one.edges) + sum(one.widths) + one.n_outputs + one.n_connections


def test_more_than_a_model_was_built_for():
    x, y = objects(0, n_features=9)
    with pytest.raises(ConfigError, match="built for 8 features and 4 classes, got 9 and 3"):
        condition_of(x, y, 20, max_features=8, max_classes=4)
