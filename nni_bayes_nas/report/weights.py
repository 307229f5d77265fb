"""Mixing weights over time: one small heat map per choice and value of u."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.image import imsave

from nni_bayes_nas.report.read import Row, RunFolder

_BLUE = (0x00 / 255, 0x72 / 255, 0xB2 / 255)
_ROW, _PANEL_WIDTH, _GAP, _CHARACTER = 14, 78, 10, 6.0


def weight_history(run: RunFolder, trial: str) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Mixing weights of one search over its epochs.

    Returns:
        Choice label -> key of u (`"0.0"`, …, or `"mean"`) -> option -> probabilities `(n_epochs,)`; nan where an epoch
        does not name the option. A repeated epoch counts once, with its last row.
    """
    rows: dict[int, Row] = {}
    for row in run.metrics.get(trial, []):
        if isinstance(row.get("weights"), dict) and isinstance(row.get("epoch"), int):
            rows[row["epoch"]] = row["weights"]
    epochs = [rows[epoch] for epoch in sorted(rows)]
    names: dict[str, dict[str, dict[str, None]]] = {}
    for weights in epochs:
        for u, labels in weights.items():
            for label, options in labels.items():
                names.setdefault(str(label), {}).setdefault(str(u), {}).update(dict.fromkeys(map(str, options)))
    return {
        label: {
            u: {
                option: np.array([_value(weights, u, label, option) for weights in epochs], dtype=float)
                for option in options
            }
            for u, options in keys.items()
        }
        for label, keys in names.items()
    }


def _value(weights: Any, u: str, label: str, option: str) -> float:
    for key in (u, label, option):
        weights = weights.get(key) if isinstance(weights, dict) else None
    return float(weights) if isinstance(weights, int | float) else float("nan")


def weight_maps(run: RunFolder, trial: str) -> list[str]:
    """One SVG per choice of a search: options in rows, epochs from left to right, one panel per u.

    A dot marks the option that leads in the last epoch; its probability stands under the panel.
    """
    return [_choice_map(label, keys) for label, keys in sorted(weight_history(run, trial).items(), key=_natural)]


def _natural(item: tuple[str, Any]) -> list[tuple[int, int, str]]:
    label, out, digits = item[0], [], ""
    for character in label + " ":
        if character.isdigit():
            digits += character
            continue
        if digits:
            out.append((0, int(digits), ""))
            digits = ""
        out.append((1, 0, character))
    return out


def _choice_map(label: str, keys: dict[str, dict[str, np.ndarray]]) -> str:
    options = list(dict.fromkeys(option for table in keys.values() for option in table))
    names = [_shorten(option, 18) for option in options]
    left = max(len(name) for name in names) * _CHARACTER + 10
    width = left + len(keys) * (_PANEL_WIDTH + _GAP)
    height = 38 + _ROW * len(options) + 30
    parts = [
        f'<text x="0" y="12" font-size="12" font-weight="600" fill="var(--ink)">{escape(_shorten(label, 42))}</text>'
    ]
    for i, name in enumerate(names):
        y = 38 + _ROW * (i + 0.5)
        parts.append(
            f'<text x="{left - 6:g}" y="{y:g}" dy=".35em" text-anchor="end" fill="var(--muted)">{escape(name)}</text>'
        )
    n_epochs = len(next(iter(next(iter(keys.values())).values())))
    for panel, (u, table) in enumerate(keys.items()):
        x = left + panel * (_PANEL_WIDTH + _GAP)
        grid = np.stack([table.get(option, np.full(n_epochs, np.nan)) for option in options])
        title = u if u == "mean" else f"u = {float(u):g}" if _is_number(u) else u
        middle = x + _PANEL_WIDTH / 2
        parts.append(f'<text x="{middle:g}" y="30" text-anchor="middle" fill="var(--ink)">{escape(title)}</text>')
        place = f'x="{x:g}" y="38" width="{_PANEL_WIDTH}" height="{_ROW * len(options)}"'
        parts.append(
            f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" '
            f'href="data:image/png;base64,{_png(grid)}"/><rect {place} fill="none" stroke="var(--line)"/>'
        )
        last = grid[:, -1]
        if np.isfinite(last).any():
            best = int(np.nanargmax(last))
            foot = 38 + _ROW * len(options)
            y = 38 + _ROW * (best + 0.5)
            parts.append(
                f'<circle cx="{x + _PANEL_WIDTH + 4:g}" cy="{y:g}" r="2.6" fill="var(--s2)"/>'
                f'<text x="{middle:g}" y="{foot + 12}" text-anchor="middle" fill="var(--muted)">'
                f"max {last[best]:.2f}</text>"
            )
    parts.append(f'<text x="{left:g}" y="{height - 4}" fill="var(--muted)">epochs → ({n_epochs})</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Mixing weights of {escape(label)}" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" font-family="system-ui, sans-serif" font-size="10.5">'
        + "".join(parts)
        + "</svg>"
    )


def _png(grid: np.ndarray) -> str:
    # Probability is opacity, so the same picture reads on a light and on a dark page.
    image = np.zeros((*grid.shape, 4))
    image[..., :3] = _BLUE
    image[..., 3] = np.clip(np.nan_to_num(grid), 0, 1)
    buffer = BytesIO()
    imsave(buffer, image, format="png", metadata={"Software": ""})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
