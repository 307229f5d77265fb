"""Searches on NAS-Bench-201's cell, judged by its table: what each way of choosing finds, and what its posterior knows.

    python examples/benchmarks/nasbench201.py --preset cpu --data cifar10 --root DATA --table TABLE --output FILE.json

TABLE is a CSV file with the columns `arch`, `c10_test_200` (accuracy in %, 200 epochs on all data), `c10_val_12` and
`params_M`. Searches see CIFAR-10 in a small supernet (width 8, one cell a stage, images averaged to 16x16, 10,000 of
them); in the preset `gpu` in one of the size of the table's networks (25,000 images), for the Dirichlet on a single
level and what refines it alone. Nothing is chosen by the table. Arms, one row a seed:

    DARTS, order 1 and 2, Gumbel     as published: bilevel, "none" among the operations, no guards; but for the rate of
                                     the structure, which has a hundredth of the published steps, .02 for 3e-4
    softmax, guarded                 the guards, operations and single level of the Dirichlet arms, but one point
    Dirichlet ...                    single level or bilevel; weights that are points, gated or scaled Gaussians, or
                                     drawn by preconditioned SGLD
    concrete, logistic-normal        other families, as the Dirichlet on a single level
    refined                          the 32 best cells of the posterior of "Dirichlet, single level", by short trainings
                                     of 14 and longer ones of three (`refinement.py`); and that from two priors without
                                     a search
    random                           cells without "none": one of them; the best of 10 by validation after 12 epochs
    NNI's evolution, NNI's TPE       the same space; as many cells as a refinement has trainings, each of 12 epochs, of
                                     the whole network on all of CIFAR-10, out of the table
    3x3 everywhere                   counts parameters
    uniform, cells without none      what a posterior that knows nothing says; and the rank correlation of counting
                                     convolutions, 1x1 as half a one

Guards: a constant auxiliary identity, normalization behind every operation, "none" kept out, 40 % of the search for
weights alone (`strategies/guards.py`).

Targets: 2a: Dirichlet on a single level, mean >= 93.6, minimum >= 93.2, above
the guarded softmax in the paired mean (stretch: mean >= 94.0). 2b: refined, mean >= 94.0, minimum >= 93.4, above 2a and
above both other priors in the paired mean, five minutes in all (stretch: 94.2 and 93.8; the full supernet, on a GPU:
94.36). On a CPU two minutes a search, 90 for all. 3: what the posteriors know. "Above" is by the smallest difference
that two seeds can make, .01 over their number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import Target, data_section, parse, write_result
from workers import Job, Store, Workers

NAME = "nasbench201"
COLUMN, BY_12_EPOCHS, SIZE = "c10_test_200", "c10_val_12", "params_M"
GUARDED = {"auxiliary": 1.0, "normalize": True, "without": ["none"]}
GOOD = 93.7
ALL_3X3 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
FIRST_SEED = 41
OURS, SOFTMAX, PSGLD = "Dirichlet, single level", "softmax, guarded", "Dirichlet, single level, pSGLD"
REFINED = {"posterior": "refined", "flat": "refined, flat prior", "parameters": "refined, parameters as prior"}

# Of arms whose accuracies are compared seed by seed.
PAIRS = [(OURS, SOFTMAX), *((REFINED["posterior"], other) for other in (OURS, REFINED["flat"], REFINED["parameters"]))]


@dataclass(frozen=True)
class Setting:
    """How large a preset is.

    A batch of a step on a single level is two of `batch_size`; `arms`: all where there are none; `graphs`: whether
    passes are recorded.
    """

    width: int
    cells: int
    pool: int
    limit: int
    val_limit: int
    epochs: int
    warmup_epochs: int
    batch_size: int
    refine: dict[str, Any]
    probe_cells: int
    arms: tuple[str, ...] = ()
    priors: tuple[str, ...] = tuple(REFINED)
    probe_batch: int = 64
    graphs: bool = False


# Of a search its posterior's best, which is more than a refinement takes.
_KNOWN = 512
_REFINE = {"candidates": 32, "parallel": 2, "evaluations": 14}
PRESETS = {
    "smoke": Setting(
        4, 1, 1, 192, 64, 2, 1, 32, {**_REFINE, "candidates": 16, "evaluations": 6, "epochs": 1, "rungs": ((5, 2),)}, 1
    ),
    "cpu": Setting(8, 1, 2, 10_000, 1_000, 5, 2, 32, {**_REFINE, "epochs": 1, "rungs": ((3, 4),)}, 3),
    "gpu": Setting(
        *(16, 5, 1, 25_000, 1_000, 8, 3, 32, {**_REFINE, "epochs": 1, "rungs": ((3, 4),)}, 5),
        *((OURS,), ("posterior",), 128, True),
    ),
}
SEEDS = {"smoke": 1, "cpu": 6, "gpu": 3}


def arms() -> dict[str, dict[str, Any]]:
    """Strategies by arm; the first three search as published, the others differ in what their names say."""
    published = {"arc_learning_rate": 0.02, "arc_weight_decay": 1e-3}
    ours = {"arc_learning_rate": 0.06, **GUARDED}
    gaussian = {**ours, "weights": "variational", "kl_weights": 0.01}
    return {
        "DARTS, order 1": {"name": "regularized_darts", "args": published},
        "DARTS, order 2": {"name": "regularized_darts", "args": {**published, "order": 2}},
        "Gumbel": {
            "name": "regularized_darts",
            "args": {**published, "relaxation": "gumbel", "mixing_temperature": 0.2},
        },
        SOFTMAX: {"name": "dirichlet_darts", "args": {**ours, "family": "softmax", "kl_structure": 0.0}},
        OURS: {"name": "dirichlet_darts", "args": ours},
        "Dirichlet, bilevel": {"name": "dirichlet_darts", "args": {**ours, "scheme": "bilevel"}},
        "Dirichlet, single level, gated": {"name": "dirichlet_darts", "args": {**gaussian, "dependence": "gated"}},
        "Dirichlet, single level, scaled": {"name": "dirichlet_darts", "args": {**gaussian, "dependence": "scaled"}},
        "Dirichlet, bilevel, gated": {
            "name": "dirichlet_darts",
            "args": {**gaussian, "dependence": "gated", "scheme": "bilevel"},
        },
        "Dirichlet, bilevel, scaled": {
            "name": "dirichlet_darts",
            "args": {**gaussian, "dependence": "scaled", "scheme": "bilevel"},
        },
        PSGLD: {"name": "dirichlet_darts", "args": ours},
        "concrete": {"name": "dirichlet_darts", "args": {**ours, "family": "concrete", "mixing_temperature": 0.2}},
        "logistic-normal": {"name": "dirichlet_darts", "args": {**ours, "family": "logistic_normal"}},
    }


def job(options: argparse.Namespace, arm: str, seed: int) -> Job:
    """One search."""
    setting: Setting = PRESETS[options.preset]
    strategy = arms()[arm]
    if setting.graphs:
        strategy["args"] = {**strategy["args"], "cuda_graphs": True}
    guarded = "auxiliary" in strategy["args"]
    config = {
        **common(options, affine=False),
        "strategy": strategy,
        "search": {
            "epochs": setting.epochs,
            "warmup_epochs": setting.warmup_epochs if guarded else 0,
            "batch_size": setting.batch_size,
            "learning_rate": 0.2 if guarded else 0.05,
            "lambdas": 2,
            "random": 0,
            **({"optimizer": "psgld", "learning_rate": 0.003} if arm == PSGLD else {}),
        },
    }
    name = f"s{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
    parameters: dict[str, Any] = {"trial": f"search-{name}", "seed": seed}
    if arm == OURS:
        parameters["candidates"] = _KNOWN
    # What the targets are about comes first.
    order = [OURS, SOFTMAX].index(arm) if arm in (OURS, SOFTMAX) else 3
    return Job(name, "search", config, parameters, (order, seed))


def common(options: argparse.Namespace, **space: Any) -> dict[str, Any]:
    """What all configurations share."""
    setting: Setting = PRESETS[options.preset]
    arguments = {"width": setting.width, "cells_per_stage": setting.cells, "input_pool": setting.pool, **space}
    return {
        "space": {"name": "nasbench201", "args": arguments},
        "data": data_section(options, setting.limit, setting.val_limit),
        "experiment": {"device": "gpu" if options.preset == "gpu" else "cpu", "threads": 1},
    }


def probe_config(options: argparse.Namespace) -> dict[str, Any]:
    """Of the short trainings of a refinement."""
    setting: Setting = PRESETS[options.preset]
    return {
        **common(options),
        # Losses of good cells differ by less than the error of a mean over a thousand objects.
        "data": data_section(options, setting.limit, 5 * setting.val_limit),
        "retrain": {
            "space": {"cells_per_stage": setting.probe_cells},
            "learning_rate": 0.1,
            "batch_size": setting.probe_batch,
        },
    }


def by_nni(path: Path, seeds: list[int], budget: int) -> list[dict[str, Any]]:
    """What NNI's own strategies find that try cell after cell, as many as `budget`, by validation after 12 epochs."""
    import logging

    from nni.nas.execution import SequentialExecutionEngine
    from nni.nas.space import RawFormatModelSpace
    from nni.nas.strategy import TPE, RegularizedEvolution

    from nni_bayes_nas.experiment.table_evaluator import TableEvaluator
    from nni_bayes_nas.search_spaces.nasbench201 import OPERATIONS, NasBench201Space

    logging.getLogger("nni").setLevel(logging.ERROR)
    operations = [name for name in OPERATIONS if name not in GUARDED["without"]]
    space = NasBench201Space(width=1, cells_per_stage=1, operations=operations)
    evaluator, rows = TableEvaluator(path, BY_12_EPOCHS), []
    for seed in seeds:
        evolution = RegularizedEvolution(
            population_size=budget // 2, sample_size=budget // 4, mutation_prob=1 / 6, seed=seed
        )
        # Its defaults minimize, and draw the first 20 at random.
        tpe = TPE(optimize_mode="maximize", seed=seed, tpe_args={"n_startup_jobs": budget // 2})
        for arm, strategy in (("NNI's evolution, 12 epochs", evolution), ("NNI's TPE, 12 epochs", tpe)):
            engine = SequentialExecutionEngine(max_model_count=budget)
            strategy(RawFormatModelSpace(space, evaluator), engine)
            best = max(engine.list_models(), key=lambda model: model.metric)
            arch = evaluator.name(best.sample)
            rows.append({"arm": arm, "seed": seed, "arch": arch, "accuracy": evaluator.table.value(arch, COLUMN)})
    return rows


def convolutions(arch: str) -> float:
    """Of 3x3, and of 1x1 half a one each: what counting says of a cell."""
    return arch.count("nor_conv_3x3") + arch.count("nor_conv_1x1") / 2


def baselines(table: Any, seeds: list[int]) -> list[dict[str, Any]]:
    """Rows that need no search."""
    import random

    from judged import rank_correlation

    cells = [arch for arch in table if "none" not in arch]
    rows = [{"arm": "3x3 everywhere", "seed": None, "arch": ALL_3X3, "accuracy": table.value(ALL_3X3, COLUMN)}]
    for seed in seeds:
        drawn = random.Random(seed).sample(cells, 10)
        best = max(drawn, key=lambda arch: table.value(arch, BY_12_EPOCHS))
        for arm, arch in (("random", drawn[0]), ("random, best of 10 after 12 epochs", best)):
            rows.append({"arm": arm, "seed": seed, "arch": arch, "accuracy": table.value(arch, COLUMN)})
    everything = [table.value(arch, COLUMN) for arch in cells]
    uniform = {
        "arm": "uniform, cells without none",
        "seed": None,
        "accuracy": statistics.fmean(everything),
        "expected_accuracy": statistics.fmean(everything),
        "probability_good": sum(value >= GOOD for value in everything) / len(everything),
        "spearman": rank_correlation([convolutions(arch) for arch in cells], everything),
    }
    return [*rows, uniform]


def targets(rows: list[dict[str, Any]], preset: str, seconds: float) -> list[Target]:
    """What is aimed at with the searches."""
    from judged import above, by_seed, coverage, mean

    refined = REFINED["posterior"]
    if preset == "gpu":
        return [Target("2b", "mean accuracy, refined, full supernet", mean(by_seed(rows, refined)), 94.36, "higher")]
    longest = max((row["seconds"] for row in rows if row["arm"] in arms() and "seconds" in row), default=None)
    ours, better, covered = by_seed(rows, OURS), by_seed(rows, refined), coverage(rows, refined)
    return [
        Target("2a", "mean accuracy, Dirichlet on a single level", mean(ours), 93.6, "higher"),
        Target("2a", "smallest accuracy of a seed", min(ours.values(), default=None), 93.2, "higher"),
        above("2a", rows, *PAIRS[0]),
        Target("2a", "mean accuracy, Dirichlet on a single level, stretch", mean(ours), 94.0, "higher"),
        Target("2", "seconds of the longest search", longest, 120, "lower"),
        Target("2", "minutes of the whole table", seconds / 60, 90, "lower"),
        Target("2b", "mean accuracy, refined", mean(better), 94.0, "higher"),
        Target("2b", "smallest accuracy of a seed, refined", min(better.values(), default=None), 93.4, "higher"),
        *(above("2b", rows, *pair) for pair in PAIRS[1:]),
        Target("2b", "mean accuracy, refined, stretch", mean(better), 94.2, "higher"),
        Target("2b", "smallest accuracy, refined, stretch", min(better.values(), default=None), 93.8, "higher"),
        Target("2b", "seconds of search and refinement", mean(by_seed(rows, refined, "seconds")), 300, "lower"),
        Target("3", "E_q[accuracy]", mean(by_seed(rows, OURS, "expected_accuracy")), 93.2, "higher"),
        Target("3", "P_q(accuracy >= 93.7)", mean(by_seed(rows, OURS, "probability_good")), 0.15, "higher"),
        Target("3", "Spearman of log q with accuracy", mean(by_seed(rows, OURS, "spearman")), 0.863, "higher"),
        Target("3", "90 % intervals of the refined posterior that cover, least", covered, 0.85, "higher"),
        Target("3", "90 % intervals of the refined posterior that cover, most", covered, 0.95, "lower"),
    ]


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="of NAS-Bench-201, see above")

    options = parse(__doc__, PRESETS, SEEDS, more)
    from judged import Judge, intervals, print_intervals, print_table, reliability, search_row
    from refinement import Refinements

    from nni_bayes_nas.errors import NniBayesNasError
    from nni_bayes_nas.experiment.benchmark_table import BenchmarkTable
    from nni_bayes_nas.search_spaces.nasbench201 import isomorphism_key, to_arch_string

    try:
        table = BenchmarkTable(options.table)
        for column in (COLUMN, BY_12_EPOCHS, SIZE):
            table.place(ALL_3X3, column)
    except NniBayesNasError as error:
        print(error, file=sys.stderr)
        return 2
    judge = Judge(table, to_arch_string, COLUMN, SIZE, GOOD)
    seeds = list(range(FIRST_SEED, FIRST_SEED + options.seeds))
    store = Store(options.output)
    setting: Setting = PRESETS[options.preset]
    jobs = {(arm, seed): job(options, arm, seed) for seed in seeds for arm in setting.arms or arms()}
    seed_of = {one.name: seed for (arm, seed), one in jobs.items() if arm == OURS}
    refined = Refinements(
        seed_of, probe_config(options), setting.refine, judge.parameters, isomorphism_key, setting.priors
    )
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        outcomes = workers.run(jobs.values(), refined.follow)
    rows = [search_row(arm, seed, outcomes[one.name], judge) for (arm, seed), one in jobs.items()]
    searched = {seed: outcomes[name].get("seconds", 0.0) for name, seed in seed_of.items()}
    rows += refined.rows(REFINED, searched, judge)
    rows += baselines(table, seeds)
    budget = setting.refine["evaluations"] + sum(n for n, _ in setting.refine["rungs"])
    rows += by_nni(options.table, seeds, budget)
    found = targets(rows, options.preset, store.seconds)
    complete = all("error" not in row for row in rows)
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
