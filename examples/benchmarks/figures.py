"""What the figures of benchmarks share: panels, lines with markers, colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Colours that a colour-blind reader tells apart (Okabe & Ito, grey for their yellow).
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#999999", "#000000")


@dataclass(frozen=True)
class Line:
    """A curve of a panel; `None` where nothing was measured. Without a label it is in no legend."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    style: str = "-"

    def draw(self, axes: Any) -> None:
        """With a marker at every point that was measured."""
        known = [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), self.style, color=self.colour, label=self.label or None, marker="o", ms=3
            )


def grid_of(n_rows: int, n_columns: int, width: float = 3.4, height: float = 3.0) -> tuple[Any, Any]:
    """A figure and its panels, `(n_rows, n_columns)`; sizes of a panel in inches."""
    return plt.subplots(
        n_rows, n_columns, figsize=(width * n_columns, height * n_rows), layout="constrained", squeeze=False
    )


def finish(axes: Any, title: str, x: str, y: str) -> None:
    """Title, names of both axes, and a legend of what has a label."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def write(figure: Any, path: Path) -> None:
    """Write a figure and forget it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
