"""Networks of a few layers with few connections: what is predicted, and one form for all that compute the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nni_bayes_nas.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

ACTIVATIONS = ("relu", "tanh")
"""Of a hidden layer."""

Edge = tuple[int, int]


@dataclass(frozen=True)
class SparseArchitecture:
    """A network f(x) = W_{L+1} s_L(W_L ... s_1(W_1 x)) of which most entries of every W are missing.

    Every hidden unit has a source and a target, and every output a source. Biases are there for all units; they are no
    connections.

    Args:
        n_inputs: Features.
        n_outputs: Classes.
        widths: Units of the hidden layers, at least one layer.
        activations: Of these, each of `ACTIVATIONS`.
        edges: Of every layer, the output layer too, its connections (source, target), rising.

    Raises:
        ConfigError: What is no such network.
    """

    n_inputs: int
    n_outputs: int
    widths: tuple[int, ...]
    activations: tuple[str, ...]
    edges: tuple[tuple[Edge, ...], ...]

    def __post_init__(self) -> None:
        if not self.widths or min(self.n_inputs, self.n_outputs, *self.widths) < 1:
            raise ConfigError(
                f"a sparse network needs a hidden layer, and units in all, got {list(self.sizes)}; add some."
            )
        if len(self.activations) != len(self.widths) or not set(self.activations) <= set(ACTIVATIONS):
            raise ConfigError(
                f"a sparse network needs an activation of {', '.join(ACTIVATIONS)} for each of its {len(self.widths)} "
                f"hidden layers, got {list(self.activations)}; name one for each."
            )
        if len(self.edges) != len(self.widths) + 1:
            raise ConfigError(
                f"a sparse network needs connections for {len(self.widths) + 1} layers, got {len(self.edges)} lists."
            )
        for layer, edges in enumerate(self.edges):
            n_sources, n_targets = self.sizes[layer], self.sizes[layer + 1]
            if list(edges) != sorted(set(edges)):
                raise ConfigError(f"connections of layer {layer} must rise and be there once; sort them.")
            if not all(0 <= a < n_sources and 0 <= b < n_targets for a, b in edges):
                raise ConfigError(f"connections of layer {layer} must lead from {n_sources} to {n_targets} units.")
            if lonely := set(range(n_targets)) - {b for _, b in edges}:
                raise ConfigError(
                    f"every unit needs a source, but unit {min(lonely)} of layer {layer} has none; add one."
                )
            if layer and (unused := set(range(n_sources)) - {a for a, _ in edges}):
                raise ConfigError(
                    f"every hidden unit needs a target, but unit {min(unused)} of layer {layer - 1} has none; add one."
                )

    def build(self, seed: int = 0) -> nn.Sequential:
        """The network of torch, its layers really sparse; see `sparse_net.build`."""
        from nni_bayes_nas.prediction.sparse_net import build

        return build(self, seed)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of all layers, inputs and outputs too."""
        return (self.n_inputs, *self.widths, self.n_outputs)

    @property
    def n_connections(self) -> int:
        """Weights, without biases; multiply-accumulates of an object."""
        return sum(map(len, self.edges))

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return self.n_connections + sum(self.widths) + self.n_outputs

    def sources(self, layer: int) -> list[tuple[int, ...]]:
        """Of every unit of a layer (0: the first hidden one), where its connections come from, rising."""
        found: list[list[int]] = [[] for _ in range(self.sizes[layer + 1])]
        for a, b in self.edges[layer]:
            found[b].append(a)
        return [tuple(sorted(each)) for each in found]

    def permuted(self, orders: Sequence[Sequence[int]]) -> SparseArchitecture:
        """The same network with hidden units in other places.

        Args:
            orders: Of every hidden layer, the old unit at each new place.
        """
        place = [list(range(self.n_inputs)), *([0] * width for width in self.widths), list(range(self.n_outputs))]
        for layer, order in enumerate(orders, 1):
            for new, old in enumerate(order):
                place[layer][old] = new
        moved = (
            tuple(sorted((place[layer][a], place[layer + 1][b]) for a, b in edges))
            for layer, edges in enumerate(self.edges)
        )
        return SparseArchitecture(self.n_inputs, self.n_outputs, self.widths, self.activations, tuple(moved))

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    def to_json(self) -> str:
        """A line."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> SparseArchitecture:
        """Of `to_json`.

        Raises:
            ConfigError: It is none.
        """
        try:
            return cls.from_dict(json.loads(text))
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"a sparse network must be what `to_json` gave, got {text[:60]!r}.") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SparseArchitecture:
        """Of the plain types in it."""
        return cls(
            int(values["n_inputs"]),
            int(values["n_outputs"]),
            tuple(map(int, values["widths"])),
            tuple(values["activations"]),
            tuple(tuple((int(a), int(b)) for a, b in edges) for edges in values["edges"]),
        )


def from_sources(
    n_inputs: int,
    n_outputs: int,
    widths: Iterable[int],
    activations: Iterable[str],
    sources: Iterable[Iterable[Iterable[int]]],
) -> SparseArchitecture:
    """The network whose units have these sources: of every layer, of every unit, as `SparseArchitecture.sources`."""
    edges = tuple(tuple(sorted((a, b) for b, own in enumerate(layer) for a in own)) for layer in sources)
    return SparseArchitecture(n_inputs, n_outputs, tuple(widths), tuple(activations), edges)


def of_columns(net: SparseArchitecture, columns: Sequence[int]) -> SparseArchitecture:
    """A network of features by rank as one of the columns of the data, given the column at every rank."""
    first = tuple(sorted((columns[a], b) for a, b in net.edges[0]))
    return SparseArchitecture(net.n_inputs, net.n_outputs, net.widths, net.activations, (first, *net.edges[1:]))


def of_classes(net: SparseArchitecture, places: Sequence[int]) -> SparseArchitecture:
    """A network whose outputs are those of other numbers of the classes, given the new number of each."""
    last = tuple(sorted((a, places[b]) for a, b in net.edges[-1]))
    return SparseArchitecture(net.n_inputs, net.n_outputs, net.widths, net.activations, (*net.edges[:-1], last))


def fewest_connections(widths: Sequence[int], n_outputs: int) -> int:
    """Of a network with these hidden layers: every unit has a source, every hidden one a target."""
    sizes = (*widths, n_outputs)
    return sizes[0] + sum(max(a, b) for a, b in pairwise(sizes))
