"""Sparse networks, their one form, and their tokens."""

import itertools
import random

import pytest
from drawn_nets import SMALL, drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.sparse_architecture import (
    ACTIVATIONS,
    SparseArchitecture,
    fewest_connections,
    from_sources,
)
from nni_bayes_nas.prediction.tokens import Grammar, Vocabulary, decode, encode

DENSE = from_sources(2, 1, (2,), ("relu",), [[(0, 1), (0, 1)], [(0, 1)]])


def shuffled(net, seed):
    generator = random.Random(seed)
    return net.permuted([generator.sample(range(width), width) for width in net.widths])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 4))
def test_networks_and_their_tokens_are_one(seed, order, n_inputs, n_outputs):
    net = drawn(seed, n_inputs=n_inputs, n_outputs=n_outputs)
    form, other = canonical(net), shuffled(net, order)
    assert canonical(other) == form == canonical(form)
    tokens = encode(net, SMALL)
    assert encode(other, SMALL) == tokens
    assert decode(tokens, SMALL, n_inputs, n_outputs) == form
    assert SparseArchitecture.from_json(net.to_json()) == net
    assert form.n_connections == net.n_connections


def test_forms_are_equal_for_equal_networks_alone():
    """All networks of 2 inputs, 3 hidden units, 2 outputs, against all orders of the units."""
    every = [s for n in (1, 2) for s in itertools.combinations(range(2), n)]
    above = [s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)]
    classes = {}
    for below in itertools.product(every, repeat=3):
        for out in itertools.product(above, repeat=2):
            if set(itertools.chain(*out)) == {0, 1, 2}:
                net = from_sources(2, 2, (3,), ("relu",), [below, out])
                orbit = frozenset(net.permuted([order]).edges for order in itertools.permutations(range(3)))
                classes.setdefault(canonical(net).edges, set()).add(orbit)
    assert all(len(orbits) == 1 for orbits in classes.values())
    assert len({next(iter(orbits)) for orbits in classes.values()}) == len(classes) > 100


def test_units_that_refinement_cannot_tell_apart():
    """Two layers joined in one ring of 6 or in two of 4: as regular as can be, and different networks."""
    ring = [(0, 1), (1, 2), (2, 3), (0, 3)]
    pairs = [(0, 1), (0, 1), (2, 3), (2, 3)]
    forms = []
    for joined in (ring, pairs):
        net = from_sources(1, 1, (4, 4), ("relu", "relu"), [[(0,)] * 4, joined, [(0, 1, 2, 3)]])
        assert {canonical(shuffled(net, seed)) for seed in range(50)} == {canonical(net)}
        forms.append(canonical(net))
    assert forms[0] != forms[1]


@pytest.mark.parametrize("n", [3, 8, 16])
def test_matchings_and_rings_take_no_time(n):
    """As symmetric as can be: n! and 2 n orders that change nothing."""
    below, above = [(0,)] * n, [tuple(range(n))]
    for joined in ([(i,) for i in range(n)], [tuple(sorted((i, (i + 1) % n))) for i in range(n)]):
        net = from_sources(1, 1, (n, n), ("relu", "relu"), [below, joined, above])
        assert {canonical(shuffled(net, seed)) for seed in range(5)} == {canonical(net)}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 30), st.integers(1, 5))
def test_whatever_comes_out_is_within_the_budget(seed, more, n_inputs, n_outputs):
    budget = fewest_connections((1,), n_outputs) + more
    net = drawn(seed, n_inputs=n_inputs, n_outputs=n_outputs, budget=budget)
    assert net.n_connections <= budget


def test_every_network_within_a_budget_can_come_out():
    """2 inputs, 1 output, widths 1 and 2, at most 7 connections: the grammar gives all that there are."""
    vocabulary, budget, found = Vocabulary(max_depth=2, widths=(1, 2), base=2), 7, set()

    def walk(tokens):
        grammar = Grammar(vocabulary, 2, 1, budget)
        for token in tokens:
            grammar.accept(token)
        if grammar.done:
            found.add(grammar.network())
        for token in grammar.allowed():
            walk([*tokens, token])

    walk([])
    wanted = set()
    for widths in itertools.chain(itertools.product((1, 2), repeat=1), itertools.product((1, 2), repeat=2)):
        sizes = (2, *widths, 1)
        layers = []
        for a, b in itertools.pairwise(sizes):
            own = [s for n in range(1, a + 1) for s in itertools.combinations(range(a), n)]
            layers.append(list(itertools.product(own, repeat=b)))
        for sources in itertools.product(*layers):
            for activations in itertools.product(ACTIVATIONS, repeat=len(widths)):
                try:
                    net = from_sources(2, 1, widths, activations, sources)
                except ConfigError:
                    continue
                if net.n_connections <= budget:
                    wanted.add(net)
    assert found == wanted and len(found) > 100


def test_tokens_are_as_they_are_said_to_be():
    v = SMALL
    assert encode(DENSE, v) == [
        *(v.BEGIN, v.depth(1), v.width(2), v.activation("relu")),
        *(v.digit(0), v.digit(1), v.STOP, v.digit(0), v.digit(1), v.STOP),
        *(v.digit(0), v.digit(1), v.STOP, v.END),
    ]
    assert v.size == v.digit(3) + 1
    assert [v.digits(n) for n in (1, 4, 5, 16, 17)] == [1, 1, 2, 2, 3]
    tokens = [v.depth(3), v.width(1), v.width(5), v.activation("relu"), v.activation("tanh"), v.digit(0)]
    assert len({v.BEGIN, v.END, v.STOP, *tokens}) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": ()}, "needs a hidden layer"),
        ({"activations": ("sigmoid",)}, "an activation of relu, tanh for each of its 1"),
        ({"edges": ((), ())}, "unit 0 of layer 0 has none"),
        ({"edges": (((0, 0), (0, 1)), ((0, 0),))}, "unit 1 of layer 0 has none; add one"),
        ({"edges": (((0, 0), (2, 1)), ((0, 0), (1, 0)))}, "must lead from 2 to 2 units"),
        ({"edges": (((0, 1), (0, 0)), ((0, 0), (1, 0)))}, "must rise"),
        ({"edges": (((0, 0), (0, 1)),)}, "connections for 2 layers"),
    ],
)
def test_no_network(change, message):
    values = {"n_inputs": 2, "n_outputs": 1, "widths": (2,), "activations": ("relu",), "edges": DENSE.edges}
    with pytest.raises(ConfigError, match=message):
        SparseArchitecture(**values | change)


def test_what_has_no_tokens():
    deep = from_sources(1, 1, (1,) * 4, ("relu",) * 4, [[(0,)]] * 5)
    with pytest.raises(ConfigError, match="at most 3 hidden layers"):
        encode(deep, SMALL)
    wide = from_sources(1, 1, (4,), ("relu",), [[(0,)] * 4, [(0, 1, 2, 3)]])
    with pytest.raises(ConfigError, match=r"widths must be among \[1, 2, 3, 5\], got 4"):
        encode(wide, SMALL)
    with pytest.raises(ConfigError, match="token 1 of a sparse network cannot be"):
        decode([SMALL.BEGIN, SMALL.STOP], SMALL, 2, 1)
    with pytest.raises(ConfigError, match="2 tokens are the beginning"):
        decode([SMALL.BEGIN, SMALL.depth(1)], SMALL, 2, 1)
    with pytest.raises(ConfigError, match="has 4 connections, got a budget of 3"):
        Grammar(SMALL, 5, 3, 3)
    with pytest.raises(ConfigError, match="rising widths"):
        Vocabulary(widths=(3, 2))
    with pytest.raises(ConfigError, match="must be what `to_json` gave"):
        SparseArchitecture.from_json("{}")
