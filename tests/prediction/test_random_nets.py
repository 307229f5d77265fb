"""Random sparse networks, and the best connections by a score."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.random_nets import best_connections, completed, mutated, random_net
from nni_bayes_nas.prediction.sparse_architecture import fewest_connections
from nni_bayes_nas.prediction.tokens import Vocabulary

WORDS = Vocabulary(max_depth=3, widths=(1, 2, 4, 8))


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(0, 200))
def test_a_random_network_takes_the_whole_budget(seed, n_inputs, n_outputs, more):
    """Networks are checked where they are made: every unit has a source, every hidden one a target."""
    budget = fewest_connections((1,), n_outputs) + more
    net = random_net(n_inputs, n_outputs, budget, WORDS, random.Random(seed))
    whole = sum(a * b for a, b in itertools.pairwise(net.sizes))
    assert net.n_connections == min(budget, whole)
    assert net == random_net(n_inputs, n_outputs, budget, WORDS, random.Random(seed))


@given(st.integers(0, 10**6), st.integers(14, 100))
def test_widths_can_use_the_budget_where_any_can(seed, budget):
    """12 inputs, 8 units and 3 outputs have 120 connections: no network is drawn that is smaller by its widths."""
    assert random_net(12, 3, budget, WORDS, random.Random(seed)).n_connections == budget


@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 200))
def test_a_completed_network_has_the_old_connections_and_the_budget(seed, more, room):
    generator = random.Random(seed)
    net = random_net(12, 3, fewest_connections((1,), 3) + more, WORDS, generator)
    budget = net.n_connections + room
    full = completed(net, budget, generator)
    assert full.n_connections == min(budget, sum(a * b for a, b in itertools.pairwise(net.sizes)))
    assert all(set(old) <= set(new) for old, new in zip(net.edges, full.edges, strict=True))
    assert completed(net, net.n_connections - 1, generator) == net


def test_new_connections_are_of_the_first_inputs():
    generator = random.Random(0)
    net = random_net(60, 2, 20, Vocabulary(1, (8,)), generator)
    counts = [0, 0, 0]
    for _ in range(20):
        full = completed(net, 120, generator)
        for a, _ in set(full.edges[0]) - set(net.edges[0]):
            counts[a // 20] += 1
    assert counts[0] > 1.5 * counts[1] > 1.5 * counts[2]


@given(st.integers(0, 10**6), st.integers(0, 60))
def test_changes_keep_the_budget(seed, more):
    budget, generator = fewest_connections((1,), 3) + more, random.Random(seed)
    net = random_net(9, 3, budget, WORDS, generator)
    nets = [mutated(net, budget, WORDS, generator) for _ in range(40)]
    assert all(other.n_connections <= budget for other in nets)
    if net.n_connections < sum(a * b for a, b in itertools.pairwise(net.sizes)):
        assert sum(other != net for other in nets) > 3
    assert all(len(other.widths) == len(net.widths) for other in nets)


def test_what_can_change_does():
    generator = random.Random(0)
    net = random_net(9, 3, 30, WORDS, generator)
    nets = [mutated(net, 30, WORDS, generator) for _ in range(200)]
    assert {len(other.widths) for other in nets} == {len(net.widths)}
    assert any(other.widths != net.widths for other in nets)
    assert any(other.activations != net.activations for other in nets)
    assert any(other.edges != net.edges and other.widths == net.widths for other in nets)


def test_the_best_connections_by_enumeration():
    """2 inputs, 2 hidden units, 2 outputs, 6 of 8 connections: the largest sum of scores of all networks."""
    generator = torch.Generator().manual_seed(0)
    everywhere = [(layer, a, b) for layer in (0, 1) for a in (0, 1) for b in (0, 1)]
    for _ in range(20):
        scores = [torch.rand(2, 2, generator=generator) for _ in (0, 1)]
        net = best_connections(2, 2, (2,), ("relu",), scores, 6)
        value = {where: float(scores[where[0]][where[2], where[1]]) for where in everywhere}
        best = 0.0
        for subset in itertools.combinations(everywhere, 6):
            targets = {(layer, b) for layer, _, b in subset}
            sources = {a for layer, a, _ in subset if layer == 1}
            if len(targets) == 4 and len(sources) == 2:
                best = max(best, sum(value[where] for where in subset))
        found = sum(value[layer, a, b] for layer, edges in enumerate(net.edges) for a, b in edges)
        # What makes it a network is chosen first, pair by pair: next to the best, and mostly it.
        assert best - 0.5 < found <= best + 1e-6


def test_no_budget():
    with pytest.raises(ConfigError, match="has 4 connections, got a budget of 3"):
        random_net(5, 3, 3, WORDS, random.Random(0))
    with pytest.raises(ConfigError, match=r"widths \[4\] has at least 8 connections, got a budget of 7"):
        best_connections(5, 3, (4,), ("relu",), [torch.rand(4, 5), torch.rand(3, 4)], 7)
