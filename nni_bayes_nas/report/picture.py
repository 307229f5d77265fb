"""The picture of one architecture: its choices as an SVG drawing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

# Each color is a CSS variable of the page with a fallback, so that a picture also stands alone.
# Sources of edges cycle through the Okabe-Ito palette without its yellow.
_SOURCES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_INK, _MUTED, _LINE, _PANEL = (
    "var(--ink, #1c2024)",
    "var(--muted, #5d6670)",
    "var(--line, #c9ced4)",
    "var(--panel, #ffffff)",
)

_CELL_KEY = re.compile(r"^(?P<cell>.+)/(?P<what>op|input)_(?P<node>\d+)_(?P<slot>\d+)$")
_FONT = 12
_CHARACTER = 6.9  # width of a character at this size, the wide side of common sans-serif fonts
_PILL_HEIGHT, _PILL_GAP, _ROW_GAP = 22, 6, 16
_NODE, _CHANNEL, _MARGIN = 28, 16, 8


@dataclass(frozen=True)
class Edge:
    """One operation of a cell: it reads `sources` and feeds `node`."""

    node: int
    slot: int
    sources: tuple[int, ...]
    operation: str


def split_choices(choices: Mapping[str, Any]) -> tuple[dict[str, list[Edge]], dict[str, Any]]:
    """Separate what belongs to cells from all other choices.

    Args:
        choices: An NNI sample; cells have the keys `CELL/op_NODE_SLOT` and `CELL/input_NODE_SLOT`.

    Returns:
        Cell label -> its edges sorted by node and slot, and the choices that are in no cell.
    """
    operations: dict[tuple[str, int, int], str] = {}
    inputs: dict[tuple[str, int, int], tuple[int, ...]] = {}
    rest: dict[str, Any] = {}
    for key, value in choices.items():
        match = _CELL_KEY.match(key)
        if match is None:
            rest[key] = value
            continue
        place = (match["cell"], int(match["node"]), int(match["slot"]))
        if match["what"] == "op":
            operations[place] = str(value)
            continue
        sources = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(x, int) and 0 <= x < place[1] for x in sources):
            inputs[place] = tuple(sources)
        else:
            rest[key] = value
    cells: dict[str, list[Edge]] = {}
    for place in sorted(operations.keys() | inputs.keys()):
        cell, node, slot = place
        edge = Edge(node, slot, inputs.get(place, ()), operations.get(place, "?"))
        cells.setdefault(cell, []).append(edge)
    return cells, rest


def draw_architecture(choices: Mapping[str, Any]) -> str:
    """Draw an architecture as one self-contained SVG element.

    A cell is drawn from left to right: its inputs, an operation on each edge, its nodes, and the concatenation of all
    nodes at the right. Lines have the color of the node that they leave. Choices outside cells are listed as
    `label = value`.

    Args:
        choices: An NNI sample.

    Returns:
        The SVG as text; it refers to nothing outside itself.
    """
    cells, rest = split_choices(choices)
    parts: list[str] = []
    width, top = 200.0, float(_MARGIN)
    for cell, edges in cells.items():
        body, cell_width, cell_height = _draw_cell(cell, edges)
        parts.append(f'<g transform="translate({_MARGIN} {top:g})">{body}</g>')
        width, top = max(width, cell_width + 2 * _MARGIN), top + cell_height + 18
    if rest or not cells:
        body, list_width, list_height = _draw_list(rest)
        parts.append(f'<g transform="translate({_MARGIN} {top:g})">{body}</g>')
        width, top = max(width, list_width + 2 * _MARGIN), top + list_height + 18
    height = top - 18 + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Picture of one architecture" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT}">' + "".join(parts) + "</svg>"
    )


def _draw_cell(label: str, edges: list[Edge]) -> tuple[str, float, float]:
    # Staircase: every node has a row of its own and stands in the column of its depth. Left of a node its row holds
    # only its operations, and between columns there are no boxes, so a line (out to the channel right of its source,
    # along it, then into the operation) never crosses a box.
    nodes = sorted({edge.node for edge in edges})
    n_inputs = nodes[0]
    depth = dict.fromkeys(range(n_inputs), 0)
    for node in nodes:
        depth[node] = 1 + max((depth.get(s, 0) for e in edges if e.node == node for s in e.sources), default=0)
    pill = max(_CHARACTER * len(edge.operation) for edge in edges) + 16
    names = {i: f"in {i}" for i in range(n_inputs)}
    input_width = 44.0

    columns = max(depth.values())
    channel = [_CHANNEL + 7.0 * sum(depth[n] == c for n in depth) for c in range(columns + 1)]
    node_x: list[float] = [0.0]
    for column in range(1, columns + 1):
        before = node_x[-1] + (input_width if column == 1 else _NODE)
        node_x.append(before + channel[column - 1] + pill + 14)
    output_x = node_x[-1] + _NODE + 30

    y = 30.0
    pill_y: dict[Edge, float] = {}
    center = {}
    for node in nodes:
        incoming = [edge for edge in edges if edge.node == node]
        rows = len(incoming)
        height = rows * _PILL_HEIGHT + (rows - 1) * _PILL_GAP
        for row, edge in enumerate(incoming):
            pill_y[edge] = y + row * (_PILL_HEIGHT + _PILL_GAP) + _PILL_HEIGHT / 2
        center[node] = y + height / 2
        y += height + _ROW_GAP
    bottom = max(y - _ROW_GAP, 30.0 + n_inputs * (_NODE + 8))
    for i in range(n_inputs):
        center[i] = 30 + (bottom - 30) * (i + 0.5) / n_inputs

    lines: list[str] = []
    boxes: list[str] = []
    place_in_column: dict[int, int] = {}
    used = dict.fromkeys(range(columns + 1), 0)
    for node in sorted(depth):
        place_in_column[node] = used[depth[node]]
        used[depth[node]] += 1
    for edge in edges:
        pill_x = node_x[depth[edge.node]] - 14 - pill
        for source in edge.sources:
            column = depth.get(source, 0)
            start = node_x[column] + (input_width if source < n_inputs else _NODE)
            turn = start + 10 + 7 * place_in_column.get(source, 0)
            y0, y1 = center.get(source, 30.0), pill_y[edge]
            lines.append(_line(start, y0, turn, y1, pill_x, _color(source)))
        lines.append(
            _line(pill_x + pill, pill_y[edge], pill_x + pill + 5, center[edge.node], node_x[depth[edge.node]], _MUTED)
        )
        color = _color(edge.sources[0]) if edge.sources else _MUTED
        boxes.append(_box(pill_x, pill_y[edge], pill, _PILL_HEIGHT, edge.operation, color, 11))
    for node in nodes:
        x = node_x[depth[node]]
        lines.append(_line(x + _NODE, center[node], x + _NODE, center[node], output_x, _color(node)))
        boxes.append(_box(x, center[node], _NODE, _NODE, str(node), _color(node), 5, fill=True))
    for i in range(n_inputs):
        boxes.append(_box(0, center[i], input_width, _NODE, names[i], _color(i), 5, fill=True))
    middle = (30 + bottom) / 2
    boxes.append(
        f'<rect x="{output_x:g}" y="30" width="26" height="{bottom - 30:g}" rx="5" fill="{_PANEL}" stroke="{_INK}" '
        f'stroke-width="1.4"/><text transform="translate({output_x + 13:g} {middle:g}) rotate(-90)" dy=".35em" '
        f'text-anchor="middle" fill="{_INK}">output</text>'
    )
    title = f'<text y="12" font-weight="600" fill="{_INK}">{escape(label)}</text>'
    width = max(output_x + 28, _CHARACTER * len(label) * 1.1)
    return title + "".join(lines) + "".join(boxes), width, bottom + 2


def _color(source: int) -> str:
    index = source % len(_SOURCES)
    return f"var(--s{index + 1}, {_SOURCES[index]})"


def _line(x0: float, y0: float, turn: float, y1: float, x1: float, color: str) -> str:
    if abs(y1 - y0) < 1:
        path = f"M{x0:g} {y0:g}H{x1:g}"
    else:
        radius = min(5.0, abs(y1 - y0) / 2, turn - x0, x1 - turn)
        bend = radius if y1 > y0 else -radius
        path = (
            f"M{x0:g} {y0:g}H{turn - radius:g}Q{turn:g} {y0:g} {turn:g} {y0 + bend:g}"
            f"V{y1 - bend:g}Q{turn:g} {y1:g} {turn + radius:g} {y1:g}H{x1:g}"
        )
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def _box(
    x: float, y: float, width: float, height: float, text: str, color: str, radius: int, *, fill: bool = False
) -> str:
    # The panel's color lies under the tint, so that lines behind a box stay hidden.
    shape = f'x="{x:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" rx="{radius}"'
    tint = f'<rect {shape} fill="{color}" fill-opacity=".16"/>' if fill else ""
    weight = ' font-weight="600"' if fill else ""
    return (
        f'<rect {shape} fill="{_PANEL}"/>{tint}<rect {shape} fill="none" stroke="{color}" stroke-width="1.4"/>'
        f'<text x="{x + width / 2:g}" y="{y:g}" dy=".35em" text-anchor="middle" fill="{_INK}"{weight}>'
        f"{escape(text)}</text>"
    )


def _draw_list(rest: Mapping[str, Any]) -> tuple[str, float, float]:
    if not rest:
        return f'<text y="12" fill="{_MUTED}">no choices</text>', 80.0, 18.0
    labels = {
        key: str(value) if not isinstance(value, list) else ", ".join(map(str, value)) for key, value in rest.items()
    }
    first = max(len(key) for key in labels) * _CHARACTER + 24
    width = first + max(len(value) for value in labels.values()) * 1.15 * _CHARACTER + 8
    rows = []
    for i, (key, value) in enumerate(labels.items()):
        y = 24 * i + 12
        rows.append(
            f'<text x="0" y="{y}" fill="{_MUTED}">{escape(key)}</text>'
            f'<text x="{first - 18:g}" y="{y}" fill="{_MUTED}">=</text>'
            f'<text x="{first:g}" y="{y}" font-weight="600" fill="{_INK}">{escape(value)}</text>'
            f'<path d="M0 {y + 7}H{width:g}" stroke="{_LINE}" stroke-width=".6"/>'
        )
    return "".join(rows), width, 24.0 * len(labels)
