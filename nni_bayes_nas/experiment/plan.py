"""What a plan is, and the ledger that keeps account of its trials. Nothing here knows NNI."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Result = dict[str, Any]
Entry = dict[str, Any]


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its name within the plan, its kind, and what the kind's function needs beyond the configuration.

    ``kind`` is ``search``, ``searches``, ``retrain``, ``retrains``, or ``package.module:function`` of the user's own.
    ``folders`` are those under ``OUT/trials`` where it writes metrics; empty means that of its name.
    """

    name: str
    kind: str
    parameters: dict[str, Any]
    folders: tuple[str, ...] = ()


class Plan(Protocol):
    """A pure object, built as ``Plan(config)``: the same results give the same trials."""

    def trials(self, results: dict[str, Result], failed: set[str]) -> list[TrialSpec]:
        """All trials known so far, in a deterministic order; never fewer as results come in."""

    def summary(self, results: dict[str, Result], failed: set[str], ledger: "Ledger") -> dict[str, Any]:
        """The plan's part of ``summary.json``: ``searches``, ``architectures`` and ``curves``."""

    def verdict(self, results: dict[str, Result], failed: set[str]) -> str | None:
        """Why the plan cannot finish, or None."""


class Ledger:
    """Which trials wait, run, are done or have failed; its state is JSON, keyed by the plan's names.

    A trial that dies is run again up to ``retries`` times, then failed and left out. A trial that is done is never
    handed out again. A result that arrives late, after its trial was given up, still counts.

    Args:
        plan: Says which trials there are.
        retries: How often a dead trial is run again.
        entries: An earlier ``Ledger.entries``, as JSON gave it back.
    """

    def __init__(self, plan: Plan, retries: int = 1, entries: dict[str, Entry] | None = None) -> None:
        self.plan = plan
        self.retries = retries
        self.entries: dict[str, Entry] = {} if entries is None else {name: dict(e) for name, e in entries.items()}
        self._specs: dict[str, TrialSpec] = {}
        self._refresh()

    @property
    def results(self) -> dict[str, Result]:
        """The results of the trials that are done."""
        return {name: entry["result"] for name, entry in self.entries.items() if entry["status"] == "done"}

    @property
    def failed(self) -> set[str]:
        """The names of the trials that were given up."""
        return {name for name, entry in self.entries.items() if entry["status"] == "failed"}

    @property
    def finished(self) -> bool:
        """True when every trial of the plan is done or given up; one that it has dropped since is not waited for."""
        return all(self.entries[name]["status"] in ("done", "failed") for name in self._specs)

    @property
    def failures(self) -> list[dict[str, Any]]:
        """One row for each trial that was given up: trial, attempts, cause."""
        return [
            {"trial": name, "attempts": entry["attempts"], "cause": entry["cause"]}
            for name, entry in self.entries.items()
            if entry["status"] == "failed"
        ]

    def names(self, status: str) -> list[str]:
        """The trials of one status, in the plan's order."""
        return [name for name in self._specs if self.entries[name]["status"] == status]

    def order(self) -> list[str]:
        """All trials in the plan's order."""
        return list(self._specs)

    def folders(self, names: Iterable[str] | None = None) -> list[str]:
        """Where the trials of these names, or all, write metrics; in the plan's order."""
        kept = set(self._specs if names is None else names)
        return [f for name, spec in self._specs.items() if name in kept for f in spec.folders or (name,)]

    def spec(self, name: str) -> TrialSpec | None:
        """The trial of that name, or None."""
        return self._specs.get(name)

    def take(self, n: float = math.inf) -> list[TrialSpec]:
        """Up to ``n`` waiting trials, which are marked as running."""
        taken: list[TrialSpec] = []
        for name in self.names("waiting"):
            if len(taken) >= n:
                break
            entry = self.entries[name]
            entry["status"] = "running"
            entry["attempts"] += 1
            taken.append(self._specs[name])
        return taken

    def running(self, name: str) -> bool:
        """Notes that this very trial was started, as by NNI's own resume; False if there is none that waits."""
        if name not in self._specs or self.entries[name]["status"] != "waiting":
            return False
        self.entries[name]["status"] = "running"
        self.entries[name]["attempts"] += 1
        return True

    def done(self, name: str, result: Result, job: str | None = None, seconds: float | None = None) -> bool:
        """Records a result; False when the trial is unknown or was done before (the first result stands).

        Args:
            name: The trial.
            result: What it gave.
            job: NNI's id of the trial.
            seconds: From the moment the trial was sent until its end was known; None where nobody measured them.

        Raises:
            Exception: Whatever the plan raises for a result that it cannot read, which is then not recorded.
        """
        if name not in self._specs or self.entries[name]["status"] == "done":
            return False
        before = self.entries[name]
        self.entries[name] = {
            **before,
            "status": "done",
            "result": result,
            "job": job,
            "cause": None,
            "seconds": seconds,
        }
        try:
            self._refresh()
            self.summary()
        except Exception:
            self.entries[name] = before
            raise
        return True

    def died(self, name: str, cause: str, job: str | None = None) -> Literal["retry", "failed", "ignored"]:
        """Records a death: the trial waits again, or is given up; ignored unless it was running."""
        if name not in self._specs or self.entries[name]["status"] != "running":
            return "ignored"
        entry = self.entries[name]
        entry.update(cause=cause, job=job)
        entry["status"] = "waiting" if entry["attempts"] <= self.retries else "failed"
        self._refresh()
        return "retry" if entry["status"] == "waiting" else "failed"

    def recover(self) -> list[str]:
        """After a restart: what ran waits again, without counting as an attempt; returns those names."""
        names = self.names("running")
        for name in names:
            self.entries[name]["status"] = "waiting"
            self.entries[name]["attempts"] -= 1
        return names

    def revive(self) -> list[str]:
        """Lets the trials that were given up run again, from no attempts; returns their names."""
        names = self.names("failed")
        for name in names:
            self.entries[name].update(status="waiting", attempts=0)
        self._refresh()
        return names

    def verdict(self) -> str | None:
        """Why the plan cannot finish, with the causes of the trials that failed, or None."""
        reason = self.plan.verdict(self.results, self.failed)
        if reason is None:
            return None
        causes = "; ".join(f"{row['trial']}: {row['cause']}" for row in self.failures)
        return f"{reason} ({causes})" if causes else reason

    def summary(self) -> dict[str, Any]:
        """The plan's part of ``summary.json``."""
        return self.plan.summary(self.results, self.failed, self)

    def _refresh(self) -> None:
        specs: Iterable[TrialSpec] = self.plan.trials(self.results, self.failed)
        self._specs = {spec.name: spec for spec in specs}
        for name in self._specs:
            self.entries.setdefault(
                name, {"status": "waiting", "attempts": 0, "result": None, "job": None, "cause": None}
            )
