"""Tasks: small parts of data sets, of which no two ask for the same network."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError

_FEWEST_PER_CLASS = 4


@dataclass(frozen=True)
class Source:
    """A data set that tasks are drawn from.

    Attributes:
        name: As the configuration has it.
        n_objects: For training.
        n_features: Numbers of an object.
        n_classes: At least two.
    """

    name: str
    n_objects: int
    n_features: int
    n_classes: int


@dataclass(frozen=True)
class Task:
    """A part of a data set.

    Attributes:
        source: The name of the data set.
        share: Of the objects of these classes.
        classes: That are told apart, rising.
        features: That are seen, rising.
        label_noise: Share of the labels that are replaced by any class.
        seed: Of the choice of objects and labels.
    """

    source: str
    share: float
    classes: tuple[int, ...]
    features: tuple[int, ...]
    label_noise: float
    seed: int

    def __post_init__(self) -> None:
        for name, value, fits, rule in (
            ("share", self.share, 0 < self.share <= 1, "above 0, and at most 1"),
            ("label_noise", self.label_noise, 0 <= self.label_noise < 1, "at least 0, and below 1"),
            ("classes", self.classes, _rises(self.classes, 2), "at least two, rising"),
            ("features", self.features, _rises(self.features, 1), "at least one, rising"),
        ):
            if not fits:
                raise ConfigError(f"{name} of a task must be {rule}, got {value}; draw tasks anew.")

    def to_json(self) -> str:
        """A line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Task:
        """Of the plain types in it."""
        return cls(**{**values, "classes": tuple(values["classes"]), "features": tuple(values["features"])})


@dataclass(frozen=True)
class TaskData:
    """The objects of a task.

    Attributes:
        x: For training, `(n, features)`, standardized by their own mean and sd.
        y: Their classes from 0, with the noise of the task.
        x_val: Other objects of the same classes, standardized as `x`.
        y_val: Their classes, without noise.
    """

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor

    def in_order(self, features: Tensor) -> TaskData:
        """The same with its features in another order."""
        return TaskData(self.x[:, features], self.y, self.x_val[:, features], self.y_val)

    @property
    def n_classes(self) -> int:
        """That there are."""
        return int(torch.cat([self.y, self.y_val]).max()) + 1


def draw_tasks(
    sources: Sequence[Source],
    n: int,
    seed: int,
    *,
    shares: tuple[float, float] = (0.01, 0.1),
    least: int = 32,
) -> list[Task]:
    """Tasks of all sources in turn.

    Shares are log-uniform, but of small data sets so large that there are `least` objects, if classes are equally many.
    Half of the tasks have all classes, half of them all features, and half of them no noise; the others have at least
    two classes, a half of the features, and up to a fifth of the labels replaced.

    Args:
        sources: Of objects.
        n: Tasks.
        seed: Of what is drawn.
        shares: Smallest and largest.
        least: Objects.

    Raises:
        ConfigError: No source, or no range of shares.
    """
    if not sources or not 0 < shares[0] <= shares[1] <= 1:
        raise ConfigError(f"tasks need data sets, and shares from above 0 to at most 1, got {len(sources)}, {shares}.")
    tasks, generator = [], torch.Generator().manual_seed(seed)

    def number() -> float:
        return float(torch.rand((), generator=generator))

    for i in range(n):
        source = sources[i % len(sources)]
        share = math.exp(math.log(shares[0]) + number() * math.log(shares[1] / shares[0]))
        n_classes = source.n_classes if number() < 0.5 else 2 + int(number() * (source.n_classes - 1))
        n_features = source.n_features
        if number() >= 0.5:
            n_features = max(1, math.ceil(source.n_features * (0.5 + 0.5 * number())))
        there = source.n_objects * n_classes / source.n_classes
        tasks.append(
            Task(
                source.name,
                min(1.0, max(share, max(least, _FEWEST_PER_CLASS * n_classes) / there)),
                _chosen(source.n_classes, n_classes, generator),
                _chosen(source.n_features, n_features, generator),
                0.0 if number() < 0.5 else 0.2 * number(),
                seed * 1_000_003 + i,
            )
        )
    return tasks


def data_of(task: Task, x: Tensor, y: Tensor, most_val: int = 1000) -> TaskData:
    """The objects of a task.

    Args:
        task: See there.
        x: Training objects of its data set, `(n, ...)`.
        y: Their classes.
        most_val: Objects for validation at most: training objects of the data set that the task leaves out, at least
            four of a class that has more. Where none are left, its own.

    Raises:
        ConfigError: Classes or features that there are not, or no object of a class.
    """
    x = x.flatten(1)
    if task.features[-1] >= x.shape[1] or not set(task.classes) <= set(y.tolist()):
        raise ConfigError(
            f"the task needs feature {task.features[-1]} and classes {list(task.classes)}, but {task.source} has "
            f"{x.shape[1]} features and classes {sorted(set(y.tolist()))}; draw tasks of this data set."
        )
    train, labels, rest, labels_of_rest = objects_of(task, y, most_val)
    features = torch.tensor(task.features)
    raw = x[train][:, features]
    mean, sd = moments(raw)
    return TaskData((raw - mean) / sd, labels, (x[rest][:, features] - mean) / sd, labels_of_rest)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column, by which it is standardized; 1 for the sd of a constant one."""
    sd = x.std(0, correction=0)
    return x.mean(0), torch.where(sd > 0, sd, 1.0)


def objects_of(task: Task, y: Tensor, most_val: int = 1000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which objects a task has, and their classes: for training, with its noise, and for validation; see `data_of`."""
    generator = torch.Generator().manual_seed(task.seed)
    taken, left = [], []
    for each in task.classes:
        own = (y == each).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        # A few of every class are left for validation, where there are enough.
        n = min(max(1, round(task.share * len(own))), max(1, len(own) - _FEWEST_PER_CLASS))
        taken.append(own[:n])
        left.append(own[n:])
    train, rest = torch.cat(taken), torch.cat(left)
    rest = rest[torch.randperm(len(rest), generator=generator)][:most_val] if len(rest) else train
    number_of = torch.full((int(y.max()) + 1,), -1)
    number_of[list(task.classes)] = torch.arange(len(task.classes))
    labels = number_of[y[train]]
    changed = torch.rand(len(labels), generator=generator) < task.label_noise
    anything = torch.randint(len(task.classes), (len(labels),), generator=generator)
    return train, torch.where(changed, anything, labels), rest, number_of[y[rest]]


def _chosen(n: int, k: int, generator: torch.Generator) -> tuple[int, ...]:
    """k of n, rising."""
    return tuple(sorted(torch.randperm(n, generator=generator)[:k].tolist()))


def _rises(values: tuple[int, ...], least: int) -> bool:
    return len(values) >= least and list(values) == sorted(set(values)) and values[0] >= 0
