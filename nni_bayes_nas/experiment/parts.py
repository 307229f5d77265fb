"""Parts of data sets: what the tasks of `predict` are drawn from, and a part as a data set of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from nni_bayes_nas.config import Config, DataConfig
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.prediction.tasks import Source, Task, TaskData, data_of, draw_tasks, objects_of
from nni_bayes_nas.prediction.training import WholeData


def sources_of(config: Config) -> dict[str, DataConfig]:
    """The data sets of the bank by name: the data themselves, if `predict.own`, and `predict.sources`."""
    listed = [config.data] if config.predict.own else []
    listed += [one for one in config.predict.sources if one not in listed]
    named: dict[str, DataConfig] = {}
    for one in listed:
        kind = f"-{one.args['kind']}" if "kind" in one.args else ""
        base = name = one.name.rpartition(":")[2] + kind
        while name in named:
            name = f"{base}-{len(named)}"
        named[name] = one
    return named


class Parts:
    """Tasks of a configuration, and their data; data sets are loaded once each.

    Args:
        config: Section `predict` says which.
        images: Only those of images, with all features: for cells.
    """

    def __init__(self, config: Config, *, images: bool = False) -> None:
        self.config, self.images = config, images
        self.sources = sources_of(config)
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
            raise ConfigError("`predict.cells` must have a source of images, got none\nadd digits to predict.sources")
        tasks = draw_tasks(sources, n, self.config.seed, shares=settings.shares, least=settings.least_objects)
        if not self.images:
            return tasks
        return [replace(task, features=tuple(range(_features_of(sources, task)))) for task in tasks]

    def data(self, task: Task) -> TaskData:
        """The objects of a task: training objects of its data set, for training and validation."""
        x, y = self.splits(task.source).train[:]
        return data_of(task, x, y)


def whole(data: DataSplits) -> WholeData:
    """All parts of a data set as vectors."""
    (x, y), (x_val, y_val), (x_test, y_test) = (part[:] for part in (data.train, data.val, data.test))
    parts = TaskData(x.flatten(1), y, x_val.flatten(1), y_val)
    return WholeData(parts, x_test.flatten(1), y_test, data.num_classes)


def part_of(source: dict[str, Any], task: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A data set of the form package.module:function: the objects of a task, and others as a test set.

    Args:
        source: Section `data` of the data set.
        task: `Task`, plain types; its features are not looked at.
    """
    x, y = load_data(Config.from_dict({"data": source}).data).train[:]
    train, labels, rest, labels_of_rest = objects_of(Task.from_dict(task), y)
    return x[train], labels, x[rest], labels_of_rest


def _features_of(sources: list[Source], task: Task) -> int:
    return next(one.n_features for one in sources if one.name == task.source)
