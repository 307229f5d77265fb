"""Trainings that went on with fewer parameters: what was frozen in each, and what it saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from nni_bayes_nas.report.read import Row, RunFolder
from nni_bayes_nas.report.tables import DASH, count, macs, percent, plural

COLUMNS = [
    "Training",
    "Parameters",
    "Optimized to the end",
    "Not zero",
    "ms a step",
    "MACs of a step",
    "Optimizer state",
    "Kept outputs",
]
LAYER_COLUMNS = ["Parameter", "Entries", "Optimized", "Share", "Rows", "Optimized rows", "Not zero"]
TEXT_COLUMNS = ("Training", "Parameter")


@dataclass(frozen=True)
class FreezeMap:
    """What of every parameter of one training went on: rows for `LAYER_COLUMNS`, and a sentence before them."""

    training: str
    sentence: str
    rows: list[list[str]]


def _trainings(run: RunFolder) -> list[tuple[str, Row]]:
    """Name and `freeze_report` of every search and retraining that has one; equal retrainings once."""
    found: dict[str, Row] = {}
    for search in run.searches:
        if isinstance(search.get("selection"), dict):
            found[f"search-{search.get('id', '?')}"] = search["selection"]
    for architecture in run.architectures:
        for row in architecture.get("retrain") or []:
            if isinstance(row.get("selection"), dict):
                found[str(row.get("name", "?"))] = row["selection"]
    return list(found.items())


def table(run: RunFolder) -> list[list[str]]:
    """A row a training, for `COLUMNS`; empty where nothing was frozen."""
    rows = []
    for name, report in _trainings(run):
        total, active = _sums(report)
        passes = report.get("macs") or {}
        rows.append(
            [
                name,
                count(total),
                f"{count(active)} ({percent(active / max(total, 1), 1)})",
                _kept([*(report.get("layers") or {}).values()]),
                _change(report.get("milliseconds"), _rounded),
                _change({when: (one or {}).get("total") for when, one in passes.items()}, macs),
                _change(report.get("state_bytes"), _bytes),
                report.get("no_cache") or _bytes(report.get("cache_bytes") or None),
            ]
        )
    return rows


def maps(run: RunFolder) -> list[FreezeMap]:
    """What went on, parameter by parameter, of every training that froze something."""
    found = []
    for name, report in _trainings(run):
        layers = report.get("layers") or {}
        common = _common(list(layers))
        whole = sum(not row["active"] for row in layers.values())
        sentence = f"{plural(whole, 'parameter')} of {len(layers)} frozen as a whole."
        rows = [
            [
                layer.removeprefix(common),
                count(row["parameters"]),
                count(row["active"]),
                percent(row["active"] / max(row["parameters"], 1), 1),
                count(row["rows"]),
                count(row["active_rows"]),
                _kept([row]),
            ]
            for layer, row in layers.items()
        ]
        found.append(FreezeMap(name, sentence, rows))
    return found


def _sums(report: Row) -> tuple[int, int]:
    layers = (report.get("layers") or {}).values()
    return sum(row["parameters"] for row in layers), sum(row["active"] for row in layers)


def _kept(layers: list[Row]) -> str:
    """How many were not made zero; nothing where none was to be."""
    known = [row["kept"] for row in layers if "kept" in row]
    return count(sum(known)) if known else DASH


def _common(names: list[str]) -> str:
    """The modules in whose names all parameters are."""
    owners = (name.split(".")[:-1] for name in names)
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def _change(values: Any, shown: Callable[[Any], str]) -> str:
    values = values or {}
    before, after = (shown(values.get(when)) for when in ("before", "after"))
    return DASH if before == after == DASH else f"{before} → {after}"


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else DASH


def _bytes(value: Any) -> str:
    """In KiB or MiB."""
    if not isinstance(value, int | float):
        return DASH
    return f"{value / 2**10:.1f} KiB" if value < 2**20 else f"{value / 2**20:.1f} MiB"
