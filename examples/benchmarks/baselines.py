"""Architectures that no search made: random cells of every size, and one fixed cell at several widths."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from front import strata

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.search_spaces.cell import DEFAULT_OPERATIONS, CellSpace

FIXED_OPERATION = "sep_conv_3x3"
_TILT = 50.0
_DRAWS = 2000
_WIDTHS = range(2, 97)


class Cells:
    """The architectures of a `CellSpace` with its default operations and unshared cells; their sizes.

    Args:
        space: Arguments of the space.
    """

    def __init__(self, space: dict[str, Any]) -> None:
        self.space = space
        self.nodes = [(cell, node) for cell in range(space["n_cells"]) for node in range(2, 2 + space["n_nodes"])]

    def choices(self, edges: list[tuple[int, str]]) -> dict[str, Any]:
        """An architecture from (input, operation) for every kept edge, two per node."""
        result: dict[str, Any] = {}
        for i, (source, operation) in enumerate(edges):
            cell, node = self.nodes[i // 2]
            result[f"cell{cell}/op_{node}_{i % 2}"] = operation
            result[f"cell{cell}/input_{node}_{i % 2}"] = [source]
        return result

    def params(self, choices: dict[str, Any], width: int | None = None) -> int:
        """Parameters, counted on the network."""
        space = CellSpace(**{**self.space, **({} if width is None else {"width": width})})
        return int(count_parameters(Architecture(choices).build(space)))

    def uniform(self, operation: str) -> dict[str, Any]:
        """Every node: the operation on both inputs of the cell."""
        return self.choices([(source, operation) for _ in self.nodes for source in (0, 1)])

    @cached_property
    def prices(self) -> dict[str, int]:
        """Parameters of an operation on one edge."""
        edges = [(source, "skip_connect") for _ in self.nodes for source in (0, 1)]
        base = self.params(self.choices(edges))
        return {name: self.params(self.choices([(0, name), *edges[1:]])) - base for name in DEFAULT_OPERATIONS}

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """Parameters of the cheapest and of the dearest architecture."""
        by_price = sorted(self.prices, key=lambda name: self.prices[name])
        return self.params(self.uniform(by_price[0])), self.params(self.uniform(by_price[-1]))

    def random(self, n: int, n_strata: int, seed: int) -> list[dict[str, Any]]:
        """`n` distinct random architectures, in rounds that visit every stratum of log size once, in random order.

        Drawn without data. Among the architectures of one size all are equally probable: operations are drawn with
        probabilities exp(-tilt * price), which changes the probability of a size only, and a draw is taken if it falls
        into the stratum whose turn it is.

        Raises:
            ValueError: If a stratum has too few architectures.
        """
        generator = random.Random(seed)
        slices = strata(*self.bounds, n_strata)
        taken: set[str] = set()
        result: list[dict[str, Any]] = []
        while len(result) < n:
            before = len(result)
            for low, high in generator.sample(slices, len(slices)):
                choices = self._within(low, high, generator, taken)
                if choices is not None:
                    taken.add(Architecture(choices).key)
                    result.append(choices)
            if len(result) == before:
                raise ValueError(f"the space has no more than {before} architectures in {n_strata} strata, not {n}")
        return result[:n]

    def _within(self, low: float, high: float, generator: random.Random, taken: set[str]) -> dict[str, Any] | None:
        names = list(self.prices)
        weights = self._weights(math.sqrt(low * high))
        for _ in range(_DRAWS):
            operations = generator.choices(names, weights, k=2 * len(self.nodes))
            if not low <= self.bounds[0] + sum(self.prices[name] for name in operations) < high:
                continue
            edges: list[tuple[int, str]] = []
            for i, (_, node) in enumerate(self.nodes):
                sources = sorted(generator.sample(range(node), 2))
                edges += zip(sources, operations[2 * i : 2 * i + 2], strict=True)
            choices = self.choices(edges)
            if Architecture(choices).key not in taken:
                return choices
        return None

    def _weights(self, size: float) -> list[float]:
        """Probabilities of the operations at which the expected size is `size`, by bisection of the tilt."""
        largest, edges = max(self.prices.values()), 2 * len(self.nodes)
        low, high = -_TILT, _TILT
        for _ in range(30):
            tilt = (low + high) / 2
            weights = [math.exp(-tilt * price / largest) for price in self.prices.values()]
            shares = [weight / sum(weights) for weight in weights]
            expected = self.bounds[0] + edges * sum(s * p for s, p in zip(shares, self.prices.values(), strict=True))
            low, high = (tilt, high) if expected > size else (low, tilt)
        return shares

    def widths(self, n: int) -> list[int]:
        """Widths at which the fixed cell has the sizes of the middles of `n` strata, as nearly as there are any."""
        # The size of a cell is quadratic in its width: three counts tell all.
        one, two, three = (self.params(self.uniform(FIXED_OPERATION), width) for width in (1, 2, 3))
        half = (three - 2 * two + one) / 2
        sizes = {w: one + (two - one) * (w - 1) + half * (w - 1) * (w - 2) for w in _WIDTHS}
        middles = [math.sqrt(low * high) for low, high in strata(*self.bounds, n)]
        return sorted({min(sizes, key=lambda w: abs(math.log(sizes[w] / middle))) for middle in middles})


def nearest_width(space: dict[str, Any], choices: dict[str, Any], widths: Sequence[int], size: int) -> int:
    """The width at which the network of a cell comes nearest to a number of parameters.

    Args:
        space: Arguments of the cell space, without the width.
        choices: Of the cell.
        widths: That there are, in order.
        size: Parameters.
    """

    def params(width: int) -> int:
        return count_parameters(Architecture(choices).build(CellSpace(**{**space, "width": width})))

    # Sizes grow with the width.
    at = bisect.bisect_left(widths, size, hi=len(widths) - 1, key=params)
    return min(widths[max(0, at - 1) : at + 1], key=lambda width: abs(params(width) - size))
