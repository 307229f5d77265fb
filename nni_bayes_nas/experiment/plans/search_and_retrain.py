"""Searches, then a retrain trial for each distinct architecture read off, and for random ones of matched sizes."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.plan import Ledger, Result, TrialSpec
from nni_bayes_nas.experiment.tasks import task_of
from nni_bayes_nas.variants import searches


def _compression(name: str, result: Result) -> dict[str, Any]:
    """What was read off a search whose weights depend on lambda, as the plan `compression` says it of a training."""
    search = result["search"]
    seconds = {
        "training_seconds": round(search["seconds"] - search["reading_seconds"], 2),
        "seconds": search["seconds"],
    }
    rows = result["compression"]
    prior = next((row.get("prior") for row in rows), None)
    head = {"name": name, "trial": None, "hypernet": "joint", "lambda": None, "prior": prior, "seed": search["seed"]}
    return {**head, "rows": rows, **seconds}


@dataclass(frozen=True)
class _Found:
    """One architecture of a search's result, and the stem of the retrain trials that train its choices."""

    id: str
    search: str
    row: dict[str, Any]
    stem: str
    first: bool


class SearchAndRetrain:
    """The plan of the main job.

    Trials: ``search-s0`` ... for each search, or ``searches-s0-s3`` for those that run side by side, then for each
    distinct architecture of a search ``retrain-s0-lam3-seed1`` (3: where it stands first in the search's list) and
    ``retrain-s0-rand2-seed1``; for repeats that run side by side ``retrains-s0-lam3-seeds1-4``.
    Identical choices of one search are trained once per seed; all that have them share the trials.
    """

    def __init__(self, config: Config) -> None:
        self.task = task_of(config.data)
        self.searches = searches(config)
        self.groups = _groups(range(len(self.searches)), config.search.replicas)
        self.retrain_groups = _groups(range(config.seed, config.seed + config.retrain.repeats), config.retrain.replicas)
        self.retrain_seeds = [seed for group in self.retrain_groups for seed in group]

    def trials(self, results: dict[str, Result], failed: set[str]) -> list[TrialSpec]:
        """The searches, then the retrain trials of every search that is done, largest architectures first."""
        specs = [self._search(group) for group in self.groups]
        for found in self._found(results):
            if found.first:
                specs.extend(self._retrain(found, group) for group in self.retrain_groups)
        return specs

    def verdict(self, results: dict[str, Result], failed: set[str]) -> str | None:
        """The plan cannot finish when no search is left, or no architecture read off one can be retrained.

        Random architectures are there to be compared with: alone they are no result.
        """
        searches = [self._search(group).name for group in self.groups]
        if all(name in failed for name in searches):
            return "every search failed, so there is no architecture to retrain"
        if any(name not in results and name not in failed for name in searches):
            return None
        stems = [found.stem for found in self._found(results) if found.row.get("origin") != "random"]
        if not stems:
            return "no search gave an architecture to retrain"
        if all(_retrain_name(stem, group) in failed for stem in stems for group in self.retrain_groups):
            return "every retrain trial of the architectures that the searches gave failed"
        return None

    def summary(self, results: dict[str, Result], failed: set[str], ledger: Ledger) -> dict[str, Any]:
        """One row a search and one an architecture, with the retrain results there are so far."""
        searched, curves, read = [], {}, []
        for i in range(len(self.searches)):
            result = self._result(results, i)
            if result is not None:
                searched.append({**result["search"], "id": f"s{i}"})
                curves[f"s{i}"] = result.get("curve", [])
                if result.get("compression"):
                    read.append(_compression(f"search-s{i}", result))
        architectures = [self._architecture(found, results, ledger) for found in self._found(results)]
        lost = [row for spec in self.trials(results, failed) for row in results.get(spec.name, {}).get("failures", [])]
        part: dict[str, Any] = {"searches": searched, "architectures": architectures, "curves": curves}
        if read:
            part["compression"] = read
        return {**part, "failures": lost} if lost else part

    def _search(self, group: range) -> TrialSpec:
        """The trial of some searches; of one, as if there were no groups."""
        if len(group) == 1:
            seed, changes = self.searches[group[0]]
            return TrialSpec(f"search-s{group[0]}", "search", {"seed": seed, **_where(changes=changes)})
        seeds = {f"search-s{i}": self.searches[i][0] for i in group}
        changes = {f"search-s{i}": self.searches[i][1] for i in group if self.searches[i][1]}
        parameters = {"seeds": seeds, **_where(changes=changes)}
        return TrialSpec(f"searches-s{group[0]}-s{group[-1]}", "searches", parameters, tuple(seeds))

    def _result(self, results: dict[str, Result], i: int) -> Result | None:
        """What search i gave, by itself or side by side with others."""
        name = f"search-s{i}"
        together = (results.get(self._search(group).name, {}) for group in self.groups if i in group)
        return results.get(name) or next(together).get("searches", {}).get(name)

    def _retrain(self, found: _Found, group: range) -> TrialSpec:
        """The trial of some repeats; of one, as if there were no groups."""
        parameters = {key: found.row.get(key) for key in ("choices", "lambda", "params", "macs")}
        parameters["architecture"] = found.id
        name = _retrain_name(found.stem, group)
        if len(group) == 1:
            return TrialSpec(name, "retrain", {"seed": group[0], **parameters})
        seeds = {_retrain_name(found.stem, range(seed, seed + 1)): seed for seed in group}
        return TrialSpec(name, "retrains", {"seeds": seeds, **parameters}, tuple(seeds))

    def _found(self, results: dict[str, Result]) -> Iterator[_Found]:
        """Every architecture of every search that is done, lambda ones first, in the order of growing lambda."""
        for i in range(len(self.searches)):
            result = self._result(results, i)
            if result is None:
                continue
            stems: dict[str, str] = {}
            ids: set[str] = set()
            for word, rows in (("lam", result["architectures"]), ("rand", result.get("random", []))):
                for index, row in enumerate(rows):
                    choices = json.dumps(row["choices"], sort_keys=True)
                    first = choices not in stems
                    stem = stems.setdefault(choices, row.get("stem") or f"retrain-s{i}-{word}{index}")
                    name = _architecture_id(f"s{i}", word, index, row)
                    if name in ids:
                        name = f"{name}-{index}"
                    ids.add(name)
                    yield _Found(name, f"s{i}", row, stem, first)

    def _architecture(self, found: _Found, results: dict[str, Result], ledger: Ledger) -> dict[str, Any]:
        retrain, measured = [], None
        for group in self.retrain_groups:
            trial = _retrain_name(found.stem, group)
            together = results.get(trial, {}).get("retrainings", results)
            for seed in group:
                name = _retrain_name(found.stem, range(seed, seed + 1))
                result = together.get(name)
                if result is None:
                    continue
                measured = measured or result
                values = {key: result.get(key) for key in (*self.task.retrain_terms, "seconds", "test_objects")}
                if "selection" in result:
                    values["selection"] = result["selection"]
                retrain.append({"seed": seed, **values, "trial": ledger.entries[trial]["job"], "name": name})
        # Counted on the network that was retrained; until then, what the search counted.
        counted = measured or found.row
        score = self.task.test_score
        scores = [row[score] for row in retrain if row[score] is not None]
        mean = statistics.fmean(scores) if scores else None
        sd = statistics.stdev(scores) if len(scores) > 1 else None
        row = found.row
        return {
            "id": found.id,
            "search": found.search,
            "lambda": row.get("lambda"),
            "origin": row.get("origin"),
            "choices": row["choices"],
            "log_prob": row.get("log_prob"),
            "params": counted.get("params"),
            "macs": counted.get("macs"),
            # The latency is the table's, which knows the networks of the search alone.
            **{key: row[key] for key in row if key.startswith(("latency", "matches", "price", "mixture_", "one_hot_"))},
            "retrain": retrain,
            f"{score}_mean": mean,
            f"{score}_sd": sd,
            "test_score_mean": mean,
            "test_score_sd": sd,
        }


def _where(**parameters: Any) -> dict[str, Any]:
    """Those that say something."""
    return {name: value for name, value in parameters.items() if value}


def _groups(items: range, size: int) -> list[range]:
    """Neighbours, `size` together."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def _retrain_name(stem: str, seeds: range) -> str:
    if len(seeds) == 1:
        return f"{stem}-seed{seeds[0]}"
    return f"{stem.replace('retrain', 'retrains', 1)}-seeds{seeds[0]}-{seeds[-1]}"


def _architecture_id(search: str, word: str, index: int, row: dict[str, Any]) -> str:
    if word == "rand":
        return f"{search}-rand-{index}"
    lam = row.get("lambda")
    if lam is None:
        return f"{search}-{row.get('origin') or 'mean'}"
    return f"{search}-lam-{lam:.4g}"
