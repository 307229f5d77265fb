"""Parts of data sets: what the tasks of `predict` are drawn from, and a part as a data set of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.config import Config, DataConfig
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.prediction.tasks import Source, Task, TaskData, data_of, draw_tasks, moments, objects_of
from nni_bayes_nas.prediction.training import WholeData


def sources_of(config: Config) -> dict[str, DataConfig]:
    """The data sets of the bank by name: the data themselves, if `predict.own`, and `predict.sources`.

    Of those that differ from the data in nothing but how they are split none is there: its objects may be the data's
    own for validation and test.
    """
    listed = [config.data] if config.predict.own else []
    for one in config.predict.sources:
        if one not in listed and (one == config.data or unsplit(one) != unsplit(config.data)):
            listed.append(one)
    named: dict[str, DataConfig] = {}
    for one in listed:
        named[free_name(one, named)] = one
    return named


def free_name(data: DataConfig, taken: Mapping[str, DataConfig]) -> str:
    """A short name of a data set that no other one has."""
    kind = f"-{data.args['kind']}" if "kind" in data.args else ""
    base = name = data.name.rpartition(":")[2] + kind
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


class Parts:
    """Tasks of a configuration, and their data; data sets are loaded once each.

    Args:
        config: Section `predict` says which.
        images: Only those of images, with all features: for cells.
        sources: Data sets by the names that tasks have; None: those of the configuration.
    """

    def __init__(
        self, config: Config, *, images: bool = False, sources: Mapping[str, DataConfig] | None = None
    ) -> None:
        self.config, self.images = config, images
        self.sources = sources_of(config) if sources is None else dict(sources)
        self._loaded: dict[str, DataSplits] = {}

    def splits(self, name: str) -> DataSplits:
        """A whole data set.

        Raises:
            ConfigError: It has no classes.
        """
        if name not in self._loaded:
            data = load_data(self.sources[name])
            if data.task != "classification":
                raise ConfigError(f"`predict` is for classes, but data `{name}` are a {data.task}\nleave them out")
            self._loaded[name] = data
        return self._loaded[name]

    def names(self) -> list[str]:
        """Of the data sets that tasks are drawn from."""
        return [name for name in self.sources if not self.images or len(self.splits(name).shape) == 3]

    def tasks(self, n: int) -> list[Task]:
        """The first n tasks; more of them do not change the first ones.

        Raises:
            ConfigError: There is no data set to draw from.
        """
        settings, sources = self.config.predict, []
        for name in self.names():
            data = self.splits(name)
            features = data.train[:1][0].numel()
            sources.append(Source(name, len(data.train), features, data.num_classes))
        if not sources:
            name, kind = ("cells", "data of images") if self.images else ("tasks", "data of classes")
            raise ConfigError(
                f"`predict.{name}` must have {kind} to draw from, got none: what differs from `data` in its split "
                "alone is left out\nadd others to predict.sources, or set predict.own to true"
            )
        tasks = draw_tasks(sources, n, self.config.seed, shares=settings.shares, least=settings.least_objects)
        if not self.images:
            return tasks
        return [replace(task, features=tuple(range(_features_of(sources, task)))) for task in tasks]

    def data(self, task: Task) -> TaskData:
        """The objects of a task: training objects of its data set, for training and validation."""
        x, y = self.splits(task.source).train[:]
        return data_of(task, x, y)


def whole(data: DataSplits) -> WholeData:
    """All parts of a data set as vectors, standardized column by column as those of a task are."""
    (x, y), (x_val, y_val), (x_test, y_test) = (part[:] for part in (data.train, data.val, data.test))
    x, x_val, x_test = (objects.flatten(1) for objects in (x, x_val, x_test))
    mean, sd = moments(x)
    x, x_val, x_test = ((objects - mean) / sd for objects in (x, x_val, x_test))
    return WholeData(TaskData(x, y, x_val, y_val), x_test, y_test, data.num_classes)


def scale(data: DataSplits) -> tuple[Tensor, Tensor]:
    """What `whole` subtracts from the stored numbers of an object, and divides them by; `(features,)` each."""
    mean, sd = moments(data.train[:][0].flatten(1))
    first = torch.zeros(1, *data.shape)
    before, width = (first + data.mean).flatten(), (first + data.sd).flatten()
    return before + width * mean, width * sd


def part_of(source: dict[str, Any], task: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A data set of the form package.module:function: the objects of a task, and others as a test set.

    Args:
        source: Section `data` of the data set.
        task: `Task`, plain types; its features are not looked at.
    """
    x, y = load_data(Config.from_dict({"data": source}).data).train[:]
    train, labels, rest, labels_of_rest = objects_of(Task.from_dict(task), y)
    return x[train], labels, x[rest], labels_of_rest


def unsplit(data: DataConfig) -> DataConfig:
    """Data as they are before they are split, wherever their folder or file is looked for from."""
    usual = DataConfig()
    names = ("val_fraction", "val_split", "test_fraction", "skip", "limit", "val_limit")
    split = {name: getattr(usual, name) for name in names}
    root, path = (
        None if place is None else str(Path(place).expanduser().resolve()) for place in (data.root, data.path)
    )
    return replace(data, **split, root=root, path=path, on_gpu=usual.on_gpu, download=usual.download)


def _features_of(sources: list[Source], task: Task) -> int:
    return next(one.n_features for one in sources if one.name == task.source)
