"""Reading one architecture off a finished search in other ways than by the mean of its structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior

Weights = dict[str, Tensor]


def best_of(
    q: ArchitecturePosterior, n: int, loss: Callable[[dict[str, Any]], float], generator: torch.Generator
) -> dict[str, Any]:
    """Of n draws of a posterior and what is derived from its mean, the architecture of the largest validation ELBO.

    Of a single architecture the bound per object is its validation loss and what its prior and the weights that are on
    cost, see `BayesianModule.divergence_of`. Equal ones are looked at once.

    Args:
        q: The posterior.
        n: Draws.
        loss: The bound per object of an architecture with the weights of the search, negated, in nats.
        generator: Of the draws.
    """
    every = {Architecture(choices).key: choices for choices in (q.derived(), *q.sample(n, generator))}
    return min(every.values(), key=loss)


def by_perturbation(
    units: Sequence[law.Unit],
    weights: Weights,
    loss: Callable[[Weights], float],
    pruned: Mapping[str, frozenset[tuple[int, int]]] | None = None,
) -> dict[str, Any]:
    """The options whose removal from the supernet hurts most, choice after choice (Wang et al., 2021, DARTS-PT).

    At every edge of a node the operation without which the validation loss is largest is kept, alone; then of its edges
    those without which it is. A choice is made with the earlier ones as they were made. There is no training in
    between, which the authors have; and they compare accuracies: the loss tells apart what these do not.

    Args:
        units: Choices, in order.
        weights: Mixing weights by label: `(options,)`, or `(edges, operations)` and a column for "none".
        loss: Validation loss of the supernet with mixing weights.
        pruned: Options that the search has given up, (row, option) pairs by label.
    """
    gone = pruned or {}
    weights, choices = {label: w.clone() for label, w in weights.items()}, {}

    def without(label: str, at: tuple[int, ...]) -> float:
        changed = weights[label].clone()
        changed[at] = 0.0
        return loss({**weights, label: changed})

    for unit in units:
        w = weights[unit.label]
        if isinstance(unit, law.Node):
            kept = []
            for edge in range(unit.index):
                left = [o for o in range(len(unit.operations)) if (edge, o) not in gone.get(unit.label, ())]
                hurts = {o: without(unit.label, (edge, o)) for o in left}
                kept.append(max(left, key=hurts.__getitem__))
                w[edge] = 0.0
                w[edge, kept[-1]] = 1.0
            hurt = [without(unit.label, (edge,)) for edge in range(unit.index)]
            edges = sorted(range(unit.index), key=lambda edge: -hurt[edge])[: unit.n_chosen]
            pairs = [(edge, kept[edge]) for edge in edges]
            w.zero_()
            for edge, operation in pairs:
                w[edge, operation] = 1.0
            choices.update(unit.slots(pairs))
            continue
        left = [o for o in range(len(unit.options)) if (0, o) not in gone.get(unit.label, ())]
        hurts = {o: without(unit.label, (o,)) for o in left}
        n = unit.n_chosen if isinstance(unit, law.Subset) else 1
        chosen = sorted(sorted(left, key=lambda o: -hurts[o])[:n])
        w.zero_()
        w[chosen] = 1.0
        options = [unit.options[o] for o in chosen]
        choices[unit.label] = options if isinstance(unit, law.Subset) else options[0]
    return choices
