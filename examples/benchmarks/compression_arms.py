"""What `compression.py` trains: networks, recipes and jobs, by preset.

`seed` is the experiment of the report that the project began from, and `authors` the table that came of it: their
networks and recipes (O. Grebenkova, O. Bakhteev, V. Strijov), with constant rates and knots that share nothing; beside
ours for as many steps.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract import data_section
from workers import Job

LAMBDAS = (0.1, 0.3, 1.0, 1.7, 3.0)
# Between two of them, where validation data prefer the first at 50 x and the second at 100 x: of direct runs alone.
BETWEEN = (0.42, 0.55, 0.75)
RANGE = (0.1, 3.0)
# How far the size goes, where what the largest networks are worth is not asked.
WIDE = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
DENSE = {"weights": "point", "priors": ["fixed"]}
COMPRESSIONS = (1, 10, 20, 50, 68, 100)
SHARES = (0.0, 0.5, 0.7, 0.8, 0.9)
# Of LeNet-300-100, by 9,000 validation images and another seed, of batches of 32 to 256, rates of .0005 to .016: where
# little is cut a small rate is best, where much is a large one. Validation images choose, for every network.
FINETUNING = {"finetune_batch_size": 128, "finetune_learning_rate": [0.001, 0.016]}


@dataclass(frozen=True)
class Arm:
    """Runs of one network by one recipe.

    Attributes:
        name: For rows and tables.
        compress: Section of the configuration.
        runs: Pairs of the kind of hypernetwork and of lambda, None for all of a range.
        prior: Of the weights.
        more: Starts beside those that all arms have.
    """

    name: str
    compress: dict[str, Any]
    runs: tuple[tuple[str, float | None], ...]
    prior: str = "ard"
    more: int = 0


@dataclass(frozen=True)
class Setting:
    """How large a preset is."""

    arms: tuple[Arm, ...]
    limit: int | None = None
    val_limit: int | None = 5_000


def direct(lambdas: tuple[float, ...]) -> tuple[tuple[str, float | None], ...]:
    """A run for every lambda."""
    return tuple(("constant", lam) for lam in lambdas)


def _fractions(compressions: tuple[int, ...]) -> list[float]:
    return [1 - 1 / c for c in compressions]


def lenet(epochs: int, hyper_epochs: int, compressions: tuple[int, ...] = COMPRESSIONS) -> tuple[Arm, ...]:
    """LeNet-300-100: eight direct runs, hypernetworks over two ranges, and the dense network pruned by magnitude."""
    shared = {
        "network": "mlp",
        "network_args": {"hidden": [300, 100]},
        "fractions": _fractions(compressions),
        "rho_learning_rate": 6e-3,
        "lambda_range": list(RANGE),
        "lambdas": list(LAMBDAS),
    }
    tuned = {**shared, "finetune_epochs": 3, **FINETUNING}
    wide = {"lambda_range": [min(WIDE), max(WIDE)], "lambdas": list(WIDE), "fractions": [0.0]}
    dense = {**tuned, **DENSE, "epochs": epochs}
    return (
        Arm("300-100, direct", {**tuned, "epochs": epochs}, direct(tuple(sorted((*LAMBDAS, *BETWEEN))))),
        Arm("300-100, hypernetwork", {**tuned, "epochs": hyper_epochs}, (("piecewise_linear", None),)),
        Arm("300-100, wide", {**shared, **wide, "epochs": max(2, hyper_epochs // 2)}, (("piecewise_linear", None),)),
        Arm("300-100, dense", dense, direct(DECAYS), "fixed"),
    )


def small(epochs: int) -> tuple[Arm, ...]:
    """The networks of that report: variational, and dense with the decay that validation prefers."""
    found = []
    for hidden in (100, 50):
        shared = {"network": "mlp", "network_args": {"hidden": [hidden]}, "fractions": list(SHARES), "epochs": epochs}
        name = f"784-{hidden}-10"
        found.append(Arm(name, {**shared, "rho_learning_rate": 6e-3}, direct((0.1, 0.3, 1.0))))
        found.append(Arm(f"{name}, dense", {**shared, **DENSE}, direct(DECAYS), "fixed"))
    return tuple(found)


# Of the baseline: lambda / (2 m) sum w^2 is added to the loss of an object.
DECAYS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)

SEED_LAMBDAS = (0.0, 0.1, 0.5, 1.0, 3.0, 10.0)
SEED_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def seed_experiment(epochs: int, finetune_epochs: int) -> tuple[Arm, ...]:
    """784-100-10 with the prior N(0, .1), SGD, lambda as it is from 0 on, five of them for a batch.

    What is read off is trained further at its lambda, by the bound, and then pruned, in that order. Rates of the
    standard deviations are those, of .05, .5, 2 and 5, of the largest J with other seeds: of the hypernetwork 5 has a
    larger one still, but one start in four ends far off, and with clipped gradients it has a smaller one.
    """
    shared = {
        "network": "mlp",
        "network_args": {"hidden": [100]},
        "prior_sd": 0.1**0.5,
        "rho": -3.0,
        "optimizer": "sgd",
        "schedule": "constant",
        "learning_rate": 0.05,
        "rho_learning_rate": 5.0,
        "axis": "literal",
        "lambda_range": [min(SEED_LAMBDAS), max(SEED_LAMBDAS)],
        "lambdas": list(SEED_LAMBDAS),
        "hidden": 50,
        "rank": 1,
        "lambdas_per_step": 5,
        "epochs": epochs,
        "warmup": 0.0,
        "scope": "layer",
        "fractions": list(SEED_SHARES),
        "posterior_finetune_epochs": finetune_epochs,
    }
    return (
        Arm("seed, direct", {**shared, "lambdas_per_step": 1}, direct(SEED_LAMBDAS), "fixed"),
        Arm("seed, hypernetwork", {**shared, "rho_learning_rate": 0.05}, (("low_rank", None),), "fixed"),
    )


AUTHORS_LAMBDAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
AUTHORS = {"base": ("point", "fixed"), "rep": ("variational", "scaled"), "var": ("variational", "fixed")}
# Mean test accuracy in % with 0, 50, 70, 80 and 90 % of the weights left out, from the authors' files.
PUBLISHED = {
    ("base", "constant"): {
        0.001: (96.4, 90.6, 65.6, 47.9, 24.4),
        1.0: (96.0, 93.9, 74.6, 51.0, 24.6),
        10.0: (96.2, 94.7, 76.0, 58.1, 32.1),
        100.0: (95.7, 94.1, 75.5, 56.6, 32.7),
    },
    ("rep", "constant"): {
        0.001: (96.2, 95.7, 91.7, 80.4, 49.0),
        1.0: (96.3, 95.5, 91.6, 79.8, 49.7),
        10.0: (96.3, 95.8, 91.5, 81.5, 49.0),
        100.0: (95.7, 95.3, 91.6, 80.4, 51.8),
    },
    ("var", "constant"): {
        0.001: (96.3, 95.0, 90.5, 76.7, 44.0),
        1.0: (96.2, 95.4, 90.8, 80.9, 52.0),
        10.0: (94.7, 94.3, 92.8, 87.1, 60.8),
        100.0: (80.1, 81.7, 83.4, 84.2, 80.4),
    },
    ("base", "linear"): {
        0.001: (96.6, 88.7, 64.6, 41.7, 23.5),
        1.0: (97.0, 88.6, 52.4, 42.4, 28.7),
        10.0: (96.9, 89.5, 56.7, 40.3, 24.2),
        100.0: (96.7, 92.4, 66.6, 40.3, 22.3),
    },
    ("rep", "linear"): {
        0.001: (97.2, 96.5, 88.9, 70.0, 53.8),
        1.0: (97.3, 96.2, 84.7, 72.8, 61.4),
        10.0: (97.2, 96.1, 84.7, 73.9, 59.1),
        100.0: (97.1, 96.4, 88.1, 73.4, 57.3),
    },
    ("var", "linear"): {
        0.001: (96.8, 95.8, 84.4, 71.6, 58.9),
        1.0: (93.8, 94.6, 90.8, 82.8, 77.8),
        10.0: (92.0, 93.6, 91.1, 83.6, 75.5),
        100.0: (89.4, 92.1, 91.1, 84.9, 75.7),
    },
    ("base", "piecewise_linear"): {
        0.001: (96.8, 91.0, 71.4, 55.2, 24.4),
        1.0: (96.7, 90.2, 66.1, 53.0, 22.4),
        10.0: (96.9, 91.4, 64.9, 50.6, 24.4),
        100.0: (95.7, 91.3, 79.8, 60.2, 29.6),
    },
    ("rep", "piecewise_linear"): {
        0.001: (96.6, 95.7, 89.5, 71.1, 49.2),
        1.0: (96.8, 95.9, 87.4, 68.8, 51.6),
        10.0: (96.8, 95.9, 87.9, 69.7, 51.2),
        100.0: (95.3, 95.0, 90.3, 79.7, 55.7),
    },
    ("var", "piecewise_linear"): {
        0.001: (96.8, 95.5, 87.2, 65.8, 41.2),
        1.0: (96.6, 95.8, 87.9, 73.4, 57.1),
        10.0: (92.2, 92.6, 92.2, 87.5, 75.3),
        100.0: (80.3, 84.1, 86.2, 86.9, 78.3),
    },
}


def authors_table(epochs: int, hyper_epochs: int, more: int) -> tuple[Arm, ...]:
    """784-50-10, Adam with one rate, weights ranked in every layer; and our recipe for as many epochs, `ours`, which
    has the prior "ard", rates of its own that fall, a warm-up, and weights ranked over all layers.

    Args:
        epochs: Of direct runs.
        hyper_epochs: Of hypernetworks, with five lambda a batch.
        more: Starts of hypernetworks beside those of direct runs.
    """
    shared = {
        "network": "mlp",
        "network_args": {"hidden": [50]},
        "lambda_range": [min(AUTHORS_LAMBDAS), max(AUTHORS_LAMBDAS)],
        "lambdas": list(AUTHORS_LAMBDAS),
        "fractions": list(SHARES),
    }
    theirs = {
        **shared,
        "rho": -3.0,
        "learning_rate": 5e-4,
        "rho_learning_rate": 5e-4,
        "gradient_clip_value": 1.0,
        "warmup": 0.0,
        "shared_until": 0.0,
        "shared_knots": False,
        "schedule": "constant",
        "scope": "layer",
    }
    hyper = {"epochs": hyper_epochs, "lambdas_per_step": 5}
    found = []
    for name, (weights, prior) in AUTHORS.items():
        recipe = {**theirs, "weights": weights, "priors": [prior]}
        found.append(Arm(f"{name}", {**recipe, "epochs": epochs}, direct(AUTHORS_LAMBDAS), prior))
        kinds = (("linear", None), ("piecewise_linear", None))
        found.append(Arm(f"{name}, hypernetwork", {**recipe, **hyper}, kinds, prior, more))
    ours = {**shared, "rho_learning_rate": 6e-3}
    found.append(Arm("ours", {**ours, "epochs": epochs}, direct(AUTHORS_LAMBDAS)))
    found.append(Arm("ours, hypernetwork", {**ours, **hyper}, (("piecewise_linear", None),), more=more))
    return tuple(found)


EVIDENCE_LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)
EVIDENCE_PRIORS = ("fixed", "scaled", "empirical_bayes", "ard", "log_uniform")
EVIDENCE_KINDS = ("linear", "piecewise_linear", "low_rank", "mlp")


def evidence(epochs: int) -> tuple[Arm, ...]:
    """784-50-10 with every prior, directly and through every kind of hypernetwork, for as many steps."""
    settings = {
        "network": "mlp",
        "network_args": {"hidden": [50]},
        "prior_sd": 0.1**0.5,
        "lambda_range": [min(EVIDENCE_LAMBDAS), max(EVIDENCE_LAMBDAS)],
        "lambdas": list(EVIDENCE_LAMBDAS),
        "rho_learning_rate": 6e-3,
        "fractions": list(SHARES),
        "epochs": epochs,
        "batch_size": 128,
        # The improper prior's slope is steep where a weight dies.
        "gradient_clip": 1.0,
        # What a network of its own would have of J at a lambda: from where it is read off, on.
        "posterior_finetune_epochs": max(1, epochs // 4),
    }
    runs = (*direct(EVIDENCE_LAMBDAS), *((kind, None) for kind in EVIDENCE_KINDS))
    return tuple(Arm(prior, settings, runs, prior) for prior in EVIDENCE_PRIORS)


def convolutional(
    channels: tuple[int, ...], hidden: int, epochs: int, decays: tuple[float, ...] = (*DECAYS[1::2], 3000.0, 10_000.0)
) -> tuple[Arm, ...]:
    """A small network of convolutions with batch normalization: direct runs, a hypernetwork, the dense one."""
    shared = {
        "network": "cnn",
        "network_args": {"channels": list(channels), "hidden": hidden},
        "fractions": _fractions((1, 5, 10, 20, 50)),
        "finetune_epochs": 3,
        # By validation images and another seed, of batches of 32 and 128, rates of .001 to .01: near the best of each.
        "finetune_batch_size": 32,
        "finetune_learning_rate": 2e-3,
        "rho_learning_rate": 6e-3,
        "lambda_range": list(RANGE),
        "lambdas": [0.1, 1.0, 3.0],
        "batch_size": 128,
        "epochs": epochs,
        "knots": 3,
    }
    return (
        Arm("cnn, direct", shared, direct((0.03, 0.1, 1.0, 3.0))),
        Arm("cnn, hypernetwork", shared, (("piecewise_linear", None),)),
        Arm("cnn, dense", {**shared, **DENSE}, direct(decays), "fixed"),
    )


PRESETS = {
    "smoke": Setting((*lenet(2, 2, (1, 20, 50, 68, 100)), *small(2)), 400, 200),
    "cpu": Setting((*lenet(40, 57), *small(40))),
    "gpu": Setting((*lenet(100, 200), *small(100))),
    "seed": Setting(seed_experiment(50, 3)),
    "authors": Setting(authors_table(25, 50, 17)),
    "evidence": Setting(evidence(120), 10_000),
    # 1, 10 and 10,000 were run too: validation preferred 1,000 at every compression, and the rest fits an hour.
    "cnn": Setting(convolutional((16, 32), 64, 25, (100.0, 1000.0, 3000.0)), 10_000),
    "cnn-gpu": Setting(convolutional((48, 96, 192), 256, 100)),
}
SEEDS = {"smoke": 1, "cpu": 3, "gpu": 5, "seed": 3, "authors": 3, "evidence": 3, "cnn": 3, "cnn-gpu": 3}


def jobs(
    options: argparse.Namespace, presets: Mapping[str, Setting] = PRESETS
) -> dict[tuple[str, str, float | None, int], Job]:
    """By arm, kind, lambda and seed; seed by seed, so that what is timed runs side by side."""
    setting, found = presets[options.preset], {}
    device = "gpu" if "gpu" in options.preset else "cpu"
    for arm in setting.arms:
        config = {
            "data": data_section(options, setting.limit, setting.val_limit),
            "compress": arm.compress,
            "experiment": {"device": device, "threads": 1},
        }
        for seed, (kind, lam) in itertools.product(range(options.seeds + arm.more), arm.runs):
            at = "all" if lam is None else f"{lam:g}"
            name = f"s{seed}-{arm.name.replace(', ', '-').replace(' ', '-')}-{kind}-{at}"
            parameters = {"trial": name, "hypernet": kind, "lambda": lam, "prior": arm.prior, "seed": seed}
            found[arm.name, kind, lam, seed] = Job(name, "compress", config, parameters, (seed,))
    return found


def cost_jobs(options: argparse.Namespace, presets: Mapping[str, Setting] = PRESETS) -> list[Job]:
    """Of presets with LeNet-300-100: what a step of its hypernetwork costs."""
    setting = presets[options.preset]
    arms = [arm for arm in setting.arms if arm.name == "300-100, hypernetwork"]
    config = {
        "data": data_section(options, setting.limit, setting.val_limit),
        "experiment": {"device": "cpu", "threads": 1},
    }
    return [
        Job("cost", "compression_cost:cost", {**config, "compress": arm.compress}, {"trial": "cost", "seed": 0}, (-1,))
        for arm in arms
    ]
