"""A search with selection: what freezing weights of the supernet saves, and what the search loses by it.

    python examples/benchmarks/selection_search.py --preset cpu --data digits --output FILE.json
    python examples/benchmarks/selection_search.py --preset cpu --data mnist --root DATA --output FILE.json

HyperDARTS on the cell space, as it is and with `search.selection`, one search at a time, the arms of a seed one after
the other in an order that turns with the seed:

    full            all weights to the end
    full, shorter   the same with .85 of the epochs: what the time alone is worth that selection saves
    layer 0.5       of a fifth of the steps on half of the weights, whole layers by their gain; and 0.2
    prefix 0.5      the last half of the weights, so that the backward pass of a weight step ends before; and 0.2
    neuron 0.2      a fifth of the rows: of the gradients of a layer in which some go on nothing is saved here

Seconds are those of training, validation left out; accuracy is the mean over lambda of the mixture's on validation
data at the end. Target (issue "Which parameters to go on optimising", 3): at least 1.15 times as fast with no accuracy
lost, for the arm "prefix 0.5", which was named before the first run; and above the shorter search, which is as fast.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from typing import Any

from contract import STEMS, Target, data_section, half_width, parse, write_result
from workers import Job, Store, Workers

NAME = "selection_search"
FULL, SHORTER, NAMED = "full", "full, shorter", "prefix 0.5"
_SHORTER = 0.85
ARMS: dict[str, dict[str, Any] | None] = {
    FULL: None,
    SHORTER: None,
    "layer 0.5": {"active": 0.5, "granularity": "layer"},
    "layer 0.2": {"active": 0.2, "granularity": "layer"},
    "prefix 0.5": {"active": 0.5, "granularity": "prefix"},
    "prefix 0.2": {"active": 0.2, "granularity": "prefix"},
    "neuron 0.2": {"active": 0.2, "granularity": "neuron"},
}


@dataclass(frozen=True)
class Setting:
    """How large a preset is."""

    width: int
    limit: int | None
    val_limit: int | None
    epochs: int


PRESETS = {"smoke": Setting(4, 600, 100, 4), "cpu": Setting(16, 10_000, None, 20), "gpu": Setting(16, None, 5_000, 50)}
SEEDS = {"smoke": 1, "cpu": 5, "gpu": 5}
FIRST_SEED = 401


def job(options: argparse.Namespace, arm: str, seed: int, place: int) -> Job:
    """One search."""
    setting: Setting = PRESETS[options.preset]
    whole = options.data == "digits" and options.preset != "smoke"
    limits = (None, None) if whole else (setting.limit, setting.val_limit)
    epochs = round(_SHORTER * setting.epochs) if arm == SHORTER else setting.epochs
    section: dict[str, Any] = {"epochs": epochs, "warmup_epochs": max(1, epochs // 5), "lambdas": 3, "random": 0}
    if ARMS[arm] is not None:
        section["selection"] = {"criterion": "gain", "start": 0.2, **(ARMS[arm] or {})}
    config = {
        "space": {"name": "cell", "args": {"stem": STEMS[options.data], "width": setting.width}},
        "data": data_section(options, *limits),
        "strategy": {"name": "hyper_darts"},
        "search": section,
        "experiment": {"device": "gpu" if options.preset == "gpu" else "cpu", "threads": 1},
    }
    name = f"s{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
    return Job(name, "search", config, {"trial": f"search-{name}", "seed": seed}, (seed, place))


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    """What the issue asks for."""
    done = [row for row in rows if "error" not in row]

    def of(arm: str, name: str) -> dict[int, float]:
        return {row["seed"]: row[name] for row in done if row["arm"] == arm}

    mine, taken = of(NAMED, "val_accuracy"), of(NAMED, "training_seconds")
    full, seconds, shorter = of(FULL, "val_accuracy"), of(FULL, "training_seconds"), of(SHORTER, "val_accuracy")
    speeds = [seconds[seed] / taken[seed] for seed in mine if seed in full]
    gained, above = ([mine[seed] - theirs[seed] for seed in mine if seed in theirs] for theirs in (full, shorter))
    points = f"{NAMED}: points of validation accuracy against"
    return [
        Target("3", f"{NAMED}: times as fast", statistics.median(speeds) if speeds else None, 1.15, "higher"),
        Target("3", f"{points} full", statistics.fmean(gained) if gained else None, 0.0, "higher"),
        Target("3", f"{points} {SHORTER}", statistics.fmean(above) if above else None, 0.0, "higher"),
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line an arm, paired by seed with the full search."""
    done = [row for row in rows if "error" not in row]
    full = {row["seed"]: row for row in done if row["arm"] == FULL}
    print(f"\n{'arm':<14}{'accuracy, %':>14}{'against full':>22}{'s':>8}{'times as fast':>15}")
    for arm in ARMS:
        mine = [row for row in done if row["arm"] == arm and row["seed"] in full]
        if not mine:
            continue
        gained = [row["val_accuracy"] - full[row["seed"]]["val_accuracy"] for row in mine]
        speed = statistics.median(full[row["seed"]]["training_seconds"] / row["training_seconds"] for row in mine)
        width = half_width(gained)
        shown = f"{statistics.fmean(gained):+.2f}" + ("" if width is None else f" +- {width:.2f}")
        accuracy = statistics.fmean(row["val_accuracy"] for row in mine)
        seconds = statistics.fmean(row["training_seconds"] for row in mine)
        print(f"{arm:<14}{accuracy:>14.2f}{shown:>22}{seconds:>8.0f}{speed:>15.2f}")
    print()


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS, workers=None)
    store, seeds = Store(options.output), range(FIRST_SEED, FIRST_SEED + options.seeds)
    jobs = {}
    for turn, seed in enumerate(seeds):
        order = [*ARMS][turn % len(ARMS) :] + [*ARMS][: turn % len(ARMS)]
        jobs |= {(arm, seed): job(options, arm, seed, place) for place, arm in enumerate(order)}
    with Workers(store, options.output.with_suffix(".work"), 1) as workers:
        outcomes = workers.run(jobs.values())
    rows: list[dict[str, Any]] = []
    for (arm, seed), one in jobs.items():
        outcome, head = outcomes[one.name], {"arm": arm, "seed": seed}
        if "error" in outcome:
            rows.append({**head, "error": outcome["error"]})
            continue
        result = outcome["result"]
        numbers = {
            "val_accuracy": round(100 * result["search"]["val_accuracy"], 3),
            "training_seconds": result["stage_seconds"]["training"],
        }
        rows.append({**head, **numbers, "milliseconds": result["search"].get("selection", {}).get("milliseconds")})
    found = targets(rows)
    complete = all("error" not in row for row in rows)
    write_result(options, NAME, rows, found, seconds=store.seconds, workers=workers.n, complete=complete)
    print_table(rows)
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
