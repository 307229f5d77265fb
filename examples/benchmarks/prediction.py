"""Whether networks for a data set can be predicted from searches on small parts of other data sets.

    python examples/benchmarks/prediction.py --preset cpu --output FILE.json

Data sets: digits, wine, breast cancer and three made-up tables, all embedded; `--data mnist --root DATA` adds MNIST.
The bank: searches on parts of all of them, with n, 2 n and 5 n connections (n: features). Each data set in turn is left
out: a meta-model learns from the parts of the others alone, and predicts networks for all of its data at n, 5 n and a
tenth of the connections of the dense network. The three best-ranked are trained on all training data, validation data
choose one, test data are read once. Beside it, chosen in the same way from as many tries: connections at random, SNIP,
magnitude, AdaNet-style growth, low rank, the dense network; and the inner search of the bank, on all data.

Controls: "relevance", networks at random of the features that come first in their order; random, relevance and SNIP
networks of which as many are drawn as of a decoder and the same ranker picks three ("ranked"); and decoders that are
shown the objects of another data set ("shuffled"). What is not better than these has learned nothing of networks.

Tests, named before the first run, of the decoder with the smaller mean validation loss: one-sided paired t-tests over
seeds that it is above each of random, SNIP, random ranked, and itself shuffled in test accuracy, for every data set and
budget, with Holm's correction within each of the four. Seeds are of the fit, the draws and all trainings; bank and
splits of the data are the same for all of them, so that p tells of chance in these alone.

Targets (issue "Predicting the architecture for all data"): 2: on 80 % of the parts a small network (of any budget, the
best of several on other validation objects) is within a standard error of the deepest dense one; 3: above random on
every data set; not below SNIP in the mean at n and 10 %; at 10 % at most 1 % of the dense network's accuracy lost on
three quarters of the data sets; Kendall's tau of the ranker on the data set that was left out >= .6, on all of it, with
the mean validation loss of two seeds, and on its parts in the bank; a prediction takes <= 1 s; the bank <= 60 minutes.

How the ranker weighs what it measures was chosen on other seeds, by validation objects of these data sets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import parse, write_result
from prediction_results import DECODERS, SEARCH, Figures, print_tables, targets
from workers import Job, Outcome, Store, Workers

NAME = "prediction"
FIRST_SEED = 301
MADE_UP = "nni_bayes_nas.experiment.data_tables:synthetic"
RANKED = ("random", "relevance", "snip")
# What the decoder is tested against.
BELOW = ("random", "snip", "random, ranked", "{ours}, shuffled")
BASELINES = ("random", "relevance", "snip", "magnitude", "adanet", "low_rank", "dense")


@dataclass(frozen=True)
class Setting:
    """How large a preset is: its tasks, how many of them in a job, and section `predict` beside them."""

    tasks: int
    tasks_per_job: int
    predict: dict[str, Any]


PRESETS = {
    "smoke": Setting(
        6,
        3,
        {
            "candidates": 3,
            "top": 2,
            "others": 3,
            "repeats": 2,
            "steps": 20,
            "widths": [2, 4],
            "deepest": [16, 16],
            "fit_steps": 10,
            "dim": 16,
            "draws": 4,
            "rank_steps": 10,
            "verify": 2,
            "train_steps": 30,
        },
    ),
    "cpu": Setting(72, 6, {"train_steps": 2000}),
}
SEEDS = {"smoke": 2, "cpu": 10}


def sources(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Sections `data` by name."""
    tables = {
        "blobs": {"kind": "blobs", "n_classes": 4},
        "linear": {"kind": "linear", "n_classes": 3, "seed": 1},
        "parity": {"kind": "parity", "n_classes": 2, "n_informative": 3, "seed": 2},
    }
    found: dict[str, dict[str, Any]] = {name: {"name": name} for name in ("digits", "wine", "breast_cancer")}
    found |= {f"synthetic-{name}": {"name": MADE_UP, "args": args} for name, args in tables.items()}
    if options.data == "mnist":
        found["mnist"] = {
            "name": "mnist",
            "root": str(Path(options.root).resolve()),
            "limit": 10_000,
            "val_limit": 2_000,
        }
    return found


def common(options: argparse.Namespace, target: str) -> dict[str, Any]:
    """The configuration of all jobs about a data set."""
    every = sources(options)
    predict = {**PRESETS[options.preset].predict, "own": False, "sources": list(every.values())}
    predict["tasks"] = PRESETS[options.preset].tasks
    return {"data": every[target], "predict": predict, "experiment": {"device": "cpu", "threads": 1}}


def searched(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: `run_bank`, with its entries."""
    from nni_bayes_nas.experiment.bank import FILE, run_bank
    from nni_bayes_nas.experiment.record import read_rows

    return {**run_bank(config, parameters, directory, report), "bank": read_rows(directory / FILE)}


def left_out(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: learn from the parts of all data sets but one, look at its parts, predict and train for it."""
    import dataclasses

    from nni_bayes_nas.experiment.predict import run_predict
    from nni_bayes_nas.experiment.verify import run_verify

    target, decoder, seed = parameters["target"], parameters["decoder"], int(parameters["seed"])
    fitted: list[Any] = []
    config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, tasks=0, bank=parameters["bank"]))
    found = run_predict(
        config,
        {"decoder": decoder, "banks": [], "seed": seed, "left_out": target},
        directory,
        report,
        fitted.append,
    )
    (folder := directory.parent / f"predict-{decoder}-{directory.name}").mkdir(exist_ok=True)
    (directory / "predictions.json").rename(folder / "predictions.json")
    verified = {}
    alone = dataclasses.replace(config, predict=dataclasses.replace(config.predict, baselines=()))
    for one in found["predictions"]:
        about = {"budget": one["budget"], "predictions": [folder.name], "seed": seed}
        verified[str(one["budget"])] = run_verify(alone, about, directory, report)["rows"][0]
    # The ranker knows nothing of the decoder.
    ranked, taus = _ranked(config, fitted[0], seed) if decoder == DECODERS[0] else ({}, {})
    shuffled = _shuffled(config, parameters, fitted[0])
    return {**found, "verified": verified, "ranked": ranked, "whole_taus": taus, "shuffled": shuffled}


def _ranked(config: Any, predictor: Any, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """As many networks of a baseline as a decoder draws, of which its ranker picks, by arm and budget; and by budget
    how well it orders every third of these, trained on all data: Kendall's tau with the mean validation loss of two
    seeds, of all together and within each baseline, and that of the two seeds.
    """
    import random

    from nni_bayes_nas.experiment.bank import vocabulary_of
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import whole
    from nni_bayes_nas.experiment.predict import budgets_for
    from nni_bayes_nas.prediction.baselines import draw_net
    from nni_bayes_nas.prediction.inner_search import train_all
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.ranker import kendall
    from nni_bayes_nas.prediction.relevance import order_of_features
    from nni_bayes_nas.prediction.sparse_architecture import of_columns
    from nni_bayes_nas.prediction.training import best, train_nets

    settings, data = config.predict, whole(load_data(config.data))
    order, how = order_of_features(data.parts.x, data.parts.y), Training(settings.train_steps)
    parts, found = data.parts.in_order(order), {f"{name}, ranked": dict[str, Any]() for name in RANKED}
    taus = {}
    for budget in budgets_for(config, data.n_features, data.n_classes):
        mixed, within = [], []
        for name in RANKED:
            generator = random.Random(f"{seed} {budget} {name}")
            shared = (data.n_classes, budget, how, vocabulary_of(settings), generator)
            nets = [draw_net(name, parts, *shared, seed * 1009 + i) for i in range(settings.draws)]
            scores = predictor.ranked(nets, parts, seed)
            chosen = sorted(range(len(nets)), key=scores.__getitem__)[: settings.verify]
            tried = train_nets([of_columns(nets[i], order.tolist()) for i in chosen], data, how, seed)
            found[f"{name}, ranked"][str(budget)] = best(tried).row(data)
            mixed += nets[::3]
            within.append(scores[::3])
        seeds = [[seed * 1009 + 10_007 * (repeat + 1) + i for i in range(len(mixed))] for repeat in (0, 1)]
        one, two = ([loss for loss, _ in train_all(mixed, own, parts, how)] for own in seeds)
        both = [(a + b) / 2 for a, b in zip(one, two, strict=True)]
        n = len(within[0])
        taus[str(budget)] = {
            # Scores are relative to those that are ranked together.
            "whole_tau": kendall(predictor.ranked(mixed, parts, seed), both),
            "within_tau": statistics.fmean(kendall(own, both[i * n : (i + 1) * n]) for i, own in enumerate(within)),
            "between_seeds": kendall(one, two),
        }
    return found, taus


def _shuffled(config: Any, parameters: dict[str, Any], predictor: Any) -> dict[str, Any]:
    """As `left_out`, where the decoder is shown the objects of the next data set in place of its own."""
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import sources_of, whole
    from nni_bayes_nas.experiment.predict import budgets_for
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.training import best, train_nets

    names, settings, seed = list(sources_of(config)), config.predict, int(parameters["seed"])
    other = names[(names.index(parameters["target"]) + 1) % len(names)]
    data, seen = whole(load_data(config.data)), whole(load_data(sources_of(config)[other])).parts
    rows = {}
    for budget in budgets_for(config, data.n_features, data.n_classes):
        nets = predictor.predict(data.parts, budget, data.n_classes, n=settings.draws, seed=seed, seen=seen)
        how = Training(settings.train_steps)
        tried = train_nets([one.net for one in nets[: settings.verify]], data, how, seed)
        rows[str(budget)] = best(tried).row(data)
    return rows


def beside(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: the baselines, and the inner search on all data, for every budget of a data set."""
    from nni_bayes_nas.experiment import verify
    from nni_bayes_nas.experiment.bank import search_of
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.parts import whole
    from nni_bayes_nas.experiment.predict import budgets_for
    from nni_bayes_nas.prediction.inner_search import search
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.training import best, train_nets

    settings, seed, data = config.predict, int(parameters["seed"]), whole(load_data(config.data))
    how, rows = Training(settings.train_steps), {}
    dense: dict[str, Any] | None = None
    for budget in budgets_for(config, data.n_features, data.n_classes):
        rows[str(budget)] = {}
        for name in BASELINES:
            if name == "dense" and dense is not None:
                rows[str(budget)][name] = dense
                continue
            tried = verify.beside(name, settings, data, budget, seed)
            rows[str(budget)][name] = best(tried).row(data)
        dense = rows[str(budget)]["dense"]
        started = time.perf_counter()
        found, _ = search(data.parts, budget, search_of(settings), seed, data.n_classes)
        seconds = time.perf_counter() - started
        tried = train_nets([one.net for one in found[: settings.verify]], data, how, seed)
        rows[str(budget)][SEARCH] = {**best(tried).row(data), "search_seconds": seconds}
    return {"default": 0.0, "rows": rows}


def bank_jobs(options: argparse.Namespace) -> list[Job]:
    """The searches on parts."""
    setting = PRESETS[options.preset]
    config = common(options, "digits")
    return [
        Job(
            f"bank-{first}",
            f"{NAME}:searched",
            config,
            {"trial": f"bank-{first}", "first": first, "count": min(setting.tasks_per_job, setting.tasks - first)},
            (0, first),
        )
        for first in range(0, setting.tasks, setting.tasks_per_job)
    ]


def later_jobs(options: argparse.Namespace, bank: Path, seeds: Iterable[int]) -> dict[tuple[str, int, str], Job]:
    """By data set, seed, and decoder or "beside"."""
    digest, found = hashlib.sha256(bank.read_bytes()).hexdigest()[:16], {}
    for seed in seeds:
        for target in sources(options):
            config, shared = common(options, target), {"target": target, "seed": seed, "ranker": 2}
            for decoder in DECODERS:
                name = f"s{seed}-{target}-{decoder}"
                parameters = {"trial": name, "decoder": decoder, "bank": str(bank), "digest": digest, **shared}
                found[target, seed, decoder] = Job(name, f"{NAME}:left_out", config, parameters, (1, seed))
            name = f"s{seed}-{target}-beside"
            found[target, seed, "beside"] = Job(name, f"{NAME}:beside", config, {"trial": name, **shared}, (1, seed))
    return found


def rows_of(target: str, seed: int, what: str, outcome: Outcome) -> list[dict[str, Any]]:
    """A row for every budget and kind of network."""
    head = {"data": target, "seed": seed}
    if "error" in outcome:
        return [{**head, "arm": what, "error": outcome["error"]}]
    result = outcome["result"]
    if what == "beside":
        by_budget = [(budget, arm, row) for budget, arms in result["rows"].items() for arm, row in arms.items()]
        return [{**head, "arm": arm, "budget": int(budget), **row} for budget, arm, row in by_budget]
    taus = [row["tau"] for row in result["errors"] if row["tau"] is not None]
    more = {
        "tau": statistics.fmean(taus) if taus else 0.0,
        "fit_seconds": result["seconds_fit"],
        "meta": result["parameters"],
    }
    seconds = {one["budget"]: one["seconds"] for one in result["predictions"]}
    drawn = {
        one["budget"]: statistics.fmean(net["drawn"] / net["connections"] for net in one["networks"])
        for one in result["predictions"]
    }
    ranked = [
        {**head, "arm": arm, "budget": int(b), "predicted": False, **row}
        for arm, by_budget in result["ranked"].items()
        for b, row in by_budget.items()
    ]
    ours = [
        {
            **head,
            "arm": what,
            "budget": int(b),
            **row,
            **more,
            "predict_seconds": seconds[int(b)],
            "drawn": drawn[int(b)],
            **result["whole_taus"].get(b, {}),
        }
        for b, row in result["verified"].items()
    ]
    return [*ours, *ranked] + [
        {**head, "arm": f"{what}, shuffled", "budget": int(b), "predicted": True, **row}
        for b, row in result["shuffled"].items()
    ]


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS, data_sets=("digits", "mnist"), usual="digits")
    seeds = list(range(FIRST_SEED, FIRST_SEED + options.seeds))
    store, file = Store(options.output), options.output.with_suffix(".bank.jsonl").resolve()
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        searches = workers.run(bank_jobs(options))
        if failed := [name for name, outcome in searches.items() if "error" in outcome]:
            print(f"{', '.join(failed)} failed: run it again")
            return 1
        # In the order of the tasks, in whatever order they ended.
        done = [searches[job.name]["result"] for job in bank_jobs(options)]
        lines = [json.dumps(row) + "\n" for result in done for row in result["bank"]]
        file.write_text("".join(lines), encoding="utf-8")
        jobs = later_jobs(options, file, seeds)
        outcomes = workers.run(jobs.values())
    rows = [row for key, job in jobs.items() for row in rows_of(*key, outcomes[job.name])]
    tasks = PRESETS[options.preset].tasks
    bank = {
        "bank": True,
        "entries": len(lines),
        "tasks": tasks,
        "share": sum(result["tasks_as_good"] for result in done) / tasks,
        "seconds": sum(result["seconds"] for result in done),
        "minutes": sum(result["seconds"] for result in done) / 60 / options.workers,
        "methods": {
            m: sum(r["methods"].get(m, 0) for r in done) for m in sorted({m for r in done for m in r["methods"]})
        },
    }
    figures = Figures(rows)
    losses = {arm: loss for arm in DECODERS if (loss := figures.mean(arm, "val_loss")) is not None}
    ours = min(losses, key=losses.__getitem__, default=DECODERS[0])
    tests = [row for other in BELOW for row in figures.above(ours, other.format(ours=ours))]
    complete = all("error" not in row for row in rows)
    found = targets(figures, bank, ours)
    seconds = store.seconds
    write_result(options, NAME, [bank, *rows, *tests], found, seconds=seconds, workers=workers.n, complete=complete)
    print_tables(figures, tests, bank)
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
