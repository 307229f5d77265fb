"""The decoder of trees, on a grammar of trees that is known."""

import itertools
import math

import pytest
import torch

from nni_bayes_nas.prediction.doubly_recurrent import DoublyRecurrent, Tree, chooser


def tree_of(a, b):
    """A root with b + 1 children, which count up, each with a leaves and one that says which child it is of."""
    return Tree(0, tuple(Tree(1 + k, (*[Tree(6)] * a, Tree(7 + k))) for k in range(b + 1)))


EVERY = list(itertools.product(range(5), range(5)))
TREES = [tree_of(a, b) for a, b in EVERY]
CONTEXT = torch.cat([torch.eye(5).repeat_interleave(5, 0), torch.eye(5).repeat(5, 1)], 1)
HELD_OUT = [i for i, (a, b) in enumerate(EVERY) if (a + 2 * b) % 5 == 3]


def test_what_it_says_of_trees_is_a_probability():
    """Sums of all trees of one label: a root alone, and what has children."""
    torch.manual_seed(0)
    model = DoublyRecurrent(1, 4, 2).double()
    context = torch.randn(1, 2, dtype=torch.float64)
    with torch.no_grad():
        model.topology.bias.copy_(torch.tensor([-3.0, -3.0]))

    def upto(depth, most):
        if depth == 0:
            return [Tree(0)]
        below = upto(depth - 1, most)
        return [Tree(0, children) for n in range(most + 1) for children in itertools.product(below, repeat=n)]

    with torch.no_grad():
        total = sum(math.exp(-float(model.losses([tree], context)[0])) for tree in upto(3, 2))
    assert 0.97 < total < 1.0


def test_trees_together_are_those_that_are_alone():
    torch.manual_seed(0)
    model = DoublyRecurrent(12, 16, 10)
    together = model.losses(TREES, CONTEXT)
    for i, tree in enumerate(TREES):
        torch.testing.assert_close(together[i], model.losses([tree], CONTEXT[i : i + 1])[0])


def test_a_grammar_is_recovered():
    """From 20 trees, five of whose combinations it has not seen: these are decoded exactly too."""
    torch.manual_seed(0)
    model = DoublyRecurrent(12, 48, 10)
    seen = [i for i in range(25) if i not in HELD_OUT]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        model.losses([TREES[i] for i in seen], CONTEXT[seen]).mean().backward()
        optimizer.step()
    exact = {i: model.sample(CONTEXT[i]) == tree for i, tree in enumerate(TREES)}
    assert sum(exact[i] for i in seen) / 20 > 0.9
    assert sum(exact[i] for i in HELD_OUT) / 5 > 0.9
    # The condition says which tree it is: with another one's it is another tree.
    assert not any(model.sample(CONTEXT[(i + 1) % 25]) == tree for i, tree in enumerate(TREES))


def test_decoding_has_the_states_of_training():
    """The probability that decoding gives to the tree that it finds is that of `losses`."""
    torch.manual_seed(1)
    model = DoublyRecurrent(12, 16, 10)
    tree, context = TREES[4], CONTEXT[4]
    total = 0.0

    def walk(node, wanted, parent, has_sibling):
        nonlocal total
        logits = model.topology(node.hidden)
        topology = torch.tensor([float(bool(wanted.children)), float(has_sibling)])
        signs = 2 * topology - 1
        kept = signs * logits if parent is not None else (signs * logits)[:1]
        total += float(torch.nn.functional.logsigmoid(kept).sum())
        total += float(model.label_logits(node.hidden, topology).log_softmax(-1)[wanted.label])
        node.label = wanted.label
        for i, child in enumerate(wanted.children):
            walk(model.child(node, context), child, node, i + 1 < len(wanted.children))

    with torch.no_grad():
        walk(model.root(context), tree, None, False)
        assert -total == pytest.approx(float(model.losses([tree], context.unsqueeze(0))), rel=1e-5)


def test_an_endless_tree_is_none():
    torch.manual_seed(0)
    model = DoublyRecurrent(2, 8, 2)
    with torch.no_grad():
        model.topology.bias.copy_(torch.tensor([5.0, 5.0]))
    assert model.sample(torch.zeros(2), max_nodes=50) is None
    assert chooser(None)([0.0, 2.0, 1.0]) == 1
    assert Tree(0, (Tree(1), Tree(1, (Tree(0),)))).size == 4
