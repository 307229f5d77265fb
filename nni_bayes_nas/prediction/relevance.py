"""An order of features that means the same in every data set: what tells classes apart first, repetitions last."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor

from nni_bayes_nas.coercion import require

# A prediction is for tables and small images: correlations of more would not fit into memory, or take minutes.
MOST_FEATURES = 4096
_TREES, _OBJECTS, _LEAF = 100, 1000, 2
_REMEMBERED = 1_000
_known: dict[bytes, Tensor] = {}


def separation(x: Tensor, y: Tensor) -> Tensor:
    """Share of the variance of every feature that is between the classes, `(features,)`, from 0 to 1.

    The correlation ratio: sum_c n_c (mean_c - mean)^2 / sum_i (x_i - mean)^2; 0 of a constant feature.
    """
    x = x.double()
    total = (x - x.mean(0)).square().sum(0)
    between = torch.zeros_like(total)
    for each in sorted(set(y.tolist())):
        own = x[y == each]
        between += len(own) * (own.mean(0) - x.mean(0)).square()
    return torch.where(total > 1e-12, between / total.clamp_min(1e-12), 0.0)


def importance(x: Tensor, y: Tensor) -> Tensor:
    """How much every feature does for telling classes apart, alone or with others, `(features,)`, of sum 1.

    The decrease of Gini's impurity by the feature in extremely randomized trees (Geurts, Ernst & Wehenkel, 2006), which
    see what features say together: of a parity no feature has a `separation`. All 0 where nothing is to be told apart.
    The same trees grow whatever the order of features and objects, up to ties. What was asked before is remembered, in
    whatever order it was.

    Args:
        x: `(objects, features)`; of many objects some are looked at.
        y: Their classes.
    """
    columns = separation(x, y).argsort(descending=True, stable=True)
    by_values = x[:, columns[0]].argsort(stable=True)
    rows = by_values[y[by_values].argsort(stable=True)]
    if len(rows) > _OBJECTS:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_OBJECTS]]
    table, classes = np.asarray(x[rows][:, columns].float()), np.asarray(y[rows])
    key = hashlib.blake2b(np.ascontiguousarray(table).tobytes() + classes.tobytes()).digest()
    if key not in _known:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        trees = ExtraTreesClassifier(_TREES, min_samples_leaf=_LEAF, random_state=0)
        _known[key] = torch.from_numpy(trees.fit(table, classes).feature_importances_)
    found = torch.empty(x.shape[1], dtype=torch.float64)
    found[columns] = _known[key]
    return found


def order_of_features(x: Tensor, y: Tensor) -> Tensor:
    """Features by relevance less redundancy (Peng, Long & Ding, 2005), the first one first.

    Each next feature is that of the largest importance, times one less its mean absolute correlation with those before.
    Ties are broken by the number of the feature.

    Args:
        x: `(objects, features)`.
        y: Their classes.

    Raises:
        ConfigError: More features than `MOST_FEATURES`.
    """
    require(x.shape[1] <= MOST_FEATURES, "features", f"must be at most {MOST_FEATURES}", x.shape[1], "leave some out")
    relevance = importance(x, y)
    centred = x.double() - x.double().mean(0)
    norm = centred.norm(dim=0)
    unit = torch.where(norm > 1e-12, centred / norm.clamp_min(1e-12), 0.0)
    # All at once: a pass over the objects for every feature takes long.
    correlations = (unit.T @ unit).abs()
    left = torch.ones(x.shape[1], dtype=torch.bool)
    repeated, order = torch.zeros(x.shape[1], dtype=torch.float64), []
    for k in range(x.shape[1]):
        value = relevance * (1 - repeated / max(k, 1))
        best = int(torch.where(left, value, -1.0).argmax())
        order.append(best)
        left[best] = False
        repeated += correlations[best]
    return torch.tensor(order)
