"""Networks as trees, and the doubly recurrent decoder of them, given a task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.doubly_recurrent import DoublyRecurrent, Tree, chooser
from nni_bayes_nas.prediction.encoder import Condition, SetEncoder
from nni_bayes_nas.prediction.sparse_architecture import ACTIVATIONS, SparseArchitecture
from nni_bayes_nas.prediction.tokens import Grammar, Vocabulary


@dataclass(frozen=True)
class Labels:
    """What nodes of trees are called, as numbers from 0.

    All that a node knows of its place is in the labels above it, for siblings have the same state of their parent: so
    layers are called by their depth and activation, units by their number in the layer (outputs by their class), and
    sources by theirs.

    Args:
        max_depth: Hidden layers at most.
        max_units: Units of a layer at most, outputs too.
        max_sources: Units of the layer below one at most, or features.
    """

    max_depth: int
    max_units: int
    max_sources: int

    ROOT = 0
    OUT = 1

    @property
    def size(self) -> int:
        """How many labels there are."""
        return self.source(self.max_sources)

    def layer(self, depth: int, activation: int) -> int:
        """A hidden layer: its number, and that of its activation."""
        return 2 + depth * len(ACTIVATIONS) + activation

    def unit(self, number: int) -> int:
        """A unit of a layer."""
        return self.layer(self.max_depth, 0) + number

    def source(self, number: int) -> int:
        """A source of a unit."""
        return self.unit(self.max_units) + number


@functools.lru_cache(maxsize=1 << 16)
def tree_of(net: SparseArchitecture, labels: Labels) -> Tree:
    """The canonical form of a network: layers below the root, below each its units, below each its sources."""
    net = canonical(net)
    names = [*(labels.layer(i, ACTIVATIONS.index(name)) for i, name in enumerate(net.activations)), labels.OUT]

    def unit(number: int, sources: Sequence[int]) -> Tree:
        return Tree(labels.unit(number), tuple(Tree(labels.source(source)) for source in sources))

    layers = (
        Tree(name, tuple(unit(number, own) for number, own in enumerate(net.sources(layer))))
        for layer, name in enumerate(names)
    )
    return Tree(labels.ROOT, tuple(layers))


@dataclass(frozen=True)
class _Ask:
    """What a network that is being decoded wants to know: the node behind a sibling, or below a parent."""

    label: int
    state: Tensor
    sibling: bool
    ancestral: Tensor


@dataclass(frozen=True)
class _Told:
    """States of the node, logits of its topology, and those of its label but for the topology."""

    ancestral: Tensor
    fraternal: Tensor
    topology: list[float]
    labels: list[float]


class DoublyRecurrentMeta(nn.Module):
    """p(network | task), as a tree.

    Networks are those of features by rank, as in `Seq2Seq`.

    Args:
        encoder: Of tasks.
        vocabulary: Depths and widths that networks may have.
        dim: Of the decoder's states.
    """

    def __init__(self, encoder: SetEncoder, vocabulary: Vocabulary, dim: int = 96) -> None:
        super().__init__()
        self.encoder, self.vocabulary = encoder, vocabulary
        widest = vocabulary.widths[-1]
        self.labels = Labels(vocabulary.max_depth, max(encoder.max_classes, widest), max(encoder.max_features, widest))
        n_context = (len(encoder.seeds) + 1) * encoder.dim
        self.decoder = DoublyRecurrent(self.labels.size, dim, n_context)

    def losses(self, conditions: Sequence[Condition], nets: Sequence[SparseArchitecture]) -> Tensor:
        """-log p(tree | task) of every pair, in nats.

        Args:
            conditions: Tasks.
            nets: A network of each, its inputs by rank.
        """
        return self._losses(self.encoder(conditions).flatten(1), nets)

    def _losses(self, contexts: Tensor, nets: Sequence[SparseArchitecture]) -> Tensor:
        return self.decoder.losses([tree_of(net, self.labels) for net in nets], contexts)

    @torch.no_grad()
    def sample(
        self, condition: Condition, n: int, generator: torch.Generator, temperature: float = 1.0, greedy: int = 0
    ) -> list[tuple[SparseArchitecture, float]]:
        """Networks within the budget of a task, and the log p of their trees, which knows no budget.

        Answers and labels that would leave the grammar are left out; the networks are decoded side by side.

        Args:
            condition: The task.
            n: Networks.
            generator: Of the draws.
            temperature: Of answers and labels; 0: the most probable one each time.
            greedy: The first so many have temperature 0.
        """
        context = self.encoder([condition]).flatten(1)
        grammars = [
            Grammar(self.vocabulary, condition.n_features, condition.n_classes, condition.budget) for _ in range(n)
        ]
        choose, surely = chooser(generator, temperature), chooser(None)
        start = self.decoder.start(context)[0].tanh()
        more = self.decoder.of_topology.weight.T.tolist()  # of every label with a child, with a sibling
        running = {
            i: self._decode(grammar, start, surely if i < greedy else choose, more)
            for i, grammar in enumerate(grammars)
        }
        asked = {i: next(one) for i, one in running.items()}
        while asked:
            told = self._answer(list(asked.values()), context)
            following = {}
            for (i, _), answer in zip(asked.items(), told, strict=True):
                try:
                    following[i] = running[i].send(answer)
                except StopIteration:
                    del running[i]
            asked = following
        nets = [grammar.network() for grammar in grammars]
        log_probs = -self._losses(context.expand(n, -1), nets)
        return list(zip(nets, log_probs.tolist(), strict=True))

    def _answer(self, asked: list[_Ask], context: Tensor) -> list[_Told]:
        """The next node of each."""
        decoder = self.decoder
        x = decoder.embed(torch.tensor([one.label for one in asked]))
        states, parents = torch.stack([one.state for one in asked]), torch.stack([one.ancestral for one in asked])
        behind = torch.tensor([[one.sibling] for one in asked])
        zero = torch.zeros_like(states)
        fraternal = torch.where(behind, decoder.from_sibling(x, states), zero)
        ancestral = torch.where(behind, parents, decoder.from_parent(x, states))
        hidden = decoder.hidden(ancestral, fraternal, context.expand(len(asked), -1))
        parts = ancestral, fraternal, decoder.topology(hidden).tolist(), decoder.labels(hidden).tolist()
        return [_Told(*each) for each in zip(*parts, strict=True)]

    def _decode(
        self, grammar: Grammar, start: Tensor, choose: Callable[[Sequence[float]], int], of_topology: list[list[float]]
    ) -> Generator[_Ask, _Told, None]:
        """Fill a grammar, asking for one node after the other."""
        of_child, of_sibling = of_topology
        v, labels = self.vocabulary, self.labels
        grammar.accept(v.BEGIN)
        deepest = v.depth_of(max(grammar.allowed()))
        layers: list[tuple[int, Tensor]] = []
        before: tuple[int, _Told] | None = None
        while not layers or layers[-1][0] != labels.OUT:
            told = yield self._ask(labels.ROOT, start, before)
            hidden_next = bool(choose([0.0, told.topology[1]])) if 0 < len(layers) < deepest else len(layers) == 0
            if hidden_next:
                names = [labels.layer(len(layers), k) for k in range(len(ACTIVATIONS))]
                label = names[choose([told.labels[k] + of_child[k] + of_sibling[k] for k in names])]
            else:
                label = labels.OUT
            layers.append((label, told.ancestral))
            before = label, told
        grammar.accept(v.depth(len(layers) - 1))
        units: list[list[Tensor]] = []
        for label, ancestral in layers:
            own: list[Tensor] = []
            widths = {grammar.n_outputs}
            if label != labels.OUT:
                widths = {v.width_of(token) for token in grammar.allowed()}
            before = None
            while True:
                told = yield self._ask(label, ancestral, before)
                before = labels.unit(len(own)), told
                own.append(told.ancestral)
                if len(own) == max(widths) or (len(own) in widths and not choose([0.0, told.topology[1]])):
                    break
            units.append(own)
            if label != labels.OUT:
                grammar.accept(v.width(len(own)))
                grammar.accept(v.activation(ACTIVATIONS[(label - labels.layer(0, 0)) % len(ACTIVATIONS)]))
        first = labels.source(0)
        for own in units:
            for number, unit in enumerate(own):
                before = None
                while True:
                    numbers = grammar.sources()
                    if not numbers:
                        break
                    told = yield self._ask(labels.unit(number), unit, before)
                    more = bool(choose([0.0, told.topology[1]]))
                    named = [first + k for k in numbers]
                    source = numbers[choose([told.labels[k] + more * of_sibling[k] for k in named])]
                    grammar.accept_source(source)
                    before = labels.source(source), told
                    if grammar.may_stop and not more:
                        break
                grammar.accept(v.STOP)
        grammar.accept(v.END)

    @staticmethod
    def _ask(label: int, parent: Tensor, before: tuple[int, _Told] | None) -> _Ask:
        """Behind the sibling `before`, or the first one below a parent with this label and state."""
        if before is None:
            return _Ask(label, parent, False, parent)
        return _Ask(before[0], before[1].fraternal, True, before[1].ancestral)
