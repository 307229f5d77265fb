"""What `compression.py` trains: networks, recipes and jobs, by preset."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from contract import data_section
from workers import Job

LAMBDAS = (0.1, 0.3, 1.0, 1.7, 3.0)
RANGE = (0.1, 3.0)
COMPRESSIONS = (1, 10, 20, 50, 68, 100)
SHARES = (0.0, 0.5, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Arm:
    """Runs of one network by one recipe.

    Attributes:
        name: For rows and tables.
        compress: Section of the configuration.
        runs: Pairs of the kind of hypernetwork and of lambda, None for all of a range.
        prior: Of the weights.
    """

    name: str
    compress: dict[str, Any]
    runs: tuple[tuple[str, float | None], ...]
    prior: str = "ard"


@dataclass(frozen=True)
class Setting:
    """How large a preset is."""

    arms: tuple[Arm, ...]
    limit: int | None = None
    val_limit: int | None = 5_000
    data: dict[str, Any] = field(default_factory=dict)


def direct(lambdas: tuple[float, ...]) -> tuple[tuple[str, float | None], ...]:
    """A run for every lambda."""
    return tuple(("constant", lam) for lam in lambdas)


def _fractions(compressions: tuple[int, ...]) -> list[float]:
    return [1 - 1 / c for c in compressions]


def lenet(epochs: int, hyper_epochs: int, compressions: tuple[int, ...] = COMPRESSIONS) -> tuple[Arm, ...]:
    """LeNet-300-100: five direct runs, one hypernetwork, and the dense network pruned by magnitude."""
    shared = {
        "network": "mlp",
        "network_args": {"hidden": [300, 100]},
        "fractions": _fractions(compressions),
        "finetune_epochs": 3,
        "rho_learning_rate": 6e-3,
        "lambda_range": list(RANGE),
        "lambdas": list(LAMBDAS),
    }
    hyper = {**shared, "epochs": hyper_epochs}
    dense = {**shared, "weights": "point", "epochs": epochs}
    return (
        Arm("300-100, direct", {**shared, "epochs": epochs}, direct(LAMBDAS)),
        Arm("300-100, hypernetwork", hyper, (("piecewise_linear", None),)),
        Arm("300-100, dense", dense, direct(DECAYS), "fixed"),
    )


def small(epochs: int) -> tuple[Arm, ...]:
    """The networks of the seed: variational, and dense with the decay that validation prefers."""
    found = []
    for hidden in (100, 50):
        shared = {"network": "mlp", "network_args": {"hidden": [hidden]}, "fractions": list(SHARES), "epochs": epochs}
        name = f"784-{hidden}-10"
        found.append(Arm(name, {**shared, "rho_learning_rate": 6e-3}, direct((0.1, 0.3, 1.0))))
        found.append(Arm(f"{name}, dense", {**shared, "weights": "point"}, direct(DECAYS), "fixed"))
    return tuple(found)


# Of the baseline: lambda / (2 m) sum w^2 is added to the loss of an object.
DECAYS = (0.0, 0.3, 1.0, 3.0, 10.0)

PRESETS = {
    "smoke": Setting((*lenet(2, 2, (1, 20, 50, 68, 100)), *small(2)), 400, 200),
    "cpu": Setting((*lenet(40, 60), *small(40))),
    "gpu": Setting((*lenet(100, 200), *small(100))),
}
SEEDS = {"smoke": 1, "cpu": 3, "gpu": 5}


def jobs(options: argparse.Namespace) -> dict[tuple[str, str, float | None, int], Job]:
    """By arm, kind, lambda and seed; seed by seed, so that what is timed runs side by side."""
    setting = PRESETS[options.preset]
    found = {}
    for seed in range(options.seeds):
        for arm in setting.arms:
            config = {
                "data": data_section(options, setting.limit, setting.val_limit, **setting.data),
                "compress": arm.compress,
                "experiment": {"device": "gpu" if options.preset == "gpu" else "cpu", "threads": 1},
            }
            for kind, lam in arm.runs:
                at = "all" if lam is None else f"{lam:g}"
                name = f"s{seed}-{arm.name.replace(', ', '-').replace(' ', '-')}-{kind}-{at}"
                parameters = {"trial": name, "hypernet": kind, "lambda": lam, "prior": arm.prior, "seed": seed}
                found[arm.name, kind, lam, seed] = Job(name, "compress", config, parameters, (seed,))
    return found
