"""Complexity control: one search over lambda against random, fixed and separately searched networks.

    python examples/benchmarks/complexity_control.py --preset cpu --data mnist --root DATA --output control.json

Arms, per seed (every network is trained from scratch with the same recipe; two jobs at a time, one thread each):

    hyper        one HyperDARTS search (complexity="target") read at 22 lambda; 20 trainings: its distinct networks,
                 and, where they are fewer, the same ones again with other seeds, spread evenly
    hyper-4      of these the four at u = 1/8, 3/8, 5/8, 7/8: the middles of four strata of log size
    penalty      one HyperDARTS search (complexity="penalty", automatic range) read at 8 lambda
    random       20 random architectures, two in each of 10 strata of log size
    random-time  as many random ones as fit the hyper arm's search and retraining seconds together
    fixed        one cell, sep_conv_3x3 on both inputs of every node, at 8 widths
    l1           4 RegularizedDARTS searches, L1 weights 1e-4 ... 1e-1 (the original's)
    cost         4 RegularizedDARTS searches, cost penalties (PENALTIES below)

The hypervolume is that of (parameters, test accuracy) in a box that is fixed by the space alone, see `Setting`;
`chosen` is the same with the front chosen by validation accuracy. Test data are read once per training.

Budget of the cpu preset (width 12, 20,000 images, batch 64), from processor seconds of one thread of two cores: a
search over lambda of 3 epochs takes 73 s (and 23 s to read 22 lambda off, 9 s for 8), a separate one 60 s, a training
of 2 epochs 12 s. A seed has 2 searches over lambda, 8 separate ones and about 80 trainings: 1620 s. 5 seeds on two
cores: 5 x 1620 / 2 = 68 minutes.

Searches of all arms run beside one other job, in one queue: their seconds are compared at equal load. The accuracies
that a search measures at every lambda afterwards (`reading_seconds`) are not part of its seconds, in no arm.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from baselines import FIXED_OPERATION, Cells
from contract import STEMS, data_section, parse, write_result
from control_figure import draw
from control_results import comparison_rows, front_rows, print_tables, search_row, search_seconds, targets
from front import Reference
from workers import Job, Outcome, Store, Workers

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.data import load_data

NAME = "complexity_control"
# The penalised form finds its own decades; the target form needs none.
PENALTY_RANGE: Any = "auto"
L1 = (1e-4, 1e-3, 1e-2, 1e-1)
# In nats for the whole range of sizes. On seed 100, which is no seed of the benchmark, penalties of 0.05 to 1 give
# 4,000 to 1,800 parameters: the grid goes a factor beyond on both sides.
PENALTIES = (0.02, 0.1, 0.5, 2.5)
# Separate searches get what HyperDARTS has by default to close the gap between mixture and derived network, and the
# learning rate that is better for them on seed 100, 0.05 rather than 0.02 (with their own default, 0.01 and decay 1e-3,
# the structure hardly leaves its start within so few steps).
SEPARATE = {
    "arc_learning_rate": 0.05,
    "arc_weight_decay": 0.0,
    "mixing": "marginals",
    "mixing_temperature": 0.1,
    "one_hot_passes": 2,
}
# Of the weights, in all searches: the largest derived network has 94 % without retraining then, 87 % with the default
# (seed 100).
SEARCH_LEARNING_RATE = 0.15


@dataclass(frozen=True)
class Setting:
    """How large a preset is. The grids are nested: 22 = 3 * 7 + 1 positions hold 8 evenly spaced ones."""

    width: int
    n_nodes: int
    limit: int | None
    val_limit: int | None
    search_epochs: int
    retrain_epochs: int
    positions: int = 22
    coarse: int = 8
    trainings: int = 20
    n_strata: int = 10
    widths: int = 8
    separate: int = 4
    # A network must be better than this to count; the box ends a quarter above the dearest architecture, so that the
    # largest network counts too.
    accuracy: float = 0.9
    margin: float = 1.25


PRESETS = {
    "smoke": Setting(4, 1, 600, 150, 2, 1, 4, 4, 4, 2, 2, 2, accuracy=0.1),
    "cpu": Setting(12, 2, 20_000, 2_000, 3, 2),
    "gpu": Setting(16, 3, None, 5_000, 10, 10),
}
SEEDS = {"smoke": 1, "cpu": 5, "gpu": 10}


class Benchmark:
    """The jobs of a preset on a data set, and what follows from their outcomes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.setting: Setting = PRESETS[options.preset]
        self.device = "gpu" if options.preset == "gpu" else "cpu"
        self.data = data_section(options, self.setting.limit, self.setting.val_limit)
        channels = 3 if options.data.startswith("cifar") else 1
        self.space = {
            "in_channels": channels,
            "stem": STEMS[options.data],
            "width": self.setting.width,
            "n_cells": 2,
            "n_nodes": self.setting.n_nodes,
        }
        self.cells = Cells(self.space)
        low, high = self.cells.bounds
        self.reference = Reference(low, high * self.setting.margin, self.setting.accuracy)
        self.fixed = {w: self.cells.uniform(FIXED_OPERATION) for w in self.cells.widths(self.setting.widths)}
        self._random: dict[int, list[dict[str, Any]]] = {}

    def config(self, strategy: dict[str, Any], lambdas: int, width: int | None = None) -> dict[str, Any]:
        """The configuration of an experiment, as plain types."""
        setting = self.setting
        return {
            "space": {"name": "cell", "args": {**self.space, "width": width or setting.width}},
            "data": self.data,
            "strategy": strategy,
            # An epoch of warm-up: before it the weights know nothing, and nor would the structure.
            "search": {
                "epochs": setting.search_epochs,
                "warmup_epochs": 1,
                "learning_rate": SEARCH_LEARNING_RATE,
                "lambdas": lambdas,
                "random": 0,
            },
            "retrain": {"epochs": setting.retrain_epochs},
            "experiment": {"device": self.device, "threads": 1},
        }

    # -- jobs ------------------------------------------------------------------------------------------------------

    def searches(self, seed: int) -> list[Job]:
        """Of one seed: two over lambda, and the separate ones; alternating, so that all meet the same company."""
        n = self.setting.separate
        arms = [("target", {"complexity": "target"}, self.setting.positions)]
        arms += [("penalty", {"complexity": "penalty", "lambda_range": PENALTY_RANGE}, self.setting.coarse)]
        jobs = []
        for name, args, lambdas in arms:
            strategy = {"name": "hyper_darts", "args": args}
            jobs.append(self._search(name, seed, self.config(strategy, lambdas)))
        for i in range(n):
            for name, args in (("l1", {"l1": L1[i * 4 // n]}), ("cost", {"penalty": PENALTIES[i * 4 // n]})):
                strategy = {"name": "regularized_darts", "args": {**SEPARATE, **args}}
                jobs.append(self._search(f"{name}{i}", seed, self.config(strategy, 2)))
        return jobs

    def _search(self, name: str, seed: int, config: dict[str, Any]) -> Job:
        name = f"s{seed}-{name}"
        return Job(name, "search", config, {"trial": f"search-{name}", "seed": seed}, (seed, 0))

    def training(self, name: str, seed: int, choices: dict[str, Any], repeat: int = 0, width: int | None = None) -> Job:
        """One training; `repeat` gives it a seed of its own."""
        name = f"s{seed}-{name}" + (f"-again{repeat}" if repeat else "")
        config = self.config({"name": "hyper_darts"}, 2, width)
        parameters = {"trial": name, "choices": choices, "seed": seed + 1000 * repeat, "lambda": None}
        return Job(name, "retrain", config, parameters, (seed, 1))

    def independent(self, seed: int) -> list[Job]:
        """Trainings that wait for no search."""
        jobs = [self.random(seed, i) for i in range(self.setting.trainings)]
        return jobs + [
            self.training(f"fixed{width}", seed, choices, width=width) for width, choices in self.fixed.items()
        ]

    def random(self, seed: int, i: int) -> Job:
        """The i-th random training of a seed."""
        if i >= len(self._random.get(seed, [])):
            # A longer list begins with the shorter one.
            self._random[seed] = self.cells.random(max(2 * self.setting.trainings, i + 1), self.setting.n_strata, seed)
        return self.training(f"random{i}", seed, self._random[seed][i])

    def derived(self, job: Job, outcome: Outcome) -> Iterable[Job]:
        """The trainings that follow from a search."""
        if job.kind != "search" or "error" in outcome:
            return
        seed, arm = int(job.parameters["seed"]), job.name.partition("-")[2]
        distinct = networks(outcome)
        for i, row in enumerate(distinct):
            yield self.training(f"{arm}-{i}", seed, row["choices"])
        if arm == "target":
            for i, repeat in fill(len(distinct), self.setting.trainings):
                yield self.training(f"{arm}-{i}", seed, distinct[i]["choices"], repeat)

    # -- what follows ----------------------------------------------------------------------------------------------

    def arms(self, seed: int, outcomes: dict[str, Outcome]) -> dict[str, list[Outcome]]:
        """The trainings of every arm of a seed."""
        head = f"s{seed}-"
        mine = {name.removeprefix(head): outcome for name, outcome in outcomes.items() if name.startswith(head)}
        trained = {name: o for name, o in mine.items() if "params" in o["result"]}

        def of(start: str) -> list[Outcome]:
            # By name: in the order in which they ended no second run would give the same file.
            return [outcome for name, outcome in sorted(trained.items()) if name.startswith(start)]

        target = mine["target"]
        keys = [Architecture(row["choices"]).key for row in networks(target)]
        rows = target["result"]["architectures"]
        four = {keys.index(Architecture(rows[i]["choices"]).key) for i in middles(len(rows), self.setting.separate)}
        budget = search_seconds(target) + sum(o["seconds"] for o in of("target-"))
        randoms = [trained[f"random{i}"] for i in range(len(of("random")))]
        return {
            "hyper": of("target-"),
            "hyper-4": [trained[f"target-{i}"] for i in sorted(four)],
            "penalty": of("penalty-"),
            "random": randoms[: self.setting.trainings],
            "random-time": randoms[: within(budget, [o["seconds"] for o in randoms])],
            "fixed": of("fixed"),
            "l1": of("l1"),
            "cost": of("cost"),
        }

    def missing(self, seed: int, outcomes: dict[str, Outcome]) -> list[Job]:
        """The random trainings that the hyper arm's seconds still allow."""
        count = sum(name.startswith(f"s{seed}-random") for name in outcomes)
        hyper = [o["seconds"] for n, o in outcomes.items() if n.startswith(f"s{seed}-target-")]
        hyper.append(search_seconds(outcomes[f"s{seed}-target"]))
        done = [outcomes[f"s{seed}-random{i}"]["seconds"] for i in range(count)]
        more = math.ceil((sum(hyper) - sum(done)) / statistics.fmean(done))
        return [self.random(seed, i) for i in range(count, count + max(0, more))]


def networks(search: Outcome) -> list[dict[str, Any]]:
    """The distinct networks that a search gave, in the order of lambda."""
    rows: dict[str, dict[str, Any]] = {}
    for row in search["result"]["architectures"]:
        rows.setdefault(Architecture(row["choices"]).key, row)
    return list(rows.values())


def evenly(n: int, k: int) -> list[int]:
    """k of the indices 0 ... n - 1, both ends included."""
    return [round(i * (n - 1) / (k - 1)) for i in range(k)]


def middles(n: int, k: int) -> list[int]:
    """The indices among 0 ... n - 1 that are nearest to the middles of k equal parts."""
    return [round((n - 1) * (2 * i + 1) / (2 * k)) for i in range(k)]


def fill(distinct: int, wanted: int) -> list[tuple[int, int]]:
    """(network, repeat) of the trainings that are lacking, spread evenly over the networks, repeat by repeat."""
    result: list[tuple[int, int]] = []
    repeat = 1
    while distinct + len(result) < wanted:
        lacking = min(distinct, wanted - distinct - len(result))
        indices = evenly(distinct, lacking) if lacking > 1 else [0]
        result += [(i, repeat) for i in dict.fromkeys(indices)]
        repeat += 1
    return result


def within(budget: float, seconds: Sequence[float]) -> int:
    """How many of the jobs, in their order, end within the budget; at least one."""
    total, n = 0.0, 0
    for item in seconds:
        total += item
        if total > budget:
            break
        n += 1
    return max(1, n)


def result_rows(benchmark: Benchmark, seeds: Iterable[int], outcomes: dict[str, Outcome]) -> Any:
    """Everything that was measured for the given seeds, as rows."""
    rows: list[dict[str, Any]] = []
    n_validation = len(load_data(Config.from_dict({"data": benchmark.data}).data).val)
    for seed in seeds:
        rows += [search_row(job, outcomes[job.name], n_validation) for job in benchmark.searches(seed)]
        rows += front_rows(benchmark.reference, seed, benchmark.arms(seed, outcomes))
    return rows + comparison_rows(rows)


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS)
    benchmark = Benchmark(options)
    store = Store(options.output)
    seeds = range(options.seeds)
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        start = [job for seed in seeds for job in [*benchmark.searches(seed), *benchmark.independent(seed)]]
        outcomes = workers.run(start, benchmark.derived)
        failed = {name: outcome["error"] for name, outcome in outcomes.items() if "error" in outcome}
        # Seconds differ from training to training: a second round is seldom needed.
        while not failed and (more := [job for seed in seeds for job in benchmark.missing(seed, outcomes)]):
            outcomes |= workers.run(more, benchmark.derived)
            failed = {name: outcome["error"] for name, outcome in outcomes.items() if "error" in outcome}
    if failed:
        print(*(f"{name}: {error}" for name, error in failed.items()), sep="\n", file=sys.stderr)
        return 1
    rows = result_rows(benchmark, seeds, outcomes)
    result = write_result(options, NAME, rows, targets(rows), seconds=store.seconds, workers=workers.n)
    print_tables(result["rows"])
    print(*targets(rows), sep="\n")
    draw(rows, benchmark.reference, options.output.with_suffix(".png"), f"{options.data}, seeds: {options.seeds}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
