"""Where the wall-clock of a run went, from `wall_clock` of its summary."""

from __future__ import annotations

from typing import Any

from nni_bayes_nas.report.read import Row, RunFolder
from nni_bayes_nas.report.tables import DASH, duration, plural

STAGES = {
    "nni": "NNI: until the process runs, and until its end is noticed",
    "start": "Interpreter, parameters of the trial",
    "imports": "Imports",
    "data": "Loading data",
    "building": "Building network and training",
    "training": "Training",
    "validation": "Validation",
    "reporting": "Metrics and intermediate results",
    "checkpoints": "Checkpoints",
    "reading": "Reading architectures off",
    "counting": "Counting parameters and MACs",
    "test": "Test data",
    "saving": "Saving network and result",
    "other": "Other",
}
TITLES = {"searches": "group of searches", "retrains": "group of retrainings"}
PHASES = {"start": "{} until the first trial was sent", "trials": "{} of trials", "report": "{} for the report"}
TEXT_COLUMNS = ("Stage",)


def time_table(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: seconds of every stage summed over the trials of a kind, then what the trial slots did else.

    The last column is the share of all slot seconds, which all rows but the last together are. Empty where the summary
    has no times of trials.
    """
    times = _times(run)
    trials, slots = _of(times, "trials"), _of(times, "slots")
    if not trials:
        return [], []
    kinds = list(dict.fromkeys(_kind(row) for row in trials.values()))
    sums: dict[str, dict[str, float]] = {}
    for row in trials.values():
        for stage, seconds in _of(row, "stages").items():
            by_kind = sums.setdefault(stage, {})
            by_kind[_kind(row)] = by_kind.get(_kind(row), 0.0) + _seconds(seconds)
    known = [*(stage for stage in STAGES if stage in sums), *(stage for stage in sums if stage not in STAGES)]
    unfinished, idle = _seconds(slots.get("unfinished")), _seconds(slots.get("idle"))
    total = sum(sum(by_kind.values()) for by_kind in sums.values()) + unfinished + idle
    rows = []
    for stage in known:
        cells = [_cell(sums[stage].get(kind)) for kind in kinds]
        rows.append([STAGES.get(stage, stage), *cells, *_together(sum(sums[stage].values()), total)])
    blank = [""] * len(kinds)
    if unfinished > 0:
        rows.append(["Attempts that are not done", *blank, *_together(unfinished, total)])
    rows.append(["Slots without a trial", *blank, *_together(idle, total)])
    per_kind = [_cell(sum(by_kind.get(kind, 0.0) for by_kind in sums.values())) for kind in kinds]
    rows.append(["All", *per_kind, *_together(total, total)])
    counts = {kind: sum(_kind(row) == kind for row in trials.values()) for kind in kinds}
    named = [(TITLES.get(kind, kind), n) for kind, n in counts.items()]
    headings = [f"{plural(n, kind)} (s)" if n == 1 else f"{n:,} × {kind} (s)" for kind, n in named]
    return ["Stage", *headings, "Together (s)", "Share"], rows


def time_sentence(run: RunFolder) -> str:
    """The phases of the run in one sentence; empty where the summary has none."""
    times = _times(run)
    phases, count = _of(times, "phases"), _of(times, "slots").get("count")
    said = [text.format(duration(phases[name])) for name, text in PHASES.items() if phases.get(name)]
    if not said:
        return ""
    if isinstance(count, int):
        said = [f"{text} on {plural(count, 'slot')}" if text.endswith("trials") else text for text in said]
    return f"{duration(times.get('seconds'))} so far: {', '.join(said)}."


def _times(run: RunFolder) -> Row:
    return _of(run.summary, "wall_clock")


def _of(row: Row, key: str) -> Row:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _kind(row: Row) -> str:
    return str(row.get("kind", "trial")).rpartition(":")[2]


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _cell(seconds: float | None) -> str:
    return DASH if seconds is None else f"{seconds:,.1f}"


def _together(seconds: float, total: float) -> list[str]:
    return [_cell(seconds), f"{100 * seconds / total:.1f} %" if total > 0 else DASH]
