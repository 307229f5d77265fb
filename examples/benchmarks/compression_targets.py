"""What is aimed at with `compression.py` on LeNet-300-100 and the small networks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from compression_arms import LAMBDAS, WIDE
from compression_rows import Curves
from contract import Target

DIRECT, HYPER = "300-100, direct", "300-100, hypernetwork"


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    """What is aimed at."""
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
        inside = None if theirs is None else float(0 < theirs[0] < max(dense.lambdas))
        found.append(
            Target("2b", f"{net}, dense: its decay is none of the ends that were tried", inside, 1.0, "higher")
        )
    gaps = [_minus(hyper.mean(lam, 0.0, "test"), direct.mean(lam, 0.0, "test")) for lam in LAMBDAS]
    largest = None if None in gaps else max(gap for gap in gaps if gap is not None)
    found.append(Target("2c", "whole: largest gap to a direct run, over lambda", largest, 0.2, "lower"))
    found.append(_at("2c", "LeNet, hypernetwork", hyper, 20, True, 1.9))
    ours, theirs = hyper.best(1 - 1 / 50, True), direct.best(1 - 1 / 50, True)
    gap = ours[1] - theirs[1] if ours and theirs else None
    found.append(Target("2c", "50 x, fine-tuned: gap to the direct run", gap, 0.25, "lower"))
    found.append(_at("2c", "LeNet, hypernetwork, stretch", hyper, 68, True, 1.92))
    found += [
        *_fewer(hyper, LAMBDAS, "lambda .1 to 3"),
        *_fewer(Curves(rows, "300-100, wide"), WIDE, "lambda .1 to 30"),
    ]
    return [*found, *_cost(rows, direct, hyper)]


def _at(name: str, what: str, curves: Curves, times: int, tuned: bool, limit: float) -> Target:
    best = curves.best(1 - 1 / times, tuned)
    after = ", fine-tuned" if tuned else ""
    return Target(name, f"test error, {what}, {times} x{after}", best and best[1], limit, "lower")


def _fewer(curves: Curves, lams: Sequence[float], where: str) -> Iterator[Target]:
    by_seed: dict[int, dict[float, float]] = {}
    for row in curves.rows:
        by_seed.setdefault(row["seed"], {})[row["lambda"]] = row["kept"]
    known = [[found[lam] for lam in lams] for found in by_seed.values() if set(lams) <= set(found)]
    ratios = [b / max(a, 1) for kept in known for a, b in itertools.pairwise(kept)]
    what = f"kept weights, {where}: largest ratio of neighbours, of all seeds"
    yield Target("2d", what, max(ratios, default=None), 0.9999, "lower")
    whole = [statistics.fmean(kept) for kept in zip(*known, strict=True)]
    yield Target(
        "2d", f"kept weights, {where}: first / last", whole[0] / max(whole[-1], 1) if whole else None, 10, "higher"
    )


def _cost(rows: list[dict[str, Any]], direct: Curves, hyper: Curves) -> Iterator[Target]:
    cost = next((row for row in rows if row["arm"] == "cost" and "ratios" in row), None)
    largest = max(cost["ratios"].values()) if cost else None
    yield Target("2e", "step / (lambda per step x direct step), the largest", largest, 1.3, "lower")
    whole = None
    if cost and hyper.rows and direct.rows:
        epochs = hyper.rows[0]["epochs"] / (len(LAMBDAS) * direct.rows[0]["epochs"])
        whole = cost["ratio_of_epochs"] * epochs
    yield Target("2e", "hypernetwork / five direct runs", whole, 0.35, "lower")


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
