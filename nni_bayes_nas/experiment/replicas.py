"""Several searches or retrainings in one process, side by side; each leaves what it would leave by itself."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.exceptions import SIGTERMException

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.record import read_json, write_error, write_json
from nni_bayes_nas.experiment.retrain import run_retrain
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.lockstep import Lockstep, Member

Report = Callable[[dict[str, Any]], None]


def run_searches(config: Config, parameters: dict[str, Any], directory: Path, report: Report) -> dict[str, Any]:
    """Searches with seeds of their own, as one; see `nni_bayes_nas.lockstep`.

    A search that fails ends alone. Where a trial of these searches was killed, each goes on from its checkpoint, and
    those that had ended are not repeated.

    Args:
        config: The configuration.
        parameters: Of the trial; "seeds" gives the seed of each search by its name, "changes" what of its configuration
            differs.
        directory: Of the trial; the folders of the searches lie beside it.
        report: Called after every epoch with the mean of "default" over the searches, and with that of each.

    Returns:
        "default": the mean of the searches; "searches": the result of each that is done; "failures": trial, attempts
        and cause of each that is not.

    Raises:
        Exception: That of the first search, where none came to its end.
    """
    return _side_by_side(run_search, "searches", config, parameters, directory, report)


def run_retrains(config: Config, parameters: dict[str, Any], directory: Path, report: Report) -> dict[str, Any]:
    """Retrainings of one architecture with seeds of their own, as one; as `run_searches`.

    Args:
        config: The configuration.
        parameters: Of the trial; "seeds" gives the seed of each retraining by its name; the others as for a single one.
        directory: Of the trial; the folders of the retrainings lie beside it.
        report: As for `run_searches`.

    Returns:
        As `run_searches`, with "retrainings".

    Raises:
        Exception: That of the first retraining, where none came to its end.
    """
    return _side_by_side(run_retrain, "retrainings", config, parameters, directory, report)


def _side_by_side(
    run: Callable[..., dict[str, Any]],
    plural: str,
    config: Config,
    parameters: dict[str, Any],
    directory: Path,
    report: Report,
) -> dict[str, Any]:
    started = time.perf_counter()
    seeds: dict[str, int] = parameters["seeds"]
    folders = {name: directory.parent / name for name in seeds}
    changes = parameters.get("changes") or {}
    identity = json.loads(json.dumps([config.to_dict(), seeds, changes, parameters.get("choices")]))
    earlier = {name: read_json(folder / "result.json") or {} for name, folder in folders.items()}
    results = {name: row["result"] for name, row in earlier.items() if row.get(plural) == identity}
    waiting = [name for name in seeds if name not in results]
    rows, shared = _Rows(waiting, report), dict[str, Any]()

    def one(name: str, member: Member) -> dict[str, Any]:
        folders[name].mkdir(parents=True, exist_ok=True)
        own = {**parameters, "trial": name, "seed": seeds[name], "changes": changes.get(name)}
        (folders[name] / "error.json").unlink(missing_ok=True)
        try:
            result = run(config, own, folders[name], partial(rows.add, name), (member, shared))
        except Exception as error:
            write_error(folders[name], error, str(error))
            raise
        finally:
            rows.leave(name)
        # For a trial that is killed before the others are done.
        write_json(folders[name] / "result.json", {plural: identity, "result": result})
        return result

    with _sigterm():
        outcomes = Lockstep[dict[str, Any]]().run([partial(one, name) for name in waiting])
    errors = {name: o for name, o in zip(waiting, outcomes, strict=True) if isinstance(o, Exception)}
    results.update({name: o for name, o in zip(waiting, outcomes, strict=True) if not isinstance(o, Exception)})
    if not results:
        raise next(iter(errors.values()))
    done = {name: dict(results[name]) for name in seeds if name in results}
    stages = [row.pop("stage_seconds", {}) for row in done.values()]
    seconds = time.perf_counter() - started
    _scale_seconds(done.values(), seconds)
    return {
        "default": statistics.fmean(row["default"] for row in done.values()),
        plural: done,
        "failures": [
            {"trial": name, "attempts": 1, "cause": " ".join(f"{type(e).__name__}: {e}".split())}
            for name, e in errors.items()
        ],
        "stage_seconds": _shares(stages, seconds),
    }


class _Rows:
    """Intermediate results of several trainings, told as one once those that go on have theirs of an epoch."""

    def __init__(self, names: Iterable[str], report: Report) -> None:
        self.report = report
        self.going_on = set(names)
        self.by_epoch: dict[int, dict[str, float]] = {}

    def add(self, name: str, row: dict[str, Any]) -> None:
        self.by_epoch.setdefault(row["epoch"], {})[name] = float(row["default"])
        self._tell()

    def leave(self, name: str) -> None:
        self.going_on.discard(name)
        self._tell()

    def _tell(self) -> None:
        # An epoch that a training has behind it from before a resume is not waited for.
        last = {name: max((e for e, s in self.by_epoch.items() if name in s), default=-1) for name in self.going_on}
        for epoch in sorted(self.by_epoch):
            if all(epoch <= last[name] for name in self.going_on):
                scores = self.by_epoch.pop(epoch)
                shown = {f"default_{key}": scores[key] for key in sorted(scores)}
                self.report({"default": statistics.fmean(scores.values()), "epoch": epoch, **shown})


def _scale_seconds(results: Iterable[dict[str, Any]], seconds: float) -> None:
    """Seconds of each result that add up to those of all: every clock has run on while others had their turn."""
    rows = [result.get("search", result) for result in results]
    scale = seconds / (sum(row.get("seconds", 0.0) for row in rows) or 1.0)
    for row in rows:
        row.update({key: round(scale * row[key], 2) for key in ("seconds", "reading_seconds") if key in row})


def _shares(stages: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Seconds by stage: each training's clock runs on while the others have their turn, so they are scaled down."""
    total = sum(sum(row.values()) for row in stages) or 1.0
    names = dict.fromkeys(name for row in stages for name in row)
    return {name: seconds * sum(row.get(name, 0.0) for row in stages) / total for name in names}


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """Turns SIGTERM into the exception of Lightning, whose own handler works in the main thread's trainers only."""

    def stop(*_: Any) -> None:
        raise SIGTERMException

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
