"""What a meta-model sees of a task: its objects as a set, and how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nni_bayes_nas.coercion import require
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.relevance import order_of_features, separation

# Numbers beside the set: objects, features, classes and budget; and how far the best features tell classes apart.
N_SIZES, _LOOKED_AT = 4, 8
# Of a sum of an object's numbers so many times has a fraction that says nothing about it.
_SCATTER = 1e5


@dataclass(frozen=True)
class Condition:
    """A task as a meta-model sees it.

    Attributes:
        objects: `(n, max_features + max_classes)`: features in their order, padded by zeros, and the class as one of
            so many.
        scalars: See `condition_of`.
        order: The feature at every rank.
        n_classes: Of the task.
        budget: Connections.
    """

    objects: Tensor
    scalars: Tensor
    order: Tensor
    n_classes: int
    budget: int

    @property
    def n_features(self) -> int:
        """Of the task."""
        return len(self.order)


def condition_of(
    x: Tensor,
    y: Tensor,
    budget: int,
    *,
    max_features: int,
    max_classes: int,
    n_classes: int | None = None,
    n_objects: int | None = None,
    most: int = 128,
    order: Tensor | None = None,
) -> Condition:
    """What a meta-model sees.

    Args:
        x: Standardized, `(n, features)`.
        y: Classes.
        budget: Connections.
        max_features: That the model was built for.
        max_classes: Likewise.
        n_classes: Of the task; None: as many as there are in `y`.
        n_objects: What the number of objects is said to be; None: what it is. A model that has seen parts of data sets
            is asked for more.
        most: Objects that are looked at, of each class as many, whichever come first.
        order: Of the features; None: `order_of_features`.

    Returns:
        Scalars are a quarter of the logarithms of objects, features, classes and connections, and the `separation` of
        the first features.

    Raises:
        ConfigError: More features or classes than the model was built for, more classes than are said to be there, or
            no connection or object.
    """
    require(budget >= 1, "budget", "must be at least 1", budget, "raise it")
    require((n_objects or len(x)) >= 1, "n_objects", "must be at least 1", n_objects or len(x), "give objects")
    there = int(y.max()) + 1
    n_classes = n_classes or there
    if there > n_classes:
        raise ConfigError(
            f"a task of {n_classes} classes must have no others, got class {there - 1}; number them from 0."
        )
    if x.shape[1] > max_features or n_classes > max_classes:
        raise ConfigError(
            f"the meta-model was built for {max_features} features and {max_classes} classes, got {x.shape[1]} and "
            f"{n_classes}; build it for more, or leave features out."
        )
    order = order_of_features(x, y) if order is None else order
    sorted_ = x[:, order].float().clamp(-4, 4)
    seen = _in_turn(sorted_, y, most)
    objects = torch.zeros(len(seen), max_features + max_classes)
    objects[:, : x.shape[1]] = sorted_[seen]
    objects[torch.arange(len(seen)), max_features + y[seen]] = 1.0
    numbers = (n_objects or len(x), x.shape[1], n_classes, budget)
    best = separation(x, y)[order][:_LOOKED_AT].float()
    scalars = torch.tensor([math.log(number) / 4 for number in numbers])
    scalars = torch.cat([scalars, best, torch.zeros(_LOOKED_AT - len(best))])
    return Condition(objects, scalars, order, n_classes, budget)


def with_classes(condition: Condition, places: Sequence[int], max_features: int) -> Condition:
    """The same task with its classes numbered otherwise, given the new number of each."""
    objects = condition.objects.clone()
    for old, new in enumerate(places):
        objects[:, max_features + new] = condition.objects[:, max_features + old]
    return replace(condition, objects=objects)


def _in_turn(x: Tensor, y: Tensor, most: int) -> Tensor:
    """At most so many objects, of every class as many: which ones depends on what they are, not on where they are."""
    weights = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # As good as at random, but the same for the same object.
    lot = (_SCATTER * (x.double() * weights).sum(1)).frac().abs()
    place = torch.zeros(len(y))
    for each in sorted(set(y.tolist())):
        own = (y == each).nonzero().flatten()
        place[own[lot[own].argsort()]] = torch.arange(len(own)).float()
    return (place.double() + lot / 2).argsort()[:most]


class SetEncoder(nn.Module):
    """A set of objects, and numbers about it, as a few vectors: the same for every order of the objects.

    Objects attend to each other once and are gathered by learned queries (Lee et al., 2019, Set Transformer, arXiv
    1810.00825: a SAB, and a PMA of `n_seeds`).

    Args:
        max_features: Features at most.
        max_classes: Classes at most.
        dim: Of the vectors.
        n_seeds: Vectors that come out.
        heads: Of the attention.

    Raises:
        ConfigError: Vectors that the heads cannot share.
    """

    def __init__(self, max_features: int, max_classes: int, dim: int = 64, n_seeds: int = 4, heads: int = 4) -> None:
        super().__init__()
        require(dim % heads == 0, "dim", f"must be a multiple of the {heads} heads of the attention", dim, "64, say")
        self.max_features, self.max_classes, self.dim = max_features, max_classes, dim
        self.embed = nn.Sequential(nn.Linear(max_features + max_classes, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.among = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.seeds = nn.Parameter(torch.randn(n_seeds, dim) / dim**0.5)
        self.gather = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.scalars = nn.Sequential(nn.Linear(N_SIZES + _LOOKED_AT, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, conditions: Sequence[Condition]) -> Tensor:
        """`(tasks, n_seeds + 1, dim)`; the last vector is that of the numbers."""
        longest = max(len(one.objects) for one in conditions)
        objects = torch.zeros(len(conditions), longest, self.max_features + self.max_classes)
        absent = torch.ones(len(conditions), longest, dtype=torch.bool)
        for i, one in enumerate(conditions):
            objects[i, : len(one.objects)] = one.objects
            absent[i, : len(one.objects)] = False
        h = self.embed(objects)
        h = self.norm(h + self.among(h, h, h, key_padding_mask=absent, need_weights=False)[0])
        seeds = self.seeds.expand(len(conditions), -1, -1)
        gathered = self.gather(seeds, h, h, key_padding_mask=absent, need_weights=False)[0] + seeds
        numbers = self.scalars(torch.stack([one.scalars for one in conditions]))
        return torch.cat([gathered, numbers.unsqueeze(1)], 1)
