"""The picture of `joint.py`: what is lost by compression, and what is left by lambda."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import COLOURS, Line, finish, grid_of, write

_COLOURS = {"joint": COLOURS[4], "weights": COLOURS[0], "separate": COLOURS[2], "structure": COLOURS[6]}
_COLOURS |= {"random": COLOURS[7], "joint, trained on": COLOURS[5]}
_MOST = 3.0


def chosen(points: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Of all points at least as small the one of the least validation loss, wherever that falls; the smallest first."""
    found: list[Mapping[str, float]] = []
    for point in sorted(points, key=lambda point: -point["compression"]):
        if not found or point["val"] < found[-1]["val"]:
            found.append(point)
    return found


def draw(
    points: Mapping[str, Sequence[Mapping[str, float]]], rows: list[dict[str, Any]], loss: float, path: Path
) -> None:
    """Write the figure.

    Args:
        points: Of every arm, see `joint_tables.points`.
        rows: Of the result.
        loss: In points of validation accuracy, what may be lost.
        path: Of the file.
    """
    figure, panels = grid_of(1, 2, 5.2, 4.0)
    lost, left = panels[0]
    for arm, mine in points.items():
        front = [point for point in chosen(mine) if point["test"] <= _MOST]
        if not front:
            continue
        x, y = [point["compression"] for point in front], [point["test"] for point in front]
        lost.errorbar(x, y, [point["test_se"] for point in front], fmt="none", ecolor=_COLOURS[arm], alpha=0.4)
        Line(arm, x, y, _COLOURS[arm]).draw(lost)
    lost.axhline(loss, color="black", lw=0.8, ls=":")
    lost.set_xscale("log")
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50) if tick <= 1.1 * lost.get_xlim()[1]]
    lost.set_xticks(ticks, [str(tick) for tick in ticks])
    lost.minorticks_off()
    title = "networks that validation data choose, cut and trained on"
    finish(lost, title, "times fewer parameters than the largest cell", "points of test accuracy lost")
    lost.legend(fontsize=7, frameon=False, loc="upper left")
    for arm, name, style in (("joint", "params", "-"), ("joint", "z_above_1", "--"), ("weights", "z_above_1", "--")):
        of_arm = [row for row in rows if row["arm"] == arm and row.get(name) and row.get("fraction") == 0]
        lams = sorted({row["lambda"] for row in of_arm})
        means = [statistics.fmean(row[name] for row in of_arm if row["lambda"] == lam) for lam in lams]
        what = "of the architecture" if name == "params" else "above one standard deviation"
        Line(f"{arm}: {what}", lams, means, _COLOURS[arm], style).draw(left)
    left.set(xscale="log", ylim=(0, None))
    finish(left, "read off, without a step of training", "λ", "parameters")
    write(figure, path)
