"""A second head: the choices of a search space, given a part of the data, from searches on other parts."""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.encoder import Condition, SetEncoder
from nni_bayes_nas.prediction.many import require_finite

_SIDE, _AT_MOST = 8, 64
Key = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Example:
    """What searches on one task chose.

    Attributes:
        condition: Of the task.
        lam: Complexity parameter at which it was read off; None where there is none.
        choices: By label, of every repeated search.
    """

    condition: Condition
    lam: float | None
    choices: tuple[dict[str, Any], ...]


def looked_at(x: Tensor) -> Tensor:
    """Objects as a meta-model sees them, `(n, features)`: images in grey and of 8 x 8 pixels at most."""
    if x.dim() != 4:
        return x.flatten(1)
    grey = x.mean(1, keepdim=True)
    if max(grey.shape[2:]) > _SIDE:
        grey = F.adaptive_avg_pool2d(grey, _SIDE)
    return grey.flatten(1)


class CellPredictor(nn.Module):
    """Independent categorical distributions of the choices, given a task and lambda.

    Args:
        examples: What is chosen from: of every label the values that a search chose.
        max_features: Numbers of an object at most.
        max_classes: Classes at most.
        dim: Of the encoder.
        seed: Of the initial weights.

    Raises:
        ConfigError: No example, examples of different labels, or nothing that differs between them.
    """

    def __init__(
        self, examples: Sequence[Example], max_features: int, max_classes: int, dim: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        labels = {tuple(sorted(choices)) for one in examples for choices in one.choices}
        if len(labels) != 1:
            raise ConfigError(f"cells of one space have equal labels, got {len(labels)} sets of them; search again.")
        self.values: dict[str, list[str]] = {
            label: sorted({_word(choices[label]) for one in examples for choices in one.choices})
            for label in next(iter(labels))
        }
        if all(len(values) == 1 for values in self.values.values()):
            raise ConfigError(
                f"searches on {len(examples)} tasks must choose different cells, or the prediction is a constant, got "
                "one cell; let tasks differ more, or the search more epochs."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = SetEncoder(max_features, max_classes, dim)
            self.head = nn.Sequential(
                nn.Linear(dim + 2, dim), nn.ReLU(), nn.Linear(dim, sum(map(len, self.values.values())))
            )

    def log_probs(self, conditions: Sequence[Condition], lams: Sequence[float | None]) -> list[Tensor]:
        """Of every label `(tasks, values)`, in nats."""
        places = [(math.log10(lam), 1.0) if lam is not None else (0.0, 0.0) for lam in lams]
        h = torch.cat([self.encoder(conditions).mean(1), torch.tensor(places)], 1)
        sizes = [len(values) for values in self.values.values()]
        return [part.log_softmax(-1) for part in self.head(h).split(sizes, 1)]

    def fit(self, examples: Sequence[Example], steps: int = 300, rate: float = 3e-3, seed: int = 0) -> list[float]:
        """Learn from examples; -log p of their choices in nats at every step, its mean over the batch.

        The target of a label is how often the repeated searches chose each value.

        Raises:
            NumericsError: A loss is not finite.
        """
        targets = [
            torch.tensor(
                [
                    [
                        sum(_word(choices[label]) == value for choices in one.choices) / len(one.choices)
                        for value in values
                    ]
                    for one in examples
                ]
            )
            for label, values in self.values.items()
        ]
        optimizer = torch.optim.Adam(self.parameters(), rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator, losses = torch.Generator().manual_seed(seed), []
        self.train()
        for step in range(steps):
            batch = torch.randperm(len(examples), generator=generator)[:32]
            some = [examples[i] for i in batch.tolist()]
            found = self.log_probs([one.condition for one in some], [one.lam for one in some])
            loss = -torch.stack([(t[batch] * p).sum(1) for t, p in zip(targets, found, strict=True)]).sum(0).mean()
            require_finite(loss, "the cells", step)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        self.eval()
        return losses

    @torch.no_grad()
    def predict(
        self, condition: Condition, lam: float | None, n: int, key: Key | None = None
    ) -> list[tuple[dict[str, Any], float]]:
        """The n most probable cells and their log-probabilities, the most probable one first; see `probable_cells`."""
        return probable_cells(self.values, [each[0].tolist() for each in self.log_probs([condition], [lam])], n, key)


def probable_cells(
    values: Mapping[str, Sequence[str]], log_probs: Sequence[Sequence[float]], n: int, key: Key | None = None
) -> list[tuple[dict[str, Any], float]]:
    """The n most probable cells of independent choices and their log-probabilities, the most probable one first.

    Args:
        values: By label, as JSON.
        log_probs: Of every label those of its values, in nats.
        n: How many; fewer where there are not as many, or not among the 64 n most probable ones.
        key: Of a cell, equal where cells are; of these the most probable one counts. None: it cannot be.
    """
    tried = n
    while True:
        best, found = most_probable(log_probs, tried), dict[Any, tuple[dict[str, Any], float]]()
        for log_prob, at in best:
            cell = {label: json.loads(own[i]) for (label, own), i in zip(values.items(), at, strict=True)}
            own_key = _word(cell) if key is None else key(cell)
            if own_key is not None:
                found.setdefault(own_key, (cell, log_prob))
        if len(found) >= n or len(best) < tried or tried >= _AT_MOST * n:
            return list(found.values())[:n]
        tried *= 4


def most_probable(log_probs: Sequence[Sequence[float]], n: int) -> list[tuple[float, tuple[int, ...]]]:
    """The n most probable joint values of independent choices, the most probable one first.

    Args:
        log_probs: Of every choice those of its values, in nats.
        n: How many.

    Returns:
        Their log-probabilities, and of every choice the place of its value.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for values in log_probs:
        grown = ((p + q, (*at, i)) for (p, at), (i, q) in itertools.product(best, enumerate(values)))
        best = heapq.nlargest(n, grown)
    return best


def _word(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
