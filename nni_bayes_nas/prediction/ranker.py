"""Which of several networks will be the best on a task, before any of them is trained to the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from sklearn.ensemble import ExtraTreesRegressor
from torch import Tensor

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.inner_search import train_all
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.relevance import importance, separation
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.tasks import TaskData

SHORT = Training(steps=40)
"""Of the short training whose loss on its own objects is one of the features."""

NAMES = (
    *("connections", "depth", "narrowest", "widest", "tanh"),
    *("features seen", "separation seen", "separation of connections", "most of a feature"),
    *("importance seen", "importance of connections"),
    *("least sources", "mean sources", "sources of outputs", "least of an output"),
    *("seen by outputs", "least seen by an output", "own separation", "least own separation"),
    *("short loss", "short accuracy"),
)


def describe(nets: Sequence[SparseArchitecture], data: TaskData, seed: int, short: Training = SHORT) -> np.ndarray:
    """What can be seen of networks on a task at once, `(networks, len(NAMES))`.

    Shape; which features are seen, and how well they tell classes apart, all together and from each output on; sources
    of units; and loss and accuracy on the training objects after a short training.

    Args:
        nets: Inputs as the columns of the data.
        data: Of the task; the validation objects are not looked at.
        seed: Of the short training.
        short: See above.
    """
    whole, together = separation(data.x, data.y).float(), importance(data.x, data.y).float()
    own = torch.stack([separation(data.x, (data.y == each).long()) for each in range(nets[0].n_outputs)]).float()
    trained = TaskData(data.x, data.y, data.x, data.y)
    results = train_all(nets, [seed + i for i in range(len(nets))], trained, short)
    return np.array(
        [[*_shape(net), *_seen(net, whole, together, own), *result] for net, result in zip(nets, results, strict=True)]
    )


def _shape(net: SparseArchitecture) -> list[float]:
    tanh = sum(name == "tanh" for name in net.activations) / len(net.activations)
    return [np.log(net.n_connections), len(net.widths), np.log(min(net.widths)), np.log(max(net.widths)), tanh]


def _seen(net: SparseArchitecture, whole: Tensor, together: Tensor, own: Tensor) -> list[float]:
    used = torch.zeros(net.n_inputs)
    for a, _ in net.edges[0]:
        used[a] += 1
    seen, total = used > 0, float(whole.sum()) + 1e-9
    n_sources = [len(each) for layer in range(len(net.edges)) for each in net.sources(layer)]
    of_outputs = [len(each) for each in net.sources(len(net.edges) - 1)]
    reach = _reached(net)
    by_output = reach @ whole / total
    by_class = (reach * own).sum(1) / (own.sum(1) + 1e-9)
    return [
        float(seen.double().mean()),
        float(whole[seen].sum()) / total,
        float((whole * used).sum()) / float(used.sum()),
        float(used.max()),
        float(together[seen].sum()),
        float((together * used).sum()) / float(used.sum()),
        min(n_sources),
        sum(n_sources) / len(n_sources),
        sum(of_outputs) / len(of_outputs),
        min(of_outputs),
        float(by_output.mean()),
        float(by_output.min()),
        float(by_class.mean()),
        float(by_class.min()),
    ]


def _reached(net: SparseArchitecture) -> Tensor:
    """Which features each output sees, `(outputs, features)` of 0 and 1."""
    reached = torch.eye(net.n_inputs)
    for layer, edges in enumerate(net.edges):
        matrix = torch.zeros(net.sizes[layer + 1], net.sizes[layer])
        a, b = torch.tensor(edges).T
        matrix[b, a] = 1.0
        reached = (matrix @ reached > 0).float()
    return reached


class Ranker:
    """Extremely randomized trees on `describe`: a network's loss, less the mean of its task's networks, in their sd.

    Args:
        seed: Of the trees.
        trees: How many.
    """

    def __init__(self, seed: int = 0, trees: int = 200) -> None:
        self._model = ExtraTreesRegressor(trees, min_samples_leaf=3, max_features=0.5, random_state=seed)
        self._fitted = False

    def fit(self, descriptions: Sequence[np.ndarray], losses: Sequence[Sequence[float]]) -> Ranker:
        """Learn from several tasks.

        Args:
            descriptions: Of the networks of every task.
            losses: Of these, in nats.

        Raises:
            ConfigError: No task has two networks.
        """
        inputs, targets = [], []
        for described, values in zip(descriptions, losses, strict=True):
            if len(values) > 1:
                inputs.append(relative(described))
                array = np.asarray(values, dtype=float)
                targets.append((array - array.mean()) / max(float(array.std()), 1e-9))
        if not inputs:
            raise ConfigError("a ranker needs tasks of two networks or more, got none; search with a larger `top`.")
        self._model.fit(np.concatenate(inputs), np.concatenate(targets))
        self._fitted = True
        return self

    def scores(self, description: np.ndarray) -> np.ndarray:
        """Expected losses of networks of one task, in standard deviations of their losses; the least is the best.

        Raises:
            ConfigError: It has not learned anything yet.
        """
        if not self._fitted:
            raise ConfigError("a ranker must learn before it ranks; call fit.")
        found: np.ndarray = self._model.predict(relative(description))
        return found


def relative(description: np.ndarray) -> np.ndarray:
    """Descriptions less their mean over a task's networks, and themselves: ranks are wanted, and tasks differ."""
    return np.concatenate([description - description.mean(0), description], 1)


def kendall(predicted: Sequence[float] | np.ndarray, found: Sequence[float]) -> float:
    """Kendall's tau of two orders; 0 where one of them says nothing."""
    tau: Any = kendalltau(predicted, found).statistic
    return 0.0 if np.isnan(tau) else float(tau)
