"""The picture of the benchmark of complexity control: every training, and each arm's mean front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from front import Point, Reference, best_at

# Colours that a colour-blind reader tells apart (Okabe & Ito).
STYLES = {
    "hyper": ("#d55e00", "o", "HyperDARTS, target: one search, 20 trainings"),
    "penalty": ("#e69f00", "^", "HyperDARTS, penalty: one search"),
    "random": ("#777777", "x", "random, stratified by size"),
    "fixed": ("#009e73", "s", "one fixed cell at several widths"),
    "l1": ("#56b4e9", "v", "4 separate searches, L1"),
    "cost": ("#0072b2", "D", "4 separate searches, cost penalty"),
}


def mean_front(points: Sequence[Sequence[Point]], sizes: Any) -> Any:
    """Best accuracy up to each size, averaged over the seeds; NaN where a seed has no network so small."""
    rows = [[best_at(seed, size) for size in sizes] for seed in points]
    return np.array([[np.nan if value is None else value for value in row] for row in rows]).mean(0)


def draw(rows: Sequence[dict[str, Any]], reference: Reference, path: Path, title: str) -> None:
    """Write the figure."""
    figure, axes = plt.subplots(figsize=(8.5, 5.5), layout="constrained")
    sizes = np.geomspace(reference.smallest, reference.largest, 400)
    networks = [row for row in rows if row["kind"] == "network"]
    for arm, (colour, marker, label) in STYLES.items():
        mine = [row for row in networks if row["arm"] == arm]
        seeds = sorted({row["seed"] for row in mine})
        by_seed = [[Point(r["params"], r["test_accuracy"]) for r in mine if r["seed"] == seed] for seed in seeds]
        axes.scatter(
            [row["params"] for row in mine],
            [100 * row["test_accuracy"] for row in mine],
            s=14,
            c=colour,
            marker=marker,
            alpha=0.4,
            linewidths=1 if marker == "x" else 0,
        )
        width = 2.4 if arm == "hyper" else 1.4
        axes.step(sizes, 100 * mean_front(by_seed, sizes), where="post", color=colour, lw=width, label=label)
    axes.set_xscale("log")
    ticks = [size for size in (500, 1000, 2000, 5000, 10000, 20000, 50000) if sizes[0] * 0.8 <= size <= sizes[-1]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=100 * reference.accuracy)
    axes.set_xlabel("parameters")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{title}; points are trainings, lines the mean best accuracy up to a size", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
