"""Ensembles of the retrained networks of a run: of samples of a posterior, and of repeats of one architecture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t
from torch import Tensor

from nni_bayes_nas.experiment.uncertainty import ensemble, scores

_LEVEL = 0.95
Rows = Sequence[tuple[dict[str, Any], dict[str, Any]]]


def ensembles(rows: Rows, log_probs: Mapping[str, Tensor], y: Tensor, score: str) -> list[dict[str, Any]]:
    """Scores of the best network, of its repeats together, and of the posterior of every search.

    The members of a posterior's ensemble are the architecture that was read off and the samples, retrained with one
    seed; their weights are their probabilities. Beside it stand its best member, and as many seeds of one architecture,
    the member that is best in the mean: of n seeds those from the one at hand on, in a ring, so that with fewer than
    twice as many the groups overlap and their interval is too narrow. All is chosen by validation data.

    Args:
        rows: (architecture, retraining), as in summary.json.
        log_probs: Of the test objects, by trial.
        y: Their classes.
        score: Term of a retraining by which the best is chosen, on validation data.

    Returns:
        Rows with "name", "networks" in each, "seeds", "scores" in the mean over the seeds; and "difference" of the NLL
        to that of the best member, paired by seed: "mean", "low" and "high" of its 95 % interval (Student's t), None
        where there is one seed.
    """

    def value(retrained: Mapping[str, Any]) -> float:
        found = retrained.get(score)
        return -math.inf if found is None else float(found)

    best, one = max(rows, key=lambda pair: value(pair[1]))
    found = [_entry("best network by validation", 1, [scores(log_probs[str(one["name"])], y)], [one["seed"]])]
    repeats = [other for row, other in rows if row["id"] == best["id"]]
    if len(repeats) > 1:
        together = ensemble([log_probs[str(other["name"])] for other in repeats])
        found.append(_entry("its repeats together", len(repeats), [scores(together, y)], [one["seed"]]))
    for search in dict.fromkeys(row.get("search") for row, _ in rows):
        drawn = [pair for pair in rows if pair[0].get("search") == search and _of_posterior(pair[0])]
        logs = {str(row["id"]): float(row["log_prob"]) for row, _ in drawn}
        seeds = sorted({int(other["seed"]) for _, other in drawn})
        # Each seed that all members have.
        by_seed = {s: [pair for pair in drawn if int(pair[1]["seed"]) == s] for s in seeds}
        by_seed = {s: pairs for s, pairs in by_seed.items() if len(pairs) == len(logs) > 1}
        if not by_seed:
            continue
        weights = [math.exp(log - max(logs.values())) for log in logs.values()]
        weighted, equal, single = [], [], []
        members = [
            {str(row["id"]): log_probs[str(other["name"])] for row, other in pairs} for pairs in by_seed.values()
        ]
        for pairs, of_seed in zip(by_seed.values(), members, strict=True):
            ordered = [of_seed[name] for name in logs]
            weighted.append(scores(ensemble(ordered, weights), y))
            equal.append(scores(ensemble(ordered), y))
            single.append(scores(log_probs[str(max(pairs, key=lambda pair: value(pair[1]))[1]["name"])], y))
        k = len(logs)
        named = [
            (f"posterior of {search}, weighted", k, weighted),
            (f"posterior of {search}, equal weights", k, equal),
            (f"best member of {search} by validation", 1, single),
        ]
        if len(members) >= k:
            every = [(str(row["id"]), value(other)) for pairs in by_seed.values() for row, other in pairs]
            favourite = max(logs, key=lambda name: statistics.fmean(v for i, v in every if i == name))
            rings = [[members[(i + j) % len(members)][favourite] for j in range(k)] for i in range(len(members))]
            named.append((f"{k} seeds of the best member of {search}", k, [scores(ensemble(one), y) for one in rings]))
        for name, n, each in named:
            difference = _difference(each, single) if each is not single else None
            found.append(_entry(name, n, each, list(by_seed), difference))
    return found


def _of_posterior(row: Mapping[str, Any]) -> bool:
    return (
        row.get("lambda") is None and row.get("origin") not in ("random", "refined") and row.get("log_prob") is not None
    )


def _entry(
    name: str, n: int, each: Sequence[Mapping[str, float]], seeds: Sequence[int], difference: Any = None
) -> dict[str, Any]:
    mean = {key: statistics.fmean(one[key] for one in each) for key in each[0]}
    return {"name": name, "networks": n, "seeds": list(seeds), "scores": mean, "difference": difference}


def _difference(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    values = [a["nll"] - b["nll"] for a, b in zip(ours, theirs, strict=True)]
    if len(values) < 2:
        return None
    mean, n = statistics.fmean(values), len(values)
    reach = float(t.ppf((1 + _LEVEL) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - reach, "high": mean + reach}
