"""Whether networks for a data set can be predicted from searches on small parts of other data sets.

    python examples/benchmarks/prediction.py --preset cpu --output FILE.json
    python examples/benchmarks/prediction.py --preset cpu --data mnist --root DATA --output FILE.json

Data sets: digits, wine, breast cancer and four made-up tables, all embedded; with `--data mnist` MNIST of 8x8 points in
place of one of these. The bank: searches on parts of all of them, with the same budgets (n: features). Each data set in
turn is left out, the made-up ones, which one generator draws, together, and the two of handwritten digits: a meta-model
learns from the parts of the others alone, and predicts networks for all of its data at n, 5 n and a tenth of the
connections of the dense network. The three best-ranked are trained on all training data, validation data choose one,
test data are read once. Beside it, chosen in the same way: connections at random, of three tries and as many
connections; SNIP and magnitude likewise, which keep all units, of the three dense networks that are best by validation
data of that data set and budget, of all widths, activations and (of magnitude) rates; AdaNet-style growth and low rank,
of three tries and at most as many parameters as the largest network within the budget, their rates, penalties and sizes
chosen in the same way; the dense network, at three rates; and the inner search of the bank, on all data. Networks of a
job are trained side by side.

Controls: "relevance", networks at random of the features that come first in their order; random, relevance, SNIP and
magnitude networks of which as many are drawn as of a decoder and the same ranker picks three ("ranked"; of AdaNet and
low rank there is none: they have three tries, where ours are three of eighteen); random ones whose connections are
those of the largest weights after a short training, as they are of what is predicted ("refined"): what would be
predicted without a decoder; networks of decoders with the connections that they drew, of which the ranker picks three
("as drawn"), or with connections as in "relevance" ("same shape"); and decoders that are shown the objects of another
data set, the one with the nearest numbers of features and classes, beside the right numbers ("shuffled"). What is not
better than these has learned nothing of networks.

Tests, named before the first run (those about "refined" and "as drawn" before the second), of "ours": for every data
set the decoder with the smaller mean validation loss, in units of that of networks at random, on those that were not
left out with it; these were predicted by meta-models that have seen its parts. One-sided paired t-tests over seeds, in
test accuracy. First that it is above random, above random networks of which as many are drawn and ranked, above those
refined, and above itself shown other objects, for every data set in the mean over the budgets, with Holm's correction
over the data sets of each of these four; then that it is above each baseline but the dense network and each control but
"relevance", for every data set and budget, with Holm's correction over those; to the dense network and the search on
all data, of one decoder to the other, and of "as drawn" to "same shape", intervals. Seeds are of the fit, the draws and
all trainings; bank and splits of the data are the same for all of them, so that p tells of chance in these alone.

Targets: 2: on 80 % of the parts the small network that is best by some validation objects is by others within a
standard error of the dense one of three layers of 32; 3: above random on every data set; not below SNIP in the mean at
n and 10 %; both also where as many are drawn and ranked; above what it predicts when it is shown other objects; at 10 %
at most 1 % of the dense network's accuracy lost on three quarters of the data sets; Kendall's tau of the ranker on the
data set that was left out >= .6, on all of it, with the mean validation loss of two seeds, within the networks of one
baseline too, and on its parts in the bank; a prediction takes <= 1 s, in the mean over seeds of the slowest data set
and budget; the bank <= 60 minutes on two cores.

How the ranker weighs what it measures, and how decoders draw and fill networks, was chosen on other seeds, by
validation objects of digits, wine, breast cancer and made-up tables other than these: the tau of these, which chose
nothing, is a target by itself. So it was, after a first run of ten other seeds, whose test accuracies were known, that
connections are refined, that trainings by which networks are ranked have a high rate and more steps, and that trees
weigh less on many objects. Taus, errors of the decoders on the parts that were left out, seconds of predictions, of
data of which nothing is remembered, and of trainings by themselves, are of three seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import correct, parse, write_result
from prediction_figure import draw
from prediction_jobs import (
    BESIDE_BY,
    LEFT_OUT_BY,
    OF_DECODERS,
    RANKED,
    REFINED,
    SAME_SHAPE,
    SHUFFLED,
    UNREFINED,
)
from prediction_results import DECODERS, OURS, SEARCH, Figures, kin, ours_of, pays_after, print_tables, targets
from prediction_tuning import TUNED_BY
from workers import Job, Outcome, Store, Workers, placeless

from nni_bayes_nas.experiment.record import read_rows

NAME, JOBS, TUNING = "prediction", "prediction_jobs", "prediction_tuning"
# Those from 301 on were of a first run, after which the method was changed.
FIRST_SEED = 331
MADE_UP, MNIST_8X8 = "nni_bayes_nas.experiment.data_tables:synthetic", "prediction_data:mnist_8x8"
# What the decoder is tested against first, and then by budget.
FIRST = ("random", "random, ranked", "random, refined", f"{OURS}, {SHUFFLED}")
BELOW = (
    *("random", "snip", "magnitude", "adanet", "low_rank"),
    *(f"{name}, ranked" for name in RANKED),
    *(f"{name}, refined" for name in REFINED),
    *(f"{OURS}, {name}" for name in OF_DECODERS),
)
# Of the parts of the data set that was left out one in four shows the errors, with another budget from one to the next:
# of the first seeds, as the seconds of trainings by themselves.
EVERY, SEEDS_WITH_ERRORS = 4, {"smoke": 1, "cpu": 3}
# Options of what is done with the bank, on which the bank does not depend.
_AFTERWARDS = ("train_steps", "fit_steps", "dim", "draws", "rank_steps", "refine_steps", "verify")
# Of rates, penalties and dense networks.
TUNING_SEED = FIRST_SEED - 1


@dataclass(frozen=True)
class Setting:
    """How large a preset is: its tasks, how many of them in a job, and section `predict` beside them."""

    tasks: int
    tasks_per_job: int
    predict: dict[str, Any]


PRESETS = {
    "smoke": Setting(
        7,
        3,
        {
            "candidates": 3,
            "top": 2,
            "others": 3,
            "repeats": 2,
            "steps": 20,
            "factors": [1.0, 5.0],
            "widths": [2, 4],
            "deepest": [16, 16],
            "fit_steps": 10,
            "dim": 16,
            "draws": 4,
            "rank_steps": 10,
            "refine_steps": 10,
            "verify": 2,
            "train_steps": 30,
        },
    ),
    "cpu": Setting(84, 6, {"train_steps": 2000, "factors": [1.0, 5.0]}),
}
SEEDS = {"smoke": 2, "cpu": 10}


def sources(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Sections `data` by name."""
    tables = {
        "blobs": {"kind": "blobs", "n_classes": 4, "seed": 10},
        "linear": {"kind": "linear", "n_classes": 3, "seed": 11},
        "parity": {"kind": "parity", "n_classes": 2, "n_informative": 3, "seed": 12},
        # As many features as the digits, and many classes: a decoder has not seen their numbers elsewhere.
        "blobs-2": {"kind": "blobs", "n_features": 64, "n_informative": 16, "n_classes": 10, "seed": 13},
    }
    found: dict[str, dict[str, Any]] = {name: {"name": name} for name in ("digits", "wine", "breast_cancer")}
    found |= {f"synthetic-{name}": {"name": MADE_UP, "args": args} for name, args in tables.items()}
    if options.data == "mnist":
        del found["synthetic-linear"]
        args = {"root": str(Path(options.root).resolve())}
        found["mnist_8x8"] = {"name": MNIST_8X8, "args": args, "limit": 10_000, "val_limit": 2_000}
    return found


def common(options: argparse.Namespace, target: str) -> dict[str, Any]:
    """The configuration of all jobs about a data set."""
    every = sources(options)
    predict = {**PRESETS[options.preset].predict, "own": False, "sources": list(every.values())}
    predict["tasks"] = PRESETS[options.preset].tasks
    return {"data": every[target], "predict": predict, "experiment": {"device": "cpu", "threads": 1}}


def bank_jobs(options: argparse.Namespace) -> list[Job]:
    """The searches on parts."""
    setting = PRESETS[options.preset]
    config = common(options, "digits")
    config["predict"] = {name: value for name, value in config["predict"].items() if name not in _AFTERWARDS}
    return [
        Job(
            f"bank-{first}",
            f"{JOBS}:searched",
            config,
            {"trial": f"bank-{first}", "first": first, "count": min(setting.tasks_per_job, setting.tasks - first)},
            (0, first),
        )
        for first in range(0, setting.tasks, setting.tasks_per_job)
    ]


def tuning_jobs(options: argparse.Namespace) -> dict[str, Job]:
    """By data set: what rates and penalties of networks of other form are chosen by."""
    return {
        target: Job(
            f"tuned-{target}",
            f"{TUNING}:tuned",
            common(options, target),
            {"trial": f"tuned-{target}", "seed": TUNING_SEED, **TUNED_BY},
            (0, 0),
        )
        for target in sources(options)
    }


def left_out_together(options: argparse.Namespace) -> list[list[str]]:
    """Data sets that are left out at once: those of one generator, and of handwritten digits."""
    found: dict[str, list[str]] = {}
    for name in sources(options):
        found.setdefault(kin(name), []).append(name)
    return list(found.values())


def later_jobs(
    options: argparse.Namespace, bank: Path, seeds: Iterable[int], tuned: dict[str, Any]
) -> dict[tuple[str, int, str], Job]:
    """By the first of the data sets, seed, and decoder or "beside"."""
    # Seconds are no part of what is learned.
    entries = [placeless({k: v for k, v in row.items() if k != "seconds"}) for row in read_rows(bank)]
    digest, found = hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16], {}
    for seed in seeds:
        for targets_ in left_out_together(options):
            shared = {"seed": seed, "first": seed < FIRST_SEED + SEEDS_WITH_ERRORS[options.preset]}
            for decoder in DECODERS:
                name = f"s{seed}-{targets_[0]}-{decoder}"
                parameters = {
                    "trial": name,
                    "decoder": decoder,
                    "bank": str(bank),
                    "digest": digest,
                    "every": EVERY,
                    "targets": targets_,
                    **shared,
                    **LEFT_OUT_BY,
                }
                config = common(options, targets_[0])
                found[targets_[0], seed, decoder] = Job(name, f"{JOBS}:left_out", config, parameters, (1, seed))
            for target in targets_:
                name = f"s{seed}-{target}-beside"
                parameters = {"trial": name, "target": target, "seed": seed, "tuned": tuned[target], **BESIDE_BY}
                config = common(options, target)
                found[target, seed, "beside"] = Job(name, f"{JOBS}:beside", config, parameters, (1, seed))
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
    found = []
    for name, one in result["targets"].items():
        found += left_out_rows({"data": name, "seed": seed}, what, one)
    return found


def left_out_rows(head: dict[str, Any], what: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a data set that was left out, and a decoder."""
    taus = [row["tau"] for row in result["errors"] if row["tau"] is not None]
    more = {"meta": result["parameters"]}
    # Of jobs that follow others in a process the fit is shorter than it is by itself.
    if result["cold"]:
        more |= {"fit_seconds": result["seconds_fit"], "ranker_seconds": result["seconds_ranker"]}
    more |= {"tau": statistics.fmean(taus)} if taus else {}
    found = []
    for arm, by_budget_of in result["trained"].items():
        own = arm in OF_DECODERS
        for b, row in by_budget_of.items():
            extra: dict[str, Any] = {}
            if not arm:
                extra = {
                    **more,
                    **result["whole_taus"].get(b, {}),
                    **result["alone"].get(b, {}),
                }
                extra |= {"predict_seconds": result["predict_seconds"][b]} if result["predict_seconds"] else {}
            name = f"{what}, {arm}" if own else arm or what
            found.append({**head, "arm": name, "budget": int(b), **row, **extra})
    return [*found, *({**head, "errors_of": what, **error} for error in result["errors"])]


def shares_by_budget(bank: Path) -> list[float]:
    """Of the entries of a bank those that are as good as dense, by their budget's place among those of its task."""
    from nni_bayes_nas.prediction.bank import Entry

    entries = [Entry.from_dict(row) for row in read_rows(bank)]
    budgets = {entry.task: sorted({one.budget for one in entries if one.task == entry.task}) for entry in entries}
    good: dict[int, list[bool]] = {}
    for entry in entries:
        good.setdefault(budgets[entry.task].index(entry.budget), []).append(entry.is_as_good_as_dense)
    return [round(statistics.fmean(good[place]), 3) for place in sorted(good)]


def share_by_seeds(bank: Path) -> float:
    """Of the tasks of a bank those whose best small network loses no more than the standard error of the dense one's
    seeds, without that of the objects, on which both are judged."""
    from nni_bayes_nas.experiment.bank import best_of_tasks
    from nni_bayes_nas.prediction.bank import Entry

    good = [
        one.found[0].accuracy
        >= one.dense.accuracy - statistics.stdev(one.dense.accuracies) / len(one.dense.accuracies) ** 0.5
        for one in best_of_tasks(Entry.from_dict(row) for row in read_rows(bank))
    ]
    return statistics.fmean(good)


def _best(budgets: dict[str, Any]) -> dict[str, Any]:
    """Of what was chosen, without the losses of all that was tried: with these keys of later jobs would change."""
    return {budget: {name: {"at": one["at"]} for name, one in names.items()} for budget, names in budgets.items()}


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
        tuning = tuning_jobs(options)
        chosen = workers.run(tuning.values())
        if failed := [name for name, outcome in chosen.items() if "error" in outcome]:
            print(f"{', '.join(failed)} failed: run it again")
            return 1
        tuned = {target: chosen[job.name]["result"]["budgets"] for target, job in tuning.items()}
        best = {target: _best(budgets) for target, budgets in tuned.items()}
        jobs = later_jobs(options, file, seeds, best)
        outcomes = workers.run(jobs.values())
    rows = [row for key, job in jobs.items() for row in rows_of(*key, outcomes[job.name])]
    tasks = PRESETS[options.preset].tasks
    bank = {
        "bank": True,
        "entries": len(lines),
        "tasks": tasks,
        "share": sum(result["tasks_as_good"] for result in done) / tasks,
        "seconds": sum(result["seconds"] for result in done),
        "shares_by_budget": shares_by_budget(file),
        "share_by_seeds": share_by_seeds(file),
        "minutes": store.seconds_of(bank_jobs(options)) / 60,
        "methods": {
            m: sum(r["methods"].get(m, 0) for r in done) for m in sorted({m for r in done for m in r["methods"]})
        },
    }
    bank["ours"], own = ours_of(Figures(rows))
    figures = Figures([*rows, *own])
    families = [figures.above(OURS, other, together=True) for other in FIRST]
    families.append([row for other in BELOW for row in figures.above(OURS, other)])
    for family in families:
        correct(family)
    tests = [row for family in families for row in family]
    if (pays := pays_after(figures, bank)) is not None:
        bank |= {"search_seconds": pays[0], "pays_after": pays[1]}
    complete = all("error" not in row for row in rows)
    found = targets(figures, bank, tests, list(sources(options)))
    seconds = store.seconds
    beside = [row for other in ("dense", SEARCH) for row in figures.above(OURS, other)]
    # Connections that were drawn, beside others of the same layers, ranked alike.
    beside += [*figures.above(*DECODERS), *figures.above(f"{OURS}, {UNREFINED}", f"{OURS}, {SAME_SHAPE}")]
    every = [bank, *({"tuned": name, **one} for name, one in tuned.items()), *rows, *tests, *beside]
    write_result(options, NAME, every, found, seconds=seconds, workers=workers.n, complete=complete)
    print_tables(figures, tests, bank)
    if figures.data:
        draw(figures, options.output.with_suffix(".png"))
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
