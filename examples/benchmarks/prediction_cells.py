"""Whether cells for a data set can be predicted from searches on small parts of other data sets.

    python examples/benchmarks/prediction_cells.py --preset cpu --data mnist --root DATA --output FILE.json

The bank: searches over lambda (`hyper_darts`, side by side) on parts of both data sets, digits and MNIST. Each data set
in turn is left out: the second head of predictions learns from the parts of the other alone, and gives the most
probable cells for all of its data at every lambda (`--data digits`: of the parts of the digits, for all of them). Of
its cells at a lambda validation data choose one; test data are read once. Beside it, as often:

    constant    as many cells, the most probable ones by how often the searches on those parts chose each value of each
                label at that lambda: what does not depend on the data; a head that is not better has learned nothing
                of them
    random      as many random cells (of different inputs, as searches find them), each as near in parameters as any of
                a few hundred
    searched    a search on the data themselves, at that lambda: one cell alone

Seeds are of the fit, of that search and of all trainings; the bank is one. Searches on digits, whose parts are small,
have three times the epochs. Named before the first run: the mean over lambda of predicted less random, and of predicted
less constant, in test accuracy: the low end of Student's 95 % interval over seeds is above 0; a prediction takes at
most a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract import STEMS, Target, half_width, parse, write_result
from workers import Job, Outcome, Store, Workers

NAME = "prediction_cells"
FIRST_SEED = 401
ARMS = ("predicted", "constant", "random", "searched")
_BANK = "bank"


@dataclass(frozen=True)
class Setting:
    """How large a preset is: tasks; sections of the configuration."""

    tasks: int
    drawn: int
    limit: int | None
    space: dict[str, Any]
    search: dict[str, Any]
    predict: dict[str, Any] = field(default_factory=dict)
    retrain: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    "smoke": Setting(
        *(3, 20, 300, {"width": 4, "n_cells": 1, "n_nodes": 1}),
        search={"epochs": 2, "warmup_epochs": 1, "batch_size": 16, "lambdas": 2},
        predict={"cell_replicas": 2, "cell_draws": 2, "fit_steps": 10, "dim": 16, "least_objects": 96},
        retrain={"epochs": 1, "batch_size": 32},
    ),
    "cpu": Setting(
        *(24, 300, 5_000, {"width": 8, "n_cells": 2, "n_nodes": 2}),
        search={"epochs": 15, "warmup_epochs": 2, "batch_size": 16, "lambdas": 3},
        predict={"cell_replicas": 3, "cell_draws": 3, "shares": [0.05, 0.2], "least_objects": 128},
        retrain={"epochs": 10, "batch_size": 64},
    ),
}
SEEDS = {"smoke": 2, "cpu": 5}
# Of searches on digits: a part of some hundred objects gives few steps an epoch.
MORE_EPOCHS = 3


def sources(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Sections `data` by name."""
    setting: Setting = PRESETS[options.preset]
    found: dict[str, dict[str, Any]] = {"digits": {"name": "digits", "limit": setting.limit}}
    if options.data == "mnist":
        root = str(Path(options.root).resolve())
        found["mnist"] = {"name": "mnist", "root": root, "limit": setting.limit, "val_limit": 1_000}
    return found


def common(options: argparse.Namespace, target: str) -> dict[str, Any]:
    """The configuration of all jobs about a data set."""
    setting, every = PRESETS[options.preset], sources(options)
    epochs = setting.search["epochs"] * (MORE_EPOCHS if target == "digits" and options.preset != "smoke" else 1)
    return {
        "data": every[target],
        "space": {"name": "cell", "args": {"stem": STEMS[target], **setting.space}},
        "strategy": {"name": "hyper_darts"},
        "search": {**setting.search, "epochs": epochs, "random": 0},
        "retrain": setting.retrain,
        "predict": {**setting.predict, "own": False, "sources": list(every.values()), "cells": setting.tasks},
        "experiment": {"device": "cpu", "threads": 1},
    }


def searched(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: `run_cells`, with what it found."""
    from nni_bayes_nas.experiment.cells import FILE, run_cells
    from nni_bayes_nas.experiment.record import read_rows

    found = run_cells(config, parameters, directory, report)
    first, count = parameters["first"], parameters["count"]
    rows = [row for row in read_rows(directory / FILE) if first <= row["number"] < first + count]
    return {**found, "rows": rows}


def predicted(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: cells for a data set, of every arm that needs no search on it, by arm: choices and lambda."""
    from nni_bayes_nas.experiment.cells import FILE, run_predict_cells
    from nni_bayes_nas.experiment.record import read_rows, write_rows

    seed, rows = int(parameters["seed"]), read_rows(Path(parameters["bank"]))
    if len({row["task"]["source"] for row in rows}) > 1:
        rows = [row for row in rows if row["task"]["source"] != parameters["target"]]
    for name in (_BANK, "predict"):
        (directory / name).mkdir(exist_ok=True)
    write_rows(directory / _BANK / FILE, rows)
    result = run_predict_cells(config, {"banks": [_BANK], "seed": seed}, directory / "predict", report)
    cells = result["architectures"]
    found = {
        "predicted": [{"lambda": lam, "choices": one["choices"]} for one in cells for lam in one["lambdas"]],
        "constant": _most_common(rows, config.predict.cell_draws),
        "random": _of_equal_size(config, cells, int(parameters["drawn"]), seed),
    }
    keys = ("default", "seconds_predict")
    return {**{key: result[key] for key in keys}, "examples": result["search"]["examples"], "cells": found}


def _most_common(rows: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """At every lambda the n most probable cells by how often searches chose each value of each label."""
    from nni_bayes_nas.architecture import Architecture
    from nni_bayes_nas.experiment.cells import key_for
    from nni_bayes_nas.prediction.cells import probable_cells

    chosen: dict[float, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for row in rows:
        for one in (each for search in row["searches"] for each in search):
            for label, value in one["choices"].items():
                chosen[one["lambda"]][label][json.dumps(value, sort_keys=True)] += 1
    found = []
    for lam, labels in chosen.items():
        words = {label: list(counts) for label, counts in labels.items()}
        logs = [[math.log(count) for count in counts.values()] for counts in labels.values()]
        for choices, _ in probable_cells(words, logs, n, key_for([])):
            found.append({"lambda": lam, "choices": Architecture(choices).canonical()})
    return found


def _of_equal_size(config: Any, cells: list[dict[str, Any]], n: int, seed: int) -> list[dict[str, Any]]:
    """For every cell and lambda the one of n random ones that is nearest in parameters and not taken yet."""
    from judged import even_choices

    from nni_bayes_nas.architecture import Architecture
    from nni_bayes_nas.complexity.measure import count_parameters
    from nni_bayes_nas.experiment.build import build_network, build_space, build_strategy
    from nni_bayes_nas.experiment.data import load_data

    data = load_data(config.data)
    strategy = build_strategy(config, data, seed)
    strategy.mutate_model(build_space(config, data, seed))
    drawn: dict[str, tuple[dict[str, Any], int]] = {}
    for sample in even_choices(strategy.structure.units, n, seed):
        choices = Architecture(sample).canonical()
        size = count_parameters(build_network(config, data, seed, Architecture(choices)))
        drawn[json.dumps(choices, sort_keys=True)] = choices, size
    found = []
    for cell in cells:
        for lam in cell["lambdas"]:
            key = min(drawn, key=lambda k: abs(drawn[k][1] - cell["params"]))
            found.append({"lambda": lam, "choices": drawn.pop(key)[0]})
    return found


def bank_jobs(options: argparse.Namespace) -> list[Job]:
    """The searches on parts: of each data set in turn, with the stem of its images."""
    setting, names = PRESETS[options.preset], list(sources(options))
    return [
        Job(
            f"bank-{first}",
            f"{NAME}:searched",
            common(options, names[first % len(names)]),
            {"trial": f"bank-{first}", "first": first, "count": 1},
            (0, first),
        )
        for first in range(setting.tasks)
    ]


def training(config: dict[str, Any], name: str, seed: int, choices: dict[str, Any]) -> Job:
    """The training of a cell."""
    parameters = {"trial": name, "choices": choices, "seed": seed}
    return Job(name, "retrain", config, parameters, (2, seed))


class Trainings:
    """Trainings that follow from predictions and searches, and what they are of."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.of: dict[str, tuple[str, int, str, float]] = {}

    def follow(self, finished: Job, outcome: Outcome) -> list[Job]:
        """Those of the cells that a job gives."""
        if "error" in outcome or finished.kind == "retrain":
            return []
        target, seed = finished.parameters["target"], int(finished.parameters["seed"])
        cells = outcome["result"].get("cells") or {"searched": outcome["result"]["architectures"]}
        jobs = []
        for arm, every in cells.items():
            for i, one in enumerate(every):
                name = f"{target}-s{seed}-{arm}-{i}"
                self.of[name] = (target, seed, arm, float(one["lambda"]))
                jobs.append(training(common(self.options, target), name, seed, one["choices"]))
        return jobs


def rows_of(trainings: Trainings, outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """Of every data set, seed, arm and lambda the training that validation data choose."""
    best: dict[tuple[str, int, str, float], dict[str, Any]] = {}
    failed: list[dict[str, Any]] = []
    tried: Counter[tuple[str, int, str, float]] = Counter()
    for name, key in trainings.of.items():
        target, seed, arm, lam = key
        head = {"data": target, "seed": seed, "arm": arm, "lambda": lam}
        if "error" in outcomes[name]:
            failed.append({**head, "error": outcomes[name]["error"]})
            continue
        result = outcomes[name]["result"]
        tried[key] += 1
        numbers = {k: result[k] for k in ("params", "macs", "val_accuracy", "test_accuracy")}
        if key not in best or numbers["val_accuracy"] > best[key]["val_accuracy"]:
            best[key] = {**head, **numbers}
    return [*({**row, "tried": tried[key]} for key, row in best.items()), *failed]


def gaps(rows: list[dict[str, Any]], target: str, other: str) -> list[float]:
    """Predicted less another arm, in points of test accuracy: the mean over lambda, by seed that has all of them."""
    by_arm: dict[str, dict[tuple[int, float], float]] = {"predicted": {}, other: {}}
    for row in rows:
        if row["data"] == target and row["arm"] in by_arm and "error" not in row:
            by_arm[row["arm"]][row["seed"], row["lambda"]] = 100 * row["test_accuracy"]
    by_seed: dict[int, list[float]] = defaultdict(list)
    for key, value in by_arm["predicted"].items():
        if key in by_arm[other]:
            by_seed[key[0]].append(value - by_arm[other][key])
    most = len({lam for _, lam in by_arm["predicted"]})
    return [statistics.fmean(values) for values in by_seed.values() if len(values) == most]


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS, data_sets=("digits", "mnist"), usual="digits")
    store, file = Store(options.output), options.output.with_suffix(".bank.jsonl").resolve()
    trainings, drawn = Trainings(options), PRESETS[options.preset].drawn
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        bank = workers.run(bank_jobs(options))
        if failed := [name for name, outcome in bank.items() if "error" in outcome]:
            print(f"{', '.join(failed)} failed: run it again")
            return 1
        done = [row for job in bank_jobs(options) for row in bank[job.name]["result"]["rows"]]
        file.write_text("".join(json.dumps(row) + "\n" for row in done), encoding="utf-8")
        digest, jobs = hashlib.sha256(file.read_bytes()).hexdigest()[:16], []
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            for target in sources(options):
                config, name = common(options, target), f"s{seed}-{target}"
                about = {"target": target, "seed": seed}
                more = {"trial": f"{name}-cells", "bank": str(file), "digest": digest, "drawn": drawn}
                jobs.append(Job(f"{name}-cells", f"{NAME}:predicted", config, {**about, **more}, (1, seed)))
                jobs.append(Job(f"{name}-search", "search", config, {"trial": f"search-{name}", **about}, (1, seed)))
        outcomes = workers.run(jobs, trainings.follow)
    failed = [job.name for job in jobs if "error" in outcomes[job.name]]
    rows = rows_of(trainings, outcomes) + [{"arm": name, "error": outcomes[name]["error"]} for name in failed]
    heads = [
        {
            "arm": "prediction",
            "data": job.parameters["target"],
            "seed": job.parameters["seed"],
            **{k: outcomes[job.name]["result"][k] for k in ("seconds_predict", "examples", "default")},
        }
        for job in jobs
        if job.kind != "search" and job.name not in failed
    ]
    cost = {"arm": "bank", "tasks": len(done), "seconds": round(sum(row["seconds"] for row in done), 1)}
    goals, intervals = [], []
    for target in sources(options):
        for other in ("random", "constant"):
            values = gaps(rows, target, other)
            mean, half = (statistics.fmean(values) if values else None), half_width(values)
            low = None if mean is None or half is None else mean - half
            goals.append(Target("5", f"{target}: predicted - {other}, low end of 95 %", low, 1e-4, "higher"))
            intervals.append({"data": target, "other": other, "mean": mean, "half_width": half, "values": values})
    slowest = max((row["seconds_predict"] for row in heads), default=None)
    goals.append(Target("5", "seconds of a prediction", slowest, 1.0, "lower"))
    lams = {row["lambda"] for row in rows if "lambda" in row}
    have = {(row["data"], row["seed"], row["lambda"]) for row in rows if row.get("arm") == "predicted"}
    whole = len(have) == len(lams) * options.seeds * len(sources(options))
    complete = whole and not failed and all("error" not in row for row in rows)
    write_result(
        options,
        NAME,
        [*rows, *heads, cost],
        goals,
        seconds=store.seconds,
        workers=workers.n,
        complete=complete,
        intervals=intervals,
    )
    print(f"\n{'data':<10}{'lambda':>9}  " + "".join(f"{arm + ': accuracy, parameters':>36}" for arm in ARMS))
    for target in sources(options):
        mine = [row for row in rows if row.get("data") == target and "error" not in row]
        for lam in sorted({row["lambda"] for row in mine}):
            cells = ""
            for arm in ARMS:
                some = [row for row in mine if row["arm"] == arm and row["lambda"] == lam]
                text = "-"
                if some:
                    accuracy = 100 * statistics.fmean(row["test_accuracy"] for row in some)
                    text = f"{accuracy:.2f}, {statistics.fmean(row['params'] for row in some):,.0f}"
                cells += f"{text:>36}"
            print(f"{target:<10}{lam:>9.3g}  {cells}")
    for row in intervals:
        if row["half_width"] is not None:
            print(f"{row['data']}: predicted - {row['other']} {row['mean']:+.2f} +- {row['half_width']:.2f} (95 %)")
    print(*goals, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
