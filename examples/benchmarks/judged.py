"""What searches and refinements found, judged by a table that knows the accuracy of every architecture of the space."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from contract import Target, half_width
from scipy.stats import binomtest, rankdata
from workers import Outcome

from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.experiment.benchmark_table import BenchmarkTable

Choices = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """A table, and how it is read.

    Attributes:
        table: One row an architecture.
        name: Its name in the table, by its choices.
        column: Of the accuracy, in %.
        size: Column of the parameters, in any unit.
        good: Accuracy from which on an architecture is a good one.
    """

    table: BenchmarkTable
    name: Callable[[Choices], str]
    column: str
    size: str
    good: float

    def accuracy(self, choices: Choices) -> float:
        """In %."""
        return self.table.value(self.name(choices), self.column)

    def parameters(self, choices: Choices) -> float:
        """In the unit of the table."""
        return self.table.value(self.name(choices), self.size)

    def place(self, choices: Choices) -> dict[str, Any]:
        """Name, accuracy, regret and rank, for a row."""
        name = self.name(choices)
        place = self.table.place(name, self.column)
        return {"arch": name, "accuracy": place.value, "regret": round(place.regret, 3), "rank": place.rank}


def search_row(arm: str, seed: int, outcome: Outcome, judge: Judge) -> dict[str, Any]:
    """What a search found, and what its posterior knows."""
    head = {"arm": arm, "seed": seed}
    if "error" in outcome:
        return {**head, "error": outcome["error"]}
    result = outcome["result"]
    q = ArchitecturePosterior.from_dict(result["posterior"])
    accuracies, logs, sizes = [], [], []
    for one in q.by_probability():
        accuracies.append(judge.accuracy(one.choices))
        logs.append(one.log_prob)
        sizes.append(judge.parameters(one.choices))
    weights = [math.exp(log) for log in logs]
    return {
        **head,
        **judge.place(result["architectures"][0]["choices"]),
        "expected_accuracy": sum(w * a for w, a in zip(weights, accuracies, strict=True)),
        "probability_good": sum(w for w, a in zip(weights, accuracies, strict=True) if a >= judge.good),
        "entropy": q.entropy(),
        "spearman": rank_correlation(logs, accuracies),
        "spearman_given_parameters": _partial(logs, accuracies, sizes),
        "seconds": outcome["seconds"],
    }


def refined_row(arm: str, seed: int, refinement: Any, search_seconds: float, judge: Judge) -> dict[str, Any]:
    """What a refinement found, and what its process knows; `search_seconds` are those of the search before it."""
    head = {"arm": arm, "seed": seed}
    if refinement.choices is None or refinement.failed:
        return {**head, "error": f"short trainings failed: {', '.join(sorted(refinement.failed))}"}
    return {
        **head,
        **judge.place(refinement.choices),
        **refinement.knowledge(judge.accuracy, seed),
        # Trainings run as many at a time as the plan proposes, here among those of other refinements.
        "seconds": round(refinement.seconds / refinement.plan.refine.parallel + search_seconds, 1),
    }


def random_choices(result: dict[str, Any], n: int, seed: int) -> list[Choices]:
    """Cells of the space of a search, all options and edges as probable, drawn without looking at data or search."""
    return even_choices(ArchitecturePosterior.from_dict(result["posterior"]).units, n, seed)


def even_choices(units: Sequence[law.Unit], n: int, seed: int) -> list[Choices]:
    """Cells of a space, given what is chosen in it; see `random_choices`."""
    even = [torch.full(unit.shape, 1.0 / unit.shape[1], dtype=torch.float64) for unit in units]
    return ArchitecturePosterior(units, even).sample(n, torch.Generator().manual_seed(seed))


def by_seed(rows: list[dict[str, Any]], arm: str, name: str = "accuracy") -> dict[int, float]:
    """A number of an arm, by seed."""
    return {row["seed"]: row[name] for row in rows if row["arm"] == arm and row.get(name) is not None}


def mean(values: dict[int, float]) -> float | None:
    """Over the seeds."""
    return statistics.fmean(values.values()) if values else None


def above(name: str, rows: list[dict[str, Any]], higher: str, lower: str) -> Target:
    """That one arm is above another in the mean, paired by seed: by the smallest difference that two seeds can make."""
    a, b = by_seed(rows, higher), by_seed(rows, lower)
    both = sorted(set(a) & set(b))
    paired = statistics.fmean(a[s] - b[s] for s in both) if both else None
    return Target(name, f"mean difference, {higher} - {lower}", paired, 0.01 / max(1, len(both)), "higher")


KNOWN = ("expected_accuracy", "probability_good", "spearman", "spearman_given_parameters")
"""What a row says of a posterior."""


def intervals(rows: list[dict[str, Any]], pairs: Sequence[tuple[str, str]], arm: str) -> list[dict[str, Any]]:
    """Student's 95 % intervals over seeds: of paired differences in accuracy, and of what an arm's posteriors know.

    Args:
        rows: Of the benchmark.
        pairs: (higher, lower) arms.
        arm: Whose posteriors are meant.
    """
    found = []
    for higher, lower in pairs:
        a, b = by_seed(rows, higher), by_seed(rows, lower)
        found.append(_interval(f"accuracy, {higher} - {lower}", [a[s] - b[s] for s in sorted(set(a) & set(b))]))
    found += [_interval(f"{name}, {arm}", list(by_seed(rows, arm, name).values())) for name in KNOWN]
    return found


def _interval(what: str, values: list[float]) -> dict[str, Any]:
    n, half = len(values), half_width(values)
    if half is None:
        return {"what": what, "mean": values[0] if values else None, "low": None, "high": None, "n": n}
    middle = statistics.fmean(values)
    return {
        "what": what,
        "mean": round(middle, 4),
        "low": round(middle - half, 4),
        "high": round(middle + half, 4),
        "n": n,
    }


def reliability(rows: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """Of pairs of architectures the share that is ordered rightly, by what an arm's processes say of it.

    Wilson's 95 % interval, as if pairs were independent: they are not, and it is too narrow.
    """
    pooled: dict[int, list[float]] = {}
    for claimed, share, n in (pair for row in rows if row["arm"] == arm for pair in row.get("pairs", [])):
        bin_ = pooled.setdefault(min(int((claimed - 0.5) * 10), 4), [0.0, 0.0, 0.0])
        for i, value in enumerate((claimed * n, share * n, n)):
            bin_[i] += value
    found = []
    for claimed, right, n in (pooled[i] for i in sorted(pooled)):
        interval = binomtest(round(right), round(n)).proportion_ci(method="wilson")
        what = f"share of pairs rightly ordered, {arm}, claimed {claimed / n:.2f}"
        bounds = {"low": round(interval.low, 4), "high": round(interval.high, 4)}
        found.append({"what": what, "mean": round(right / n, 4), **bounds, "n": round(n)})
    return found


def print_intervals(found: list[dict[str, Any]]) -> None:
    """A line each."""
    for one in found:
        if one["low"] is not None:
            print(f"{one['what']:<72}{one['mean']:>9.3f}  ({one['low']:.3f} ... {one['high']:.3f}, n = {one['n']})")


def coverage(rows: list[dict[str, Any]], arm: str) -> float | None:
    """Share of the 90 % intervals of the refinements of an arm that held what came."""
    mine = [row for row in rows if row["arm"] == arm and row.get("predicted")]
    return sum(row["covered"] for row in mine) / sum(row["predicted"] for row in mine) if mine else None


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line an arm."""
    print(f"\n{'arm':<36}{'n':>3}{'accuracy, %':>18}{'minimum':>9}{'E_q':>8}{'rho':>7}{'s':>7}")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm and "accuracy" in row]
        if not mine:
            print(f"{arm:<36}  not run")
            continue
        values = [row["accuracy"] for row in mine]
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        more = "".join(
            f"{statistics.fmean(known):{width}.{digits}f}" if (known := list(_known(mine, name))) else " " * width
            for name, width, digits in (("expected_accuracy", 8, 2), ("spearman", 7, 2), ("seconds", 7, 0))
        )
        print(f"{arm:<36}{len(mine):>3}{f'{statistics.fmean(values):.2f}{spread}':>18}{min(values):>9.2f}{more}")
    print()


def _known(rows: list[dict[str, Any]], name: str) -> Iterator[float]:
    return (row[name] for row in rows if row.get(name) is not None)


def _ranks(values: list[float]) -> list[float]:
    return [float(r) for r in rankdata(values)]


def rank_correlation(a: list[float], b: list[float]) -> float | None:
    """Rank correlation; None where all of one are equal."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return statistics.correlation(_ranks(a), _ranks(b))


def _partial(a: list[float], b: list[float], given: list[float]) -> float | None:
    """Partial rank correlation of a and b, given a third; None where the third says all."""
    ab, ac, bc = rank_correlation(a, b), rank_correlation(a, given), rank_correlation(b, given)
    if ab is None or ac is None or bc is None:
        return None
    left = (1 - ac**2) * (1 - bc**2)
    return (ab - ac * bc) / math.sqrt(left) if left > 1e-12 else None
