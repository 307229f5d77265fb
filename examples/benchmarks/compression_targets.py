"""What the issue asks of `compression.py` on LeNet-300-100 and the small networks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from compression_arms import LAMBDAS, WIDE
from compression_rows import Curves
from contract import Target

DIRECT, HYPER = "300-100, direct", "300-100, hypernetwork"


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    """What the issue asks for."""
    direct, hyper = Curves(rows, DIRECT), Curves(rows, HYPER)
    limits = ((50, False, 2.25), (50, True, 2.05), (68, False, 2.45), (68, True, 2.15), (100, True, 2.65))
    found = [_at("2a", "LeNet, direct", direct, c, tuned, limit) for c, tuned, limit in limits]
    found.append(_at("2a", "LeNet, direct, stretch", direct, 68, True, 1.92))
    longest = max((row["seconds"] for row in direct.rows), default=None)
    found.append(Target("2a", "seconds of the longest direct run", longest, 300, "lower"))
    for net, limits_of in (("784-100-10", (2.1, 2.2)), ("784-50-10", (2.75, 3.0))):
        mine, dense = Curves(rows, net), Curves(rows, f"{net}, dense")
        for share, limit in zip((0.8, 0.9), limits_of, strict=True):
            best = mine.best(share)
            what = f"test error, {net}, {share:.0%} removed"
            found.append(Target("2b", what, best and best[1], limit, "lower"))
        ours, theirs = mine.best(0.0), dense.best(0.0)
        gap = ours[1] - theirs[1] if ours and theirs else None
        found.append(Target("2b", f"test error, {net}, whole: ours - tuned dense", gap, 0.0, "lower"))
    gaps = [_minus(hyper.mean(lam, 0.0, "test"), direct.mean(lam, 0.0, "test")) for lam in LAMBDAS]
    largest = None if None in gaps else max(gap for gap in gaps if gap is not None)
    found.append(Target("2c", "whole: largest gap to a direct run, over lambda", largest, 0.2, "lower"))
    found.append(_at("2c", "LeNet, hypernetwork", hyper, 20, True, 1.9))
    ours, theirs = hyper.best(1 - 1 / 50, True), direct.best(1 - 1 / 50, True)
    gap = ours[1] - theirs[1] if ours and theirs else None
    found.append(Target("2c", "50 x, fine-tuned: gap to the direct run", gap, 0.25, "lower"))
    found.append(_at("2c", "LeNet, hypernetwork, stretch", hyper, 68, True, 1.92))
    return [*found, *_fewer(Curves(rows, "300-100, wide")), *_cost(direct, hyper)]


def _at(name: str, what: str, curves: Curves, times: int, tuned: bool, limit: float) -> Target:
    best = curves.best(1 - 1 / times, tuned)
    after = ", fine-tuned" if tuned else ""
    return Target(name, f"test error, {what}, {times} x{after}", best and best[1], limit, "lower")


def _fewer(wide: Curves) -> Iterator[Target]:
    kept = [wide.mean_of(lam, "kept") for lam in WIDE]
    known = [k for k in kept if k is not None]
    falls = [b / a for a, b in itertools.pairwise(known)]
    complete = len(known) == len(kept)
    yield Target(
        "2d", "kept weights: largest ratio of neighbouring lambda", max(falls) if complete else None, 0.999, "lower"
    )
    yield Target("2d", "kept weights: first / last lambda", known[0] / known[-1] if complete else None, 10, "higher")


def _cost(direct: Curves, hyper: Curves) -> Iterator[Target]:
    def per_epoch(row: dict[str, Any]) -> float:
        return float(row["training_seconds"]) / int(row["epochs"])

    runs = {row["seed"]: row for row in hyper.rows}
    ones = {seed: [row for row in direct.rows if row["seed"] == seed] for seed in runs}
    steps = [per_epoch(row) / statistics.fmean(map(per_epoch, ones[seed])) for seed, row in runs.items() if ones[seed]]
    wholes = [
        row["training_seconds"] / sum(one["training_seconds"] for one in ones[seed])
        for seed, row in runs.items()
        if len(ones[seed]) == len(LAMBDAS)
    ]
    n = hyper.rows[0]["lambdas_per_step"] if hyper.rows else 1
    yield Target("2e", "step / (lambda per step x direct step)", _median(steps, lambda s: s / n), 1.3, "lower")
    yield Target("2e", "hypernetwork / five direct runs", _median(wholes), 0.35, "lower")


def _median(values: list[float], change: Callable[[float], float] = lambda value: value) -> float | None:
    return change(statistics.median(values)) if values else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
