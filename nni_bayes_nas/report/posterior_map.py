"""The posterior of a structure drawn: every choice a row, every option a column, the darker the more probable."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nni_bayes_nas.report.canvas import INK, MUTED, SERIES, render

_CELL, _LETTER, _MOST_ROWS, _MOST_COLUMNS = 0.34, 0.085, 60, 24
_WRITTEN_FROM = 0.005


def posterior_maps(name: str, inclusion: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Drawings of P(option is part of the architecture), one for every set of options that choices have, as SVG.

    Args:
        name: Of the search; unique within the page.
        inclusion: Probabilities by label and option, see `ArchitecturePosterior.inclusion`.

    Returns:
        Nothing for a set of options that is too large to be drawn, or too many choices: the table has them.
    """
    groups: dict[tuple[str, ...], dict[str, Mapping[str, float]]] = {}
    for label, options in inclusion.items():
        groups.setdefault(tuple(map(str, options)), {})[label] = options
    return [
        _drawn(f"posterior {name} {i}", options, rows)
        for i, (options, rows) in enumerate(groups.items())
        if len(options) <= _MOST_COLUMNS and len(rows) <= _MOST_ROWS
    ]


def _drawn(name: str, options: tuple[str, ...], rows: Mapping[str, Mapping[str, float]]) -> str:
    labels = list(rows)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for y, label in enumerate(labels):
            for x, p in enumerate(rows[label].values()):
                axes.add_patch(_square(x, y, MUTED, 0.06))
                axes.add_patch(_square(x, y, SERIES[0], p))
                if p >= _WRITTEN_FROM:
                    color = "white" if p > 0.55 else INK
                    axes.text(x, y, f"{100 * p:.0f}", ha="center", va="center", fontsize=7.5, color=color)
        axes.set_xlim(-0.5, len(options) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xticks(range(len(options)), options, rotation=35, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), labels)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    longest, tallest = max(map(len, labels)), max(map(len, options))
    width = _CELL * 1.25 * len(options) + _LETTER * longest + 0.6 * _LETTER * tallest + 0.3
    height = _CELL * len(labels) + 0.75 * _LETTER * tallest + 0.3
    drawn = render(name, draw, width=width, height=height)
    # As large as its cells make it, not as wide as the page.
    return drawn.replace('class="plot"', f'class="plot map" style="max-width: {96 * width:.0f}px"', 1)


def _square(x: float, y: float, color: str, opacity: float) -> Rectangle:
    return Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, facecolor=color, alpha=min(1.0, opacity), linewidth=0)


__all__ = ["posterior_maps"]
