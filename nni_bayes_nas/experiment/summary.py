"""``summary.json``: what a run has found so far, in the words of the run folder's contract."""

from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.stopwatch import RunClock
from nni_bayes_nas.experiment.tasks import task_of


def summarize(
    config: Config,
    ledger: Ledger,
    *,
    experiment: str | None,
    status: str,
    cause: str | None = None,
    clock: RunClock | None = None,
) -> dict[str, Any]:
    """The summary of a run.

    Args:
        config: The configuration.
        ledger: The account of the plan's trials.
        experiment: NNI's id of the experiment, None without NNI's manager.
        status: "running", "done" or "failed".
        cause: Why the run failed.
        clock: Of the run; without one the summary says nothing of times but those of the trials.
    """
    statuses = [entry["status"] for entry in ledger.entries.values()]
    summary: dict[str, Any] = {
        "schema": 1,
        "status": status,
        "name": config.experiment.name,
        "space": config.space.name,
        "data": config.data.name,
        "task": config.data.task,
        "score": task_of(config.data).describe(),
        "seed": config.seed,
        "experiment": {
            "id": experiment,
            "trials_succeeded": statuses.count("done"),
            "trials_failed": statuses.count("failed"),
        },
        **(part := _plans_part(ledger)),
        "failures": [*ledger.failures, *part.get("failures", [])],
    }
    if clock is not None:
        summary["wall_clock"] = wall_clock(ledger, clock, "other" if experiment is None else "nni")
    if cause is not None:
        summary["cause"] = cause
    return summary


def wall_clock(ledger: Ledger, clock: RunClock, around: str) -> dict[str, Any]:
    """Where the seconds of a run went.

    Args:
        ledger: Its trials; those that are done have the stages of the process that gave the result.
        clock: Phases and trial slots.
        around: Name of the stage of a trial before its process begins and after it has given its result.

    Returns:
        "seconds": the sum of the phases. "phases": start, trials, report. "slots": seconds of all trial slots during
        the phase "trials", which are count times that phase: in trials that are done, in attempts that are not (dead
        ones, and what runs now), idle. "trials": for each trial that is done its kind, its seconds from when it was
        sent to its end, None where nobody measured them, and its stages, whose sum that is.
    """
    trials = {}
    for name, entry in ledger.entries.items():
        if entry["status"] != "done" or (spec := ledger.spec(name)) is None:
            continue
        stages, seconds = dict(entry["result"].get("stage_seconds", {})), entry.get("seconds")
        if seconds is not None:
            stages[around] = stages.get(around, 0.0) + max(0.0, seconds - sum(stages.values()))
        trials[name] = {"kind": spec.kind, "seconds": _rounded(seconds), "stages": _rounded(stages)}
    done = sum(row["seconds"] or 0.0 for row in trials.values())
    capacity = clock.slots * clock.phases.get("trials", 0.0)
    return {
        "seconds": _rounded(sum(clock.phases.values())),
        "phases": _rounded(clock.phases),
        "slots": {
            "count": clock.slots,
            **_rounded({"done": done, "unfinished": max(0.0, clock.filled - done), "idle": capacity - clock.filled}),
        },
        "trials": trials,
    }


def _rounded(value: Any) -> Any:
    """To the millisecond."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return None if value is None else round(value, 3)


def _plans_part(ledger: Ledger) -> dict[str, Any]:
    try:
        return ledger.summary()
    except Exception:
        # A plan that breaks down here has been, or will be, named as the cause: the rest must still be written.
        return {"searches": [], "architectures": [], "curves": {}}
