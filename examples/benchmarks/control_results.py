"""Rows, comparisons, targets and tables of the benchmark of complexity control."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from contract import Target
from front import Point, Reference, chosen_hypervolume, hypervolume, paired
from workers import Job, Outcome

ARMS = ("hyper", "hyper-4", "penalty", "random", "random-time", "fixed", "l1", "cost")
# What is subtracted from what. There is a limit for the first three.
PAIRS = (
    ("hyper", "random"),
    ("hyper-4", "l1"),
    ("hyper-4", "cost"),
    ("hyper", "random-time"),
    ("hyper", "fixed"),
    ("penalty", "random"),
)

Row = dict[str, Any]


def decay(search: Outcome, n_validation: int) -> list[float]:
    """By position of lambda: how many binomial standard errors the final accuracy lies under its best checkpoint."""
    result = []
    names = [name for name in search["epochs"][-1] if name.startswith("val_accuracy_lambda")] or ["val_accuracy"]
    for name in sorted(names):
        values = [row[name] for row in search["epochs"]]
        best = max(values)
        # An accuracy of 1 has no binomial error, but one object more or less is always chance.
        variance = max(best * (1 - best), 1 / n_validation)
        result.append(round((best - values[-1]) / math.sqrt(variance / n_validation), 3))
    return result


def search_seconds(search: Outcome) -> float:
    """Seconds of a search without what is read off afterwards: accuracies at every lambda are a diagnosis."""
    result = search["result"]["search"]
    return float(result["seconds"] - result.get("reading_seconds", 0.0))


def search_row(job: Job, outcome: Outcome, n_validation: int) -> Row:
    """A search in the result file."""
    result = outcome["result"]
    rows, search = result["architectures"], result["search"]
    return {
        "kind": "search",
        "arm": job.name.partition("-")[2],
        "seed": search["seed"],
        "strategy": job.config["strategy"],
        "seconds": round(search_seconds(outcome), 2),
        "reading_seconds": search.get("reading_seconds", 0.0),
        "cpu_seconds": outcome["cpu_seconds"],
        "steps": search["steps"],
        "optimizer_steps_after_search": search["optimizer_steps_after_search"],
        "lambda_range": search["lambda_range"],
        "sizes": [row["params"] for row in rows],
        "curve_sizes": [row["params"] for row in result.get("curve", [])],
        "one_hot_accuracy": _rounded(row.get("one_hot_accuracy") for row in rows),
        "mixture_accuracy": _rounded(row.get("mixture_accuracy") for row in rows),
        "decay_in_standard_errors": decay(outcome, n_validation),
    }


def front_rows(reference: Reference, seed: int, arms: dict[str, list[Outcome]]) -> list[Row]:
    """Trainings and fronts of a seed."""
    rows: list[Row] = []
    for arm, outcomes in arms.items():
        results = [outcome["result"] for outcome in outcomes]
        points = [Point(r["params"], r["test_accuracy"]) for r in results]
        if arm not in ("hyper-4", "random-time"):  # parts of another arm, or more of it
            rows += [_network(arm, seed, outcome) for outcome in outcomes]
        if arm == "random-time":
            rows += [_network(arm, seed, outcome) for outcome in outcomes[len(arms["random"]) :]]
        rows.append(
            {
                "kind": "front",
                "arm": arm,
                "seed": seed,
                "trainings": len(points),
                "distinct_sizes": len({point.params for point in points}),
                "sizes": [min(p.params for p in points), max(p.params for p in points)],
                "best_accuracy": round(max(p.accuracy for p in points), 4),
                "seconds": round(sum(o["seconds"] for o in outcomes), 1),
                "hypervolume": round(hypervolume(points, reference), 5),
                "chosen_hypervolume": round(
                    chosen_hypervolume(points, [r["val_accuracy"] for r in results], reference), 5
                ),
            }
        )
    return rows


def _network(arm: str, seed: int, outcome: Outcome) -> Row:
    result = outcome["result"]
    return {
        "kind": "network",
        "arm": arm,
        "seed": seed,
        "name": outcome["name"],
        "params": result["params"],
        "macs": result["macs"],
        "val_accuracy": round(result["val_accuracy"], 4),
        "test_accuracy": round(result["test_accuracy"], 4),
        "seconds": outcome["seconds"],
    }


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]


def comparison_rows(rows: Sequence[Row]) -> list[Row]:
    """Hypervolume of one arm minus that of another, paired by seed."""
    result = []
    for first, second in PAIRS:
        for measure in ("hypervolume", "chosen_hypervolume"):
            a, b = _by_seed(rows, first, measure), _by_seed(rows, second, measure)
            difference = paired([a[seed] for seed in sorted(a)], [b[seed] for seed in sorted(a)])
            result.append(
                {
                    "kind": "comparison",
                    "first": first,
                    "second": second,
                    "measure": measure,
                    "mean": round(difference.mean, 5),
                    "sd": round(difference.sd, 5),
                    "se": round(difference.se, 5),
                    "seeds": difference.n,
                }
            )
    return result


def _by_seed(rows: Sequence[Row], arm: str, measure: str) -> dict[int, float]:
    return {row["seed"]: row[measure] for row in rows if row["kind"] == "front" and row["arm"] == arm}


def _searches(rows: Sequence[Row], arm: str) -> list[Row]:
    return [row for row in rows if row["kind"] == "search" and row["arm"] == arm]


def growth(sizes: Sequence[int]) -> float:
    """The largest step upwards along lambda, in parameters; 0 if sizes never grow."""
    return max((float(after - before) for before, after in pairwise(sizes) if after > before), default=0.0)


def coarse(sizes: Sequence[int], n: int = 8) -> list[int]:
    """Sizes on the coarse grid of lambda (all of them where there are no more)."""
    return list(sizes) if len(sizes) <= n else [sizes[round(i * (len(sizes) - 1) / (n - 1))] for i in range(n)]


def targets(rows: Sequence[Row]) -> list[Target]:
    """Targets 3a to 3e, each in the worst seed unless it says otherwise."""
    target, penalty = _searches(rows, "target"), _searches(rows, "penalty")
    steps = max(max(growth(row["sizes"]), growth(row["curve_sizes"])) for row in target)
    distinct = min(len({*coarse(row["sizes"])}) for row in target)
    ratio = min(max(row["sizes"]) / min(row["sizes"]) for row in target)
    penalised = min(len({*row["sizes"]}) for row in penalty)
    found = [
        Target("3a target", "largest growth of a size with lambda, all positions read off", steps, 0, "lower"),
        Target("3a target", "distinct sizes over 8 lambda", distinct, 4, "higher"),
        Target("3a target", "largest / smallest size", ratio, 4, "higher"),
        Target("3a penalty", "distinct sizes over 8 lambda, automatic range", penalised, 3, "higher"),
    ]
    for first, second in PAIRS[:3]:
        row = next(r for r in rows if r["kind"] == "comparison" and (r["first"], r["second"]) == (first, second))
        if second == "random":
            limit, said = 0.0, "mean over seeds"
        else:
            limit, said = -row["se"], "mean over seeds, less one standard error of the difference"
        found.append(Target("3b", f"hypervolume of {first} - {second}, {said}", row["mean"], limit, "higher"))
    shares = {group: _share(rows, group) for group in ("l1", "cost")}
    for group, share in shares.items():
        found.append(
            Target("3c", f"search seconds / those of the separate {group}, mean over seeds", share, 1 / 3, "lower")
        )
    worst = max(max(row["decay_in_standard_errors"]) for row in target)
    found.append(
        Target("3d", "final accuracy under its best checkpoint, in standard errors, worst lambda", worst, 1, "lower")
    )
    large = [row["one_hot_accuracy"][0] for row in target]
    every = [value for row in target for value in row["one_hot_accuracy"]]
    found += [
        Target("3e", "one-hot accuracy without retraining, large end", _least(large), 0.9, "higher"),
        Target("3e stretch", "one-hot accuracy without retraining, every lambda", _least(every), 0.95, "higher"),
        Target("3c stretch", "search seconds / those of the separate searches", max(shares.values()), 0.2, "lower"),
    ]
    return found


def _share(rows: Sequence[Row], group: str) -> float:
    ratios = []
    for row in _searches(rows, "target"):
        others = [r for r in rows if r["kind"] == "search" and r["seed"] == row["seed"] and r["arm"].startswith(group)]
        ratios.append(row["seconds"] / sum(r["seconds"] for r in others))
    return statistics.fmean(ratios)


def _least(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return min(measured) if measured and len(measured) == len(values) else None


def print_tables(rows: Sequence[Row]) -> None:
    """A line per seed and arm, then means over seeds and comparisons."""
    print(f"\n{'seed':<6}{'arm':<13}{'trained':>8}{'sizes':>16}{'best %':>9}{'HV':>9}{'HV chosen':>11}{'seconds':>9}")
    for row in rows:
        if row["kind"] == "front":
            sizes = f"{row['sizes'][0]}-{row['sizes'][1]}"
            print(
                f"{row['seed']:<6}{row['arm']:<13}{row['trainings']:>8}{sizes:>16}{100 * row['best_accuracy']:>9.2f}"
                f"{row['hypervolume']:>9.4f}{row['chosen_hypervolume']:>11.4f}{row['seconds']:>9.0f}"
            )
    print()
    for arm in ARMS:
        values = list(_by_seed(rows, arm, "hypervolume").values())
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{'mean':<6}{arm:<13}{statistics.fmean(values):>50.4f} ± {sd:.4f}")
    print()
    for row in rows:
        if row["kind"] == "comparison":
            pair = f"{row['first']} - {row['second']}"
            print(f"{pair:<24}{row['measure']:<20}{row['mean']:+.4f} ± {row['sd']:.4f} (se {row['se']:.4f})")
    print()
    for row in rows:
        if row["kind"] == "search":
            print(
                f"{row['seed']:<6}{row['arm']:<9}{row['seconds']:>7.1f} s  sizes {_runs(row['sizes'])}"
                + (f"  one-hot {_span(row['one_hot_accuracy'])}" if None not in row["one_hot_accuracy"] else "")
            )
    print()


def _runs(sizes: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1][1] += 1
        else:
            runs.append([size, 1])
    return " ".join(f"{size}x{n}" if n > 1 else str(size) for size, n in runs)


def _span(values: Sequence[float]) -> str:
    return f"{100 * values[0]:.1f} % at the large end, at least {100 * min(values):.1f} %"
