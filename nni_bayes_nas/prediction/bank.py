"""The bank of tasks: which small networks were best on which part of which data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.inner_search import Found, Search, divided, search, train_all
from nni_bayes_nas.prediction.relevance import order_of_features
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.sparse_net import dense
from nni_bayes_nas.prediction.tasks import Task, TaskData
from nni_bayes_nas.prediction.training import RATES


@dataclass(frozen=True)
class Entry:
    """What a search on one task with one budget found.

    Attributes:
        task: The part of a data set.
        budget: Connections at most.
        order: The feature of the task at every rank.
        found: Networks whose inputs are ranks, the best one first.
        dense: The deepest network of all connections, at the rate of `RATES` at which its loss is the least.
        others: Further networks, good and bad.
        n_judged: Objects of which accuracies are; 0: it is not known.
    """

    task: Task
    budget: int
    order: tuple[int, ...]
    found: tuple[Found, ...]
    dense: Found
    others: tuple[Found, ...] = ()
    n_judged: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    def to_json(self) -> str:
        """A line of a bank."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, line: str) -> Entry:
        """Of `to_json`.

        Raises:
            ConfigError: It is none.
        """
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ConfigError(_no_entry(line)) from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        """Of `to_dict`; what else is in it is not looked at.

        Raises:
            ConfigError: It is none.
        """
        try:
            if not values["found"]:
                raise ValueError("no network")
            task = Task.from_dict(values["task"])
            if sorted(values["order"]) != list(range(len(task.features))):
                raise ValueError("no order of the features")
            return cls(
                task,
                int(values["budget"]),
                tuple(values["order"]),
                tuple(map(_found, values["found"])),
                _found(values["dense"]),
                tuple(map(_found, values["others"])),
                int(values.get("n_judged", 0)),
            )
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(_no_entry(str(values))) from error

    @property
    def is_as_good_as_dense(self) -> bool:
        """Whether the best small network loses no more than `tolerance` of the accuracy of the dense one.

        Of objects that have not chosen it, see `Found`.
        """
        return self.found[0].accuracy >= self.dense.accuracy - self.tolerance

    @property
    def tolerance(self) -> float:
        """Standard error of the dense network's mean accuracy: of its seeds, and of the objects that judge it.

        sqrt(sd^2 / seeds + p (1 - p) / objects).
        """
        values = torch.tensor(self.dense.accuracies, dtype=torch.float64)
        of_seeds = float(values.var()) / len(values) if len(values) > 1 else 0.0
        p = float(values.mean())
        return float((of_seeds + (p * (1 - p) / self.n_judged if self.n_judged else 0.0)) ** 0.5)


def budgets_of(n_features: int, factors: Iterable[float], least: int) -> list[int]:
    """Connections: the number of features, times factors; at least `least`."""
    return sorted({max(least, round(factor * n_features)) for factor in factors})


def entry_of(task: Task, data: TaskData, budget: int, how: Search, deepest: Sequence[int], seed: int) -> Entry:
    """Search on a task, and train the dense network beside.

    Args:
        task: For the entry.
        data: Its objects.
        budget: Connections at most.
        how: Of the search.
        deepest: Widths of the dense network.
        seed: Of everything that is drawn.
    """
    order = order_of_features(data.x, data.y)
    ranked = data.in_order(order)
    found, others = search(ranked, budget, how, seed, n_outputs=len(task.classes))
    whole = dense(data.x.shape[1], len(task.classes), tuple(deepest))
    seeds = [seed + 10_007 * (repeat + 1) for repeat in range(how.repeats)]
    at_rates = []
    for share in RATES:
        own = replace(how.training, learning_rate=share * how.training.learning_rate)
        results = train_all([whole] * how.repeats, seeds, ranked, own, apart=True)
        losses, accuracies = (tuple(values) for values in zip(*results, strict=True))
        at_rates.append(Found(whole, losses, accuracies, "dense"))
    deep = min(at_rates, key=lambda one: one.loss)
    judged = len(data.y_val) - divided(len(data.y_val))
    return Entry(task, budget, tuple(order.tolist()), tuple(found), deep, tuple(others), judged)


def check_bank(entries: Sequence[Entry]) -> None:
    """Refuse a bank from which nothing can be learned.

    Raises:
        ConfigError: Fewer than two different networks are best in it: the meta-model would be a constant.
    """
    nets = [entry.found[0].net for entry in entries]
    # Of data with other numbers of features the same network is no other one.
    best = {(net.widths, net.activations, net.edges) for net in nets}
    if len(best) < 2:
        raise ConfigError(
            f"a bank must hold at least two different best networks, or the meta-model is a constant, got {len(best)} "
            f"in {len(entries)} entries; add tasks of other data, classes or features."
        )


def _no_entry(said: str) -> str:
    return f"a line of a bank must be what `to_json` gave, got {said[:60]!r}; take it out, or search anew."


def _found(values: dict[str, Any]) -> Found:
    net = SparseArchitecture.from_dict(values["net"])
    return Found(net, tuple(values["losses"]), tuple(values["accuracies"]), values["method"])
