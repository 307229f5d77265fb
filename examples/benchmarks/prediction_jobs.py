"""Jobs of `prediction.py`: parts of the bank, predictions for a data set that was left out, and what is beside."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prediction_results import DECODERS, SEARCH
from prediction_tuning import OF_OTHER_FORM, PRUNED, finite, of_other_form, pruned

from nni_bayes_nas.errors import NumericsError
from nni_bayes_nas.prediction.predictor import AS_DRAWN
from nni_bayes_nas.prediction.ranker import SHORT
from nni_bayes_nas.prediction.training import RATES as DENSE_RATES

RANKED = ("random", "relevance", "snip", "magnitude")
BASELINES = ("random", "relevance", "snip", "magnitude")
# Of these what would be predicted without a decoder.
REFINED = ("random",)
SHUFFLED, SAME_SHAPE, UNREFINED = OF_DECODERS = ("shuffled", "same shape", "as drawn")
# What the outcomes of jobs depend on beside their configuration, for their keys.
LEFT_OUT_BY = {"ranked": RANKED, "dense": DENSE_RATES, "refined": REFINED, "of decoders": OF_DECODERS}
LEFT_OUT_BY |= {"short": asdict(SHORT), "as drawn": AS_DRAWN}
BESIDE_BY = {"baselines": BASELINES, "other": OF_OTHER_FORM, "dense": DENSE_RATES}


def searched(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: `run_bank`, with its entries."""
    from nni_bayes_nas.experiment.bank import FILE, run_bank
    from nni_bayes_nas.experiment.record import read_rows

    warm()
    return {**run_bank(config, parameters, directory, report), "bank": read_rows(directory / FILE)}


def left_out(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: learn from the parts of all data sets but some, look at their parts, predict and train for each.

    All networks of a data set are trained side by side, those of an arm with the same seeds. "trained" has what
    validation chooses of an arm and its look at the test data, by arm and budget: "" is the decoder. Jobs of the first
    seeds are "cold": their seconds are those of a process that has learned nothing yet. All by data set.
    """
    import dataclasses

    from nni_bayes_nas.experiment.parts import sources_of

    warm()
    if parameters["first"]:
        forget()
    of_rest = dataclasses.replace(config.predict, tasks=0, bank=parameters["bank"])
    fitted: list[Any] = []
    found = {}
    for target in parameters["targets"]:
        own = dataclasses.replace(config, data=sources_of(config)[target], predict=of_rest)
        folder = directory / target
        folder.mkdir(exist_ok=True)
        found[target] = _left_out(own, target, parameters, folder, report, fitted)
    return {"default": statistics.fmean(one["default"] for one in found.values()), "targets": found}


def _left_out(
    config: Any, target: str, parameters: dict[str, Any], directory: Path, report: Any, fitted: list[Any]
) -> dict[str, Any]:
    """One of them; what is in `fitted` has learned from the same parts."""
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import sources_of, whole
    from nni_bayes_nas.experiment.predict import run_predict
    from nni_bayes_nas.experiment.verify import predicted

    decoder, seed, first = parameters["decoder"], int(parameters["seed"]), bool(parameters["first"])
    unseen = [name for name in parameters["targets"] if name != target]
    about = {"decoder": decoder, "banks": [], "seed": seed, "left_out": target, "every": parameters["every"]}
    about |= {"unseen": unseen, "errors": first}
    cold = first and not fitted
    found = run_predict(config, about, directory, report, fitted.append, fitted[0] if fitted else None)
    settings, data, predictor = config.predict, whole(load_data(config.data)), fitted[0]
    rest = {name: one for name, one in sources_of(config).items() if name not in (target, *unseen)}
    other = most_alike(data, rest or {target: config.data})
    arms: dict[tuple[str, int], list[Any]] = {}
    seeds: dict[tuple[str, int], list[int]] = {}
    budgets, taus = [one["budget"] for one in found["predictions"]], dict[str, dict[str, float]]()
    timed = {str(budget): seconds_of(predictor, data, budget, settings, seed) for budget in budgets if first}
    own: dict[int, list[Any]] = {}
    for budget in budgets:
        drawn = predicted(directory, budget)
        # The objects of another data set in place of its own.
        more = {"n": settings.draws, "seed": seed}
        shuffled = predictor.predict(data.parts, budget, data.n_classes, seen=other, **more)
        as_drawn = [one.net for one in predictor.predict(data.parts, budget, data.n_classes, refine=False, **more)]
        shaped, own[budget] = same_shape(as_drawn, budget, seed), drawn
        arms |= {
            ("", budget): drawn[: settings.verify],
            (SHUFFLED, budget): [one.net for one in shuffled[: settings.verify]],
            (SAME_SHAPE, budget): picked(shaped, predictor, data, settings.verify, seed)[0],
            (UNREFINED, budget): as_drawn[: settings.verify],
        }
    # The ranker knows nothing of the decoder.
    if decoder == DECODERS[0]:
        ranked, seeds, taus = _ranked(config, predictor, own, data, seed, with_tau=first)
        arms |= ranked
    trained, rows = together(arms, data, settings, seed, seeds), dict[str, dict[str, Any]]()
    for (arm, budget), one in trained.items():
        rows.setdefault(arm, {})[str(budget)] = one.row(data)
    nets = {b: one.net for (arm, b), one in trained.items() if not arm}
    seconds = beside_dense(nets, data, settings, seed) if first else {}
    return {**found, "trained": rows, "whole_taus": taus, "alone": seconds, "predict_seconds": timed, "cold": cold}


def seconds_of(predictor: Any, data: Any, budget: int, settings: Any, seed: int) -> float:
    """Of a prediction for data of which nothing is remembered."""
    forget()
    started = time.perf_counter()
    predictor.predict(data.parts, budget, data.n_classes, n=settings.draws, seed=seed)
    return time.perf_counter() - started


def most_alike(data: Any, sources: dict[str, Any]) -> Any:
    """The parts of the data set whose numbers of features and classes are nearest: its objects stand for others."""
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import whole

    every = [whole(load_data(one)) for one in sources.values()]
    apart = [(abs(one.n_features - data.n_features), abs(one.n_classes - data.n_classes)) for one in every]
    return every[apart.index(min(apart))].parts


def beside_dense(nets: dict[int, Any], data: Any, settings: Any, seed: int) -> dict[str, dict[str, float]]:
    """Seconds of the training of every network by itself, and of the dense one before and behind it, their mean."""
    from nni_bayes_nas.prediction.sparse_net import build, dense, with_matrices

    def of_dense() -> float:
        return alone(with_matrices(dense(data.n_features, data.n_classes, settings.deepest)), data, settings, seed)

    before, found = of_dense(), {}
    for budget, net in nets.items():
        own, behind = alone(build(net, seed), data, settings, seed), of_dense()
        found[str(budget)] = {"alone_seconds": own, "dense_seconds": (before + behind) / 2}
        before = behind
    return found


@functools.cache
def warm() -> None:
    """The first optimizer of a process takes seconds, which are of no job's work."""
    import torch

    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.ones(1)
    torch.optim.Adam([one]).step()


def forget() -> None:
    """What a process remembers of networks and features that it has seen: jobs before this one had the same."""
    from nni_bayes_nas.prediction import relevance, seq2seq, tree_meta

    seq2seq._lesson.cache_clear()
    tree_meta.tree_of.cache_clear()
    relevance._known.clear()


def same_shape(nets: list[Any], budget: int, seed: int) -> list[Any]:
    """Networks of the same widths and activations, as many, whose connections are drawn: of inputs rather the first."""
    import random

    from nni_bayes_nas.prediction.random_nets import random_connections

    generator = random.Random(f"{seed} {budget} shape")
    return [
        random_connections(
            net.n_inputs, net.n_outputs, net.widths, net.activations, budget, generator, rather_first=True
        )
        for net in nets
    ]


def picked(nets: list[Any], predictor: Any, data: Any, n: int, seed: int) -> tuple[list[Any], list[int], list[float]]:
    """The `n` best by the ranker, of networks whose inputs are ranks, theirs are columns; their places; all scores."""
    from nni_bayes_nas.prediction.relevance import order_of_features
    from nni_bayes_nas.prediction.sparse_architecture import of_columns

    order = order_of_features(data.parts.x, data.parts.y)
    scores = predictor.ranked(nets, data.parts.in_order(order), seed)
    best = sorted(range(len(nets)), key=scores.__getitem__)[:n]
    return [of_columns(nets[i], order.tolist()) for i in best], best, scores


def together(
    arms: dict[tuple[str, int], list[Any]],
    data: Any,
    settings: Any,
    seed: int,
    seeds_by_arm: dict[tuple[str, int], list[int]] | None = None,
) -> dict[Any, Any]:
    """The best of each arm and budget by validation, all trained side by side, with the same seeds in every arm but
    those that have their own: what was found by its initial weights keeps them."""
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.training import best, seeds_of

    nets = [net for each in arms.values() for net in each]
    own_of = seeds_by_arm or {}
    seeds = [own for key, each in arms.items() for own in own_of.get(key, seeds_of(seed, len(each)))]
    trained, found, at = finite(nets, seeds, data, Training(settings.train_steps)), {}, 0
    for key, each in arms.items():
        done, at = [one for one in trained[at : at + len(each)] if one is not None], at + len(each)
        if done:
            found[key] = best(done)
    return found


def alone(module: Any, data: Any, settings: Any, seed: int) -> float:
    """Seconds of the training of a network by itself, in the form that it has."""
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.training import train_module

    return float(train_module(module, data, Training(settings.train_steps), seed).seconds)


def _ranked(
    config: Any, predictor: Any, predicted: dict[int, list[Any]], data: Any, seed: int, *, with_tau: bool
) -> tuple[dict[tuple[str, int], list[Any]], dict[tuple[str, int], list[int]], dict[str, dict[str, float]]]:
    """As many networks of a baseline as a decoder draws, of which its ranker picks, by arm and budget, and of `REFINED`
    what would be predicted without a decoder; seeds of those that were found by their initial weights; and by budget,
    `with_tau`, how well it orders every third of them, trained on all data.

    Kendall's tau with the mean validation loss of two seeds, of all together and within each baseline, by its trees
    alone and by short trainings alone, and that of the two seeds; and of every second of those that are `predicted`, by
    budget, among themselves.
    """
    import random

    from nni_bayes_nas.experiment.bank import vocabulary_of
    from nni_bayes_nas.prediction.baselines import draw_nets
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.relevance import order_of_features
    from nni_bayes_nas.prediction.sparse_architecture import of_columns
    from nni_bayes_nas.prediction.training import seeds_of

    settings, how = config.predict, Training(config.predict.train_steps)
    order = order_of_features(data.parts.x, data.parts.y)
    parts, arms, seeds = data.parts.in_order(order), dict[Any, list[Any]](), dict[Any, list[int]]()
    mixed, within, own = dict[int, list[Any]](), dict[int, list[Any]](), seeds_of(seed, settings.draws)
    for budget in predicted:
        for name in RANKED:
            shared = (data.n_classes, budget, how, vocabulary_of(settings), random.Random(f"{seed} {budget} {name}"))
            key, by_weights = (f"{name}, ranked", budget), name in ("snip", "magnitude")
            # What is found by initial weights keeps them where its inputs are columns, as it was found: a permutation
            # would draw others.
            deepest = tuple(settings.deepest) if by_weights else None
            drawn = draw_nets(name, data.parts if by_weights else parts, *shared, own, widths=deepest)
            nets = [of_columns(net, order.argsort().tolist()) for net in drawn] if by_weights else drawn
            arms[key], places, scores = picked(nets, predictor, data, settings.verify, seed)
            if by_weights:
                arms[key], seeds[key] = [drawn[i] for i in places], [own[i] for i in places]
            if name in REFINED:
                likely = nets[: max(1, len(nets) // AS_DRAWN)]
                both = list(dict.fromkeys([*likely, *predictor.refined(nets, parts, budget, seed)]))
                arms[f"{name}, refined", budget] = picked(both, predictor, data, settings.verify, seed)[0]
            mixed.setdefault(budget, []).extend(nets[::3])
            within.setdefault(budget, []).append(scores[::3])
    if not with_tau:
        return arms, seeds, {}
    taus: dict[str, dict[str, float]] = {}
    with contextlib.suppress(NumericsError):  # what diverges has no loss to be ordered by
        taus = _taus(predictor, mixed, within, predicted, parts, order, how, seed)
    return arms, seeds, taus


def _taus(
    predictor: Any, mixed: Any, within: Any, predicted: Any, parts: Any, order: Any, how: Any, seed: int
) -> dict[str, dict[str, float]]:
    """See `_ranked`."""
    import numpy as np

    from nni_bayes_nas.prediction.inner_search import train_all
    from nni_bayes_nas.prediction.ranker import describe, kendall, short_losses
    from nni_bayes_nas.prediction.sparse_architecture import of_columns
    from nni_bayes_nas.prediction.training import seeds_of

    every = [net for nets in mixed.values() for net in nets]
    again = [[seed * 1009 + 10_007 * (repeat + 1) + i for i in range(len(every))] for repeat in (0, 1)]
    losses = [[loss for loss, _ in train_all(every, each, parts, how)] for each in again]
    taus, at = dict[str, dict[str, float]](), 0
    for budget, nets in mixed.items():
        one, two = (each[at : at + len(nets)] for each in losses)
        both, n, at = [(a + b) / 2 for a, b in zip(one, two, strict=True)], len(within[budget][0]), at + len(nets)
        # Scores are relative to those that are ranked together.
        described, short = describe(nets, parts), short_losses(nets, parts, seed, predictor.short)
        taus[str(budget)] = {
            "whole_tau": kendall(predictor.ranker.scores(described, short, len(parts.y)), both),
            "trees_tau": kendall(predictor.ranker.scores(described, np.zeros_like(short), len(parts.y)), both),
            "short_tau": kendall(short.mean(1), both),
            "within_tau": statistics.fmean(
                kendall(ranks, both[i * n : (i + 1) * n]) for i, ranks in enumerate(within[budget])
            ),
            "between_seeds": kendall(one, two),
        }
    for budget, nets in predicted.items():
        nets = [of_columns(net, order.argsort().tolist()) for net in nets[::2]]
        both = [0.0] * len(nets)
        for repeat in (0, 1):
            found = train_all(nets, seeds_of(seed * 1009 + repeat + 1, len(nets)), parts, how)
            both = [a + b for a, (b, _) in zip(both, found, strict=True)]
        taus[str(budget)]["own_tau"] = kendall(predictor.ranked(nets, parts, seed), both)
    return taus


def beside(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: the baselines, and the inner search on all data, for every budget of a data set; the dense network
    once, for it is the same. "tuned" has rates and penalties by budget and name."""
    import dataclasses

    from nni_bayes_nas.experiment import verify
    from nni_bayes_nas.experiment.bank import search_of, vocabulary_of
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import whole
    from nni_bayes_nas.experiment.predict import budgets_for
    from nni_bayes_nas.prediction.baselines import nets_of
    from nni_bayes_nas.prediction.inner_search import search
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.training import best, seeds_of

    warm()
    settings, seed, data = config.predict, int(parameters["seed"]), whole(load_data(config.data))
    how, rows, arms = Training(settings.train_steps), dict[str, dict[str, Any]](), dict[tuple[str, int], list[Any]]()
    options = {"tries": settings.verify, "vocabulary": vocabulary_of(settings), "deepest": tuple(settings.deepest)}
    searching, inner = {}, dataclasses.replace(search_of(settings), others=0)
    for budget in budgets_for(config, data.n_features, data.n_classes):
        for name in BASELINES:
            if name in PRUNED:
                at, own = parameters["tuned"][str(budget)][name]["at"], seeds_of(seed, settings.verify)
                arms[name, budget] = pruned(name, settings, data, budget, own[: len(at)], at)
            else:
                arms[name, budget] = nets_of(name, data, budget, how, **options, seed=seed)
        started = time.perf_counter()
        found, _ = search(data.parts, budget, inner, seed, data.n_classes)
        searching[budget] = time.perf_counter() - started
        arms[SEARCH, budget] = [one.net for one in found[: settings.verify]]
    for (arm, budget), one in together(arms, data, settings, seed).items():
        more = {"search_seconds": searching[budget]} if arm == SEARCH else {}
        rows.setdefault(str(budget), {})[arm] = {**one.row(data), **more}
    dense_row = best(verify.beside("dense", settings, data, min(searching), seed)).row(data)
    for budget in searching:
        rows[str(budget)]["dense"] = dense_row
        for name in OF_OTHER_FORM:
            at = parameters["tuned"][str(budget)][name]["at"]
            with contextlib.suppress(NumericsError):  # one that diverges is not the others
                rows[str(budget)][name] = of_other_form(name, settings, data, budget, seed, at).row(data)
    return {"default": 0.0, "rows": rows}
