"""Where predictions are wrong: size, layers and connections, by number of objects and by how strange a task is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.prediction.bank import Entry
from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.encoder import Condition
from nni_bayes_nas.prediction.inner_search import train_all
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.predictor import Predictor
from nni_bayes_nas.prediction.ranker import kendall
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.tasks import TaskData
from nni_bayes_nas.prediction.tokens import encode


def errors_of(
    predictor: Predictor,
    held_out: Sequence[Entry],
    known: Sequence[Entry],
    data_of: Callable[[Entry], TaskData],
    how: Training,
    seed: int = 0,
    draws: int = 16,
) -> list[dict[str, Any]]:
    """How predictions for tasks that were kept out of a fit differ from what a search found there.

    Args:
        predictor: Fitted on `known`.
        held_out: Entries of other tasks.
        known: Of the fit.
        data_of: The data of an entry's task.
        how: Of the training of predicted networks.
        seed: Of what is drawn.
        draws: Networks that are drawn for an entry, of which the best-ranked is trained.

    Returns:
        A row for every entry: "source", "objects", "features", "budget", and

        distance: Of the task from the nearest known one, in the space of the encoder.
        depth_found, depth: Hidden layers of the best network found, and of the most probable one as it is drawn.
        units_found, units: Hidden units.
        length: Tokens of the drawn one less those of the found one.
        layers: By layer, F1 of connections, the drawn and the found one in their canonical form: hidden layers that
            both have, and the output layer where they are as deep.
        layers_chance: The same with the found network of another task; None of none.
        inputs, inputs_chance: F1 of the features seen; the same with the found network of another task, None of none.
        nats: -log p of the found network for each of its tokens.
        loss, loss_found, loss_others: Mean validation loss of the first network of `Predictor.predict`, of the found
            one, and the mean of the others that the search tried; nats. Of the objects by which the search chose, see
            `Found`.
        accuracy, accuracy_found: Theirs, of the other validation objects.
        tau: Of the ranker's order of the search's networks with that of their losses.
    """
    if not held_out:
        return []
    nearest = _nearest(predictor, [_condition(predictor, e, data_of(e)) for e in known])
    rows = []
    for i, entry in enumerate(held_out):
        data, best = data_of(entry), entry.found[0].net
        others_of = (one for one in (*held_out[i:], *held_out[:i]) if one.task != entry.task)
        other = next(others_of, None)
        condition = _condition(predictor, entry, data)
        generator = torch.Generator().manual_seed(seed + i)
        with torch.no_grad():
            drawn = predictor.model.sample(condition, 1, generator, 0.0)[0][0]
            nats = float(predictor.model.losses([condition], [best])[0]) / len(encode(best, predictor.vocabulary))
        ranked = data.in_order(torch.tensor(entry.order))
        repeats = len(entry.found[0].losses)
        first = predictor.predict(data, entry.budget, len(entry.task.classes), n=draws, seed=seed + i)[0].net
        results = train_all([first] * repeats, [seed + 31 * k for k in range(repeats)], data, how, apart=True)
        every = [*entry.found, *entry.others]
        tau = None
        if predictor.ranker is not None and len(every) > 2:
            tried = [one.net for one in every]
            expected = predictor.ranked(tried, ranked, seed + i)
            tau = kendall(expected, [one.loss for one in every])
        others = entry.others or entry.found
        rows.append(
            {
                "source": entry.task.source,
                "objects": len(data.x),
                "features": data.x.shape[1],
                "budget": entry.budget,
                "distance": nearest(condition),
                **_shapes(drawn, best, predictor),
                "inputs_chance": None if other is None else _f1(_inputs(drawn), _inputs(other.found[0].net)),
                "layers_chance": None if other is None else _by_layer(drawn, other.found[0].net),
                "nats": nats,
                "loss": sum(loss for loss, _ in results) / repeats,
                "loss_found": entry.found[0].loss,
                "loss_others": sum(one.loss for one in others) / len(others),
                "accuracy": sum(accuracy for _, accuracy in results) / repeats,
                "accuracy_found": entry.found[0].accuracy,
                "tau": tau,
            }
        )
    return rows


def _shapes(drawn: SparseArchitecture, best: SparseArchitecture, predictor: Predictor) -> dict[str, Any]:
    drawn, best = canonical(drawn), canonical(best)
    return {
        "depth_found": len(best.widths),
        "depth": len(drawn.widths),
        "units_found": sum(best.widths),
        "units": sum(drawn.widths),
        "length": len(encode(drawn, predictor.vocabulary)) - len(encode(best, predictor.vocabulary)),
        "layers": _by_layer(drawn, best),
        "inputs": _f1(_inputs(drawn), _inputs(best)),
    }


def _by_layer(ours: SparseArchitecture, theirs: SparseArchitecture) -> list[float]:
    ours, theirs = canonical(ours), canonical(theirs)
    # An output layer is not a hidden one of a deeper network.
    n = len(ours.edges) if len(ours.edges) == len(theirs.edges) else min(len(ours.edges), len(theirs.edges)) - 1
    return [_f1(set(a), set(b)) for a, b in zip(ours.edges[:n], theirs.edges[:n], strict=True)]


def _inputs(net: SparseArchitecture) -> set[int]:
    return {a for a, _ in net.edges[0]}


def _f1(ours: set[Any], theirs: set[Any]) -> float:
    """Of two sets: twice what both have, by what each has."""
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def _condition(predictor: Predictor, entry: Entry, data: TaskData) -> Condition:
    return predictor.condition(data, entry.budget, len(entry.task.classes), order=entry.order)


def _nearest(predictor: Predictor, known: Sequence[Condition]) -> Callable[[Condition], float]:
    """Distance to the nearest of known tasks, by the square root of the dimension."""

    @torch.no_grad()
    def placed(condition: Condition) -> Tensor:
        vectors: Tensor = predictor.model.encoder([condition])
        return vectors.flatten()

    places = torch.stack([placed(one) for one in known])

    def distance(condition: Condition) -> float:
        place = placed(condition)
        return float((places - place).norm(dim=1).min()) / math.sqrt(len(place))

    return distance
