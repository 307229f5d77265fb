"""Which parameters to go on optimizing: accuracy and time against what is frozen or zeroed, by every criterion.

    python examples/benchmarks/selection.py --preset cpu --data mnist --root DATA --output FILE.json

Groups of arms; all with the same seeds, compared seed by seed, with Student's 95 % intervals of the mean difference:

    criteria         784-200-10, Adam, 5 epochs: after a fifth of the steps 60 to 95 % of single weights, or of neurons,
                     are frozen by each criterion; of neurons, and in a control of weights, the output layer goes on
    mlp-200, mlp-300-100, cnn, cnn-normalized
                     how fast: 12 (CNNs: 6) epochs; of the MLPs a tenth of the rows goes on, of the CNNs what the
                     measured time of layers and their gain say ("auto"); "equal time" is full training with so many
                     steps fewer that it takes as long; CNNs with augmented images too, where nothing can be kept
    paper            784-200-10 with tanh, pixels standardized, SGD, batches of 512, 600 steps, the choice after 100;
                     shares are of every layer, as there; beside its own curves
    zeroed           80 to 98 % of the weights are zero after a fifth of the steps, the others are optimized further
    optimizers       accuracy, NLL and ECE of six optimizers, with and without 80 % of the neurons frozen

Times are process seconds of the whole training, the making of what is kept included; what is timed runs alone, one
training after the other, a seed's arms side by side. A figure is written beside FILE.json.

Targets (issue "Which parameters to go on optimising"): 2a CNN: loss <= .2 points at >= 2.5 x, and >= .5 above equal
time; 2b MLP: loss <= .3 at >= 1.6 x; 2c: the criterion that validation prefers is above random by >= .3 at 80 % of
single weights; 2d: preconditioner above gradient above random in the paper's setting; 2e: 95 % zeroed at <= 1 point.

Tests, one-sided paired t-tests that were named before the first run, p with Holm's correction over all of them: each
loss of a first network is below its limit, each gain above its own (of the equal-time control of 2b above 0), and the
two differences of 2d are above 0.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace
from typing import Any

from contract import Target, correct, half_width, parse, write_result
from scipy.stats import ttest_1samp
from selection_arms import (
    ACTIVE_OUTPUT,
    ACTIVE_OUTPUT_CRITERIA,
    ACTIVE_OUTPUT_FROZEN,
    CRITERIA,
    FROZEN,
    FULL,
    KEEP_BY,
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
from workers import Outcome, Store, Workers

NAME = "selection"
# Groups with a control that takes as long as the arm named here.
TIMED = {
    "mlp-200": "rows gain 0.9",
    "mlp-300-100": "rows gain 0.9",
    "cnn": "automatic",
    "cnn-normalized": "automatic",
}
EQUAL = "full, equal time"
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
    best = preferred(table, "criteria", [f"weight {c} 0.8" for c in CRITERIA if c != "random"])
    above = table.difference("criteria", best, "weight random 0.8") if best else None
    found.append(Target("2c", f"80 % of weights frozen, {best} - random", above and above["mean"], 0.3, "higher"))
    for one, other in itertools.pairwise(PAPER_CRITERIA):
        gap = paper_difference(table, one, other)
        sure = gap and gap["half_width"] is not None and gap["mean"] - gap["half_width"]
        found.append(Target("2d", f"paper: {one} - {other}, low end of 95 %", sure or None, 0.0, "higher"))
    kept = preferred(table, "zeroed", [f"{by} 0.95" for by in KEEP_BY])
    lost = paired(table.values("criteria", FULL), table.values("zeroed", kept)) if kept else None
    found.append(Target("2e", f"95 % zeroed by {kept}: points lost", lost and lost["mean"], 1.0, "lower"))
    return found


def tests(table: Table) -> list[dict[str, Any]]:
    """Those that are named above, with Holm's correction; what was not run is left out."""
    kept = preferred(table, "zeroed", [f"{by} 0.95" for by in KEEP_BY])
    best = preferred(table, "criteria", [f"weight {c} 0.8" for c in CRITERIA if c != "random"])
    values, of_paper = table.values, paper_means
    claims = [
        ("2a loss of the CNN below .2", values("cnn", TIMED["cnn"]), values("cnn", FULL), -0.2),
        ("2a CNN above equal time by .5", values("cnn", TIMED["cnn"]), values("cnn", EQUAL), 0.5),
        ("2b loss of the MLP below .3", values("mlp-200", TIMED["mlp-200"]), values("mlp-200", FULL), -0.3),
        ("2b MLP above equal time", values("mlp-200", TIMED["mlp-200"]), values("mlp-200", EQUAL), 0.0),
        ("2c above random by .3", values("criteria", best or ""), values("criteria", "weight random 0.8"), 0.3),
        *(
            (f"2d {one} above {other}", of_paper(table, one), of_paper(table, other), 0.0)
            for one, other in itertools.pairwise(PAPER_CRITERIA)
        ),
        ("2e loss with 95 % zeroed below 1", values("zeroed", kept or ""), values("criteria", FULL), -1.0),
    ]
    found = []
    for name, ours, theirs, least in claims:
        both = [ours[seed] - theirs[seed] - least for seed in ours if seed in theirs]
        if len(both) > 1 and statistics.pstdev(both) > 0:
            p = float(ttest_1samp(both, 0.0, alternative="greater").pvalue)
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
    full = table.mean("criteria", FULL)
    for granularity in ("weight", "neuron"):
        print(f"\npoints lost, {granularity}s frozen (full training {_text(full)})")
        print(f"{'':<26}" + "".join(f"{share:>10.0%}" for share in FROZEN))
        for criterion in CRITERIA:
            lost = [table.difference("criteria", FULL, f"{granularity} {criterion} {share:g}") for share in FROZEN]
            print(f"{criterion:<26}" + "".join(f"{_text(x and x['mean']):>10}" for x in lost))
    for criterion in ACTIVE_OUTPUT_CRITERIA:
        arm = f"weight {criterion} {ACTIVE_OUTPUT_FROZEN:g}{ACTIVE_OUTPUT}"
        lost = table.difference("criteria", FULL, arm)
        print(f"{arm:<36}{_text(lost and lost['mean'])}")
    last = table.difference("criteria", FULL, "output layer alone")
    print(f"{'output layer alone':<26}{_text(last and last['mean']):>10}")
    print(f"\n{'':<40}{'accuracy':>10}{'lost':>8}{'+-':>7}{'speed':>8}  frozen as a whole")
    for group in TIMED:
        for arm in dict.fromkeys(row["arm"] for row in table.rows if row["group"] == group):
            base = f"{FULL}, augmented" if arm.endswith("augmented") else FULL
            lost = table.difference(group, base, arm)
            speed = table.speed(group, arm, base) if is_timed(group, arm) else None
            frozen = next((row.get("frozen") for row in table.rows if (row["group"], row["arm"]) == (group, arm)), None)
            cells = (_text(table.mean(group, arm)), _text(lost and lost["mean"]), _text(lost and lost["half_width"]))
            numbers = f"{cells[0]:>10}{cells[1]:>8}{cells[2]:>7}{_text(speed):>8}"
            print(f"{group + ', ' + arm:<40}{numbers}  {', '.join(frozen or [])}")
    _print_paper(table)
    for one, other in itertools.pairwise(PAPER_CRITERIA):
        gap = paper_difference(table, one, other)
        print(
            f"  {one} - {other}, mean over shares: {_text(gap and gap['mean'])} +- {_text(gap and gap['half_width'])}"
        )
    print("\naccuracy with so much zeroed\n" + f"{'':<18}" + "".join(f"{share:>8.0%}" for share in ZEROED))
    for by in KEEP_BY:
        cells = [table.mean("zeroed", f"{by} {share:g}") for share in ZEROED]
        print(f"{by:<18}" + "".join(f"{_text(x):>8}" for x in cells))
    print(f"\n{'optimizer':<24}{'accuracy':>10}{'NLL':>9}{'ECE':>9}{'process s':>11}")
    for arm in dict.fromkeys(row["arm"] for row in table.rows if row["group"] == "optimizers"):
        names = ("test_accuracy", "test_nll", "test_ece", "process_seconds")
        accuracy, nll, ece, seconds = (table.mean("optimizers", arm, name) for name in names)
        drawn = [table.mean("optimizers", arm, f"averaged_{name}") for name in names[:3]]
        said = "" if None in drawn else f"   draws averaged {_text(drawn[0])} {_text(drawn[1], 4)} {_text(drawn[2], 4)}"
        print(f"{arm:<24}{_text(accuracy):>10}{_text(nll, 4):>9}{_text(ece, 4):>9}{_text(seconds):>11}{said}")
    print()


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


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS)
    store, every = Store(options.output), arms(options.preset)
    jobs = {(g, a, seed): job(options, g, a, seed, p) for seed in range(options.seeds) for (g, a), p in every.items()}
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        done = workers.run([one for (g, a, _), one in jobs.items() if not is_timed(g, a)])
    with Workers(store, options.output.with_suffix(".work"), 1) as alone:
        timed = [one for (g, a, _), one in jobs.items() if is_timed(g, a)]
        # A process has costs of its own at its first training.
        short = {**timed[0].parameters, "steps": 16, "trial": "first", "begun": time.time()}
        done |= alone.run([replace(timed[0], name="first", parameters=short, order=(-1,)), *timed])
        outcomes = {key: done[one.name] for key, one in jobs.items()}
        controls, table = {}, Table(rows_of(outcomes))
        for group, arm in TIMED.items():
            speed = table.speed(group, arm)
            if speed is None:
                continue
            shorter = {**every[group, FULL], "steps": max(2, round(every[group, FULL]["steps"] / speed))}
            for seed in range(options.seeds):
                controls[group, EQUAL, seed] = job(options, group, EQUAL, seed, shorter)
        done = alone.run(controls.values())
        outcomes |= {key: done[one.name] for key, one in controls.items()}
    rows = rows_of(outcomes)
    table = Table(rows)
    found, tested = targets(table), tests(table)
    complete = all("error" not in row for row in rows)
    more = {"seconds": store.seconds, "workers": workers.n, "complete": complete}
    write_result(options, NAME, [*rows, *tested], found, **more)
    print_tables(table)
    draw(rows, table.mean, options.output.with_suffix(".png"))
    for row in tested:
        print(f"{row['test']:<36}{row['difference']:>8.3f}  p {row['p']:.2g}, Holm {row['p_holm']:.2g}")
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
