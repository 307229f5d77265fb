"""Sparse networks as sequences of tokens, and a grammar in which every sequence is a valid network within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.sparse_architecture import (
    ACTIVATIONS,
    SparseArchitecture,
    fewest_connections,
    from_sources,
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens, as numbers from 0.

    A network is BEGIN, its depth, width and activation of every hidden layer, then of every unit, layer by layer, its
    sources in rising order, each in digits of base `base`, and STOP; then END.

    Args:
        max_depth: Hidden layers at most.
        widths: That a hidden layer may have, rising.
        base: Of the digits.
    """

    max_depth: int = 3
    widths: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32)
    base: int = 64

    def __post_init__(self) -> None:
        if self.max_depth < 1 or self.base < 2 or not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise ConfigError(
                f"a vocabulary needs a depth, rising widths and a base of at least 2, got {self.max_depth}, "
                f"{list(self.widths)}, {self.base}; 3, [2, 4, 8] and 64, say (predict.max_depth, predict.widths)."
            )

    BEGIN = 0
    END = 1
    STOP = 2

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.digit(0) + self.base

    def depth(self, n: int) -> int:
        """The token of so many hidden layers."""
        return 3 + n - 1

    def width(self, n: int) -> int:
        """The token of so many units.

        Raises:
            ConfigError: No token says so.
        """
        if n not in self.widths:
            raise ConfigError(f"widths must be among {list(self.widths)}, got {n}; give the vocabulary more.")
        return 3 + self.max_depth + self.widths.index(n)

    def depth_of(self, token: int) -> int:
        """What `depth` said."""
        return token - self.depth(1) + 1

    def width_of(self, token: int) -> int:
        """What `width` said."""
        return self.widths[token - self.width(self.widths[0])]

    def activation(self, name: str) -> int:
        """The token of an activation."""
        return 3 + self.max_depth + len(self.widths) + ACTIVATIONS.index(name)

    def digit(self, n: int) -> int:
        """The token of a digit."""
        return 3 + self.max_depth + len(self.widths) + len(ACTIVATIONS) + n

    def digits(self, n_sources: int) -> int:
        """How many of them name one of so many units."""
        n, reach = 1, self.base
        while reach < n_sources:
            n, reach = n + 1, reach * self.base
        return n


def encode(net: SparseArchitecture, vocabulary: Vocabulary) -> list[int]:
    """The tokens of the canonical form of a network.

    Raises:
        ConfigError: Deeper, or of other widths, than the vocabulary can say.
    """
    if len(net.widths) > vocabulary.max_depth:
        raise ConfigError(
            f"networks of at most {vocabulary.max_depth} hidden layers have tokens, got {len(net.widths)}; give the "
            "vocabulary a larger max_depth."
        )
    net = canonical(net)
    tokens = [vocabulary.BEGIN, vocabulary.depth(len(net.widths))]
    for width, activation in zip(net.widths, net.activations, strict=True):
        tokens += [vocabulary.width(width), vocabulary.activation(activation)]
    for layer in range(len(net.edges)):
        n = vocabulary.digits(net.sizes[layer])
        for sources in net.sources(layer):
            for source in sources:
                tokens += [vocabulary.digit(source // vocabulary.base**k % vocabulary.base) for k in reversed(range(n))]
            tokens.append(vocabulary.STOP)
    return [*tokens, vocabulary.END]


def decode(tokens: Sequence[int], vocabulary: Vocabulary, n_inputs: int, n_outputs: int) -> SparseArchitecture:
    """The network that tokens say.

    Raises:
        ConfigError: They say none.
    """
    grammar = Grammar(vocabulary, n_inputs, n_outputs)
    for place, token in enumerate(tokens):
        if token not in grammar.allowed():
            raise ConfigError(f"token {place} of a sparse network cannot be {token} after those before it.")
        grammar.accept(token)
    return grammar.network()


class Grammar:
    """Which token may come next, so that what comes out is a network of at most so many connections.

    Args:
        vocabulary: Of the tokens.
        n_inputs: Features.
        n_outputs: Classes.
        budget: Connections at most; None: as many as there can be.

    Attributes:
        tokens: Accepted so far.

    Raises:
        ConfigError: No network of the vocabulary has so few.
    """

    def __init__(self, vocabulary: Vocabulary, n_inputs: int, n_outputs: int, budget: int | None = None) -> None:
        self.vocabulary, self.n_inputs, self.n_outputs, self.budget = vocabulary, n_inputs, n_outputs, budget
        self.tokens: list[int] = []
        self._depth = 0
        self._widths: list[int] = []
        self._activations: list[str] = []
        self._digits: list[int] = []
        self._sources: list[list[list[int]]] = []
        self._layer, self._n_used = 0, 0
        self._unused: set[int] = set()  # of the hidden units below, those without a target so far
        least = fewest_connections(vocabulary.widths[:1], n_outputs)
        if budget is not None and budget < least:
            raise ConfigError(
                f"the smallest network with {vocabulary.widths[0]} hidden units and {n_outputs} outputs has {least} "
                f"connections, got a budget of {budget}; raise it."
            )

    @property
    def done(self) -> bool:
        """Whether the network is complete."""
        return bool(self.tokens) and self.tokens[-1] == self.vocabulary.END

    def network(self) -> SparseArchitecture:
        """The complete one.

        Raises:
            ConfigError: It is not complete.
        """
        if not self.done:
            raise ConfigError(f"{len(self.tokens)} tokens are the beginning of a sparse network; go on.")
        return from_sources(self.n_inputs, self.n_outputs, self._widths, self._activations, self._sources)

    @property
    def place(self) -> tuple[float, float, float, float]:
        """Where the next token is: layer, unit in its layer, source of its unit, connections made; small numbers."""
        if not self._sources or self._layer > self._depth:
            return float(bool(self._sources)), 0.0, 0.0, 0.0
        units, own = self._sources[-1], self._sources[-1][-1]
        spent = 0.0 if self.budget is None else self._n_used / self.budget
        width = self._sizes[self._layer + 1]
        return self._layer / (self._depth + 1), len(units) / width, len(own) / self._sizes[self._layer], spent

    def allowed(self) -> list[int]:
        """Tokens that can come next; empty where the network is complete."""
        v = self.vocabulary
        if not self.tokens:
            return [v.BEGIN]
        if self.done:
            return []
        if not self._depth:
            return [v.depth(n) for n in range(1, v.max_depth + 1) if self._can_afford([v.widths[0]] * n)]
        if len(self._activations) < len(self._widths):
            return [v.activation(name) for name in ACTIVATIONS]
        if len(self._widths) < self._depth:
            rest = [v.widths[0]] * (self._depth - len(self._widths) - 1)
            return [v.width(n) for n in v.widths if self._can_afford([*self._widths, n, *rest])]
        if self._layer > self._depth:
            return [v.END]
        return self._allowed_here()

    def accept(self, token: int) -> None:
        """Take one of `allowed`."""
        v = self.vocabulary
        self.tokens.append(token)
        if token in (v.BEGIN, v.END):
            return
        if not self._depth:
            self._depth = v.depth_of(token)
        elif len(self._activations) < len(self._widths):
            self._activations.append(ACTIVATIONS[token - v.activation(ACTIVATIONS[0])])
            if len(self._widths) == self._depth:
                self._sources = [[[]]]
        elif len(self._widths) < self._depth:
            self._widths.append(v.width_of(token))
        elif token == v.STOP:
            self._stop()
        else:
            self._digits.append(token - v.digit(0))
            if len(self._digits) == v.digits(self._sizes[self._layer]):
                source = 0
                for digit in self._digits:
                    source = source * v.base + digit
                self._sources[-1][-1].append(source)
                self._unused.discard(source)
                self._digits, self._n_used = [], self._n_used + 1

    def accept_source(self, source: int) -> None:
        """Take one of `sources`."""
        v = self.vocabulary
        for k in reversed(range(v.digits(self._sizes[self._layer]))):
            self.accept(v.digit(source // v.base**k % v.base))

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.n_inputs, *self._widths, self.n_outputs)

    def _can_afford(self, widths: list[int]) -> bool:
        return self.budget is None or fewest_connections(widths, self.n_outputs) <= self.budget

    def _stop(self) -> None:
        if len(self._sources[-1]) < self._sizes[self._layer + 1]:
            self._sources[-1].append([])
            return
        self._layer += 1
        if self._layer <= self._depth:
            self._sources.append([[]])
            self._unused = set(range(self._sizes[self._layer]))

    def _allowed_here(self) -> list[int]:
        """Inside the sources of a unit."""
        v = self.vocabulary
        found = [] if self._digits or not self.may_stop else [v.STOP]
        n, begun = v.digits(self._sizes[self._layer]), 0
        for digit in self._digits:
            begun = begun * v.base + digit
        # The numbers that begin with the digits so far and one more are a range.
        step, numbers = v.base ** (n - len(self._digits) - 1), self.sources()
        first = begun * v.base * step
        open_ = {(number - first) // step for number in numbers if first <= number < first + v.base * step}
        return found + [v.digit(digit) for digit in sorted(open_)]

    @property
    def _others(self) -> int:
        """Units of this layer that come later."""
        return self._sizes[self._layer + 1] - len(self._sources[-1])

    @property
    def may_stop(self) -> bool:
        """Whether a unit, whose sources come next, can do with those that it has."""
        return bool(self._sources[-1][-1]) and (self._others > 0 or not self._unused)

    def sources(self) -> Sequence[int]:
        """Units from which the next connection may come, so that the budget is enough for all that must follow."""
        own = self._sources[-1][-1]
        low, high = (own[-1] + 1 if own else 0), self._sizes[self._layer]
        if not self._others and self._unused:
            high = min(self._unused) + 1  # for the last unit: what is passed over has no target
        if self.budget is None:
            return range(low, high)
        above = self._sizes[self._layer + 1 :]
        left = self.budget - self._n_used - sum(max(a, b) for a, b in pairwise(above))
        if left > max(self._others, len(self._unused)):
            return range(low, high)
        # Each further connection must be the first of its source.
        fits = left >= max(self._others + 1, len(self._unused))
        return [unit for unit in sorted(self._unused) if low <= unit < high] if fits else []
