"""What `prediction.py` chooses for its baselines, by validation data: rates, penalties, sizes, networks to prune."""

from __future__ import annotations

import contextlib
import math
import random
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
# Of networks of other form so many at most are tried, all of which use what the budget has.
SIZES = 24
# What the outcomes of jobs depend on beside their configuration, for their keys.
TUNED_BY = {"rates": RATES, "penalties": PENALTIES, "sizes": SIZES, "activations": ACTIVATIONS}


def tuned(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: what validation data choose of networks of other form and of pruned ones, for every budget of a
    data set, with a seed that nothing else has."""
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import whole
    from nni_bayes_nas.experiment.predict import budgets_for

    settings, seed, data = config.predict, int(parameters["seed"]), whole(load_data(config.data))
    found: dict[str, dict[str, Any]] = {}
    for budget in budgets_for(config, data.n_features, data.n_classes):
        own = found.setdefault(str(budget), {})
        own |= {name: tuned_other_form(name, settings, data, budget, seed) for name in OF_OTHER_FORM}
        own |= {name: tuned_pruning(name, settings, data, budget, seed) for name in PRUNED}
    return {"default": 0.0, "budgets": found}


def tuned_other_form(name: Any, settings: Any, data: Any, budget: int, seed: int) -> dict[str, Any]:
    """The rate, and of AdaNet the penalty at it, at which the best of the tries is best; and as many sizes as there are
    tries, the best at these."""
    from nni_bayes_nas.experiment.bank import vocabulary_of
    from nni_bayes_nas.prediction.baselines import sizes_of

    def loss(*at: Any) -> float:
        return loss_of_other_form(name, settings, data, budget, seed, at)

    losses: dict[tuple[Any, ...], float] = {(rate, PENALTIES[0]): loss(rate, PENALTIES[0]) for rate in RATES}
    rate, _ = min(losses, key=losses.__getitem__)
    for penalty in PENALTIES[1:] if name == "adanet" else ():
        losses[rate, penalty] = loss(rate, penalty)
    at = min(losses, key=losses.__getitem__)
    drawn = sizes_of(name, data, budget, vocabulary_of(settings), SIZES, random.Random(seed))
    of_sizes = {(*at, size): loss(*at, [size]) for size in drawn}
    best = sorted(of_sizes, key=of_sizes.__getitem__)[: settings.verify]
    tried = [[*each, found] for each, found in (losses | of_sizes).items()]
    return {"at": [*at, [list(size) for *_, size in best]], "tried": tried}


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


def of_other_form(name: Any, settings: Any, data: Any, budget: int, seed: int, at: tuple[Any, ...]) -> Any:
    """The best by validation of the tries of AdaNet or low rank, of a rate, a penalty and, a try each, sizes."""
    from nni_bayes_nas.experiment.bank import vocabulary_of
    from nni_bayes_nas.prediction.baselines import baseline
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.training import best

    rate, penalty, *rest = at
    sizes = [tuple(size) for size in rest[0]] if rest else None
    tries = settings.verify if sizes is None else len(sizes)
    options = {
        "tries": tries,
        "sizes": sizes,
        "vocabulary": vocabulary_of(settings),
        "deepest": tuple(settings.deepest),
    }
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
