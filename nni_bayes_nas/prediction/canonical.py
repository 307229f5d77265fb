"""One form for all networks that differ by the order of hidden units alone."""

from __future__ import annotations

from typing import Any

from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture

_Colours = list[list[int]]
_Path = tuple[tuple[int, int], ...]


def canonical(net: SparseArchitecture) -> SparseArchitecture:
    """The least form of a network over the orders of its hidden units that are tried: equal exactly for equal networks.

    Units are told apart by where they are connected (colour refinement from inputs and outputs, which are all
    different). Of those that this cannot tell apart each is put first in turn, but for twins, whose order changes
    nothing, and but for those to which a symmetry of the network leads that was found on the way (McKay & Piperno,
    2014).
    """
    neighbours = _neighbours(net)
    start = [[0] * size for size in net.sizes]
    start[0], start[-1] = list(range(net.n_inputs)), list(range(net.n_outputs))
    leaves: dict[SparseArchitecture, tuple[_Path, list[list[int]]]] = {}
    symmetries: list[list[dict[int, int]]] = []

    def search(colours: _Colours, path: _Path) -> int:
        """Try what is tied; gives how much of the path there is still anything to be tried below."""
        tied = _first_tie(colours, neighbours)
        if tied is None:
            # Twins have equal colours: any order of them is the same network.
            orders = [sorted(range(len(layer)), key=layer.__getitem__) for layer in colours[1:-1]]
            form = net.permuted(orders)
            if form not in leaves:
                leaves[form] = path, orders
                return len(path)
            other, before = leaves[form]
            symmetries.append([dict(zip(a, b, strict=True)) for a, b in zip(before, orders, strict=True)])
            return next(k for k, (a, b) in enumerate(zip(other, path, strict=False)) if a != b)
        layer, units = tied
        tried: list[int] = []
        for unit in units:
            if unit in _reached(tried, layer, path, symmetries, neighbours):
                continue
            told = [list(each) for each in colours]
            # Before the others of its colour: ranks are doubled, so that there is room.
            told[layer] = [2 * c + 1 for c in told[layer]]
            told[layer][unit] -= 1
            back = search(_refined(told, neighbours), (*path, (layer, unit)))
            tried.append(unit)
            if back < len(path):
                return back
        return len(path)

    search(_refined(start, neighbours), ())
    return min(leaves, key=lambda one: one.edges)


def _reached(tried: list[int], layer: int, path: _Path, symmetries: Any, neighbours: Any) -> set[int]:
    """Units to which symmetries that leave the path where it is lead from those that were tried, and their twins."""
    own = [maps[layer - 1] for maps in symmetries if all(maps[at - 1][unit] == unit for at, unit in path)]
    found, waiting = set(tried), list(tried)
    while waiting:
        unit = waiting.pop()
        twins = {one for one, sign in enumerate(neighbours[layer]) if sign == neighbours[layer][unit]}
        new = (twins | {each[unit] for each in own}) - found
        found |= new
        waiting += new
    return found


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
