"""Trials that die, a plan that cannot finish, a run that the user stops: each by name, and what goes on afterwards."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import TOY, Pipeline

pytestmark = [pytest.mark.nni, pytest.mark.slow]


def toy(**args: Any) -> dict[str, Any]:
    return {**TOY, "data": {"args": {"sleep": 0.1, **args}}}


def test_a_dead_trial_is_retried_then_left_out_and_named(pipeline: Callable[..., Pipeline]) -> None:
    run = pipeline(toy(die={"retrain-s0-lam1-seed0": 9, "retrain-s0-lam3-seed0": 1}, silent=["retrain-s0-rand0-seed0"]))
    out = run.run(timeout=400)
    causes = {row["trial"]: (row["attempts"], row["cause"]) for row in run.summary["failures"]}
    assert causes == {
        "retrain-s0-lam1-seed0": (2, "ValueError: told to die in retrain-s0-lam1-seed0"),
        "retrain-s0-rand0-seed0": (2, "the trial ended without a result"),
    }
    assert run.summary["status"] == "done" and run.summary["experiment"]["trials_failed"] == 2
    assert run.ledger["retrain-s0-lam3-seed0"]["attempts"] == 2
    assert "left out: retrain-s0-lam1-seed0 died 2 times (ValueError" in out


def test_a_plan_that_cannot_finish(pipeline: Callable[..., Pipeline]) -> None:
    run = pipeline(toy(die={"search-s0": 2}))
    run.start()
    code, _, err = run.wait()
    assert code == 1 and "told to die in search-s0" in err and "--resume" in err
    assert run.summary["status"] == "failed" and "told to die in search-s0" in run.summary["cause"]
    assert "RunError" in (run.output / "tuner_error.log").read_text()
    assert not run.left()
    # The third start lives: what was in the way is mended, and the run goes on.
    run.run("--resume")
    assert run.summary["status"] == "done" and run.summary["failures"] == []
    assert "nothing to resume" in run.run("--resume")


def test_stop_by_signal(pipeline: Callable[..., Pipeline]) -> None:
    """SIGINT stops manager, dispatcher and trials, and says how to go on."""
    run = pipeline()
    run.start()
    run.until(lambda: run.epochs("search-s0") >= 2)
    os.kill(run.pid("runner"), signal.SIGINT)
    code, _, err = run.wait(120)
    assert code == 1 and "--resume" in err
    assert not run.left()
    run.run("--resume")
    assert run.records()["search-s0 PERIODICAL"].count(0) == 1
