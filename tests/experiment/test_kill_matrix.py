"""kill -9 of each process, each in its own run: the end is that of a run that nobody disturbed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import TOY, Pipeline

pytestmark = [pytest.mark.nni, pytest.mark.slow, pytest.mark.timeout(1200)]

DIGITS: dict[str, Any] = {
    "space": {"name": "chain"},
    "search": {"epochs": 6, "warmup_epochs": 1, "lambdas": 2, "random": 1},
    "retrain": {"epochs": 2},
    "experiment": {"device": "cpu", "concurrency": 2, "threads": 1},
}
PIPELINES = {"toy": TOY, "digits": DIGITS}


@pytest.fixture(scope="module", params=list(PIPELINES))
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp(f"undisturbed-{request.param}"), PIPELINES[request.param])
    pipeline.run(timeout=600)
    yield pipeline
    pipeline.clean()


@pytest.mark.parametrize("victim", ["search trial", "retrain trial", "dispatcher", "manager", "runner"])
def test_ends_as_undisturbed(victim: str, undisturbed: Pipeline, pipeline: Callable[..., Pipeline]) -> None:
    run = pipeline(undisturbed.values)
    run.start()
    if victim == "retrain trial":
        run.until(lambda: any(run.epochs(name) > 0 and run.pid(name) for name in retrains(run, "running")), 300)
        target = next(name for name in retrains(run, "running") if run.epochs(name) > 0)
    else:
        # Past epoch 1, so that there is a checkpoint to go on from.
        run.until(lambda: run.epochs("search-s0") >= 3, 300)
        target = "search-s0" if victim == "search trial" else victim
    os.kill(run.pid(target), signal.SIGKILL)
    killed = time.monotonic()
    code, out, err = run.wait(300)
    elapsed = time.monotonic() - killed

    if victim.endswith("trial"):
        assert code == 0, err
        assert run.ledger[target]["attempts"] == 2
    else:
        assert code == (-signal.SIGKILL if victim == "runner" else 1), f"{out}\n{err}"
        if victim != "runner":
            assert elapsed < 60
            assert victim in err and "--resume" in err
            assert run.summary["status"] == "failed"
            assert not run.left()
        out = run.run("--resume", timeout=600)
        assert ("watching it" in out) == (victim == "runner")

    assert run.summary["status"] == "done"
    assert run.architectures() == undisturbed.architectures()
    assert run.losses("search-s0") == undisturbed.losses("search-s0")
    assert not run.summary["failures"]
    records = run.records()
    # The search went on from its checkpoint. A trial that the kill met between its result and its end sends that
    # result again, with the seconds of the process that sends it; nothing else comes twice.
    assert records["search-s0 PERIODICAL"].count(0) == 1
    for name in (key for key in records if key.endswith("FINAL")):
        results = [{**value, "stage_seconds": None} for value in records[name]]
        assert all(result == results[0] for result in results), name
    assert (run.output / "report.html").exists()
    assert not run.left()


def retrains(run: Pipeline, status: str) -> list[str]:
    return [name for name, entry in run.ledger.items() if name.startswith("retrain") and entry["status"] == status]
