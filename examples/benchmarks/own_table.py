"""A table of our own: every cell of a small space trained on the digits, and the searches of `nasbench201.py` on it.

    python examples/benchmarks/own_table.py --preset cpu --output own.json

The space is DARTS' cell with two nodes, each of which keeps two of its edges, and three operations: 243 cells, trained
with several seeds each; some compute the same. Their means are the table, which is written beside the result
(`own.csv`). Searches have the settings of `nasbench201.py`, and as many steps, in more epochs, which are short here.
The lengths of the trainings of a refinement were raised twice after results on this table, with other seeds.

Targets (2c): what 2a and 2b say there. Here the best accuracy is another one, so that means and minima are of the
regret: Dirichlet at most half the mean regret of a random cell, no seed above that
regret, and below the guarded softmax's; refined half of both, below that, and below the same process with other priors.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import Target, parse, write_result
from workers import Job, Outcome, Store, Workers

NAME = "own_table"
OPERATIONS = ["skip_connect", "max_pool_3x3", "sep_conv_3x3"]
NODES, KEPT = (2, 3), 2
FIRST_SEED = 131
COLUMN, SIZE, VALIDATION = "test_accuracy", "params", "val_accuracy"
ARMS = ("DARTS, order 1", "softmax, guarded", "Dirichlet, single level", "Dirichlet, bilevel")


@dataclass(frozen=True)
class Setting:
    """How large a preset is."""

    width: int
    repeats: int
    epochs: int
    search_epochs: int
    warmup_epochs: int
    operations: int
    refine: dict[str, Any]


_REFINE = {"candidates": 32, "parallel": 2, "evaluations": 14}
PRESETS = {
    "smoke": Setting(2, 1, 1, 2, 1, 2, {**_REFINE, "evaluations": 6, "epochs": 1, "rungs": ((5, 2),)}),
    "cpu": Setting(8, 3, 12, 40, 16, 3, {**_REFINE, "epochs": 8, "rungs": ((3, 32),)}),
}
SEEDS = {"smoke": 1, "cpu": 6}


def space(setting: Setting) -> dict[str, Any]:
    """Section `space`."""
    operations = OPERATIONS[-setting.operations :]
    arguments = {"width": setting.width, "n_cells": 1, "n_nodes": len(NODES), "operations": operations}
    return {"name": "cell", "args": arguments}


def every_cell(setting: Setting) -> list[dict[str, Any]]:
    """The choices of every cell, as NNI has them."""
    operations, cells = OPERATIONS[-setting.operations :], []
    by_node = [
        [
            {
                key: value
                for slot, (edge, operation) in enumerate(zip(edges, chosen, strict=True))
                for key, value in ((f"cell0/op_{node}_{slot}", operation), (f"cell0/input_{node}_{slot}", [edge]))
            }
            for edges in itertools.combinations(range(node), KEPT)
            for chosen in itertools.product(operations, repeat=KEPT)
        ]
        for node in NODES
    ]
    for parts in itertools.product(*by_node):
        cells.append({key: value for part in parts for key, value in part.items()})
    return cells


def name_of(choices: dict[str, Any]) -> str:
    """Edges and operations of the nodes, the edges in order: "0:skip_connect 1:sep_conv_3x3 | ..."."""
    nodes = []
    for node in NODES:
        slots = [(choices[f"cell0/input_{node}_{s}"][0], choices[f"cell0/op_{node}_{s}"]) for s in range(KEPT)]
        nodes.append(" ".join(f"{edge}:{operation}" for edge, operation in sorted(slots)))
    return " | ".join(nodes)


def config(setting: Setting, **sections: Any) -> dict[str, Any]:
    """A configuration."""
    return {
        "space": space(setting),
        "data": {"name": "digits"},
        "retrain": {"epochs": setting.epochs, "batch_size": 64, "learning_rate": 0.1},
        "experiment": {"device": "cpu", "threads": 1},
        **sections,
    }


def table_jobs(setting: Setting) -> dict[tuple[str, int], Job]:
    """The training of every cell with every seed."""
    found = {}
    for choices in every_cell(setting):
        for seed in range(setting.repeats):
            name = name_of(choices)
            parameters = {"trial": "retrain", "choices": choices, "seed": seed}
            folder = name.replace(" ", "").replace("|", "-").replace(":", "")
            found[name, seed] = Job(f"{folder}-{seed}", "retrain", config(setting), parameters, (0,))
    return found


def write_table(path: Path, jobs: dict[tuple[str, int], Job], outcomes: dict[str, Outcome]) -> None:
    """Means over the seeds, in %; one row a cell."""
    results: dict[str, list[dict[str, Any]]] = {}
    for (name, _), job in jobs.items():
        results.setdefault(name, []).append(outcomes[job.name]["result"])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", SIZE, VALIDATION, COLUMN, f"{COLUMN}_sd", "seeds"])
        for name, rows in results.items():
            test = [100 * row["test_accuracy"] for row in rows]
            spread = statistics.stdev(test) if len(test) > 1 else 0.0
            validation = 100 * statistics.fmean(row["val_accuracy"] for row in rows)
            numbers = [round(number, 4) for number in (validation, statistics.fmean(test), spread)]
            writer.writerow([name, rows[0]["params"], *numbers, len(rows)])


def search_job(setting: Setting, arm: str, seed: int) -> Job:
    """One search."""
    from nasbench201 import arms

    strategy = arms()[arm]
    arguments = {key: value for key, value in strategy["args"].items() if key != "without"}  # the cell has no "none"
    guarded = "auxiliary" in arguments
    search = {
        "epochs": setting.search_epochs,
        "warmup_epochs": setting.warmup_epochs if guarded else 0,
        "batch_size": 32,
        "learning_rate": 0.2 if guarded else 0.05,
        "random": 0,
    }
    name = f"s{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
    parameters: dict[str, Any] = {"trial": f"search-{name}", "seed": seed}
    if arm == "Dirichlet, single level":
        parameters["candidates"] = setting.refine["candidates"]
    whole = config(setting, strategy={"name": strategy["name"], "args": arguments}, search=search)
    return Job(name, "search", whole, parameters, (1, seed))


def targets(rows: list[dict[str, Any]], random_regret: float) -> list[Target]:
    """What is asked for, as regrets."""
    from judged import above, by_seed, mean
    from nasbench201 import OURS, PAIRS, REFINED

    refined, ours = REFINED["posterior"], mean(by_seed(rows, OURS, "regret"))

    def worst(arm: str) -> float | None:
        return max(by_seed(rows, arm, "regret").values(), default=None)

    return [
        Target("2c", "mean regret, Dirichlet on a single level", ours, random_regret / 2, "lower"),
        above("2c", rows, *PAIRS[0]),
        Target("2c", "largest regret of a seed", worst(OURS), random_regret, "lower"),
        Target("2c", "mean regret, refined", mean(by_seed(rows, refined, "regret")), random_regret / 4, "lower"),
        Target("2c", "largest regret of a seed, refined", worst(refined), random_regret / 2, "lower"),
        *(above("2c", rows, *pair) for pair in PAIRS[1:]),
    ]


def baselines(table: Any, seeds: list[int]) -> list[dict[str, Any]]:
    """Rows that need no search; a cell of most parameters is taken by name where there are several."""
    import random

    best, largest = max(table.values(COLUMN).values()), max(table, key=lambda name: (table.value(name, SIZE), name))
    rows = [{"arm": "most parameters", "seed": None, "arch": largest, "accuracy": table.value(largest, COLUMN)}]
    for seed in seeds:
        drawn = random.Random(seed).sample(list(table), min(10, len(table)))
        chosen = max(drawn, key=lambda name: table.value(name, VALIDATION))
        for arm, name in (("random", drawn[0]), ("random, best of 10 by validation", chosen)):
            rows.append({"arm": arm, "seed": seed, "arch": name, "accuracy": table.value(name, COLUMN)})
    rows.append({"arm": "mean of all cells", "seed": None, "accuracy": statistics.fmean(table.values(COLUMN).values())})
    return [{**row, "regret": round(best - row["accuracy"], 3)} for row in rows]


def main() -> int:
    """Train what the file of finished jobs does not hold yet, then search and refine."""
    options: argparse.Namespace = parse(__doc__, PRESETS, SEEDS, data_sets=("digits",))
    from judged import Judge, intervals, print_intervals, print_table, reliability, search_row
    from nasbench201 import OURS, PAIRS, REFINED
    from refinement import Refinements

    from nni_bayes_nas.experiment.benchmark_table import BenchmarkTable
    from nni_bayes_nas.search_spaces.cell import isomorphism_key

    setting: Setting = PRESETS[options.preset]
    store, path = Store(options.output), options.output.with_suffix(".csv")
    seeds = list(range(FIRST_SEED, FIRST_SEED + options.seeds))
    trainings = table_jobs(setting)
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        outcomes = workers.run(trainings.values())
        failed = [name for name, outcome in outcomes.items() if "error" in outcome]
        if failed:
            print(f"{len(failed)} trainings failed, {failed[0]}: {outcomes[failed[0]]['error']}", file=sys.stderr)
            return 1
        write_table(path, trainings, outcomes)
        table = BenchmarkTable(path)
        good = sorted(table.values(COLUMN).values())[int(0.97 * len(table))]
        judge = Judge(table, name_of, COLUMN, SIZE, good)
        searches = {(arm, seed): search_job(setting, arm, seed) for seed in seeds for arm in ARMS}
        seed_of = {one.name: seed for (arm, seed), one in searches.items() if arm == OURS}
        refined = Refinements(seed_of, config(setting), setting.refine, judge.parameters, isomorphism_key)
        outcomes = workers.run(searches.values(), refined.follow)
    rows = [search_row(arm, seed, outcomes[one.name], judge) for (arm, seed), one in searches.items()]
    searched = {seed: outcomes[name].get("seconds", 0.0) for name, seed in seed_of.items()}
    rows += refined.rows(REFINED, searched, judge)
    rows += baselines(table, seeds)
    regret = next(row["regret"] for row in rows if row["arm"] == "mean of all cells")
    found, complete = targets(rows, regret), all("error" not in row for row in rows)
    spread = [*intervals(rows, PAIRS, OURS), *reliability(rows, REFINED["posterior"])]
    write_result(
        options, NAME, rows, found, seconds=store.seconds, workers=workers.n, complete=complete, intervals=spread
    )
    print_table(rows)
    print_intervals(spread)
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
