"""``summary.json``: what a run has found so far, in the words of the run folder's contract."""

from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.tasks import task_of


def summarize(
    config: Config, ledger: Ledger, *, experiment: str | None, status: str, cause: str | None = None
) -> dict[str, Any]:
    """The summary of a run.

    Args:
        config: The configuration.
        ledger: The account of the plan's trials.
        experiment: NNI's id of the experiment, None without NNI's manager.
        status: "running", "done" or "failed".
        cause: Why the run failed.
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
        **_plans_part(ledger),
        "failures": ledger.failures,
    }
    if cause is not None:
        summary["cause"] = cause
    return summary


def _plans_part(ledger: Ledger) -> dict[str, Any]:
    try:
        return ledger.summary()
    except Exception:
        # A plan that breaks down here has been, or will be, named as the cause: the rest must still be written.
        return {"searches": [], "architectures": [], "curves": {}}
