"""The best network of few connections for a task: at random, by evolution, by sensitivity or by magnitude."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nni_bayes_nas.coercion import require
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.many import Many, Training, by_depth, side_by_side
from nni_bayes_nas.prediction.random_nets import best_connections, mutated, random_net
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.sparse_net import all_edges
from nni_bayes_nas.prediction.tasks import TaskData
from nni_bayes_nas.prediction.tokens import Vocabulary

Method = Literal["random", "evolution", "snip", "magnitude"]
_DIVIDED = 8
METHODS: tuple[Method, ...] = ("random", "evolution", "snip", "magnitude")


@dataclass(frozen=True)
class Found:
    """A network and how good it is.

    Attributes:
        net: In its canonical form.
        losses: Of every seed, mean cross-entropy of the first half of the validation objects in nats, by which networks
            are chosen.
        accuracies: Of every seed, of the other half, which has chosen nothing.
        method: That found it.
    """

    net: SparseArchitecture
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    method: str

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return sum(self.losses) / len(self.losses)

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True)
class Search:
    """How networks are looked for.

    Networks of every method are trained for a part of the steps, the better half of them longer, and so on (successive
    halving); the best are trained with further seeds, so that the best is not the luckiest.

    Args:
        methods: Each gets as many candidates.
        candidates: Of a method.
        rounds: Halvings.
        generations: Of evolution, whose first one is random.
        top: Networks that are trained with further seeds.
        repeats: Seeds of these.
        others: Further networks, from good to bad by their first training, that are trained as these: what a ranker
            learns from.
        training: Of these; before them its steps are halved as often as there are rounds left.
        vocabulary: Of depths and widths.
    """

    methods: tuple[Method, ...] = METHODS
    candidates: int = 16
    rounds: int = 2
    generations: int = 3
    top: int = 4
    repeats: int = 3
    others: int = 8
    training: Training = Training()  # noqa: RUF009  it is frozen
    vocabulary: Vocabulary = Vocabulary()  # noqa: RUF009

    def __post_init__(self) -> None:
        for name in ("candidates", "rounds", "generations", "top", "repeats"):
            require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name), "raise it")
        require(self.others >= 0, "others", "must be at least 0", self.others, "0 leaves them out")
        unknown = set(self.methods) - set(METHODS)
        require(not unknown and bool(self.methods), "methods", f"must be among {METHODS}", self.methods, "random say")


def train_all(
    nets: Sequence[SparseArchitecture], seeds: Sequence[int], data: TaskData, how: Training, *, apart: bool = False
) -> list[tuple[float, float]]:
    """Validation loss in nats and accuracy of every network, those of equal depth trained side by side.

    The order of the objects is that of the first seed, for all.

    Args:
        nets: Networks.
        seeds: Of their initial weights.
        data: Of the task.
        how: See `Training`.
        apart: Whether the loss is that of one half of the validation objects and the accuracy that of the other: who
            chooses by losses does not choose by accuracies then. Fewer than eight objects are not divided.
    """
    half = divided(len(data.y_val)) if apart else 0
    results: list[tuple[float, float]] = [(0.0, 0.0)] * len(nets)
    for places, many in side_by_side(nets, seeds, data.x, data.y, how):
        losses, accuracies = many.scores(data.x_val[half:], data.y_val[half:])
        if half:
            losses, _ = many.scores(data.x_val[:half], data.y_val[:half])
        for i, loss, accuracy in zip(places, losses.tolist(), accuracies.tolist(), strict=True):
            results[i] = (loss, accuracy)
    return results


def divided(n_objects: int) -> int:
    """How many of so many validation objects choose, where others judge; 0: all do both."""
    return n_objects // 2 if n_objects >= _DIVIDED else 0


def search(
    data: TaskData, budget: int, how: Search, seed: int, n_outputs: int | None = None
) -> tuple[list[Found], list[Found]]:
    """The best networks for a task, the best one first, and others, of at most `budget` connections.

    Args:
        data: Of the task.
        budget: Connections at most.
        how: See `Search`.
        seed: Of everything that is drawn.
        n_outputs: Classes; None: those of the data.

    Raises:
        ConfigError: The budget is below that of the smallest network.
    """
    n_inputs, n_outputs = data.x.shape[1], n_outputs or data.n_classes
    generator = random.Random(seed)
    draw = _Draw(data, budget, how, n_inputs, n_outputs, generator, seed)
    candidates: dict[SparseArchitecture, str] = {}
    for method in how.methods:
        for net in draw.of(method):
            candidates.setdefault(canonical(net), method)
    nets, ranked = list(candidates), list[SparseArchitecture]()
    for left in range(how.rounds, 0, -1):
        seeds = [seed + i for i in range(len(nets))]
        scores = train_all(nets, seeds, data, _shorter(how.training, left), apart=True)
        nets = [nets[i] for i in sorted(range(len(nets)), key=lambda i: scores[i][0])]
        ranked = ranked or nets
        nets = nets[: max(how.top, (len(nets) + 1) // 2)]
    nets = nets[: how.top]
    rest = [net for net in ranked if net not in nets]
    n = min(how.others, len(rest))
    others = [rest[i * len(rest) // n] for i in range(n)]
    tried = [(net, seed + 10_007 * (repeat + 1)) for net in nets + others for repeat in range(how.repeats)]
    results = train_all([net for net, _ in tried], [own for _, own in tried], data, how.training, apart=True)
    found = []
    for i, net in enumerate(nets + others):
        own = results[i * how.repeats : (i + 1) * how.repeats]
        losses, accuracies = (tuple(values) for values in zip(*own, strict=True))
        found.append(Found(net, losses, accuracies, candidates[net]))
    return sorted(found[: len(nets)], key=lambda one: one.loss), found[len(nets) :]


class _Draw:
    """Candidates of each method for one task."""

    def __init__(
        self,
        data: TaskData,
        budget: int,
        how: Search,
        n_inputs: int,
        n_outputs: int,
        generator: random.Random,
        seed: int,
    ) -> None:
        self.data, self.budget, self.how, self.generator, self.seed = data, budget, how, generator, seed
        self.n_inputs, self.n_outputs = n_inputs, n_outputs

    def of(self, method: Method) -> list[SparseArchitecture]:
        """As many as the search has for a method."""
        drawn: dict[Method, Callable[[], list[SparseArchitecture]]] = {
            "random": self._random,
            "evolution": self._evolved,
            "snip": lambda: self._scored(trained=False),
            "magnitude": lambda: self._scored(trained=True),
        }
        return drawn[method]()

    def _random(self) -> list[SparseArchitecture]:
        vocabulary = self.how.vocabulary
        return [
            random_net(self.n_inputs, self.n_outputs, self.budget, vocabulary, self.generator)
            for _ in range(self.how.candidates)
        ]

    def _evolved(self) -> list[SparseArchitecture]:
        """The best quarter of every generation have children; it and the last children are the candidates."""
        nets, how = self._random(), _shorter(self.how.training, self.how.rounds)
        for generation in range(self.how.generations - 1):
            seeds = [self.seed + 101 * generation + i for i in range(len(nets))]
            scores = train_all(nets, seeds, self.data, how, apart=True)
            order = sorted(range(len(nets)), key=lambda i: scores[i][0])
            parents = [nets[i] for i in order[: max(1, len(nets) // 4)]]
            children = [
                mutated(self.generator.choice(parents), self.budget, self.how.vocabulary, self.generator)
                for _ in range(self.how.candidates - len(parents))
            ]
            nets = parents + children
        return nets

    def _scored(self, *, trained: bool) -> list[SparseArchitecture]:
        how = _shorter(self.how.training, self.how.rounds) if trained else None
        nets = self._random()
        return strongest(nets, self.data, self.budget, [self.seed + i for i in range(len(nets))], how)


def strongest(
    nets: Sequence[SparseArchitecture], data: TaskData, budget: int, seeds: Sequence[int], how: Training | None
) -> list[SparseArchitecture]:
    """The connections that matter most of dense networks of the same widths: by sensitivity at the start (SNIP; Lee,
    Ajanthan & Torr, 2019), or by magnitude at the end of a training, those of equal depth side by side.

    Args:
        nets: Networks.
        data: Of the task.
        budget: Connections at most.
        seeds: Of the initial weights of each; the first one of the order of the objects too.
        how: The training; None: none, sensitivities at the start.
    """
    wholes = [
        SparseArchitecture(net.n_inputs, net.n_outputs, net.widths, net.activations, all_edges(net.sizes))
        for net in nets
    ]
    found = list(nets)
    for places in by_depth(wholes):
        many = Many([wholes[i] for i in places], [seeds[i] for i in places])
        if how is not None:
            many.train(data.x, data.y, how, seeds[0])
            scores: list[Tensor] = [weight.detach().abs() for weight in many.weights]
        else:
            scores = many.sensitivities(data.x, data.y)
        for k, i in enumerate(places):
            net = wholes[i]
            tables = [score[k, :b, :a] for score, a, b in zip(scores, net.sizes, net.sizes[1:], strict=False)]
            shape = net.n_inputs, net.n_outputs, net.widths, net.activations
            found[i] = best_connections(*shape, tables, budget)
    return found


def _shorter(how: Training, halvings: int) -> Training:
    return Training(max(1, how.steps >> halvings), how.batch_size, how.learning_rate, how.weight_decay)
