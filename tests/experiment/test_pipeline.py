"""The whole pipeline on the digits, with a real NNI manager: what `make test` holds of it."""

import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import requests

from .conftest import Pipeline
from .test_nnictl import assert_closed_to_strangers
from .test_stopwatch import check_account

DIGITS: dict[str, Any] = {
    "space": {"name": "chain"},
    # The number of the second search among the trials is not 0, as is the one that NNI's engine leaves behind.
    "search": {"epochs": 2, "warmup_epochs": 1, "searches": 2, "lambdas": 2, "random": 0},
    "retrain": {"epochs": 1},
    "experiment": {"device": "cpu", "concurrency": 2, "threads": 1, "retries": 0},
}


@pytest.mark.nni
def test_search_and_retrain_as_one_experiment(pipeline: Callable[..., Pipeline]) -> None:
    run = pipeline(DIGITS)
    began = time.monotonic()
    run.start()
    run.until(lambda: run.ledger.get("search-s0", {}).get("status") == "running")
    if sys.platform == "linux":
        run.until(lambda: run.json("trials/search-s0/pid"))
        assert "nni_bayes_nas.experiment.fork_server" in psutil.Process(run.pid("search-s0")).parent().cmdline()
    # Whoever is on another machine, or does not know the prefix, stays outside.
    assert_closed_to_strangers(run.port)
    assert requests.get(f"http://127.0.0.1:{run.port}/api/v1/nni/check-status", timeout=10).status_code == 404

    code, out, err = run.wait()
    assert code == 0, f"{out}\n{err}"
    seconds = time.monotonic() - began
    summary = run.summary
    assert summary["status"] == "done" and summary["failures"] == []
    records = run.records()
    jobs = {job: name for job, name in records["jobs"]}
    assert summary["experiment"]["trials_succeeded"] == len(jobs) == len(run.ledger)
    assert {entry["attempts"] for entry in run.ledger.values()} == {1} and len(summary["searches"]) == 2
    for row in summary["architectures"]:
        assert row["params"] > 0 and [jobs[r["trial"]] for r in row["retrain"]] == [r["name"] for r in row["retrain"]]
    # Exactly one final result a trial, our dict, and an intermediate one an epoch.
    for name in jobs.values():
        (final,) = records[f"{name} FINAL"]
        assert final == run.ledger[name]["result"]
    assert records["search-s0 PERIODICAL"] == [0, 1]
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "report.html"):
        assert (run.output / name).stat().st_size > 0
    assert f"report: {run.output / 'report.html'}" in out
    assert not run.left()

    times = summary["wall_clock"]
    check_account(times, seconds)
    assert set(times["phases"]) == {"start", "trials", "report", "stop"} and times["slots"]["unfinished"] < 0.5
    process = {"start", "imports", "saving", "other", "nni"}
    training = {"data", "building", "training", "validation", "reporting", "checkpoints", "counting"}
    for name, row in times["trials"].items():
        beside = {"reading"} if name.startswith("search") else {"test"}
        assert set(row["stages"]) == process | training | beside, name


@pytest.mark.nni
@pytest.mark.slow
def test_every_result_of_trials_side_by_side_arrives_at_once(pipeline: Callable[..., Pipeline]) -> None:
    """Where several searches have changed the channel to the manager in turn."""
    values = {
        **DIGITS,
        "search": {**DIGITS["search"], "searches": 3, "replicas": 2},
        "retrain": {"epochs": 1, "repeats": 2, "replicas": 2},
    }
    run = pipeline(values)
    run.start()
    code, out, err = run.wait()
    assert code == 0, f"{out}\n{err}"
    summary = run.summary
    assert summary["status"] == "done" and summary["failures"] == [] and len(summary["searches"]) == 3
    assert {entry["attempts"] for entry in run.ledger.values()} == {1}
    assert {name.split("-")[0] for name in run.ledger} == {"search", "searches", "retrains"}
    records = run.records()
    for _, name in records["jobs"]:
        (final,) = records[f"{name} FINAL"]
        assert final == run.ledger[name]["result"]
    assert all([r["seed"] for r in row["retrain"]] == [0, 1] for row in summary["architectures"])
