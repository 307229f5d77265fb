"""Matplotlib figures as inline SVG that takes its colors and its font from the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Color as matplotlib writes it -> CSS variable of the page. The first three are the light theme's own values; they are
# odd enough never to come from anything else.
INK, MUTED, LINE = "#1c2024", "#5d6670", "#dfe3e7"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
PANEL = "#fefefd"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--grid", PANEL: "--panel"} | {
    color: f"--s{i + 1}" for i, color in enumerate(SERIES)
}

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.handlelength": 1.6,
    "figure.constrained_layout.use": True,
}


def render(name: str, draw: Callable[[Figure], None], *, width: float = 5.2, height: float = 3.5) -> str:
    """Draw a figure and return it as an SVG element.

    Args:
        name: Unique within the page; keeps the ids of two figures apart and makes the output repeatable.
        draw: Fills the figure.
        width: In inches of 72 points.
        height: In inches.
    """
    # Matplotlib reads these settings both when artists are made and when they are written.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        draw(figure)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Inside a page this rule of matplotlib's would hold for the whole page; the template has it for plots.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # An inline style of matplotlib's would beat the page's font and its size relative to the drawing is kept.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg).replace("<svg", f'<svg class="plot" data-figure="{name}"', 1)


def log_axis(axes: Axes, which: str, values: list[float], label: Callable[[float], str]) -> None:
    """Make one axis logarithmic with plainly written ticks; it stays linear if a value is not positive.

    Args:
        axes: The axes.
        which: `"x"` or `"y"`.
        values: What is drawn along the axis; decides how dense the ticks are.
        label: Text of a tick.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    if not values or min(values) <= 0:
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    span = max(values) / min(values)
    subs = (
        (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        if span < 5
        else (1.0, 2.0, 3.0, 5.0)
        if span < 20
        else (1.0, 2.0, 5.0)
        if span < 200
        else (1.0,)
    )
    if span < 1.3:
        axis.set_major_locator(MaxNLocator(4))
    else:
        axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())


def short_count(value: float) -> str:
    """A count as a tick: `40 k`, `1.5 M`.

    >>> short_count(40000), short_count(150)
    ('40 k', '150')
    """
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def epoch_axis(axes: Axes) -> None:
    """Label the horizontal axis as epochs and keep its ticks whole."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def place_labels(axes: Axes) -> None:
    """Move every annotation of `axes` to a side of its point where it covers no earlier one, if there is such a side.

    Call it last: where labels lie in the figure depends on everything else in it.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()
    taken: list[Any] = []
    for label in axes.texts:
        sides: tuple[tuple[float, float, Any], ...] = (
            *((6, -11, "left"), (6, 5, "left")),
            *((-6, 5, "right"), (-6, -11, "right"), (0, -19, "center"), (0, 13, "center")),
        )
        boxes = []
        for x, y, align in sides:
            label.set(position=(x, y), horizontalalignment=align)
            boxes.append(label.get_window_extent())
        free = [i for i, box in enumerate(boxes) if not any(box.overlaps(other) for other in taken)]
        side = free[0] if free else 0
        x, y, align = sides[side]
        label.set(position=(x, y), horizontalalignment=align)
        taken.append(boxes[side])
