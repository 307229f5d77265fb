"""Runs searches and retrainings, two at a time in processes of one thread each; what is finished is not run again.

Every finished job is a line of a file beside the result, under a key that is made of all that decides its outcome:
kind, configuration and parameters, not the name. A benchmark that is killed goes on with the jobs that are missing. A
job that was running starts afresh, so that its seconds are those of the whole job, unless it is marked to go on from
its checkpoint.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment import processes
from nni_bayes_nas.experiment.environment import cpu_model, git_commit
from nni_bayes_nas.experiment.record import read_rows, write_rows
from nni_bayes_nas.experiment.trial import KINDS, set_threads, set_torch
from nni_bayes_nas.registry import resolve

Outcome = dict[str, Any]
_MADE: Outcome = {}
# Raised when a search or a training changes what it does: finished jobs of the old kind are then done again.
_ALGORITHM = 1


# Kinds of jobs that `predict` of a configuration is for.
_PREDICT = ("bank", "predict", "verify", "cells", "predict_cells")


@dataclass(frozen=True)
class Job:
    """One search or retraining.

    Attributes:
        name: For the log and the folder; unique in a benchmark.
        kind: "search" or "retrain", or package.module:function of the same form.
        config: Of the experiment, plain types.
        parameters: Of the trial.
        order: Jobs with smaller values start first.
        keep: Go on from the checkpoint of an attempt that was killed.
    """

    name: str
    kind: str
    config: dict[str, Any]
    parameters: dict[str, Any]
    order: tuple[int, ...] = ()
    keep: bool = False

    @cached_property
    def key(self) -> str:
        """Equal for jobs that must have the same outcome, on one machine."""
        # Here, not above: it imports torch, whose threads a worker must set before.
        from nni_bayes_nas.experiment.build import effective

        # With the defaults filled in: a default that changes makes it another job.
        config = effective(Config.from_dict(self.config)).to_dict()
        # What has no part in the outcome.
        unused = {"refine", "report"}
        if self.kind == "compress" or self.kind.startswith("compression_"):
            unused |= {"strategy", "search", "retrain"}
        else:
            joint = self.kind == "search" and "weight_hypernet" in config["strategy"]["args"]
            unused |= set() if joint else {"compress"}
            unused |= {"strategy", "search"} if self.kind == "retrain" else set()
        if self.kind.startswith("selection_runs"):
            unused |= {"space", "strategy", "search", "retrain", "experiment"}
        if self.kind not in _PREDICT and not self.kind.startswith("prediction"):
            unused.add("predict")
        config = {name: _given(section) for name, section in config.items() if name not in unused}
        config["data"] = placeless(config["data"])
        if "predict" in config:
            config["predict"] = {**config["predict"], "sources": placeless(config["predict"]["sources"])}
        # The path of a bank neither: what is in it has a digest beside.
        parameters = {name: value for name, value in self.parameters.items() if name not in ("trial", "bank")}
        parts = json.dumps([_ALGORITHM, self.kind, config, parameters], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:24]


def _given(section: Any) -> Any:
    """A section without options that are None: a new one that is off makes no other job."""
    return {key: value for key, value in section.items() if value is not None} if isinstance(section, dict) else section


def placeless(value: Any) -> Any:
    """Sections of data, or what holds them, without where the data lie."""
    if isinstance(value, dict):
        return {key: placeless(one) for key, one in value.items() if key not in ("root", "download")}
    return [placeless(one) for one in value] if isinstance(value, list) else value


class Store:
    """The finished jobs of a benchmark, in FILE.jobs.jsonl beside its result."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_suffix(".jobs.jsonl")
        rows = read_rows(self.path)
        # A line that a kill cut off would swallow the next one.
        write_rows(self.path, rows)
        self.rows = {row["key"]: row for row in rows}
        self._run, self._started = f"{time.time():.0f}-{os.getpid()}", time.perf_counter()

    def add(self, job: Job, outcome: Outcome) -> Outcome:
        """Keep an outcome."""
        elapsed = round(time.perf_counter() - self._started, 1)
        row = {"key": job.key, "name": job.name, "run": self._run, "elapsed": elapsed, **outcome}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[job.key] = row
        return row

    @property
    def seconds(self) -> float:
        """Wall time of the benchmark up to its last finished job, over all its attempts."""
        return _wall(self.rows.values())

    def seconds_of(self, jobs: Iterable[Job]) -> float:
        """The same up to the last of some jobs, before which no others ran."""
        return _wall(self.rows[job.key] for job in jobs if job.key in self.rows)


def _wall(rows: Iterable[dict[str, Any]]) -> float:
    last: dict[str, float] = {}
    for row in rows:
        last[row["run"]] = max(last.get(row["run"], 0.0), row["elapsed"])
    return sum(last.values())


class Workers:
    """A pool of processes with one thread each; a context manager.

    Args:
        store: Of finished jobs.
        folder: Where the jobs have their folders, which go when the jobs are done.
        n: Jobs at a time.
        log: Called with a line per finished job.

    Attributes:
        jobs: All that have ended, by name.
    """

    def __init__(self, store: Store, folder: Path, n: int = 2, log: Callable[[str], None] = print) -> None:
        self.store = store
        self.folder = folder
        self.n = n
        self.log = log
        self.jobs: dict[str, Job] = {}
        self._pool: ProcessPoolExecutor | None = None
        self._failed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if kind is None and not self._failed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, jobs: Iterable[Job], follow: Callable[[Job, Outcome], Iterable[Job]] = lambda job, outcome: ()
    ) -> dict[str, Outcome]:
        """Run jobs and those that follow from them.

        Args:
            jobs: To begin with.
            follow: Called with every finished job; gives further jobs.

        Returns:
            Outcomes by name: "result", "epochs" (the terms of every epoch), "seconds" and "cpu_seconds" of the job;
            or "error", which is not kept: such a job is tried again by the next attempt.
        """
        outcomes: dict[str, Outcome] = {}
        waiting: list[tuple[tuple[int, ...], int, Job]] = []
        count = 0

        def push(more: Iterable[Job]) -> None:
            nonlocal count
            for job in more:
                count += 1
                heapq.heappush(waiting, (job.order, count, job))

        def done(job: Job, outcome: Outcome) -> None:
            self.jobs[job.name], outcomes[job.name] = job, outcome
            push(follow(job, outcome))

        push(jobs)
        running: dict[Future[Outcome], Job] = {}
        # Jobs that equal a running one: two outcomes of one key would differ in their seconds.
        equal: dict[str, list[Job]] = {}
        while waiting or running:
            while waiting and len(running) < self.n:
                job = heapq.heappop(waiting)[2]
                if job.key in self.store.rows:
                    done(job, self.store.rows[job.key])
                elif job.key in equal:
                    equal[job.key].append(job)
                else:
                    equal[job.key] = []
                    running[self._submit(job)] = job
            finished, _ = wait(running, return_when=FIRST_COMPLETED) if running else ((), ())
            for future in finished:
                job = running.pop(future)
                outcome = self._collect(job, future)
                self.log(f"[{self.store.seconds:6.0f} s] {job.name}: {_line(outcome)}")
                for one in (job, *equal.pop(job.key)):
                    done(one, outcome)
        return outcomes

    def _submit(self, job: Job) -> Future[Outcome]:
        if self._pool is None:
            # A fresh interpreter, not a fork of this one: torch's threads do not survive a fork.
            context = multiprocessing.get_context("spawn")
            set_threads(1)
            self._pool = ProcessPoolExecutor(self.n, context, initializer=_prepare)
        return self._pool.submit(_work, job, str(self.folder / f"{job.name}-{job.key[:8]}"))

    def _collect(self, job: Job, future: Future[Outcome]) -> Outcome:
        error = future.exception()
        if error is not None:
            self._failed = True
            return {"error": f"{type(error).__name__}: {error}"}
        return self.store.add(job, future.result())


def _line(outcome: Outcome) -> str:
    if "error" in outcome:
        return outcome["error"]
    result = outcome["result"]
    size = f"{result['params']} parameters, " if "params" in result else ""
    return f"{size}score {result.get('default', 0):.4f}, {outcome['seconds']:.1f} s"


def _prepare() -> None:
    """Once per process: one thread, no warnings, no life after the parent, data loaded once for jobs in a row."""
    import logging
    import warnings

    processes.die_with_parent()
    warnings.filterwarnings("ignore")
    import pytorch_lightning  # noqa: F401 (see `set_torch`)

    from nni_bayes_nas.experiment.data import KEPT

    KEPT.set({})
    # Of every job: a benchmark may go on with other code on another machine, and its later processes import anew.
    _MADE.update(commit=git_commit(Path(__file__).resolve().parent), cpu=cpu_model())
    set_torch(1)
    logging.getLogger("nni").setLevel(logging.ERROR)


def _work(job: Job, folder: str) -> Outcome:
    directory = Path(folder)
    if not job.keep:
        shutil.rmtree(directory, ignore_errors=True)
    resumed = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    function = resolve("kind of trial", job.kind, KINDS)
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(Config.from_dict(job.config), job.parameters, directory, lambda row: None)
    outcome = {
        **_MADE,
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "resumed": resumed,
        "epochs": [row["terms"] for row in read_rows(directory / "metrics.jsonl") if "terms" in row],
        "result": {key: value for key, value in result.items() if key != "config"},
    }
    shutil.rmtree(directory, ignore_errors=True)
    return outcome
