"""What the rows of `joint.py` say: losses against compressions, what is read off, and seconds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from contract import Target

# Points of validation accuracy that may be lost.
LOSS = 0.3
FURTHER = "joint, trained on"
ARMS = ("structure", "weights", "random", "separate", "joint", FURTHER)


def references(rows: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """By seed: means of the trainings of the largest cell."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["arm"] == "reference" and "error" not in row:
            found[row["seed"]].append(row)
    names = ("params", "val_accuracy", "test_accuracy")
    return {seed: {name: statistics.fmean(row[name] for row in mine) for name in names} for seed, mine in found.items()}


def points(rows: list[dict[str, Any]], arm: str) -> list[dict[str, float]]:
    """Means over seeds of every lambda and share of an arm that all seeds have: losses in points, compression."""
    reference = references(rows)
    grouped = defaultdict(list)
    for row in rows:
        if row["arm"] == arm and "error" not in row and row["params"] and row["seed"] in reference:
            grouped[row["cell"], row["lambda"], round(row["fraction"], 4)].append(row)
    found = []
    for (_, lam, fraction), mine in grouped.items():
        if len(mine) < len(reference):
            continue
        losses = {
            part: statistics.fmean(reference[row["seed"]][f"{part}_accuracy"] - row[f"{part}_accuracy"] for row in mine)
            for part in ("val", "test")
        }
        lost = [reference[row["seed"]]["test_accuracy"] - row["test_accuracy"] for row in mine]
        losses["test_se"] = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
        times = statistics.geometric_mean(reference[row["seed"]]["params"] / row["params"] for row in mine)
        found.append({"lambda": lam or 0.0, "fraction": fraction, "compression": times, **losses})
    return found


def best(rows: list[dict[str, Any]], arm: str) -> dict[str, float] | None:
    """The point of the largest compression whose loss on validation data is small enough."""
    good = [point for point in points(rows, arm) if point["val"] <= LOSS]
    return max(good, key=lambda point: point["compression"], default=None)


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    """What is aimed at."""
    found = {arm: best(rows, arm) for arm in ARMS}
    result = []
    for other in ("structure", "weights"):
        mine, theirs = found["joint"], found[other]
        ratio = None if mine is None else mine["compression"] / (theirs["compression"] if theirs else 1.0)
        result.append(Target("5", f"compression, joint / {other} alone, at most {LOSS} lost", ratio, 1.0, "higher"))
    lost = None if found["joint"] is None else found["joint"]["test"]
    return [*result, Target("5", "points of test accuracy that joint loses there", lost, LOSS, "lower")]


def paired(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the separate networks those whose cell has the place, by size, that their lambda has: the largest cell at the
    smallest lambda, and so on, as joint networks go from the largest to the smallest."""
    found = []
    for seed in {row["seed"] for row in rows}:
        mine = [row for row in rows if row["seed"] == seed]
        lams = sorted({row["lambda"] for row in mine})
        sizes = {row["cell"]: row["params"] or 0 for row in mine if row["lambda"] == lams[0]}
        cells = sorted(sizes, key=lambda cell: -sizes[cell])
        places = dict(zip(cells, lams, strict=False))
        found += [row for row in mine if places.get(row["cell"]) == row["lambda"]]
    return found


def seconds(rows: list[dict[str, Any]], arm: str) -> float:
    """Of all that an arm takes, by seed: of cells of a search the search too, and of equal cells, which are one job,
    one; mean over seeds."""
    arms = {arm, "search"} if arm in ("structure", "separate") else {arm}
    runs = {(row["seed"], row["job"]): row["seconds"] for row in rows if row["arm"] in arms and "seconds" in row}
    seeds = {seed for seed, _ in runs}
    return sum(runs.values()) / len(seeds) if seeds else float("nan")


def print_tables(rows: list[dict[str, Any]]) -> None:
    """The smallest networks that are good enough; and what is read off the joint search and the separate ones."""
    print(f"\nlargest compression with at most {LOSS} points lost on validation data")
    for arm in (arm for arm in ARMS if any(row["arm"] == arm for row in rows)):
        point = best(rows, arm)
        said = "none"
        if point is not None:
            said = f"{point['compression']:>6.1f} x, test loss {point['test']:+.2f} +- {point['test_se']:.2f}"
        print(f"  {arm:<18}{said:<42}{seconds(rows, arm):.0f} s a seed")
    print(f'\nread off without a step, or trained on ("{FURTHER}"); test data')
    heads = ("lambda", "accuracy", "NLL", "ECE", "drawn NLL", "parameters", "above 1 sd")
    print(f"{'arm':<18}" + "".join(f"{name:>12}" for name in heads))
    for arm in ("joint", FURTHER, "separate", "weights"):
        mine = [row for row in rows if row["arm"] == arm and "predictive" in row and row["params"]]
        if arm == "separate":
            mine = paired(mine)
        for lam in sorted({row["lambda"] for row in mine}):
            at = [row for row in mine if row["lambda"] == lam]
            numbers = [
                statistics.fmean(row[key] for row in at)
                for key in ("raw_test_accuracy", "test_nll", "test_ece", "params", "z_above_1")
            ]
            drawn = statistics.fmean(row["predictive"]["nll"] for row in at)
            accuracy, nll, ece, size, left = numbers
            cells = (f"{lam:.3g}", f"{accuracy:.2f}", f"{nll:.3f}", f"{ece:.3f}", f"{drawn:.3f}", f"{size:.0f}")
            print(f"{arm:<18}" + "".join(f"{cell:>12}" for cell in (*cells, f"{left:.0f}")))
    print()
