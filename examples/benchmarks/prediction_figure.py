"""The picture of `prediction.py`: accuracy above random networks by data set and budget, and errors on parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from figures import COLOURS, finish, grid_of, write
from prediction_results import DECODERS, OURS, SEARCH, Figures

# With the marker of each; what is ranked among as many as ours is hollow.
ARMS = {
    OURS: "o",
    f"{OURS}, as drawn": "X",
    "random, ranked": "o",
    "random, refined": "h",
    "snip": "s",
    "snip, ranked": "s",
    "magnitude": "^",
    "magnitude, ranked": "^",
    "adanet": "D",
    "low_rank": "v",
    SEARCH: "P",
    "dense": "*",
}
BESIDE = "random"
# Beside `COLOURS`, which are fewer than arms.
_MORE = ("#7f4f24", "#6a3d9a")


def draw(figures: Figures, path: Path) -> None:
    """Write the figure: a panel for each budget, with 95 % intervals over seeds, and one of the parts left out."""
    figure, grid = grid_of(2, 2, width=6.4, height=4.2)
    panels = list(grid.flat)
    names = dict.fromkeys(arm.removesuffix(", ranked") for arm in ARMS)
    colours = dict(zip(names, (*COLOURS, *_MORE), strict=True))
    for axes, kind in zip(panels, figures.KINDS, strict=False):
        for place, (arm, marker) in enumerate(ARMS.items()):
            shift = (place - (len(ARMS) - 1) / 2) * 0.08
            gaps = [row for row in figures.above(arm, BESIDE) if row["budget_kind"] == kind]
            x = [figures.data.index(row["data"]) + shift for row in gaps]
            y, half = ([100 * row[name] for row in gaps] for name in ("difference", "half_width"))
            colour = colours[arm.removesuffix(", ranked")]
            face, label = "none" if arm.endswith(", ranked") else colour, arm if axes is panels[0] else None
            axes.errorbar(x, y, half, fmt=marker, ms=4, lw=0.8, color=colour, mfc=face, label=label)
        axes.axhline(0.0, color="black", lw=0.8)
        axes.set_xticks(range(len(figures.data)), figures.data, rotation=20)
        finish(axes, f"connections: {kind}", "", f"test accuracy above {BESIDE}, points")
    _errors(panels[-1], figures)
    write(figure, path)


def _errors(axes: Any, figures: Figures) -> None:
    """Losses of predictions for parts of data that were left out, beside those of what else the search had drawn."""
    for colour, name in zip(COLOURS, figures.data, strict=False):
        for decoder, marker in zip(DECODERS, "ox", strict=True):
            mine = [row for row in figures.errors if (row["data"], row["errors_of"]) == (name, decoder)]
            x = [row["loss_others"] - row["loss_found"] for row in mine]
            y = [row["loss"] - row["loss_found"] for row in mine]
            label = name if decoder == DECODERS[0] else None
            axes.plot(x, y, marker, ms=3, color=colour, alpha=0.6, label=label)
    axes.axline((0.0, 0.0), slope=1.0, color="0.5", lw=0.8)
    axes.axhline(0.0, color="0.5", lw=0.8)
    words = "parts that were left out: " + ", ".join(f"{m} {name}" for m, name in zip("ox", DECODERS, strict=True))
    finish(axes, words, "mean loss of others, nats above the one found", "loss predicted, nats above the one found")
