"""Sparse networks at random, small changes of them, and the best connections by a score."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise, product

from torch import Tensor

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.sparse_architecture import (
    ACTIVATIONS,
    Edge,
    SparseArchitecture,
    fewest_connections,
)
from nni_bayes_nas.prediction.tokens import Vocabulary

# Widths whose network of all connections is smaller than the budget are drawn again, so often at most.
_REDRAWN = 100


def random_widths(
    n_inputs: int, n_outputs: int, budget: int, vocabulary: Vocabulary, generator: random.Random
) -> tuple[int, ...]:
    """Widths of hidden layers that a budget of connections can afford, and that can use all of it where any can.

    Before widths that cannot are drawn again depths are as probable as one another.

    Raises:
        ConfigError: It can afford none.
    """
    found = [_affordable(n_outputs, budget, vocabulary, generator)]
    while _whole(n_inputs, found[-1], n_outputs) < budget and len(found) < _REDRAWN:
        found.append(_affordable(n_outputs, budget, vocabulary, generator))
    if _whole(n_inputs, found[-1], n_outputs) >= budget:
        return found[-1]
    return max(found, key=lambda widths: _whole(n_inputs, widths, n_outputs))


def most_parameters(n_inputs: int, n_outputs: int, budget: int, vocabulary: Vocabulary) -> int:
    """Weights and biases of the largest network of a vocabulary within a budget of connections.

    Raises:
        ConfigError: It can afford none.
    """
    every = (
        widths
        for depth in range(1, vocabulary.max_depth + 1)
        for widths in product(vocabulary.widths, repeat=depth)
        if fewest_connections(widths, n_outputs) <= budget
    )
    found = [min(budget, _whole(n_inputs, w, n_outputs)) + sum(w) + n_outputs for w in every]
    if not found:
        raise ConfigError(_no_room(n_outputs, budget, vocabulary))
    return max(found)


def _whole(n_inputs: int, widths: Sequence[int], n_outputs: int) -> int:
    """All connections that there can be."""
    return sum(a * b for a, b in pairwise((n_inputs, *widths, n_outputs)))


def _affordable(n_outputs: int, budget: int, vocabulary: Vocabulary, generator: random.Random) -> tuple[int, ...]:
    least = vocabulary.widths[0]
    depths = [n for n in range(1, vocabulary.max_depth + 1) if fewest_connections((least,) * n, n_outputs) <= budget]
    if not depths:
        raise ConfigError(_no_room(n_outputs, budget, vocabulary))
    depth = generator.choice(depths)
    widths = [least] * depth
    for layer in generator.sample(range(depth), depth):
        fits = [n for n in vocabulary.widths if _with(widths, layer, n, n_outputs) <= budget]
        widths[layer] = generator.choice(fits)
    return tuple(widths)


def _no_room(n_outputs: int, budget: int, vocabulary: Vocabulary) -> str:
    least = vocabulary.widths[0]
    return (
        f"the smallest network with {least} hidden units and {n_outputs} outputs has "
        f"{fewest_connections((least,), n_outputs)} connections, got a budget of {budget}; raise it."
    )


def random_net(
    n_inputs: int, n_outputs: int, budget: int, vocabulary: Vocabulary, generator: random.Random
) -> SparseArchitecture:
    """A network of `random_widths`, of as many connections as the budget has, or as there can be, all at random."""
    widths = random_widths(n_inputs, n_outputs, budget, vocabulary, generator)
    activations = tuple(generator.choice(ACTIVATIONS) for _ in widths)
    return random_connections(n_inputs, n_outputs, widths, activations, budget, generator)


def random_connections(
    n_inputs: int,
    n_outputs: int,
    widths: Sequence[int],
    activations: Sequence[str],
    budget: int,
    generator: random.Random,
    *,
    rather_first: bool = False,
) -> SparseArchitecture:
    """A network of these widths and activations, its connections at random; or an input's rather the earlier it is."""
    sizes = (n_inputs, *widths, n_outputs)
    scores = [
        [[(1 - a / n if rather_first and layer == 0 else 1.0) * generator.random() for a in range(n)] for _ in range(m)]
        for layer, (n, m) in enumerate(pairwise(sizes))
    ]
    return best_connections(n_inputs, n_outputs, widths, activations, scores, budget)


def relevant_net(
    n_inputs: int, n_outputs: int, budget: int, vocabulary: Vocabulary, generator: random.Random
) -> SparseArchitecture:
    """As `random_net`, but an input has connections the more probably the earlier it comes."""
    widths = random_widths(n_inputs, n_outputs, budget, vocabulary, generator)
    activations = tuple(generator.choice(ACTIVATIONS) for _ in widths)
    return random_connections(n_inputs, n_outputs, widths, activations, budget, generator, rather_first=True)


def best_connections(
    n_inputs: int,
    n_outputs: int,
    widths: Sequence[int],
    activations: Sequence[str],
    scores: Sequence[Sequence[Sequence[float]] | Tensor],
    budget: int,
) -> SparseArchitecture:
    """The network of the connections of the largest scores, of all layers together, within a budget.

    First come those that make it a network: of every first hidden unit the best source; above it the best free pairs of
    source and target, then the best one of every end that is left.

    Args:
        n_inputs: Features.
        n_outputs: Classes.
        widths: Of the hidden layers.
        activations: Of these.
        scores: Of every layer `(targets, sources)`.
        budget: Connections at most.

    Raises:
        ConfigError: The budget is too small for these widths.
    """
    sizes = (n_inputs, *widths, n_outputs)
    if fewest_connections(widths, n_outputs) > budget:
        raise ConfigError(
            f"a network of widths {list(widths)} has at least {fewest_connections(widths, n_outputs)} connections, got "
            f"a budget of {budget}; raise it."
        )
    tables = [score.tolist() if isinstance(score, Tensor) else score for score in scores]
    chosen = [_needed(table, layer > 0) for layer, table in enumerate(tables)]
    left = budget - sum(map(len, chosen))
    rest = [
        (table[b][a], layer, a, b)
        for layer, table in enumerate(tables)
        for b in range(sizes[layer + 1])
        for a in range(sizes[layer])
        if (a, b) not in chosen[layer]
    ]
    for _, layer, a, b in sorted(rest, reverse=True)[: max(left, 0)]:
        chosen[layer].add((a, b))
    edges = tuple(tuple(sorted(each)) for each in chosen)
    return SparseArchitecture(n_inputs, n_outputs, tuple(widths), tuple(activations), edges)


def completed(net: SparseArchitecture, budget: int, generator: random.Random) -> SparseArchitecture:
    """The network with as many connections as the budget has, where there can be as many.

    New ones are of the first inputs, which are the features that say most where inputs are ranks, and above the first
    layer anywhere.

    Args:
        net: Its own connections stay; one of more than the budget is given back as it is.
        budget: Connections.
        generator: Of what is drawn.
    """
    left = budget - net.n_connections
    edges = [set(each) for each in net.edges]
    free = [
        ((1 - a / net.n_inputs if layer == 0 else 1.0) * generator.random(), layer, (a, b))
        for layer, there in enumerate(edges)
        for a in range(net.sizes[layer])
        for b in range(net.sizes[layer + 1])
        if (a, b) not in there
    ]
    for _, layer, edge in sorted(free, reverse=True)[: max(left, 0)]:
        edges[layer].add(edge)
    more = tuple(tuple(sorted(each)) for each in edges)
    return SparseArchitecture(net.n_inputs, net.n_outputs, net.widths, net.activations, more)


def mutated(
    net: SparseArchitecture, budget: int, vocabulary: Vocabulary, generator: random.Random, swaps: int = 2
) -> SparseArchitecture:
    """A network with some connections in other places; now and then with another activation, or another width.

    Args:
        net: It stays as it is.
        budget: Connections at most.
        vocabulary: Of the widths.
        generator: Of what changes.
        swaps: Connections that move, from layer to layer too, where they can: what makes it a network stays.
    """
    kind = generator.random()
    if kind < 0.1:
        layer = generator.randrange(len(net.widths))
        activations = list(net.activations)
        activations[layer] = next(name for name in ACTIVATIONS if name != activations[layer])
        return SparseArchitecture(net.n_inputs, net.n_outputs, net.widths, tuple(activations), net.edges)
    if kind < 0.25:
        return _other_width(net, budget, vocabulary, generator)
    edges = [set(each) for each in net.edges]
    for _ in range(swaps):
        # The new one first: what it stands in for can go then. Layers by their connections, as in the whole.
        layer = generator.choices(range(len(edges)), [len(each) for each in edges])[0]
        free = [
            (a, b) for b in range(net.sizes[layer + 1]) for a in range(net.sizes[layer]) if (a, b) not in edges[layer]
        ]
        if not free:
            continue
        new = generator.choice(free)
        edges[layer].add(new)
        spare = [
            (place, edge)
            for place, each in enumerate(edges)
            for edge in sorted(each)
            if (place, edge) != (layer, new) and _can_go(edge, each, place > 0)
        ]
        place, edge = generator.choice(spare) if spare else (layer, new)
        edges[place].remove(edge)
    moved = tuple(tuple(sorted(each)) for each in edges)
    return SparseArchitecture(net.n_inputs, net.n_outputs, net.widths, net.activations, moved)


def _other_width(
    net: SparseArchitecture, budget: int, vocabulary: Vocabulary, generator: random.Random
) -> SparseArchitecture:
    """A layer one width narrower or wider: connections stay where both ends are there, others are drawn."""
    layer = generator.randrange(len(net.widths))
    known = vocabulary.widths
    at = known.index(net.widths[layer]) if net.widths[layer] in known else 0
    near = [known[i] for i in (at - 1, at + 1) if 0 <= i < len(known)]
    near = [n for n in near if _with(list(net.widths), layer, n, net.n_outputs) <= budget]
    if not near:
        return net
    widths = list(net.widths)
    widths[layer] = generator.choice(near)
    sizes = (net.n_inputs, *widths, net.n_outputs)
    scores = [
        [[generator.random() + ((a, b) in own) for a in range(sizes[i])] for b in range(sizes[i + 1])]
        for i, own in enumerate(map(set, net.edges))
    ]
    return best_connections(net.n_inputs, net.n_outputs, widths, net.activations, scores, budget)


def _with(widths: list[int], layer: int, n: int, n_outputs: int) -> int:
    return fewest_connections([*widths[:layer], n, *widths[layer + 1 :]], n_outputs)


def _needed(table: Sequence[Sequence[float]], hidden_below: bool) -> set[Edge]:
    """Of a layer as few connections of the best as give every target a source, and every hidden source a target.

    max(sources, targets) of them: the best free pairs first, so that no end is taken twice while there are others.
    """
    n_targets, n_sources = len(table), len(table[0])
    chosen: set[Edge] = set()
    if not hidden_below:
        for b in range(n_targets):
            chosen.add((max(range(n_sources), key=table[b].__getitem__), b))
        return chosen
    pairs = sorted(((table[b][a], a, b) for b in range(n_targets) for a in range(n_sources)), reverse=True)
    sources, targets = set(range(n_sources)), set(range(n_targets))
    for _, a, b in pairs:
        if a in sources and b in targets:
            chosen.add((a, b))
            sources.discard(a)
            targets.discard(b)
    for a in sources:
        chosen.add((a, max(range(n_targets), key=lambda b, a=a: table[b][a])))  # type: ignore[misc]
    for b in targets:
        chosen.add((max(range(n_sources), key=table[b].__getitem__), b))
    return chosen


def _can_go(edge: Edge, edges: set[Edge], hidden_below: bool) -> bool:
    """Whether what is left is a network still."""
    a, b = edge
    return any(t == b and s != a for s, t in edges) and (not hidden_below or any(s == a and t != b for s, t in edges))
