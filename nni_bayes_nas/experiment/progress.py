"""What ``run`` prints while the experiment goes on: one line an event, and on a terminal a line that lives."""

import contextlib
import json
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from nni_bayes_nas.experiment.record import read_json
from nni_bayes_nas.experiment.tasks import TASKS


class Progress:
    """Follows the ledger of a run and the last epoch of the trials that run.

    Args:
        output: The run folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._seen: dict[str, tuple[str, int]] = {}
        self._status: Any = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            from rich.console import Console

            self._status = Console().status("starting")
            self._status.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.__exit__(kind, value, trace)

    def update(self, state: dict[str, Any]) -> None:
        """Prints what is new since the last call."""
        ledger = state.get("ledger", {})
        ended = sum(entry["status"] in ("done", "failed") for entry in ledger.values())
        for name, entry in ledger.items():
            now = (entry["status"], entry["attempts"])
            before = self._seen.get(name)
            self._seen[name] = now
            if now != before and (line := _event(entry, before)):
                print(f"{time.strftime('%H:%M:%S')}  {name}: {line}  [{ended} of {len(ledger)} ended]", flush=True)
        if self._status is not None:
            running = [name for name, entry in ledger.items() if entry["status"] == "running"]
            self._status.update("; ".join(f"{name}{self._epoch(name)}" for name in running) or "waiting")

    def _epoch(self, name: str) -> str:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            with (self.output / "trials" / name / "metrics.jsonl").open(encoding="utf-8") as file:
                rows = deque(file, maxlen=4)
            row = next(row for row in map(json.loads, reversed(rows)) if "terms" in row)
            score = next((row["terms"][t.val_score] for t in TASKS.values() if t.val_score in row["terms"]), None)
            return f" epoch {row['epoch']}" + (f" (validation {score:.3f})" if score is not None else "")
        return "" if read_json(self.output / "trials" / name / "pid") else " starting"


def _event(entry: dict[str, Any], before: tuple[str, int] | None) -> str | None:
    status = entry["status"]
    if status == "running":
        again = f" again (attempt {entry['attempts']}): {entry['cause']}" if entry["attempts"] > 1 else ""
        return f"sent{again}"
    if status == "done":
        return "done" + _measured(entry["result"])
    if status == "failed":
        return f"given up after {entry['attempts']} attempts: {entry['cause']}"
    return f"died: {entry['cause']}" if before is not None and entry["cause"] else None


def _measured(result: dict[str, Any]) -> str:
    words = {"params": "{:,} parameters", **{t.test_score: f"test {t.title} {{:.4f}}" for t in TASKS.values()}}
    parts = [words[key].format(result[key]) for key in words if isinstance(result.get(key), (int, float))]
    if not parts and isinstance(result.get("default"), (int, float)):
        parts = [f"{result['default']:.4f}"]
    return f" ({', '.join(parts)})" if parts else ""
