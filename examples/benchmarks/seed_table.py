"""The table of the original report: precision of the search model at four lambda and checkpoints, literally and ours.

    python examples/benchmarks/seed_table.py --preset cpu --data mnist --root DATA --output seed_table.json

Rows: a hypernetwork of lambda and DARTS + L1, each at lambda = 1e-1, 1e-2, 1e-3, 1e-4. Columns: checkpoints at 30, 50,
70 and 100 % of the schedule. Entries: macro precision in % on validation data of the search model, the mixture at that
lambda, without discretization or retraining; mean over seeds.

    literal hyper    alpha = lambda b1 + b2 for any real lambda, weights alpha itself (no softmax), no complexity term
    literal L1       one search per lambda with weights alpha itself and lambda * sum |alpha|
    our hyper        one search with an expected size for every lambda; its four rows are u = 0, 1/3, 2/3, 1 on
                     the axis of lambda, the first one with the smallest networks, as in its order
    our L1           one search per lambda with softmax

The published entries (M. Yakovlev's report, full MNIST, 100 epochs, one start) are printed beside. Ours have a budget
that is smaller by far: see `Setting`; cpu is 10 epochs on 10,000 images (780 steps), 2,000 for validation, 3 seeds.
What to compare is the pattern (does lambda matter, does quality fall with the epochs), not the level.

Budget of the cpu preset on a 2-core machine, one thread each: a search over lambda takes 115 to 140 s, a separate one
90 to 110; 3 seeds of 2 and 8 of them on two cores: 30 to 35 minutes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contract import STEMS, Target, data_section, parse, write_result
from workers import Job, Outcome, Store, Workers

NAME = "seed_table"
LAMBDAS = (1e-1, 1e-2, 1e-3, 1e-4)
SHARES = (0.3, 0.5, 0.7, 1.0)
# Precision in %, by lambda, at epochs 30, 50, 70 and 100 of 100.
PUBLISHED = {
    "hyper": {
        1e-1: (96.35, 95.48, 94.12, 90.63),
        1e-2: (95.89, 96.72, 91.06, 95.31),
        1e-3: (95.91, 96.62, 90.64, 95.64),
        1e-4: (95.97, 96.54, 90.41, 95.75),
    },
    "L1": {
        1e-1: (86.60, 87.40, 89.34, 89.51),
        1e-2: (84.13, 90.63, 91.91, 92.73),
        1e-3: (97.65, 97.58, 98.08, 97.95),
        1e-4: (98.58, 98.89, 98.95, 99.24),
    },
}
VERSIONS = ("literal", "our")
# LAMBDAS as fractions of the logarithmic range from the lowest to the highest; ours are the same ones of its own range.
POINTS = [1.0, 2 / 3, 1 / 3, 0.0]


@dataclass(frozen=True)
class Setting:
    """How large a preset is."""

    width: int
    n_nodes: int
    limit: int | None
    val_limit: int | None
    epochs: int
    warmup_epochs: int


PRESETS = {
    "smoke": Setting(4, 1, 300, 150, 4, 1),
    "cpu": Setting(16, 2, 10_000, 2_000, 10, 1),
    "gpu": Setting(16, 3, None, 5_000, 100, 10),
}
SEEDS = {"smoke": 1, "cpu": 3, "gpu": 5}


def strategies() -> dict[str, dict[str, Any]]:
    """The searches of a seed, by name: version, method and, for separate searches, lambda."""
    literal = {
        "axis": "literal",
        "lambda_range": [min(LAMBDAS), max(LAMBDAS)],
        "hypernet": "linear",
        "relaxation": "identity",
        "complexity": "none",
        "one_hot_passes": 0,
        "validation_points": POINTS,
    }
    result = {
        "literal hyper": {"name": "hyper_darts", "args": literal},
        "our hyper": {"name": "hyper_darts", "args": {"validation_points": POINTS}},
    }
    for lam in LAMBDAS:
        result[f"literal L1 {lam:g}"] = {"name": "regularized_darts", "args": {"l1": lam, "relaxation": "identity"}}
        result[f"our L1 {lam:g}"] = {"name": "regularized_darts", "args": {"l1": lam}}
    return result


def searches(options: argparse.Namespace, seed: int) -> list[Job]:
    """The jobs of a seed."""
    setting: Setting = PRESETS[options.preset]
    jobs = []
    for name, strategy in strategies().items():
        config = {
            "space": {
                "name": "cell",
                "args": {"stem": STEMS[options.data], "width": setting.width, "n_cells": 2, "n_nodes": setting.n_nodes},
            },
            "data": data_section(options, setting.limit, setting.val_limit),
            "strategy": strategy,
            "search": {"epochs": setting.epochs, "warmup_epochs": setting.warmup_epochs, "lambdas": 4, "random": 0},
            "experiment": {"device": "gpu" if options.preset == "gpu" else "cpu", "threads": 1},
        }
        job = f"s{seed}-{name.replace(' ', '-')}"
        jobs.append(Job(job, "search", config, {"trial": f"search-{job}", "seed": seed}, (seed,)))
    return jobs


def checkpoints(epochs: int) -> list[int]:
    """Indices of the epochs after 30, 50, 70 and 100 % of the schedule."""
    return [max(0, round(share * epochs) - 1) for share in SHARES]


def precision_rows(job: Job, outcome: Outcome) -> list[dict[str, Any]]:
    """A row per lambda of a search: precision at the checkpoints, and the size of the derived network."""
    version, method, *rest = job.name.partition("-")[2].split("-", 2)
    lambdas = [float(rest[0])] if rest else list(LAMBDAS)
    head = {"version": version, "method": method, "seed": job.parameters["seed"]}
    if "error" in outcome:
        return [{**head, "lambda": lam, "error": outcome["error"]} for lam in lambdas]
    result, epochs = outcome["result"], outcome["epochs"]
    sizes = [row["params"] for row in reversed(result["architectures"])]  # read off from the lowest lambda on
    rows = []
    for i, lam in enumerate(lambdas):
        name = "val_precision" if rest else f"val_precision_lambda{i}"
        values = [100 * epochs[epoch][name] for epoch in checkpoints(len(epochs))]
        rows.append(
            {
                **head,
                "lambda": lam,
                "precision": [round(value, 2) for value in values],
                "best": round(100 * max(row[name] for row in epochs), 2),
                "steps": result["search"]["steps"],
                "seconds": outcome["seconds"],
                "params": sizes[i],
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]], version: str, method: str) -> dict[float, list[float] | None]:
    """Mean over seeds of the precision at the checkpoints, by lambda; None where nothing ran."""
    result: dict[float, list[float] | None] = {}
    for lam in LAMBDAS:
        mine = [r for r in rows if (r["version"], r["method"], r["lambda"]) == (version, method, lam)]
        done = [row["precision"] for row in mine if "precision" in row]
        result[lam] = [statistics.fmean(values) for values in zip(*done, strict=True)] if done else None
    return result


def print_tables(rows: Sequence[dict[str, Any]], budget: str) -> None:
    """Our entries, in the layout of the published ones, and these beside."""
    print(f"\nprecision, % ({budget}; published: 100 epochs, all of MNIST, one start)")
    for version in VERSIONS:
        print(f"\n{version} version{'':<22}" + "".join(f"{share:>8.0%}" for share in SHARES) + "   published")
        for method in ("hyper", "L1"):
            for lam, values in table(rows, version, method).items():
                name = {"hyper": "hypernetwork", "L1": "DARTS + L1"}[method]
                entries = "".join(f"{value:8.2f}" for value in values) if values else f"{'not run':>32}"
                published = " ".join(f"{value:.2f}" for value in PUBLISHED[method][lam])
                print(f"{name:<16}lambda {lam:<10g}{entries}   {published}")
    for row in rows:
        if "error" in row:
            print(f"not run: {row['version']} {row['method']} {row['lambda']:g}, seed {row['seed']}: {row['error']}")
    print()


def targets(rows: Sequence[dict[str, Any]]) -> list[Target]:
    """The table, not numbers in it: complete, and how far quality falls by the last epoch."""
    entries = [len(values or []) for v in VERSIONS for m in ("hyper", "L1") for values in table(rows, v, m).values()]
    return [Target("4", "entries of the table, both versions", float(sum(entries)), 64.0, "higher")]


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS)
    setting: Setting = PRESETS[options.preset]
    store = Store(options.output)
    jobs = [job for seed in range(options.seeds) for job in searches(options, seed)]
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        outcomes = workers.run(jobs)
    rows = [row for job in jobs for row in precision_rows(job, outcomes[job.name])]
    images = "all" if setting.limit is None else f"{setting.limit:,}"
    budget = f"{options.data}, {images} training images, {setting.epochs} epochs, mean of {options.seeds} seeds"
    found = targets(rows)
    complete = all("error" not in row for row in rows)
    write_result(options, NAME, rows, found, seconds=store.seconds, workers=workers.n, complete=complete)
    print_tables(rows, budget)
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
