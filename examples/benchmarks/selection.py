"""Which parameters to go on optimizing: accuracy and time against what is frozen or zeroed, by every criterion.

    python examples/benchmarks/selection.py --preset cpu --data mnist --root DATA --output FILE.json

Groups of arms; all with the same seeds, compared seed by seed, with Student's 95 % intervals of the mean difference:

    criteria         784-200-10, Adam, 5 epochs: after a fifth of the steps 60 to 96 % of single weights, or of neurons,
                     are frozen by each criterion; of neurons, and in a control of weights, the output layer goes on
    criteria, NAME   of the other networks (CNNs: 2 epochs) 80 and 96 % of single weights; 80 to 98 % are zero; of the
                     CNN neurons too
    mlp-200, mlp-300-100, cnn, cnn-normalized
                     how fast: 12 (CNNs: 6) epochs; of the MLPs a tenth of the rows goes on, of the CNNs what the
                     measured time of layers and their gain say ("auto"); "equal time" is full training with so many
                     steps fewer that it takes as long, at the rate of three that validation prefers (of three seeds);
                     CNNs with augmented images too, where nothing can be kept (three seeds)
    paper            784-200-10 with tanh, pixels standardized, SGD, batches of 512, 600 steps, the choice after 100;
                     shares are of every layer, as there, and variances those of all steps before; beside its own curves
    zeroed           80 to 98 % of the weights are zero after a fifth of the steps, the others are optimized further
    optimizers       accuracy, NLL and ECE of six optimizers, with and without 80 % of the neurons frozen

Times are process seconds of the whole training, the making of what is kept included; what is timed runs alone, one
training after the other, a seed's arms side by side. A figure is written beside FILE.json.

Targets (issue "Which parameters to go on optimising"): 2a CNN: loss <= .2 points at >= 2.5 x, and >= .5 above equal
time; 2b MLP: loss <= .3 at >= 1.6 x; 2c: the criterion that validation prefers is above random by >= .3 at 80 % of
single weights, and with the output layer active in all; 2d: preconditioner above gradient above random in the paper's
setting; 2e: 95 % zeroed at <= 1 point.

Tests, one-sided paired t-tests that were named before the first run, p with Holm's correction over all of them: each
loss of a first network is below its limit, each gain above its own (of the equal-time control of 2b above 0; 2c with
the output layer active), and the two differences of 2d are above 0.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from contract import Target, correct, half_width, parse, write_result
from scipy.stats import ttest_1samp
from selection_arms import (
    ACTIVE_OUTPUT,
    ACTIVE_OUTPUT_FROZEN,
    CRITERIA,
    EQUAL_RATES,
    FROZEN,
    FULL,
    KEEP_BY,
    OF_THE_CNN,
    OF_THE_CNN_FROZEN,
    OTHERS,
    OTHERS_FROZEN,
    OTHERS_ZEROED,
    PAPER_CRITERIA,
    PAPER_FROZEN,
    PRESETS,
    PUBLISHED_FROZEN,
    PUBLISHED_ZEROED,
    SEEDS,
    STOPPED,
    ZEROED,
    arms,
    is_timed,
    job,
)
from selection_figure import draw
from workers import Job, Outcome, Store, Workers

NAME = "selection"
# Groups with a control that takes as long as the arm named here.
TIMED = {
    "mlp-200": "rows gain 0.9",
    "mlp-300-100": "rows gain 0.9",
    "cnn": "automatic",
    "cnn-normalized": "automatic",
}
EQUAL = "full, equal time"
# Seeds of arms with augmented images, whose figures are given and not tested.
_AUGMENTED = 3
# Mean accuracies of the paper, over its shares, in %.
PUBLISHED = {"preconditioner": 96.38, "gradient": 96.28, "random": 96.11}


class Table:
    """Rows by group, arm and seed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = [row for row in rows if "error" not in row]

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
        """Process seconds of full training over those of an arm: the median over seeds."""
        mine, theirs = self.values(group, arm, "process_seconds"), self.values(group, full, "process_seconds")
        both = [theirs[seed] / mine[seed] for seed in mine if seed in theirs]
        return statistics.median(both) if both else None


def paired(a: dict[int, float], b: dict[int, float]) -> dict[str, Any] | None:
    """Mean of a - b over the seeds of both, half the width of Student's 95 % interval, and their number."""
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    if not differences:
        return None
    mean, n = statistics.fmean(differences), len(differences)
    return {"mean": mean, "half_width": half_width(differences), "n": n}


def preferred(table: Table, group: str, candidates: list[str]) -> str | None:
    """The arm of the best mean validation accuracy."""
    known = {arm: value for arm in candidates if (value := table.mean(group, arm, "val_accuracy")) is not None}
    return max(known, key=known.__getitem__, default=None)


def targets(table: Table) -> list[Target]:
    """What the issue asks for."""
    found = []
    limits_of = {"cnn": ("2a", 0.2, 2.5), "cnn-normalized": ("2a", 0.2, 2.5)}
    limits_of |= {"mlp-200": ("2b", 0.3, 1.6), "mlp-300-100": ("2b", 0.3, 1.6)}
    for name, limits in limits_of.items():
        number, loss, speed = limits
        arm = TIMED[name]
        lost = table.difference(name, FULL, arm)
        found.append(Target(number, f"{name}, {arm}: points lost", lost and lost["mean"], loss, "lower"))
        found.append(Target(number, f"{name}, {arm}: times as fast in all", table.speed(name, arm), speed, "higher"))
    for name in ("cnn", "cnn-normalized"):
        gained = table.difference(name, "automatic", EQUAL)
        found.append(Target("2a", f"{name}, automatic - full, equal time", gained and gained["mean"], 0.5, "higher"))
    for end in ("", ACTIVE_OUTPUT):
        best = of_weights(table, end)
        above = table.difference("criteria", best, f"weight random 0.8{end}") if best else None
        what = f"80 % of weights frozen, {best} - random{end}"
        found.append(Target("2c", what, above and above["mean"], 0.3, "higher"))
    for one, other in itertools.pairwise(PAPER_CRITERIA):
        gap = paper_difference(table, one, other)
        sure = gap and gap["half_width"] is not None and gap["mean"] - gap["half_width"]
        found.append(Target("2d", f"paper: {one} - {other}, low end of 95 %", sure or None, 0.0, "higher"))
    kept = preferred(table, "zeroed", [f"{by} 0.95" for by in KEEP_BY])
    lost = paired(table.values("criteria", FULL), table.values("zeroed", kept)) if kept else None
    found.append(Target("2e", f"95 % zeroed by {kept}: points lost", lost and lost["mean"], 1.0, "lower"))
    return found


def of_weights(table: Table, end: str) -> str | None:
    """The criterion that validation prefers with 80 % of single weights frozen, as an arm."""
    return preferred(table, "criteria", [f"weight {c} 0.8{end}" for c in CRITERIA if c != "random"])


def tests(table: Table) -> list[dict[str, Any]]:
    """Those that are named above, with Holm's correction; what was not run is left out."""
    kept = preferred(table, "zeroed", [f"{by} 0.95" for by in KEEP_BY])
    best, random = of_weights(table, ACTIVE_OUTPUT), f"weight random 0.8{ACTIVE_OUTPUT}"
    values, of_paper = table.values, paper_means
    claims = [
        ("2a loss of the CNN below .2", values("cnn", TIMED["cnn"]), values("cnn", FULL), -0.2),
        ("2a CNN above equal time by .5", values("cnn", TIMED["cnn"]), values("cnn", EQUAL), 0.5),
        ("2b loss of the MLP below .3", values("mlp-200", TIMED["mlp-200"]), values("mlp-200", FULL), -0.3),
        ("2b MLP above equal time", values("mlp-200", TIMED["mlp-200"]), values("mlp-200", EQUAL), 0.0),
        ("2c above random by .3", values("criteria", best or ""), values("criteria", random), 0.3),
        *(
            (f"2d {one} above {other}", of_paper(table, one), of_paper(table, other), 0.0)
            for one, other in itertools.pairwise(PAPER_CRITERIA)
        ),
        ("2e loss with 95 % zeroed below 1", values("zeroed", kept or ""), values("criteria", FULL), -1.0),
    ]
    found = []
    for name, ours, theirs, least in claims:
        both = [ours[seed] - theirs[seed] - least for seed in ours if seed in theirs]
        if len(both) > 1:
            # Equal differences everywhere have no t.
            p = 1.0 if statistics.pstdev(both) == 0 else float(ttest_1samp(both, 0.0, alternative="greater").pvalue)
            found.append({"test": name, "seeds": len(both), "difference": statistics.fmean(both) + least, "p": p})
    correct(found)
    return found


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


def intervals(table: Table) -> list[dict[str, Any]]:
    """Of every arm the points that it loses to full training of its group, with 95 % intervals, paired by seed."""
    found = []
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in table.rows):
        base = f"{FULL}, augmented" if arm.endswith("augmented") else FULL
        own = "criteria" if group == "zeroed" else group
        lost = paired(table.values(own, base), table.values(group, arm)) if arm != base else None
        if lost is not None:
            found.append({"group": group, "arm": arm, **lost})
    for one, other in itertools.pairwise(PAPER_CRITERIA):
        if (gap := paper_difference(table, one, other)) is not None:
            found.append({"group": "paper, mean over shares", "arm": f"{one} - {other}", **gap})
    return found


def rows_of(outcomes: dict[tuple[str, str, int], Outcome]) -> list[dict[str, Any]]:
    """A row for every training."""
    rows = []
    for (group, arm, seed), outcome in outcomes.items():
        head = {"group": group, "arm": arm, "seed": seed}
        if "error" in outcome:
            rows.append({**head, "error": outcome["error"]})
            continue
        result = {key: value for key, value in outcome["result"].items() if key not in ("default", "macs")}
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in result.items()}
        rows.append({**head, **rounded})
    return rows


def print_tables(table: Table) -> None:
    """Points lost by share and criterion; speeds; the paper's means beside theirs; optimizers."""
    curves = [("criteria", "weight", FROZEN), ("criteria", "neuron", FROZEN)]
    for group, granularity, shares in (*curves, *((f"criteria, {name}", "weight", OTHERS_FROZEN) for name in OTHERS)):
        print(f"\n{group}: points lost, {granularity}s frozen (full training {_text(table.mean(group, FULL))})")
        print(f"{'':<26}" + "".join(f"{share:>18.0%}" for share in shares))
        for criterion in CRITERIA:
            _print_lost(table, group, criterion, [f"{granularity} {criterion} {share:g}" for share in shares])
    print("\nwith the output layer active")
    for criterion in CRITERIA:
        _print_lost(table, "criteria", criterion, [f"weight {criterion} {ACTIVE_OUTPUT_FROZEN:g}{ACTIVE_OUTPUT}"])
    print(f"\ncriteria, cnn: neurons, {OF_THE_CNN_FROZEN:.0%}")
    for criterion in OF_THE_CNN:
        _print_lost(table, "criteria, cnn", criterion, [f"neuron {criterion} {OF_THE_CNN_FROZEN:g}"])
    last = table.difference("criteria", FULL, "output layer alone")
    print(f"{'output layer alone':<26}{_text(last and last['mean']):>10}")
    print(f"\n{'':<40}{'accuracy':>10}{'lost':>8}{'+-':>7}{'speed':>8}  frozen as a whole")
    for group in TIMED:
        for arm in dict.fromkeys(row["arm"] for row in table.rows if row["group"] == group):
            base = f"{FULL}, augmented" if arm.endswith("augmented") else FULL
            lost = table.difference(group, base, arm)
            speed = table.speed(group, arm, base) if is_timed(group, arm) else None
            frozen = table.frozen(group, arm)
            cells = (_text(table.mean(group, arm)), _text(lost and lost["mean"]), _text(lost and lost["half_width"]))
            numbers = f"{cells[0]:>10}{cells[1]:>8}{cells[2]:>7}{_text(speed):>8}"
            print(f"{group + ', ' + arm:<40}{numbers}  {frozen}")
    _print_paper(table)
    for one, other in itertools.pairwise(PAPER_CRITERIA):
        gap = paper_difference(table, one, other)
        print(
            f"  {one} - {other}, mean over shares: {_text(gap and gap['mean'])} +- {_text(gap and gap['half_width'])}"
        )
    zeroed = (("zeroed", "", ZEROED), *((f"criteria, {name}", "zeroed by ", OTHERS_ZEROED) for name in OTHERS))
    for group, prefix, of_all in zeroed:
        print(f"\n{group}: accuracy with so much zeroed\n{'':<18}" + "".join(f"{share:>8.0%}" for share in of_all))
        for by in KEEP_BY:
            cells = [table.mean(group, f"{prefix}{by} {share:g}") for share in of_all]
            print(f"{by:<18}" + "".join(f"{_text(x):>8}" for x in cells))
    print(f"\n{'optimizer':<24}{'accuracy':>10}{'NLL':>9}{'ECE':>9}{'process s':>11}")
    for arm in dict.fromkeys(row["arm"] for row in table.rows if row["group"] == "optimizers"):
        names = ("test_accuracy", "test_nll", "test_ece", "process_seconds")
        accuracy, nll, ece, seconds = (table.mean("optimizers", arm, name) for name in names)
        drawn = [table.mean("optimizers", arm, f"averaged_{name}") for name in names[:3]]
        said = "" if None in drawn else f"   draws averaged {_text(drawn[0])} {_text(drawn[1], 4)} {_text(drawn[2], 4)}"
        print(f"{arm:<24}{_text(accuracy):>10}{_text(nll, 4):>9}{_text(ece, 4):>9}{_text(seconds):>11}{said}")
    print()


def _print_lost(table: Table, group: str, name: str, arms: list[str]) -> None:
    found = [table.difference(group, FULL, arm) for arm in arms]
    cells = [f"{_text(x and x['mean'])} +- {_text(x and x['half_width'])}" for x in found]
    print(f"{name:<26}" + "".join(f"{cell:>18}" for cell in cells))


def _print_paper(table: Table) -> None:
    """Accuracy by what is frozen and what is zeroed, theirs beside ours."""
    shares = (0.0, *PAPER_FROZEN, 1.0)
    print("\npaper's setting, frozen\n" + f"{'':<28}" + "".join(f"{share:>8.0%}" for share in shares))
    for criterion in PAPER_CRITERIA:
        arms = {0.0: FULL, 1.0: STOPPED}
        cells = [table.mean("paper", arms.get(share, f"{criterion} {share:g}")) for share in shares]
        mean, theirs = paper_means(table, criterion), PUBLISHED_FROZEN[criterion]
        said = f"   mean {_text(statistics.fmean(mean.values()) if mean else None)}, theirs {PUBLISHED[criterion]:.2f}"
        print(f"{criterion:<28}" + "".join(f"{_text(x):>8}" for x in cells) + said)
        print(f"{'  published':<28}" + "".join(f"{_text(theirs.get(share)):>8}" for share in shares))
    zeroed = tuple(PUBLISHED_ZEROED["random"])
    print("\npaper's setting, zeroed\n" + f"{'':<28}" + "".join(f"{share:>8.0%}" for share in zeroed))
    for by, theirs in PUBLISHED_ZEROED.items():
        cells = [table.mean("paper", f"zeroed by {by} {share:g}") for share in zeroed]
        print(f"{by:<28}" + "".join(f"{_text(x):>8}" for x in cells))
        print(f"{'  published':<28}" + "".join(f"{_text(theirs[share]):>8}" for share in zeroed))


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def in_turns(jobs: list[tuple[str, int, Job]]) -> list[Job]:
    """Seed by seed and group by group, the arms of a group in an order that turns with the seed."""
    found = []
    for seed in sorted({seed for _, seed, _ in jobs}):
        for place, group in enumerate(dict.fromkeys(group for group, _, _ in jobs)):
            mine = [one for g, s, one in jobs if (g, s) == (group, seed)]
            turned = mine[seed % len(mine) :] + mine[: seed % len(mine)]
            found += [replace(one, order=(seed, place, i)) for i, one in enumerate(turned)]
    return found


def equal_time(
    options: argparse.Namespace, group: str, full: dict[str, Any], table: Table, alone: Workers
) -> dict[tuple[str, str, int], Outcome]:
    """Full training that takes as long as the arm of a group, at the rate that validation prefers; others beside."""
    speed, found = table.speed(group, TIMED[group]), dict[tuple[str, str, int], Outcome]()
    if speed is None:
        return found
    shorter = {**full, "steps": max(2, round(full["steps"] / speed))}

    def run(arm: str, factor: float, seeds: Iterable[int]) -> None:
        jobs = {s: job(options, group, arm, s, {**shorter, "rate": factor * full["rate"]}) for s in seeds}
        done = alone.run(jobs.values())
        found.update({(group, arm, s): done[one.name] for s, one in jobs.items()})

    arms = {factor: f"{EQUAL}, {factor:g} x rate" for factor in EQUAL_RATES}
    for factor, arm in arms.items():
        run(arm, factor, range(min(3, options.seeds)))
    best = preferred(Table(rows_of(found)), group, list(arms.values()))
    factor = next((factor for factor, arm in arms.items() if arm == best), 1.0)
    run(EQUAL, factor, range(options.seeds))
    return found


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS)
    store, every = Store(options.output), arms(options.preset)
    jobs = {
        (g, a, seed): job(options, g, a, seed, p)
        for seed in range(options.seeds)
        for (g, a), p in every.items()
        if seed < _AUGMENTED or not a.endswith("augmented")
    }
    # What is timed comes first: it needs the machine for itself.
    with Workers(store, options.output.with_suffix(".work"), 1) as alone:
        timed = in_turns([(g, s, one) for (g, a, s), one in jobs.items() if is_timed(g, a)])
        # A process has costs of its own at its first training.
        short = {**timed[0].parameters, "steps": 16, "trial": "first", "begun": time.time()}
        done = alone.run([replace(timed[0], name="first", parameters=short, order=(-1,)), *timed])
        outcomes = {key: done[one.name] for key, one in jobs.items() if is_timed(*key[:2])}
        for group in TIMED:
            outcomes |= equal_time(options, group, every[group, FULL], Table(rows_of(outcomes)), alone)
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        rest = {key: one for key, one in jobs.items() if not is_timed(*key[:2])}
        done = workers.run(rest.values())
        outcomes |= {key: done[one.name] for key, one in rest.items()}
    rows = rows_of(outcomes)
    table = Table(rows)
    found, tested = targets(table), tests(table)
    complete = all("error" not in row for row in rows)
    more: dict[str, Any] = {
        "seconds": store.seconds,
        "workers": workers.n,
        "complete": complete,
        "intervals": intervals(table),
    }
    write_result(options, NAME, [*rows, *tested], found, **more)
    print_tables(table)
    draw(rows, table.mean, options.output.with_suffix(".png"))
    for row in tested:
        print(f"{row['test']:<36}{row['difference']:>8.3f}  p {row['p']:.2g}, Holm {row['p_holm']:.2g}")
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
