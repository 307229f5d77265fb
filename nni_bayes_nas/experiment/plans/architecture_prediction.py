"""Searches on parts of data sets, a meta-model of what they found, and what it predicts for all data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.plan import Ledger, Result, TrialSpec
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain


class ArchitecturePrediction:
    """The plan of the command ``predict``.

    Trials: ``bank-0`` ... search small networks on some tasks each; when all have ended, ``predict-doubly_recurrent``
    for every decoder; when these have, ``verify-320`` for every budget of connections. With cells: ``cells-0`` ...
    search cells on parts, then ``predict_cells``, then a retrain trial for each cell and seed.
    Of a trial of either bank that failed the tasks that it had finished are learned from.
    """

    def __init__(self, config: Config) -> None:
        settings = config.predict
        self.seed, self.kinds = config.seed, settings.kinds
        self.banks = _slices("bank", settings.tasks, settings.tasks_per_trial)
        self.has_bank = settings.bank is not None
        self.cells = _slices("cells", settings.cells, settings.tasks_per_trial)
        # Cells are retrained as those of a search.
        self.cell_plan = SearchAndRetrain(replace(config, search=replace(config.search, searches=1, variants=[])))

    def trials(self, results: dict[str, Result], failed: set[str]) -> list[TrialSpec]:
        """What is known so far: a stage begins when the one before has ended."""
        specs = [*self.banks, *self.cells]
        if _ended(self.banks, results, failed) and (self._done(self.banks, results) or self.has_bank):
            specs += (predictions := self._predictions(results))
            if _ended(predictions, results, failed):
                specs += self._verifications(results)
        if self.cells and _ended(self.cells, results, failed) and self._done(self.cells, results):
            names = [spec.name for spec in self.cells]
            specs.append(TrialSpec("predict_cells", "predict_cells", {"banks": names, "seed": self.seed}))
            specs += self._retrainings(results, failed)
        return specs

    def verdict(self, results: dict[str, Result], failed: set[str]) -> str | None:
        """The plan cannot finish when no task was searched, or nothing could be predicted."""
        # A verdict ends nothing that still goes on: cells are apart from the rest.
        if not _ended(self.trials(results, failed), results, failed):
            return None
        if self.banks and all(spec.name in failed for spec in self.banks) and not self.has_bank:
            return "every search of the bank failed, so there is nothing to learn from"
        if all(f"predict-{kind}" in failed for kind in self.kinds):
            return "every meta-model failed, so there is nothing to verify"
        verifications = self._verifications(results)
        if verifications and all(spec.name in failed for spec in verifications):
            return "every training of predicted networks failed"
        if self.cells and all(spec.name in failed for spec in self.cells):
            return "every search of cells failed"
        if "predict_cells" in failed:
            return "cells could not be predicted: see the error of the trial predict_cells"
        return self.cell_plan.verdict(self._as_search(results), failed) if "predict_cells" in results else None

    def summary(self, results: dict[str, Result], failed: set[str], ledger: Ledger) -> dict[str, Any]:
        """Under "prediction": "bank", "fits" and "verified"; cells are architectures, as of a search."""
        fits = [results[f"predict-{kind}"] for kind in self.kinds if f"predict-{kind}" in results]
        prediction: dict[str, Any] = {
            # What was learned from, an earlier run's too; until then, what there is.
            "bank": fits[0]["bank"] if fits else _together([results[name] for name in self._done(self.banks, results)]),
            "fits": fits,
            "verified": [results[spec.name] for spec in self._verifications(results) if spec.name in results],
        }
        part: dict[str, Any] = {"searches": [], "architectures": [], "curves": {}}
        if "predict_cells" in results:
            part = self.cell_plan.summary(self._as_search(results), failed, ledger)
            prediction["cells"] = {
                "tasks": sum(results[name]["tasks"] for name in self._done(self.cells, results)),
                "seconds": sum(results[name]["seconds"] for name in self._done(self.cells, results)),
                "seconds_predict": results["predict_cells"]["seconds_predict"],
            }
        return {**part, "prediction": prediction}

    def _predictions(self, results: dict[str, Result]) -> list[TrialSpec]:
        names = [spec.name for spec in self.banks]
        return [
            TrialSpec(f"predict-{kind}", "predict", {"decoder": kind, "banks": names, "seed": self.seed})
            for kind in self.kinds
        ]

    def _verifications(self, results: dict[str, Result]) -> list[TrialSpec]:
        done = [f"predict-{kind}" for kind in self.kinds if f"predict-{kind}" in results]
        budgets = [one["budget"] for one in results[done[0]]["predictions"]] if done else []
        return [
            TrialSpec(
                f"verify-{budget}",
                "verify",
                {"budget": budget, "predictions": done, "seed": self.seed, "dense": budget == budgets[-1]},
            )
            for budget in budgets
        ]

    def _retrainings(self, results: dict[str, Result], failed: set[str]) -> list[TrialSpec]:
        if "predict_cells" not in results:
            return []
        return [
            spec
            for spec in self.cell_plan.trials(self._as_search(results), failed)
            if spec.kind in ("retrain", "retrains")
        ]

    def _as_search(self, results: dict[str, Result]) -> dict[str, Result]:
        return {**results, "search-s0": results["predict_cells"]}

    def _done(self, specs: list[TrialSpec], results: dict[str, Result]) -> list[str]:
        return [spec.name for spec in specs if spec.name in results]


def _ended(specs: list[TrialSpec], results: dict[str, Result], failed: set[str]) -> bool:
    return all(spec.name in results or spec.name in failed for spec in specs)


def _slices(kind: str, n: int, size: int) -> list[TrialSpec]:
    """Trials of some tasks each."""
    return [
        TrialSpec(f"{kind}-{i}", kind, {"first": first, "count": min(size, n - first)})
        for i, first in enumerate(range(0, n, size))
    ]


def _together(banks: list[Result]) -> dict[str, Any]:
    """The accounts of several banks as one."""
    names = ("tasks", "entries", "as_good", "tasks_as_good", "seconds")
    methods = sorted({name for bank in banks for name in bank["methods"]})
    return {
        **{name: sum(bank[name] for bank in banks) for name in names},
        "methods": {name: sum(bank["methods"].get(name, 0) for bank in banks) for name in methods},
    }
