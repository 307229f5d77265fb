"""One form for all networks that differ by the order of hidden units alone."""

from __future__ import annotations

from typing import Any

from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture

_Colours = list[list[int]]


def canonical(net: SparseArchitecture) -> SparseArchitecture:
    """The least form of a network over all orders of its hidden units: equal exactly for equal networks.

    Units are told apart by where they are connected (colour refinement from inputs and outputs, which are all
    different). Those that this cannot tell apart are tried in every order, but for twins, whose order changes nothing.
    """
    neighbours = _neighbours(net)
    start = [[0] * size for size in net.sizes]
    start[0], start[-1] = list(range(net.n_inputs)), list(range(net.n_outputs))
    found: list[SparseArchitecture] = []

    def search(colours: _Colours) -> None:
        tied = _first_tie(colours, neighbours)
        if tied is None:
            # Twins have equal colours: any order of them is the same network.
            orders = [sorted(range(len(layer)), key=layer.__getitem__) for layer in colours[1:-1]]
            found.append(net.permuted(orders))
            return
        layer, units = tied
        for unit in units:
            told = [list(each) for each in colours]
            # Before the others of its colour: ranks are doubled, so that there is room.
            told[layer] = [2 * c + 1 for c in told[layer]]
            told[layer][unit] -= 1
            search(_refined(told, neighbours))

    search(_refined(start, neighbours))
    return min(found, key=lambda one: one.edges)


def _neighbours(net: SparseArchitecture) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Of every unit of every layer its sources and targets."""
    into: list[list[list[int]]] = [[[] for _ in range(size)] for size in net.sizes]
    out: list[list[list[int]]] = [[[] for _ in range(size)] for size in net.sizes]
    for layer, edges in enumerate(net.edges):
        for a, b in edges:
            out[layer][a].append(b)
            into[layer + 1][b].append(a)
    return [
        [(tuple(sorted(i)), tuple(sorted(o))) for i, o in zip(*pair, strict=True)]
        for pair in zip(into, out, strict=True)
    ]


def _refined(colours: _Colours, neighbours: Any) -> _Colours:
    """Ranks of what units and their neighbours look like, until nothing more is told apart."""
    while True:
        signs = [
            [
                (
                    colours[layer][unit],
                    tuple(sorted(colours[layer - 1][a] for a in sources)),
                    tuple(sorted(colours[layer + 1][b] for b in targets)),
                )
                for unit, (sources, targets) in enumerate(units)
            ]
            for layer, units in enumerate(neighbours)
        ]
        ranks = [{sign: rank for rank, sign in enumerate(sorted(set(layer)))} for layer in signs]
        refined = [[rank[sign] for sign in layer] for rank, layer in zip(ranks, signs, strict=True)]
        if [len(set(layer)) for layer in refined] == [len(set(layer)) for layer in colours]:
            return refined
        colours = refined


def _first_tie(colours: _Colours, neighbours: Any) -> tuple[int, list[int]] | None:
    """Units of one layer and colour that are not all twins; None where there are none."""
    for layer, own in enumerate(colours):
        by_colour: dict[int, list[int]] = {}
        for unit, colour in enumerate(own):
            by_colour.setdefault(colour, []).append(unit)
        for colour in sorted(by_colour):
            units = by_colour[colour]
            # One of each kind of twins stands for them.
            kinds = {neighbours[layer][unit]: unit for unit in reversed(units)}
            if len(kinds) > 1:
                return layer, sorted(kinds.values())
    return None
