"""Where the time went: known answers with a clock of the tests' own."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment import stopwatch
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain
from nni_bayes_nas.experiment.stopwatch import RunClock, Stopwatch, process_age
from nni_bayes_nas.experiment.summary import summarize

from .test_plan import found, trained


class Clock:
    """Shows what it was set to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_each_second_counts_for_the_innermost_stage() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.time += 1  # outside of every stage
    with watch.stage("training"):
        clock.time += 2
        with watch.stage("validation"):
            clock.time += 3
            with watch.stage("counting"):
                clock.time += 0.25
            clock.time += 0.75
        clock.time += 5
    watch.add({"training": 0.5, "start": 4.0})
    with watch.stage("validation"):
        clock.time += 10
    assert watch.seconds == {"training": 7.5, "validation": 13.75, "counting": 0.25, "start": 4.0}
    assert watch.account(27.0) == {**watch.seconds, "other": 1.5}
    assert watch.account(1.0)["other"] == 0.0, "never negative"


def test_a_stage_ends_with_an_exception() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.stage("outer"):
        with pytest.raises(ValueError), watch.stage("inner"):
            clock.time += 1
            raise ValueError
        clock.time += 2
    assert watch.seconds == {"outer": 2.0, "inner": 1.0}


def test_phases_and_slots() -> None:
    clock = Clock()
    run = RunClock(2, 7.0, clock=clock)
    clock.time += 1
    run.update(phase="trials", running=1)
    clock.time += 10
    run.update(running=2)
    clock.time += 4
    run.update(running=3)  # one more than there are slots, as when the end of one is not known yet
    clock.time += 1
    run.update(phase="report", running=0)
    clock.time += 3
    run.update()
    assert run.phases == {"start": 8.0, "trials": 15.0, "report": 3.0}
    assert run.filled == 10 + 2 * 4 + 2 * 1
    # Resumed: what lies between the last write and the new start belongs to nobody.
    clock.time += 1000
    again = RunClock(2, 2.0, run.state, clock)
    again.update(phase="trials", running=1)
    clock.time += 5
    again.update()
    assert again.phases == {"start": 10.0, "trials": 20.0, "report": 3.0} and again.filled == 25.0


def test_the_summary_accounts_for_every_second() -> None:
    clock = Clock()
    config = Config.from_dict({"search": {"lambdas": 2, "random": 0}})
    ledger, run = Ledger(SearchAndRetrain(config)), RunClock(2, 1.0, clock=clock)
    run.update(phase="trials", running=1)
    ledger.take()
    clock.time += 10
    stages = {"start": 1.0, "training": 6.5, "other": 0.25}
    ledger.done("search-s0", {**found([1, 2]), "stage_seconds": stages}, "a", 10.0)
    run.update(running=2)
    ledger.take()
    clock.time += 4
    ledger.done("retrain-s0-lam0-seed0", {**trained(0.5), "stage_seconds": {"training": 3.0}}, "b", 4.0)
    # NNI's database gave this one back: nobody measured how long it took.
    ledger.done("retrain-s0-lam1-seed0", {**trained(0.5), "stage_seconds": {"training": 2.0}}, "c")
    run.update(running=0, phase="report")
    times = summarize(config, ledger, experiment="abc", status="done", clock=run)["wall_clock"]
    assert times == {
        "seconds": 15.0,
        "phases": {"start": 1.0, "trials": 14.0},
        "slots": {"count": 2, "done": 14.0, "unfinished": 4.0, "idle": 10.0},
        "trials": {
            "search-s0": {"kind": "search", "seconds": 10.0, "stages": {**stages, "nni": 2.25}},
            "retrain-s0-lam0-seed0": {"kind": "retrain", "seconds": 4.0, "stages": {"training": 3.0, "nni": 1.0}},
            "retrain-s0-lam1-seed0": {"kind": "retrain", "seconds": None, "stages": {"training": 2.0}},
        },
    }
    alone = summarize(config, ledger, experiment=None, status="done", clock=run)["wall_clock"]
    assert alone["trials"]["search-s0"]["stages"] == {**stages, "other": 2.5}, "without NNI the rest is ours"
    assert "wall_clock" not in summarize(config, ledger, experiment=None, status="done")


def test_age_of_a_process() -> None:
    code = "from nni_bayes_nas.experiment.stopwatch import process_age; print(process_age())"
    before = time.monotonic()
    said = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.01 < said < time.monotonic() - before + 0.02


def test_began_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stopwatch.BEGAN, raising=False)
    assert stopwatch.since(stopwatch.BEGAN) == pytest.approx(process_age(), abs=0.5)
    monkeypatch.setitem(os.environ, stopwatch.BEGAN, str(time.time() - 12.5))
    assert stopwatch.since(stopwatch.BEGAN) == pytest.approx(12.5, abs=0.5)


def check_account(times: dict[str, Any], seconds: float) -> None:
    """Every second of a run of `seconds` has its place, and none is negative; for tests that run one for real."""
    slots = times["slots"]
    done = sum(row["seconds"] for row in times["trials"].values())
    assert times["seconds"] == pytest.approx(sum(times["phases"].values()), abs=0.01)
    # What is missing: the command's interpreter ends, and for half a second nobody looks.
    assert 0 <= seconds - times["seconds"] < 0.05 * seconds + 1.5
    assert slots["done"] == pytest.approx(done, abs=0.01)
    assert slots["count"] * times["phases"]["trials"] == pytest.approx(
        slots["done"] + slots["unfinished"] + slots["idle"], abs=0.05
    )
    for row in times["trials"].values():
        assert sum(row["stages"].values()) == pytest.approx(row["seconds"], abs=0.02)
        assert all(value >= 0 for value in row["stages"].values())
        assert row["stages"]["other"] < 0.03 * row["seconds"] + 0.1
