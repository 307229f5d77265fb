"""Which of several networks will be the best on a task, before any of them is trained to the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, rankdata
from sklearn.ensemble import ExtraTreesRegressor

from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.prediction.many import Many, Training, by_depth
from nni_bayes_nas.prediction.relevance import importance, separation
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.tasks import TaskData
from nni_bayes_nas.prediction.training import seeds_of

SHORT = Training(steps=180, learning_rate=0.06)
"""Of `short_losses`: at a rate that is high for a long training, a short one comes further."""
_DIVIDED, _FEWEST = 4, 6
# Of each half so many objects are enough to measure a loss by.
_MEASURED = 500
_NOTHING = 1e-12

NAMES = (
    *("connections", "depth", "narrowest", "widest", "tanh"),
    *("features seen", "separation seen", "separation of connections", "most of a feature"),
    *("importance seen", "importance of connections"),
    *("least sources", "mean sources", "sources of outputs", "least of an output"),
    *("seen by outputs", "least seen by an output", "own separation", "least own separation"),
)


def describe(nets: Sequence[SparseArchitecture], data: TaskData) -> np.ndarray:
    """What can be seen of networks on a task at once, `(networks, len(NAMES))`.

    Shape; which features are seen, and how well they tell classes apart, all together and from each output on; sources
    of units.

    Args:
        nets: Inputs as the columns of the data.
        data: Of the task; the validation objects are not looked at.
    """
    whole, together = separation(data.x, data.y).double(), importance(data.x, data.y).double()
    own = torch.stack([separation(data.x, (data.y == each).long()) for each in range(nets[0].n_outputs)]).double()
    parts = whole.numpy(), together.numpy(), own.numpy()
    return np.array([[*_shape(net), *_seen(net, *parts)] for net in nets])


def short_losses(nets: Sequence[SparseArchitecture], data: TaskData, seed: int, short: Training = SHORT) -> np.ndarray:
    """Loss of each half of the training objects after a short training on the other half, `(networks, 2)`, in nats.

    Both halves have every class that has three objects; of an odd number one object is left out, and of large halves
    some are measured. Of fewer than four objects nothing can be said: zeros. Of a training that diverges: inf.

    Args:
        nets: Networks.
        data: Their objects; validation objects are not looked at.
        seed: Of the halves, and of the initial weights, which are others for each half.
        short: The training.
    """
    if len(data.y) < _DIVIDED:
        return np.zeros((len(nets), 2))
    order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(seed))
    order = order[data.y[order].argsort(stable=True)]
    held_out = torch.stack([order[: 2 * (len(order) // 2) : 2], order[1::2]])
    seen, found = held_out.flip(0), np.zeros((len(nets), 2))
    # In the order of their classes, each of which keeps its share.
    held_out = held_out[:, :: -(-held_out.shape[1] // _MEASURED)]

    def measure(places: list[int]) -> None:
        of_halves = [seeds_of(2 * seed + number, len(nets)) for number in (0, 1)]
        many = Many([nets[i] for i in places] * 2, [own[i] for own in of_halves for i in places])
        try:
            many.train(data.x[seen], data.y[seen], short, seed)
        except NumericsError:  # of one; the others are trained by themselves
            if len(places) == 1:
                found[places] = np.inf
            else:
                for i in places:
                    measure([i])
            return
        with torch.no_grad():
            losses = many.losses(data.x[held_out], data.y[held_out])
        found[places] = losses.reshape(2, -1).T.numpy()

    for places in by_depth(nets):
        measure(places)
    return found


def _shape(net: SparseArchitecture) -> list[float]:
    tanh = sum(name == "tanh" for name in net.activations) / len(net.activations)
    return [np.log(net.n_connections), len(net.widths), np.log(min(net.widths)), np.log(max(net.widths)), tanh]


def _seen(net: SparseArchitecture, whole: np.ndarray, together: np.ndarray, own: np.ndarray) -> list[float]:
    ends = [np.array(edges).T for edges in net.edges]
    used = np.bincount(ends[0][0], minlength=net.n_inputs)
    seen, total = used > 0, whole.sum() + 1e-9
    counts = [np.bincount(b, minlength=size) for (_, b), size in zip(ends, net.sizes[1:], strict=True)]
    n_sources, of_outputs = np.concatenate(counts), counts[-1]
    # Which features each output sees.
    reach = np.eye(net.n_inputs)
    for (a, b), n, size in zip(ends, net.sizes, net.sizes[1:], strict=False):
        matrix = np.zeros((size, n))
        matrix[b, a] = 1.0
        reach = (matrix @ reach > 0).astype(float)
    by_output = reach @ whole / total
    by_class = (reach * own).sum(1) / (own.sum(1) + 1e-9)
    found = [
        *(seen.mean(), whole[seen].sum() / total, (whole * used).sum() / used.sum(), used.max()),
        *(together[seen].sum(), (together * used).sum() / used.sum()),
        *(n_sources.min(), n_sources.mean(), of_outputs.mean(), of_outputs.min()),
        *(by_output.mean(), by_output.min(), by_class.mean(), by_class.min()),
    ]
    return [float(value) for value in found]


class Ranker:
    """Orders the networks of a task by what was learned of others, and by what is measured on it.

    What was learned are extremely randomized trees on `describe`: a network's loss, less the mean of its task's
    networks, in their standard deviation. What is measured are `short_losses`. With their reliability r a score is
    2 (1 - r^2) min(1, sqrt(m / n)) times the standardized prediction of the trees and r times the standardized mean
    rank of the short losses, with n objects, where the tasks that the trees have learned from have m in the mean: on a
    few objects it is nearly the trees alone that rank, on many nearly the losses. The weights were chosen, not derived:
    trees that have only seen small parts do not know how much more a short training says on a whole data set.

    Args:
        seed: Of the trees.
        trees: How many.
    """

    def __init__(self, seed: int = 0, trees: int = 200) -> None:
        self._model = ExtraTreesRegressor(trees, min_samples_leaf=3, max_features=0.5, random_state=seed)
        self._n_objects: float | None = None

    def fit(
        self, descriptions: Sequence[np.ndarray], losses: Sequence[Sequence[float]], n_objects: Sequence[int]
    ) -> Ranker:
        """Learn from several tasks.

        Args:
            descriptions: Of the networks of every task, see `describe`.
            losses: Of these, in nats.
            n_objects: Training objects of the tasks.

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
        self._n_objects = float(np.mean(n_objects))
        return self

    def scores(self, description: np.ndarray, short: np.ndarray, n_objects: int) -> np.ndarray:
        """The least is expected to be the best; numbers of different calls cannot be compared.

        Args:
            description: Of networks of one task, see `describe`.
            short: Of the same, see `short_losses`.
            n_objects: Training objects of the task.

        Raises:
            ConfigError: It has not learned anything yet.
        """
        if self._n_objects is None:
            raise ConfigError("a ranker must learn before it ranks; call fit.")
        learned = standardized(self._model.predict(relative(description)))
        # A network may have a loss that is not finite after so few steps: it comes last.
        ranks = rankdata(np.where(np.isfinite(short), short, np.inf), axis=0)
        known = reliability(ranks)
        trust = 2 * (1 - known**2) * min(1.0, (self._n_objects / n_objects) ** 0.5)
        found: np.ndarray = trust * learned + known * standardized(ranks.mean(1))
        return found


def reliability(halves: np.ndarray) -> float:
    """What the mean of two measurements `(n, 2)` of n things has in common with that of two more, from 0 to 1.

    2 c / (1 + c) with the correlation c (Spearman, 1910; Brown, 1910); 0 where it is below 0, and where there is none:
    of fewer than six things, or of equal ones.
    """
    if len(halves) < _FEWEST or min(halves.std(0)) <= _NOTHING:
        return 0.0
    c = max(0.0, float(np.corrcoef(halves.T)[0, 1]))
    return 2 * c / (1 + c)


def standardized(values: np.ndarray) -> np.ndarray:
    """Less their mean, by their standard deviation; zeros where they are all equal."""
    centered: np.ndarray = values - values.mean()
    sd = float(centered.std())
    return centered / sd if sd > _NOTHING else np.zeros_like(centered)


def relative(description: np.ndarray) -> np.ndarray:
    """Descriptions less their mean over a task's networks, and themselves: ranks are wanted, and tasks differ."""
    return np.concatenate([description - description.mean(0), description], 1)


def kendall(predicted: Sequence[float] | np.ndarray, found: Sequence[float]) -> float:
    """Kendall's tau of two orders; 0 where one of them says nothing."""
    tau: Any = kendalltau(predicted, found).statistic
    return 0.0 if np.isnan(tau) else float(tau)
