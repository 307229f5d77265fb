"""What `prediction.py` chooses for its baselines, by validation data: rates, penalties, dense networks to prune."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

from nni_bayes_nas.errors import NumericsError
from nni_bayes_nas.prediction.sparse_architecture import ACTIVATIONS

# Not of sparse layers, and so not side by side with others.
OF_OTHER_FORM = ("adanet", "low_rank")
# Whose widths, activations and, of the dense training of magnitude, rates validation chooses too.
PRUNED = ("snip", "magnitude")
# Shares of the rate, and penalties, of which validation chooses for a data set and budget.
RATES, PENALTIES = (1.0, 0.3, 0.1), (1e-3, 1e-4, 1e-2)
# What the outcomes of jobs depend on beside their configuration, for their keys.
TUNED_BY = {"rates": RATES, "penalties": PENALTIES, "activations": ACTIVATIONS}


def tuned(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: for every budget of a data set the rate of networks of other form, and the penalty of AdaNet at
    that rate, at which the best of the tries has the least validation loss; the dense networks that SNIP and magnitude
    prune, and magnitude's rate, of all widths that are the same in every layer; with a seed that nothing else has."""
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import whole
    from nni_bayes_nas.experiment.predict import budgets_for

    settings, seed, data = config.predict, int(parameters["seed"]), whole(load_data(config.data))
    found: dict[str, dict[str, Any]] = {}
    for budget in budgets_for(config, data.n_features, data.n_classes):
        own = found.setdefault(str(budget), {})
        for name in OF_OTHER_FORM:
            losses = {}
            for rate in RATES:
                losses[rate, PENALTIES[0]] = loss_of_other_form(
                    name, settings, data, budget, seed, (rate, PENALTIES[0])
                )
            rate = min(losses, key=losses.__getitem__)[0]
            for penalty in PENALTIES[1:] if name == "adanet" else ():
                losses[rate, penalty] = loss_of_other_form(name, settings, data, budget, seed, (rate, penalty))
            tried = [[*at, loss] for at, loss in losses.items()]
            own[name] = {"at": list(min(losses, key=losses.__getitem__)), "tried": tried}
        for name in PRUNED:
            own[name] = tuned_pruning(name, settings, data, budget, seed)
    return {"default": 0.0, "budgets": found}


def tuned_pruning(name: str, settings: Any, data: Any, budget: int, seed: int) -> dict[str, Any]:
    """The widths, activation and rate of as many dense networks as there are tries, whose pruned ones are best."""
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.sparse_architecture import fewest_connections
    from nni_bayes_nas.prediction.training import seeds_of

    shapes = {(w,) * depth for depth in range(1, settings.max_depth + 1) for w in settings.widths}
    shapes |= {tuple(settings.deepest)}
    fits = sorted(shape for shape in shapes if fewest_connections(shape, data.n_classes) <= budget)
    rates = RATES if name == "magnitude" else RATES[:1]
    every = [(shape, activation, rate) for shape in fits for activation in ACTIVATIONS for rate in rates]
    seeds = seeds_of(seed, len(every))
    nets = pruned(name, settings, data, budget, seeds, every)
    trained = finite(nets, seeds, data, Training(settings.train_steps))
    losses = [math.inf if one is None else one.val_loss for one in trained]
    order = sorted(range(len(every)), key=losses.__getitem__)
    tried = [[*every[i], losses[i]] for i in order]
    return {"at": [list(every[i]) for i in order[: settings.verify]], "tried": tried}


def pruned(name: str, settings: Any, data: Any, budget: int, seeds: list[int], every: Any) -> list[Any]:
    """Networks that SNIP or magnitude makes of dense ones of such widths, activations and rates; or None."""
    from nni_bayes_nas.prediction.inner_search import strongest
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.sparse_net import dense

    wholes = [dense(data.n_features, data.n_classes, tuple(shape), activation) for shape, activation, _ in every]
    found: dict[int, Any] = {}
    for rate in dict.fromkeys(rate for _, _, rate in every):
        places = [i for i, one in enumerate(every) if one[2] == rate]
        how = Training(settings.train_steps, learning_rate=rate * Training().learning_rate)
        some, own = [wholes[i] for i in places], [seeds[i] for i in places]
        trained = how if name == "magnitude" else None
        try:
            nets = strongest(some, data.parts, budget, own, trained)
        except NumericsError:  # of one; the others are trained by themselves
            nets = [_alone(*each, data.parts, budget, trained) for each in zip(some, own, strict=True)]
        found |= dict(zip(places, nets, strict=True))
    return [found[i] for i in range(len(wholes))]


def _alone(whole: Any, seed: int, parts: Any, budget: int, how: Any) -> Any:
    from nni_bayes_nas.prediction.inner_search import strongest

    with contextlib.suppress(NumericsError):
        return strongest([whole], parts, budget, [seed], how)[0]
    return None


def loss_of_other_form(*about: Any) -> float:
    """Of `of_other_form`: of what diverges there is none to choose."""
    try:
        return float(of_other_form(*about).val_loss)
    except NumericsError:
        return math.inf


def of_other_form(name: Any, settings: Any, data: Any, budget: int, seed: int, at: tuple[float, float]) -> Any:
    """The best by validation of the tries of AdaNet or low rank, of a rate and a penalty."""
    from nni_bayes_nas.experiment.bank import vocabulary_of
    from nni_bayes_nas.prediction.baselines import baseline
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.training import best

    rate, penalty = at
    options = {"tries": settings.verify, "vocabulary": vocabulary_of(settings), "deepest": tuple(settings.deepest)}
    how = Training(settings.train_steps, learning_rate=rate * Training().learning_rate)
    return best(baseline(name, data, budget, how, **options, seed=seed, penalty=penalty))


def finite(nets: list[Any], seeds: list[int], data: Any, how: Any) -> list[Any]:
    """All side by side, or where one diverges, which stops them all, one by one: then the objects of each have an order
    of their own. None in the place of what diverges, and of what is none already.
    """
    from nni_bayes_nas.prediction.training import train_together

    there = [i for i, net in enumerate(nets) if net is not None]
    found: list[Any] = [None] * len(nets)
    try:
        done = train_together([nets[i] for i in there], [seeds[i] for i in there], data, how)
    except NumericsError:
        done = []
        for i in there:
            try:
                done += train_together([nets[i]], [seeds[i]], data, how)
            except NumericsError:
                done.append(None)
    for i, one in zip(there, done, strict=True):
        found[i] = one
    return found
