"""One lambda for structure and weights, against structure alone, weights alone, and one after the other.

    python examples/benchmarks/joint.py --preset cpu --data digits --output FILE.json
    python examples/benchmarks/joint.py --preset cpu --data mnist --root DATA --output FILE.json
    python examples/benchmarks/joint.py --preset alone --data digits --output FILE.json

Networks of the cell space; the size of a network is the number of its parameters that are left. Arms, a seed each:

    reference    the largest cell, retrained three times: losses and compressions are measured by their mean
    structure    HyperDARTS, one search for a family of sizes; each of its five cells retrained
    weights      the largest cell, its weights Gaussian and functions of lambda (the plan `compression`), cut
    separate     the cells of `structure`, each with weights that are Gaussian and functions of lambda, cut: a search,
                 and as many compressions as it has found cells
    random       the same for five cells that are drawn without looking at data, one in every fifth of log size
    joint        one search for q(structure, weights | lambda), read off at five lambda, cut
    joint, trained on
                 what it was read off as, trained on at its lambda by the bound for some epochs, and then cut

What is cut is trained further for an epoch (digits: twenty, which have few steps), by plain cross-entropy, in all
arms alike; "read off" are networks that have had no step of an optimizer since. The largest compression of an arm is
that of the smallest network, of all lambda and shares that are looked at, whose mean loss on validation data is at most
.3 points; means are over seeds, and the loss on test data, which have chosen nothing, has its standard error over seeds
beside it. Of digits, other objects validate with every seed (a fifth of what is not test data; so one object is .35
points): with the same 216 for all, which networks of one cell get right is chance.

Reference and structure are trained for as many epochs as the weights of a cell and what follows together. A joint
search sees the data as often as a compression does, of digits less often; the seconds of an arm are those of all that
it takes, where a cell that is found twice counts once. A figure is written beside FILE.json.

Target (5): with at most .3 points lost, joint compression at least that of structure alone and that of weights alone.
The preset `alone` has these three arms only, with ten seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from baselines import Cells
from contract import STEMS, data_section, parse, write_result
from joint_figure import draw
from joint_tables import ARMS, FURTHER, LOSS, points, print_tables, targets
from workers import Job, Outcome, Store, Workers

NAME = "joint"
RANDOM = 5
# Lambda weighs divergences of all objects together: with more of these it must be larger.
RANGES = {"digits": (0.001, 0.1), "mnist": (0.03, 1.0), "fashion_mnist": (0.03, 1.0), "cifar10": (0.1, 3.0)}
# The stem of three steps of 2, so that cells see 4x4 points, and a search takes minutes.
STEMS_HERE = {**STEMS, "mnist": 224, "fashion_mnist": 224}


@dataclass(frozen=True)
class Setting:
    """How large a preset is.

    What follows `fractions` but `references` is of Gaussian weights: `rate` of compressions and `joint_rate` of
    the joint search are Adam's, `tuning_rate` is that of what is cut. With `val_fraction`, of all that is not test
    data, other objects validate with every seed. Without `beside` there are no arms `separate` and `random`, and
    nothing is trained on.
    """

    width: int
    limit: int | None
    val_limit: int | None
    search_epochs: int
    joint_epochs: int
    compress_epochs: int
    fractions: tuple[float, ...]
    finetune_epochs: int = 1
    batch_size: int = 64
    rate: float = 1e-2
    joint_rate: float = 6e-3
    tuning_rate: float = 3e-3
    references: int = 1
    trained_on_epochs: int | None = 1
    val_fraction: float | None = None
    beside: bool = True


_FRACTIONS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
# Of digits, which have few steps an epoch. Epochs, rates and lambda are chosen by validation data of seeds 50 and 51.
_DIGITS: dict[str, Any] = {
    "limit": None,
    "val_limit": None,
    "val_fraction": 0.2,
    "batch_size": 32,
    "search_epochs": 20,
    "joint_epochs": 100,
    "compress_epochs": 120,
    "finetune_epochs": 20,
    "trained_on_epochs": 40,
    "tuning_rate": 1e-3,
}
PRESETS = {
    "smoke": Setting(2, 200, 100, 2, 2, 1, (0.0, 0.5)),
    "cpu": Setting(16, 20_000, 4_000, 5, 40, 40, _FRACTIONS, references=3, trained_on_epochs=10),
    # Of the target alone, of which few seeds on small data say little.
    "alone": Setting(16, 20_000, 4_000, 5, 40, 40, _FRACTIONS, references=3, beside=False),
    "gpu": Setting(16, None, 5_000, 50, 100, 100, _FRACTIONS, references=3, trained_on_epochs=30),
}
SEEDS = {"smoke": 1, "cpu": 3, "alone": 10, "gpu": 5}


def setting_of(options: argparse.Namespace) -> Setting:
    """Of a preset and its data."""
    found: Setting = PRESETS[options.preset]
    if options.data == "digits" and options.preset != "smoke":
        found = replace(found, **_DIGITS)
    return found if found.beside else replace(found, trained_on_epochs=None)


def common(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What all configurations of a seed share."""
    setting = setting_of(options)
    space = {"stem": STEMS_HERE[options.data], "width": setting.width, "n_cells": 1, "n_nodes": 2}
    split = {} if setting.val_fraction is None else {"val_fraction": setting.val_fraction, "val_split": seed}
    return {
        "space": {"name": "cell", "args": space},
        "data": data_section(options, setting.limit, setting.val_limit, **split),
        "experiment": {"device": "gpu" if options.preset == "gpu" else "cpu", "threads": 1},
    }


def largest() -> dict[str, Any]:
    """The choices of the largest cell: full convolutions of the two inputs at both nodes."""
    edges = [(node, slot) for node in (2, 3) for slot in (0, 1)]
    operations = {f"cell0/op_{node}_{slot}": "conv_3x3" for node, slot in edges}
    return operations | {f"cell0/input_{node}_{slot}": [slot] for node, slot in edges}


def cut(options: argparse.Namespace) -> dict[str, Any]:
    """How networks are cut, and lambda."""
    setting = setting_of(options)
    low, high = RANGES[options.data]
    lambdas = [round(low * (high / low) ** (i / 4), 6) for i in range(5)]
    return {
        "fractions": list(setting.fractions),
        "finetune_epochs": setting.finetune_epochs,
        "finetune_learning_rate": setting.tuning_rate,
        "batch_size": setting.batch_size,
        "lambda_range": [low, high],
        "lambdas": lambdas,
    }


def search(options: argparse.Namespace, arm: str, seed: int) -> Job:
    """The search of "structure", or of "joint"."""
    setting = setting_of(options)
    strategy: dict[str, Any] = {"name": "hyper_darts", "args": {}}
    section: dict[str, Any] = {"epochs": setting.search_epochs}
    if arm == "joint":
        args = {
            "weights": "variational",
            "weight_hypernet": "piecewise_linear",
            "weight_prior": "ard",
            "dependence": "gated",
            "lambda_range": list(RANGES[options.data]),
            "mixing_temperature": 0.1,
            "one_hot_passes": 1,
        }
        strategy = {"name": "dirichlet_darts", "args": args}
        rates = {"optimizer": "adam", "learning_rate": setting.joint_rate, "rho_learning_rate": 0.006}
        section = {"epochs": setting.joint_epochs, **rates}
    section |= {"warmup_epochs": max(1, section["epochs"] // 5), "batch_size": 32, "lambdas": 5, "random": 0}
    config = {**common(options, seed), "strategy": strategy, "search": section, "compress": cut(options)}
    if arm == "joint":
        rates = {"learning_rate": setting.rate, "rho_learning_rate": 6e-3}  # of compressions
        config["compress"] |= {**rates, "posterior_finetune_epochs": setting.trained_on_epochs}
    return Job(f"s{seed}-{arm}", "search", config, {"trial": f"search-{arm}-{seed}", "seed": seed}, (seed, 0))


def training(options: argparse.Namespace, name: str, seed: int, choices: dict[str, Any], repeat: int = 0) -> Job:
    """The retraining of a cell with weights that are points, for all the epochs of a compression and what follows."""
    setting = setting_of(options)
    epochs = setting.compress_epochs + setting.finetune_epochs
    section = {"epochs": epochs, "batch_size": 64}
    parameters = {"trial": f"train-{name}", "choices": choices, "seed": seed + 1000 * repeat}
    return Job(f"train-{name}", "retrain", {**common(options, seed), "retrain": section}, parameters, (seed, 1))


def compression(options: argparse.Namespace, name: str, seed: int, choices: dict[str, Any]) -> Job:
    """A hypernetwork of lambda for the weights of a cell."""
    from nni_bayes_nas.architecture import Architecture

    setting = setting_of(options)
    section = {
        **cut(options),
        "network": "space",
        "architecture": Architecture(choices).canonical(),
        "epochs": setting.compress_epochs,
        "learning_rate": setting.rate,
        "rho_learning_rate": 6e-3,
        "inputs": "standardized",  # as in searches and trainings
    }
    parameters = {"trial": name, "hypernet": "piecewise_linear", "lambda": None, "prior": "ard", "seed": seed}
    return Job(f"compress-{name}", "compress", {**common(options, seed), "compress": section}, parameters, (seed, 2))


class Runs:
    """What is trained after the searches, and the rows of all of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seeds = range(options.seeds)
        self.first = [search(options, arm, seed) for seed in self.seeds for arm in ("structure", "joint")]
        # By the name of a job: arm, seed, and which of a family it is.
        self.what: dict[str, tuple[str, int, int]] = {}
        self.sizes: dict[tuple[str, int, int], int] = {}
        for seed in self.seeds:
            self.first.append(compression(options, f"s{seed}-largest", seed, largest()))
            self.what[self.first[-1].name] = ("weights", seed, 0)
            for i, choices in enumerate(self.drawn(seed) if setting_of(options).beside else ()):
                self.first.append(compression(options, f"s{seed}-random{i}", seed, choices))
                self.what[self.first[-1].name] = ("random", seed, i)
            for repeat in range(setting_of(options).references):
                self.first.append(training(options, f"s{seed}-largest{repeat}", seed, largest(), repeat))
                self.what[self.first[-1].name] = ("reference", seed, repeat)
        self.what |= {f"s{seed}-joint": ("joint", seed, 0) for seed in self.seeds}

    def drawn(self, seed: int) -> list[dict[str, Any]]:
        """Cells of a seed that no search has found, the largest first, and their sizes into `sizes`."""
        channels = 3 if self.options.data.startswith("cifar") else 1
        cells = Cells({**common(self.options, seed)["space"]["args"], "in_channels": channels})
        # Places of an arm are compared over seeds.
        found = sorted(cells.random(RANDOM, RANDOM, seed), key=cells.params, reverse=True)
        self.sizes |= {("random", seed, i): cells.params(choices) for i, choices in enumerate(found)}
        return found

    def follow(self, job: Job, outcome: Outcome) -> list[Job]:
        """When a search for structure is over: each cell of its family, retrained, and with its weights compressed."""
        if not job.name.endswith("-structure") or "error" in outcome:
            return []
        seed, found = int(job.parameters["seed"]), []
        arms: list[tuple[str, Callable[..., Job]]] = [("structure", training), ("separate", compression)]
        for i, row in enumerate(outcome["result"]["architectures"]):
            for arm, make in arms if setting_of(self.options).beside else arms[:1]:
                one = make(self.options, f"s{seed}-{arm}{i}", seed, row["choices"])
                self.what[one.name] = (arm, seed, i)
                found.append(one)
        return found

    def rows(self, outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
        """A row for every network."""
        same = {"reference": "weights", "structure": "separate"}
        sizes = self.sizes | {
            (same[arm], seed, 0 if arm == "reference" else i): outcomes[name]["result"]["params"]
            for name, (arm, seed, i) in self.what.items()
            if arm in same and "error" not in outcomes[name]
        }
        rows: list[dict[str, Any]] = []
        for name, (arm, seed, i) in self.what.items():
            head = {"arm": arm, "seed": seed, "cell": i}
            outcome = outcomes[name]
            if "error" in outcome:
                rows.append({**head, "error": outcome["error"]})
                continue
            head |= {"seconds": outcome["seconds"], "job": outcome["key"]}
            if arm in ("reference", "structure"):
                numbers = {key: outcome["result"][key] for key in ("params", "val_accuracy", "test_accuracy")}
                rows.append({**head, "lambda": None, "fraction": 0.0, **_percent(numbers)})
                continue
            every = outcome["result"]["compression"]
            if arm == "joint":
                head["steps_after_search"] = outcome["result"]["search"]["optimizer_steps_after_search"]
                further = sum(
                    found["posterior_finetuned"]["seconds"] for found in every if "posterior_finetuned" in found
                )
                after = {**head, "arm": FURTHER}
                head["seconds"] = round(head["seconds"] - further, 2)
            for found in every:
                total = found.get("params") or sizes.get((arm, seed, i))
                rows += _curve(head, found, total)
                if "posterior_finetuned" in found:
                    rows += _curve(after, {"lambda": found["lambda"], **found["posterior_finetuned"]}, total)
        return rows


def _percent(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: round(100 * value, 3) if "accuracy" in key else value for key, value in numbers.items()}


def _curve(head: dict[str, Any], found: dict[str, Any], total: int | None) -> list[dict[str, Any]]:
    """Of one lambda, every share that is left out: as it is cut, and trained further."""
    # Of all layers; some of them may be zero as they are read off.
    rows, weights = [], round(max(1, found["curve"][0]["kept"]) * found["curve"][0]["compression"])
    for point in found["curve"]:
        size = None if total is None else total - weights + point["kept"]
        row = {**head, "lambda": found["lambda"], "fraction": point["fraction"], "params": size}
        row |= _percent({f"raw_{name}_accuracy": point[f"{name}_accuracy"] for name in ("val", "test")})
        tuned = point.get("finetuned", point)
        row |= _percent({f"{name}_accuracy": tuned[f"{name}_accuracy"] for name in ("val", "test")})
        if point["fraction"] == 0:
            row |= {key: round(found[key], 4) for key in ("test_nll", "test_ece")}
            row["predictive"] = {key: round(value, 4) for key, value in found["predictive"].items()}
            row["z_above_1"] = total and total - weights + found["z_above_1"]
        rows.append(row)
    return rows


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS)
    store, runs = Store(options.output), Runs(options)
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        outcomes = workers.run(runs.first, runs.follow)
    failed = [name for name in (job.name for job in runs.first) if name not in runs.what and "error" in outcomes[name]]
    rows = runs.rows(outcomes) + [{"arm": "structure", "error": outcomes[name]["error"]} for name in failed]
    for seed in runs.seeds:
        if "seconds" in (found := outcomes[f"s{seed}-structure"]):
            rows.append({"arm": "search", "seed": seed, "seconds": found["seconds"], "job": found["key"]})
    complete = all("error" not in row for row in rows)
    found = targets(rows)
    write_result(options, NAME, rows, found, seconds=store.seconds, workers=workers.n, complete=complete)
    print_tables(rows)
    draw({arm: points(rows, arm) for arm in ARMS}, rows, LOSS, options.output.with_suffix(".png"))
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
