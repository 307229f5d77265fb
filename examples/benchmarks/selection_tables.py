"""What `selection.py` found: figures by arm and seed, and as tables."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from typing import Any

from contract import half_width
from selection_arms import (
    ACTIVE_OUTPUT,
    ACTIVE_OUTPUT_FROZEN,
    BOTH,
    CRITERIA,
    FROZEN,
    FULL,
    KEEP_BY,
    OF_THE_CNN,
    OF_THE_CNN_FROZEN,
    OTHERS,
    OTHERS_FROZEN,
    PAPER_CRITERIA,
    PAPER_FROZEN,
    PAPER_OTHERS,
    PUBLISHED_FROZEN,
    PUBLISHED_ZEROED,
    STOPPED,
    TIMED,
    ZEROED,
    both,
    is_timed,
    of_others,
)

# Full training of so many steps fewer that it takes as long as the arm whose time is compared.
EQUAL = "full, equal time"
# Mean accuracies of the paper, over its shares, in %.
PUBLISHED = {"preconditioner": 96.38, "gradient": 96.28, "random": 96.11}


class Table:
    """Rows by group, arm and seed, and which of their figures is the time of a training."""

    def __init__(self, rows: list[dict[str, Any]], seconds: str = "process_seconds") -> None:
        self.rows = [row for row in rows if "error" not in row]
        self.seconds = seconds

    def values(self, group: str, arm: str, name: str = "test_accuracy") -> dict[int, float]:
        """A figure by seed; accuracies in points."""
        factor = 100 if name.endswith("accuracy") else 1
        mine = (row for row in self.rows if (row["group"], row["arm"]) == (group, arm) and row.get(name) is not None)
        return {row["seed"]: factor * row[name] for row in mine}

    def mean(self, group: str, arm: str, name: str = "test_accuracy") -> float | None:
        """Over seeds."""
        values = self.values(group, arm, name)
        return statistics.fmean(values.values()) if values else None

    def difference(self, group: str, one: str, other: str) -> dict[str, Any] | None:
        """Mean difference of test accuracy in points, paired by seed, and half of its 95 % interval."""
        return paired(self.values(group, one), self.values(group, other))

    def frozen(self, group: str, arm: str) -> str:
        """What is frozen as a whole, and in how many seeds."""
        mine = [row.get("frozen") or [] for row in self.rows if (row["group"], row["arm"]) == (group, arm)]
        counts = Counter(", ".join(names) for names in mine if names)
        return "; ".join(f"{names} ({n})" for names, n in counts.most_common())

    def speed(self, group: str, arm: str, full: str = FULL) -> float | None:
        """Seconds of full training over those of an arm: the median over seeds."""
        speeds = self.speeds(group, arm, full)
        return statistics.median(speeds) if speeds else None

    def waited(self) -> tuple[float, float] | None:
        """Process seconds over wall seconds of what is timed, least and mean: 1 where nothing ran beside it."""
        mine = [row for row in self.rows if "process_seconds" in row and is_timed(row["group"], row["arm"])]
        shares = [row["process_seconds"] / row["wall_seconds"] for row in mine]
        return (min(shares), statistics.fmean(shares)) if shares else None

    def speeds(self, group: str, arm: str, full: str = FULL) -> list[float]:
        """Of every seed whose two trainings ran in one go."""
        mine, theirs = self.values(group, arm, self.seconds), self.values(group, full, self.seconds)
        runs = {(row["arm"], row["seed"]): row.get("run") for row in self.rows if row["group"] == group}
        return [theirs[s] / mine[s] for s in mine if s in theirs and runs[arm, s] == runs[full, s]]


def equal_times(table: Table) -> list[dict[str, Any]]:
    """By network how equal equal times are: process seconds of the control over those of the arm, by seed."""
    found = []
    for group, arm in TIMED.items():
        mine, theirs = (table.values(group, name, "process_seconds") for name in (EQUAL, arm))
        shares = [mine[seed] / theirs[seed] for seed in mine if seed in theirs]
        if shares:
            numbers = {"mean": statistics.fmean(shares), "least": min(shares), "most": max(shares), "n": len(shares)}
            found.append({"group": "equal time", "arm": f"{group}: seconds of {EQUAL} over those of {arm}", **numbers})
    return found


def paired(a: dict[int, float], b: dict[int, float]) -> dict[str, Any] | None:
    """Mean of a - b over the seeds of both, half the width of Student's 95 % interval, and their number."""
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    if not differences:
        return None
    mean, n = statistics.fmean(differences), len(differences)
    return {"mean": mean, "half_width": half_width(differences), "n": n}


def preferred_elsewhere(table: Table, group: str, candidates: list[str]) -> tuple[str, dict[int, float]]:
    """By seed the test accuracy, in points, of the arm with the best mean validation accuracy over the other seeds; and
    which arms these are. Of a single seed, over that."""
    val = {arm: values for arm in candidates if (values := table.values(group, arm, "val_accuracy"))}
    seeds = sorted(set.intersection(*map(set, val.values()))) if val else []
    chosen = {}
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        means = {arm: statistics.fmean(values[other] for other in others) for arm, values in val.items()}
        chosen[seed] = max(means, key=means.__getitem__)
    counts = Counter(chosen.values()).most_common()
    words = counts[0][0] if len(counts) == 1 else ", ".join(f"{arm} ({n})" for arm, n in counts)
    return words, {seed: table.values(group, arm)[seed] for seed, arm in chosen.items()}


def preferred(table: Table, group: str, candidates: list[str]) -> str | None:
    """The arm of the best mean validation accuracy."""
    known = {arm: value for arm in candidates if (value := table.mean(group, arm, "val_accuracy")) is not None}
    return max(known, key=known.__getitem__, default=None)


def paper_means(table: Table, criterion: str) -> dict[int, float]:
    """Mean accuracy over frozen shares from 0 to 1, as the paper has it, by seed; a polygon through those at hand."""
    arms = {0.0: FULL, **{share: f"{criterion} {share:g}" for share in PAPER_FROZEN}, 1.0: STOPPED}
    by_share = {share: table.values("paper", arm) for share, arm in arms.items()}
    seeds = set.intersection(*map(set, by_share.values()))
    return {
        seed: sum((b - a) * (by_share[a][seed] + by_share[b][seed]) / 2 for a, b in itertools.pairwise(by_share))
        for seed in seeds
    }


def paper_difference(table: Table, one: str, other: str) -> dict[str, Any] | None:
    """Of the mean accuracy over all frozen shares."""
    return paired(paper_means(table, one), paper_means(table, other))


def print_tables(table: Table) -> None:
    """Points lost by share and criterion; speeds; the paper's means beside theirs; optimizers."""
    curves = [("criteria", "weight", FROZEN), ("criteria", "neuron", FROZEN)]
    others = ((f"criteria, {name}", "weight", shares) for name, shares in OTHERS_FROZEN.items())
    for group, granularity, shares in (*curves, *others):
        print(f"\n{group}: points lost, {granularity}s frozen (full training {_text(table.mean(group, FULL))})")
        print(f"{'':<26}" + "".join(f"{share:>18.0%}" for share in shares))
        for criterion in OF_THE_CNN if "cnn" in group else CRITERIA:
            _print_lost(table, group, criterion, [f"{granularity} {criterion} {share:g}" for share in shares])
    last = table.difference("criteria", FULL, "output layer alone")
    print(f"\n{'mlp: output layer alone':<40}{_text(last and last['mean']):>10}")
    again = table.difference("criteria", FULL, "neuron gain 0.9, chosen anew")
    print(f"{'mlp: neurons, 90 %, chosen anew every epoch':<44}{_text(again and again['mean']):>6}")
    print("\nwith the output layer active")
    for criterion in CRITERIA:
        _print_lost(table, "criteria", criterion, [f"weight {criterion} {ACTIVE_OUTPUT_FROZEN:g}{ACTIVE_OUTPUT}"])
    print(f"\ncriteria, cnn: neurons, {OF_THE_CNN_FROZEN:.0%}")
    for criterion in OF_THE_CNN:
        _print_lost(table, "criteria, cnn", criterion, [f"neuron {criterion} {OF_THE_CNN_FROZEN:g}"])
    print("\nboth: points lost, and weights that are not zero")
    for active, kept, at in BOTH:
        name = both(active, kept, at)
        lost, left = (
            paired(table.values("criteria", FULL), table.values("both", name)),
            table.mean("both", name, "nonzero"),
        )
        said = f"{_text(lost and lost['mean'])} +- {_text(lost and lost['half_width'])}"
        print(f"{name:<44}{said:>18}{_text(left, 0):>10}")
    print(
        f"\n{'':<40}{'accuracy':>10}{'lost':>8}{'+-':>7}{'s':>8}{'speed':>8}{'rate':>9}{'steps':>7}  frozen as a whole"
    )
    for group in TIMED:
        for arm in dict.fromkeys(row["arm"] for row in table.rows if row["group"] == group):
            base = f"{FULL}, augmented" if arm.endswith("augmented") else FULL
            lost = table.difference(group, base, arm)
            speed = table.speed(group, arm, base) if is_timed(group, arm) else None
            frozen, ratios = table.frozen(group, arm), table.speeds(group, arm, base)
            between = f"  speed {min(ratios):.2f} to {max(ratios):.2f}" if speed is not None and ratios else ""
            cells = (_text(table.mean(group, arm)), _text(lost and lost["mean"]), _text(lost and lost["half_width"]))
            seconds, rate, steps = (table.mean(group, arm, name) for name in ("process_seconds", "rate", "steps"))
            numbers = f"{cells[0]:>10}{cells[1]:>8}{cells[2]:>7}{_text(seconds, 1):>8}{_text(speed):>8}"
            numbers += f"{_text(rate, 5):>9}{_text(steps, 0):>7}"
            print(f"{group + ', ' + arm:<40}{numbers}{between}  {frozen}")
    for row in equal_times(table):
        print(f"{row['arm']}: {row['mean']:.3f} ({row['least']:.3f} to {row['most']:.3f})")
    if waited := table.waited():
        print(f"processor time over wall time of what is timed: {waited[0]:.2f} at least, {waited[1]:.2f} in the mean")
    _print_paper(table)
    for one, other in itertools.pairwise(PAPER_CRITERIA):
        gap = paper_difference(table, one, other)
        print(
            f"  {one} - {other}, mean over shares: {_text(gap and gap['mean'])} +- {_text(gap and gap['half_width'])}"
        )
    zeroed = (("zeroed", "", ZEROED), *((f"criteria, {name}", "zeroed by ", of_others(name)) for name in OTHERS))
    for group, prefix, of_all in zeroed:
        print(f"\n{group}: accuracy with so much zeroed\n{'':<18}" + "".join(f"{share:>8.0%}" for share in of_all))
        for by in KEEP_BY:
            cells = [table.mean(group, f"{prefix}{by} {share:g}") for share in of_all]
            print(f"{by:<18}" + "".join(f"{_text(x):>8}" for x in cells))
    print("\noptimizers, each at the rate that was chosen without selection")
    print(f"{'optimizer':<24}{'accuracy':>10}{'lost':>8}{'+-':>7}{'NLL':>9}{'ECE':>9}{'process s':>11}")
    for arm in dict.fromkeys(row["arm"] for row in table.rows if row["group"] == "optimizers"):
        names = ("test_accuracy", "test_nll", "test_ece", "process_seconds")
        accuracy, nll, ece, seconds = (table.mean("optimizers", arm, name) for name in names)
        drawn = [table.mean("optimizers", arm, f"averaged_{name}") for name in names[:3]]
        said = "" if None in drawn else f"   draws averaged {_text(drawn[0])} {_text(drawn[1], 4)} {_text(drawn[2], 4)}"
        lost = table.difference("optimizers", arm.removesuffix(", selected"), arm) if arm.endswith("selected") else None
        gap = f"{_text(lost and lost['mean']):>8}{_text(lost and lost['half_width']):>7}"
        if (limited := table.mean("optimizers", arm, "share_at_max_lr")) is not None:
            said += f"   at the largest rate {limited:.1%}"
        print(f"{arm:<24}{_text(accuracy):>10}{gap}{_text(nll, 4):>9}{_text(ece, 4):>9}{_text(seconds):>11}{said}")
    print()


def _print_lost(table: Table, group: str, name: str, arms: list[str]) -> None:
    found = [table.difference(group, FULL, arm) for arm in arms]
    cells = [f"{_text(x and x['mean'])} +- {_text(x and x['half_width'])}" for x in found]
    print(f"{name:<26}" + "".join(f"{cell:>18}" for cell in cells))


def _print_paper(table: Table) -> None:
    """Accuracy by what is frozen and what is zeroed, theirs beside ours."""
    shares = (0.0, *PAPER_FROZEN, 1.0)
    print("\npaper's setting, frozen\n" + f"{'':<28}" + "".join(f"{share:>8.0%}" for share in shares))
    for criterion in (*PAPER_CRITERIA, *PAPER_OTHERS):
        arms = {0.0: FULL, 1.0: STOPPED}
        cells = [table.mean("paper", arms.get(share, f"{criterion} {share:g}")) for share in shares]
        mean, theirs = paper_means(table, criterion), PUBLISHED_FROZEN.get(criterion)
        said = f"   mean {_text(statistics.fmean(mean.values()) if mean else None)}"
        said += f", theirs {PUBLISHED[criterion]:.2f}" if theirs else ""
        print(f"{criterion:<28}" + "".join(f"{_text(x):>8}" for x in cells) + said)
        if theirs:
            print(f"{'  published':<28}" + "".join(f"{_text(theirs.get(share)):>8}" for share in shares))
    zeroed = tuple(PUBLISHED_ZEROED["random"])
    print("\npaper's setting, zeroed\n" + f"{'':<28}" + "".join(f"{share:>8.0%}" for share in zeroed))
    for by, theirs in PUBLISHED_ZEROED.items():
        cells = [table.mean("paper", f"zeroed by {by} {share:g}") for share in zeroed]
        print(f"{by:<28}" + "".join(f"{_text(x):>8}" for x in cells))
        print(f"{'  published':<28}" + "".join(f"{_text(theirs[share]):>8}" for share in zeroed))


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
