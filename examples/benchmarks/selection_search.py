"""A search with selection: what freezing weights of the supernet saves, and what the search loses by it.

    python examples/benchmarks/selection_search.py --preset cpu --data digits --seeds 15 --output FILE.json
    python examples/benchmarks/selection_search.py --preset cpu --data mnist --root DATA --output FILE.json

HyperDARTS on the cell space, as it is and with `search.selection`, one search at a time, the arms of a seed one after
the other in an order that turns with the seed:

    full            all weights to the end
    full, shorter   the same with so many whole epochs fewer that it takes as long as "prefix 0.5" or, by less than an
                    epoch, longer; a fifth of them warm up: what the time is worth that selection saves; it runs last
    layer 0.5       of a fifth of the steps on half of the weights, whole layers by their gain; and 0.2
    prefix 0.5      the last half of the weights, so that the backward pass of a weight step ends before; and 0.2
    neuron 0.2      a fifth of the rows: of the gradients of a layer in which some go on nothing is saved here

Of other data than digits, whose searches take minutes, there are "full", "prefix 0.5" and the shorter one. Seconds are
those of training, validation left out; accuracy is the mean over lambda of the mixture's on validation data at the end,
of digits 216 objects, which is why there are more seeds. Target (3): at least 1.15 times as fast with the same
accuracy, for the arm "prefix 0.5", which was named before the first run: at most .2 points lost, as of a training, and
above the shorter search, which is as fast; both by the low ends of 95 % intervals over seeds. On the digits such an
interval is wider than that: half of it is some .9 points of 15 seeds, so that no loss at all is not shown there.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from contract import STEMS, Target, data_section, half_width, parse, write_result
from workers import Job, Outcome, Store, Workers

NAME = "selection_search"
FULL, SHORTER, NAMED = "full", "full, shorter", "prefix 0.5"
ARMS: dict[str, dict[str, Any] | None] = {
    FULL: None,
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


PRESETS = {"smoke": Setting(4, 600, 100, 4), "cpu": Setting(16, 10_000, 5_000, 20), "gpu": Setting(16, None, 5_000, 50)}
SEEDS = {"smoke": 1, "cpu": 10, "gpu": 10}
FIRST_SEED = 401
# Points within which accuracies are the same.
_SAME = 0.2


def job(options: argparse.Namespace, arm: str, seed: int, place: int, share: float = 1.0) -> Job:
    """One search, of a share of the epochs."""
    setting: Setting = PRESETS[options.preset]
    whole = options.data == "digits" and options.preset != "smoke"
    limits = (None, None) if whole else (setting.limit, setting.val_limit)
    epochs = max(2, math.ceil(share * setting.epochs - 1e-9))
    section: dict[str, Any] = {"epochs": epochs, "warmup_epochs": max(1, epochs // 5), "lambdas": 3, "random": 0}
    if (selection := ARMS.get(arm)) is not None:
        section["selection"] = {"criterion": "gain", "start": 0.2, **selection}
    config = {
        "space": {"name": "cell", "args": {"stem": STEMS[options.data], "width": setting.width}},
        "data": data_section(options, *limits),
        "strategy": {"name": "hyper_darts"},
        "search": section,
        "experiment": {"device": "gpu" if options.preset == "gpu" else "cpu", "threads": 1},
    }
    name = f"s{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
    return Job(name, "search", config, {"trial": f"search-{name}", "seed": seed}, (seed, place))


def arms_of(options: argparse.Namespace) -> list[str]:
    """Those that are run beside the shorter one."""
    return [*ARMS] if options.data == "digits" else [FULL, NAMED]


def by_seed(rows: list[dict[str, Any]], arm: str, name: str) -> dict[int, float]:
    """A figure of the searches of an arm that ended well."""
    return {row["seed"]: row[name] for row in rows if row["arm"] == arm and "error" not in row}


def speed(rows: list[dict[str, Any]], arm: str) -> float | None:
    """Seconds of the full search over those of an arm: the median over seeds whose two ran in one go."""
    full, mine = (by_seed(rows, name, "training_seconds") for name in (FULL, arm))
    runs, theirs = by_seed(rows, arm, "run"), by_seed(rows, FULL, "run")
    # Seconds of two runs are of two loads of the machine.
    speeds = [full[seed] / mine[seed] for seed in mine if seed in full and runs[seed] == theirs[seed]]
    return statistics.median(speeds) if speeds else None


def gained(rows: list[dict[str, Any]], arm: str, than: str) -> dict[str, Any] | None:
    """Points of validation accuracy, paired by seed: mean, half of the 95 % interval, seeds."""
    mine, theirs = (by_seed(rows, name, "val_accuracy") for name in (arm, than))
    found = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    return {"mean": statistics.fmean(found), "half_width": half_width(found), "n": len(found)} if found else None


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    """What is aimed at."""
    found = [Target("3", f"{NAMED}: times as fast", speed(rows, NAMED), 1.15, "higher")]
    for than, least in ((FULL, -_SAME), (SHORTER, 0.0)):
        gap, times = gained(rows, NAMED, than), speed(rows, than)
        faster = f" ({times:.2f} times as fast as {FULL})" if than == SHORTER and times else ""
        what = f"{NAMED}: points of validation accuracy against {than}{faster}"
        sure = None if gap is None or gap["half_width"] is None else gap["mean"] - gap["half_width"]
        found.append(Target("3", f"{what}, low end of 95 %", sure, least, "higher"))
    return found


def intervals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every arm against the full search, and of the named one against the shorter."""
    pairs = [(arm, FULL) for arm in (*ARMS, SHORTER) if arm != FULL] + [(NAMED, SHORTER)]
    found = [{"arm": arm, "than": than, **(gained(rows, arm, than) or {})} for arm, than in pairs]
    return [row for row in found if "mean" in row]


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line an arm, paired by seed with the full search."""
    print(f"\n{'arm':<14}{'accuracy, %':>14}{'against full':>22}{'s':>8}{'times as fast':>15}")
    for arm in (*ARMS, SHORTER):
        accuracy, seconds = (by_seed(rows, arm, name) for name in ("val_accuracy", "training_seconds"))
        gap, times = gained(rows, arm, FULL), speed(rows, arm)
        if gap is None:
            continue
        shown = f"{gap['mean']:+.2f}" + ("" if gap["half_width"] is None else f" +- {gap['half_width']:.2f}")
        means = (statistics.fmean(values.values()) for values in (accuracy, seconds))
        print(
            f"{arm:<14}{next(means):>14.2f}{shown:>22}{next(means):>8.0f}{'-' if times is None else f'{times:.2f}':>15}"
        )
    print()


def rows_of(jobs: dict[tuple[str, int], Job], outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """A row for every search."""
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
        rows.append(
            {
                **head,
                "run": outcome["run"],
                **numbers,
                # Of the whole job: less than 1 where something ran beside it.
                "processor_share": round(outcome["cpu_seconds"] / outcome["seconds"], 3),
                "milliseconds": result["search"].get("selection", {}).get("milliseconds"),
            }
        )
    return rows


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS, workers=None)
    store, seeds = Store(options.output), range(FIRST_SEED, FIRST_SEED + options.seeds)
    jobs, arms = {}, arms_of(options)
    for turn, seed in enumerate(seeds):
        order = arms[turn % len(arms) :] + arms[: turn % len(arms)]
        jobs |= {(arm, seed): job(options, arm, seed, place) for place, arm in enumerate(order)}
    with Workers(store, options.output.with_suffix(".work"), 1) as workers:
        # A process has costs of its own at its first search.
        first = job(options, FULL, FIRST_SEED - 1, -1, 0.1)
        first = replace(first, parameters={**first.parameters, "begun": time.time()})
        rows = rows_of(jobs, workers.run([first, *jobs.values()]))
        if failed := [f"{row['arm']} of seed {row['seed']}" for row in rows if "error" in row]:
            print(f"{', '.join(failed)} failed: the shorter search is chosen by all seconds; run it again")
            return 1
        share = 1 / max(1.0, speed(rows, NAMED) or 1.0)
        shorter = {(SHORTER, seed): job(options, SHORTER, seed, 0, share) for seed in seeds}
        rows += rows_of(shorter, workers.run(shorter.values()))
    found = targets(rows)
    complete = all("error" not in row for row in rows)
    more: dict[str, Any] = {"seconds": store.seconds, "workers": workers.n, "complete": complete}
    write_result(options, NAME, rows, found, **more, intervals=intervals(rows))
    print_table(rows)
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
