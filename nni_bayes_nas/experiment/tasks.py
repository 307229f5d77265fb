"""What a task decides: which targets it takes, what is minimized, and which numbers tell how good a network is.

Knows no torch until a module is asked for: the tuner and the summary read the names of the terms here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nni_bayes_nas.config import DataConfig, RetrainConfig, SearchConfig
from nni_bayes_nas.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nni_bayes_nas.experiment.data import DataSplits
    from nni_bayes_nas.experiment.evaluator import SupervisedModule


class Task(ABC):
    """One kind of prediction.

    Attributes:
        name: As in `data.task`.
        score: Term that is maximized; logged as `val_...` and `test_...`.
        title: The score in words.
        percent: Whether the score is a share, shown as per cent.
        retrain_terms: What a retrain trial reports beside its size and time.
        beside: Test terms that a report shows beside the score: (term, heading, whether it is a share).
        least: Objects that the validation set and the test set need for the score to be defined.
    """

    name: ClassVar[str]
    score: ClassVar[str]
    title: ClassVar[str]
    percent: ClassVar[bool]
    retrain_terms: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[tuple[str, str, bool], ...]]
    least: ClassVar[int] = 1

    @property
    def val_score(self) -> str:
        """The score on the validation data, what NNI is told as "default"."""
        return f"val_{self.score}"

    @property
    def test_score(self) -> str:
        """The score on the test data."""
        return f"test_{self.score}"

    def describe(self) -> dict[str, Any]:
        """What `summary.json` says of the score, so that a report needs nothing but the run folder."""
        beside = [list(item) for item in self.beside]
        return {"term": self.score, "title": self.title, "percent": self.percent, "beside": beside}

    def result(self, terms: Mapping[str, float]) -> dict[str, float]:
        """The part of a retrain trial's result that depends on the task: "default" and `retrain_terms`."""
        return {"default": terms[self.val_score], **{name: terms[name] for name in self.retrain_terms}}

    @abstractmethod
    def check(self, y: Any, data: str) -> None:
        """Refuse targets that the task cannot have.

        Args:
            y: Array `(n,)`, one target per object of the training and validation data.
            data: Name of the data, for the error.

        Raises:
            DataError: With the remedy.
        """

    @abstractmethod
    def check_test(self, y: Any, y_test: Any, data: str) -> None:
        """Refuse test targets that do not go with those of the training data; arguments as in `check`.

        Raises:
            DataError: With the remedy.
        """

    @abstractmethod
    def split(self, y: Any, fraction: float, rng: np.random.Generator) -> tuple[Any, Any]:
        """Indices of the rest and of the held-out `fraction`, both shuffled."""

    @abstractmethod
    def outputs(self, y: Any) -> int:
        """How many outputs the network needs."""

    @abstractmethod
    def scale(self, y: Any) -> tuple[float, float]:
        """Mean and standard deviation that the targets are standardized with; (0, 1) leaves them as they are."""

    @abstractmethod
    def encode(self, y: Any, mean: float, sd: float) -> Any:
        """Targets as the batches hold them."""

    @abstractmethod
    def misfit(self, data: DataSplits, outputs: Sequence[int]) -> str:
        """Why a network with outputs of this shape does not fit the data, and the remedy."""

    @abstractmethod
    def module(self, data: DataSplits, settings: SearchConfig | RetrainConfig, **options: float) -> SupervisedModule:
        """The Lightning module; see `evaluation_module`."""


class Classification(Task):
    """Classes 0, 1, ...: cross-entropy; the score is the accuracy, beside it the macro-averaged precision."""

    name = "classification"
    score = "accuracy"
    title = "accuracy"
    percent = True
    retrain_terms = ("val_accuracy", "val_precision", "test_accuracy", "test_precision")
    beside = (("test_precision", "Test precision (macro)", True),)

    def check(self, y: Any, data: str) -> None:
        """Class numbers 0, 1, ... without gaps, at least two classes.

        All targets count, before `data.limit` and the splits take some: these may leave classes out. A number that no
        object has is refused even if such a class exists: its output could not be learned, and by their gaps integers
        that were measured are told from classes.
        """
        if not np.issubdtype(y.dtype, np.integer) or (len(y) and y.min() < 0):
            raise DataError(
                f"y of data `{data}` must be class numbers 0, 1, ... for data.task classification, got {y.dtype} "
                f"{y.shape}; number the classes with numpy.unique(y, return_inverse=True), or for real targets set "
                "data.task: regression."
            )
        classes = np.unique(y)
        if len(y) < 10 or len(classes) < 2:
            raise DataError(
                f"data `{data}` must have at least 10 objects in 2 classes, got {len(y)} objects in "
                f"{len(classes)} class(es); add objects, or another class."
            )
        if len(gaps := np.flatnonzero(classes != np.arange(len(classes)))):
            raise DataError(
                f"y of data `{data}` must be class numbers 0, 1, ... without gaps for data.task classification, got "
                f"{len(classes)} numbers up to {classes[-1]} without {gaps[0]}; number the classes with "
                "numpy.unique(y, return_inverse=True), y_test alike, or for real targets set data.task: regression."
            )

    def check_test(self, y: Any, y_test: Any, data: str) -> None:
        """Class numbers among those of the training data."""
        if not np.issubdtype(y_test.dtype, np.integer) or (
            len(y_test) and not 0 <= int(y_test.min()) <= int(y_test.max()) <= int(y.max())
        ):
            shown = f"{y_test.min()} to {y_test.max()}" if len(y_test) else "none"
            raise DataError(
                f"y_test of data `{data}` must hold classes of y, 0 to {int(y.max())}, got {y_test.dtype} {shown}; "
                "number the classes of both alike."
            )

    def split(self, y: Any, fraction: float, rng: np.random.Generator) -> tuple[Any, Any]:
        """Each class is split alike."""
        rest, held = [], []
        for label in np.unique(y):
            members = rng.permutation(np.flatnonzero(y == label))
            n = round(len(members) * fraction)
            held.append(members[:n])
            rest.append(members[n:])
        return rng.permutation(np.concatenate(rest)), rng.permutation(np.concatenate(held))

    def outputs(self, y: Any) -> int:
        """One per class."""
        return int(y.max()) + 1

    def scale(self, y: Any) -> tuple[float, float]:
        """Class numbers stay as they are."""
        return 0.0, 1.0

    def encode(self, y: Any, mean: float, sd: float) -> Any:
        """Class numbers, int64."""
        return y.astype(np.int64)

    def misfit(self, data: DataSplits, outputs: Sequence[int]) -> str:
        """In the words of classes."""
        return (
            f"{data.num_classes} classes and the space gives {_times(outputs)} outputs; "
            "set space.args.num_classes (dense: num_outputs)."
        )

    def module(self, data: DataSplits, settings: SearchConfig | RetrainConfig, **options: float) -> SupervisedModule:
        """Cross-entropy."""
        from nni_bayes_nas.experiment.evaluator import ClassificationModule

        return ClassificationModule(num_classes=data.num_classes, **_training(settings), **options)


class Regression(Task):
    """Real targets with Gaussian noise of one learned standard deviation: mean negative log-likelihood in nats.

    The score is R^2 = 1 - sum (y - f)^2 / sum (y - mean y)^2, over the evaluated set.
    """

    name = "regression"
    score = "r2"
    title = "R²"
    percent = False
    retrain_terms = ("val_r2", "test_r2", "test_rmse", "test_nll")
    beside = (("test_rmse", "Test RMSE", False), ("test_nll", "Test NLL (nats)", False))
    least = 2

    def check(self, y: Any, data: str) -> None:
        """Finite real numbers that are not all the same."""
        if not (np.issubdtype(y.dtype, np.integer) or np.issubdtype(y.dtype, np.floating)):
            raise DataError(
                f"y of data `{data}` must be real numbers for data.task regression, got {y.dtype}; convert it, or for "
                "classes set data.task: classification."
            )
        if not np.isfinite(y).all():
            raise DataError(
                f"y of data `{data}` must be finite, but it has NaN or infinite values; leave those objects out."
            )
        if len(y) < 10 or float(y.min()) == float(y.max()):
            raise DataError(
                f"data `{data}` must have at least 10 objects whose targets differ, got {len(y)} objects with targets "
                f"{y.min():.4g} to {y.max():.4g}; check the column that y is taken from."
            )

    def check_test(self, y: Any, y_test: Any, data: str) -> None:
        """Finite real numbers."""
        if not np.issubdtype(y_test.dtype, np.number) or not np.isfinite(y_test).all():
            raise DataError(
                f"y_test of data `{data}` must be finite real numbers, got {y_test.dtype} with NaN, infinite or other "
                "values; leave those objects out."
            )

    def split(self, y: Any, fraction: float, rng: np.random.Generator) -> tuple[Any, Any]:
        """At random."""
        order = rng.permutation(len(y))
        n = round(len(y) * fraction)
        return order[n:], order[:n]

    def outputs(self, y: Any) -> int:
        """One."""
        return 1

    def scale(self, y: Any) -> tuple[float, float]:
        """Mean and standard deviation of the training targets."""
        y = np.asarray(y, dtype=np.float64)
        return float(y.mean()), float(y.std()) or 1.0

    def encode(self, y: Any, mean: float, sd: float) -> Any:
        """Standardized targets, float32."""
        return ((np.asarray(y, dtype=np.float64) - mean) / sd).astype(np.float32)

    def misfit(self, data: DataSplits, outputs: Sequence[int]) -> str:
        """In the words of outputs."""
        return (
            f"one real target each (data.task: regression) and the space gives {_times(outputs)} outputs instead of 1; "
            "set space.args.num_classes (dense: num_outputs) to 1, or data.task: classification."
        )

    def module(self, data: DataSplits, settings: SearchConfig | RetrainConfig, **options: float) -> SupervisedModule:
        """Gaussian likelihood.

        Raises:
            ConfigError: Smoothed labels are asked for.
        """
        from nni_bayes_nas.experiment.evaluator import RegressionModule

        if smoothing := options.pop("label_smoothing", 0.0):
            raise ConfigError(
                f"label smoothing is for classes, but data.task is regression and label_smoothing is {smoothing}; "
                "set it to 0."
            )
        return RegressionModule(target_sd=data.target_sd, **_training(settings), **options)


TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Regression())}


def task_of(data: DataConfig | DataSplits) -> Task:
    """The task of a data configuration, or of loaded data."""
    return TASKS[data.task]


def evaluation_module(data: DataSplits, settings: SearchConfig | RetrainConfig, **options: float) -> SupervisedModule:
    """The Lightning module that trains and measures a network on these data; `set_model` gives it the network.

    Args:
        data: The data; their task, outputs and scale of the targets are used.
        settings: Section `search` or `retrain`: learning rate, momentum, weight decay.
        options: `label_smoothing` (classes only), `auxiliary_weight`: see `ClassificationModule`, `SupervisedModule`.

    Raises:
        ConfigError: An option that the task does not have.
    """
    return task_of(data).module(data, settings, **options)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "no"


def _training(settings: SearchConfig | RetrainConfig) -> dict[str, Any]:
    common = {
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
    }
    if isinstance(settings, RetrainConfig):
        return common
    return {**common, "optimizer": settings.optimizer, "rho_learning_rate": settings.rho_learning_rate}
