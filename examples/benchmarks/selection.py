"""Which parameters to go on optimizing: accuracy and time against what is frozen or zeroed, by every criterion.

    python examples/benchmarks/selection.py --preset cpu --data mnist --root DATA --output FILE.json

Groups of arms; all with the same seeds, compared seed by seed, with Student's 95 % intervals of the mean difference:

    criteria         784-200-10, Adam, 5 epochs: after a fifth of the steps 60 to 96 % of single weights, or of neurons,
                     are frozen by each criterion; of neurons, and in a control of weights, the output layer goes on
    criteria, NAME   of the other networks (CNNs: 2 epochs) 80 and 96 % of single weights; 80 to 98 % are zero; of the
                     CNN neurons too; of that with normalization 80 %, and 90 and 95 % zero
    mlp-200, mlp-300-100, cnn, cnn-normalized
                     how fast: 12 (CNNs: 6) epochs; of the MLPs a tenth of the parameters goes on, in whole rows, of
                     the CNNs what the measured time of layers and their gain say ("auto"); "equal time" is full
                     training with so many steps fewer that it takes as long, which is looked at too; all of them, and
                     rows at random, at the rate of three, and one more beyond the edge, that validation data prefer
                     (of three seeds); CNNs with augmented images too, where nothing can be kept (three seeds, the
                     usual rate); MLPs with batches of 512 too, where the loop takes less of a step than of 128
    paper            784-200-10 with tanh, pixels standardized, SGD, batches of 512, 600 steps, the choice after 100;
                     by the gradient of all data and the variances of all steps, without pixels that are constant;
                     shares are of every layer, as there; beside its own curves; and by the last ten steps alone
    zeroed           80 to 98 % of the weights are zero after a fifth of the steps, the others are optimized further
    both             so much is frozen and so much zero, from the choice on or in the end alone
    optimizers       accuracy, NLL and ECE of six optimizers, with and without 80 % of the neurons frozen, both at the
                     rate that was chosen without

Criteria are those of the hundred steps before the choice where nothing else is said. Times are process seconds of the
whole training, the making of what is kept included; what is timed runs alone, one training after the other, a seed's
arms side by side, the equal-time controls after all others. What is not timed is trained first, but for "criteria,
NAME", which comes last; FILE.json and a figure beside it are written after every stage.

Targets: 2a CNN: loss <= .2 points at >= 2.5 x, and >= .5 above equal
time; 2b MLP: loss <= .3 at >= 1.6 x; 2c: the criterion that validation prefers is above random by >= .3 at 80 % of
single weights, and with the output layer active in all; 2d: preconditioner above gradient above random in the paper's
setting; 2e: 95 % zeroed at <= 1 point. In 2c and 2e validation data of the other seeds prefer, for each seed.

Tests, one-sided paired t-tests that were named before the first run, p with Holm's correction over all of them: each
loss of a first network is below its limit, each gain above its own (of the equal-time control of 2b above 0; 2c with
the output layer active), and the two differences of 2d are above 0.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from contract import Target, correct, parse, write_result
from scipy.stats import ttest_1samp
from selection_arms import (
    ACTIVE_OUTPUT,
    CRITERIA,
    FULL,
    KEEP_BY,
    OF_STEPS,
    PAPER_CRITERIA,
    PRESETS,
    RATES,
    ROWS,
    SEEDS,
    TIMED,
    TRIED,
    TRIED_RATES,
    arms,
    is_last,
    is_timed,
    job,
)
from selection_figure import draw
from selection_tables import (
    EQUAL,
    Table,
    equal_times,
    paired,
    paper_difference,
    paper_means,
    preferred,
    preferred_elsewhere,
    print_tables,
)
from workers import Job, Outcome, Store, Workers

NAME = "selection"
# How often one more rate is tried beyond an edge.
_BEYOND = 3
# Seeds of arms with augmented images, whose figures are given and not tested; and of those that choose a rate.
_AUGMENTED = _CHOOSE = 3
# What the file does not say of arms whose time is not compared.
_OF_TIME = {"milliseconds", "cache_bytes", "no_cache", "state_bytes", "wall_seconds", "active_by_layer"}


def targets(table: Table) -> list[Target]:
    """What is aimed at."""
    found = []
    limits_of = {"cnn": ("2a", 0.2, 2.5), "cnn-normalized": ("2a", 0.2, 2.5)}
    limits_of |= dict.fromkeys(ROWS, ("2b", 0.3, 1.6))
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
        best, values = of_weights(table, end)
        above = paired(values, table.values("criteria", f"weight random 0.8{end}"))
        what = f"80 % of weights frozen, {best} - random{end}"
        found.append(Target("2c", what, above and above["mean"], 0.3, "higher"))
    for one, other in itertools.pairwise(PAPER_CRITERIA):
        gap = paper_difference(table, one, other)
        sure = None if gap is None or gap["half_width"] is None else gap["mean"] - gap["half_width"]
        found.append(Target("2d", f"paper: {one} - {other}, low end of 95 %", sure, 0.0, "higher"))
    kept, values = of_zeroed(table)
    lost = paired(table.values("criteria", FULL), values)
    found.append(Target("2e", f"95 % zeroed by {kept}: points lost", lost and lost["mean"], 1.0, "lower"))
    return found


def of_weights(table: Table, end: str) -> tuple[str, dict[int, float]]:
    """The criterion that validation prefers with 80 % of single weights frozen, see `preferred_elsewhere`."""
    return preferred_elsewhere(table, "criteria", [f"weight {c} 0.8{end}" for c in CRITERIA if c != "random"])


def of_zeroed(table: Table) -> tuple[str, dict[int, float]]:
    """The rule that validation prefers with 95 % zeroed, see `preferred_elsewhere`."""
    return preferred_elsewhere(table, "zeroed", [f"{by} 0.95" for by in KEEP_BY])


def tests(table: Table) -> list[dict[str, Any]]:
    """Those that are named above, with Holm's correction; what was not run is left out."""
    random, values, of_paper = f"weight random 0.8{ACTIVE_OUTPUT}", table.values, paper_means
    claims = [
        ("2a loss of the CNN below .2", values("cnn", TIMED["cnn"]), values("cnn", FULL), -0.2),
        ("2a CNN above equal time by .5", values("cnn", TIMED["cnn"]), values("cnn", EQUAL), 0.5),
        ("2b loss of the MLP below .3", values("mlp-200", TIMED["mlp-200"]), values("mlp-200", FULL), -0.3),
        ("2b MLP above equal time", values("mlp-200", TIMED["mlp-200"]), values("mlp-200", EQUAL), 0.0),
        ("2c above random by .3", of_weights(table, ACTIVE_OUTPUT)[1], values("criteria", random), 0.3),
        *(
            (f"2d {one} above {other}", of_paper(table, one), of_paper(table, other), 0.0)
            for one, other in itertools.pairwise(PAPER_CRITERIA)
        ),
        ("2e loss with 95 % zeroed below 1", of_zeroed(table)[1], values("criteria", FULL), -1.0),
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


def intervals(table: Table) -> list[dict[str, Any]]:
    """Of every arm the points that it loses to full training of its group, with 95 % intervals, paired by seed; of an
    optimizer with selection those that it loses to the same without."""
    found: list[dict[str, Any]] = []
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in table.rows):
        base = f"{FULL}, augmented" if arm.endswith("augmented") else FULL
        base = arm.removesuffix(", selected") if group == "optimizers" else base
        own = "criteria" if group in ("zeroed", "both") else group
        lost = paired(table.values(own, base), table.values(group, arm)) if arm != base else None
        if lost is not None:
            found.append({"group": group, "arm": arm, **lost})
    of_steps = [f"{name}{OF_STEPS}" for name in PAPER_CRITERIA[:2]]
    for one, other in (*itertools.pairwise(PAPER_CRITERIA), *itertools.pairwise([*of_steps, PAPER_CRITERIA[2]])):
        if (gap := paper_difference(table, one, other)) is not None:
            found.append({"group": "paper, mean over shares", "arm": f"{one} - {other}", **gap})
    values, pairs = table.values, dict[str, dict[str, Any] | None]()
    for group, arm in TIMED.items():
        pairs[f"{group}, {arm} - {EQUAL}"] = table.difference(group, arm, EQUAL)
    for end in ("", ACTIVE_OUTPUT):
        best, of_best = of_weights(table, end)
        pairs[f"{best} - weight random 0.8{end}"] = paired(of_best, values("criteria", f"weight random 0.8{end}"))
    kept, of_kept = of_zeroed(table)
    pairs[f"zeroed by {kept} - {FULL}"] = paired(of_kept, values("criteria", FULL))
    found += equal_times(table)
    found += [{"group": "tested", "arm": what, **gap} for what, gap in pairs.items() if gap is not None]
    for name, figure in itertools.product(RATES, ("accuracy", "nll", "ece")):
        # Of samplers the averaged draws: rates were chosen for these.
        prefix = "averaged_test_" if values("optimizers", name, "averaged_test_nll") else "test_"
        both = [values("optimizers", arm, prefix + figure) for arm in (f"{name}, selected", name)]
        if (gap := paired(*both)) is not None:
            found.append({"group": f"optimizers, {prefix}{figure}", "arm": f"{name}, selected - {name}", **gap})
    return found


def rows_of(outcomes: dict[tuple[str, str, int], Outcome]) -> list[dict[str, Any]]:
    """A row for every training."""
    rows = []
    for (group, arm, seed), outcome in outcomes.items():
        head = {"group": group, "arm": arm, "seed": seed}
        # A speed is of two trainings of one run.
        head |= {"run": outcome["run"]} if is_timed(group, arm) and "run" in outcome else {}
        if "error" in outcome:
            rows.append({**head, "error": outcome["error"]})
            continue
        unused = {"default", "macs"} | (set() if is_timed(group, arm) else _OF_TIME)
        result = {key: value for key, value in outcome["result"].items() if key not in unused}
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in result.items()}
        rows.append({**head, **rounded})
    return rows


def in_turns(jobs: list[tuple[str, int, Job]]) -> list[Job]:
    """Seed by seed and group by group, the arms of a group in an order that turns with the seed."""
    found = []
    for seed in sorted({seed for _, seed, _ in jobs}):
        for place, group in enumerate(dict.fromkeys(group for group, _, _ in jobs)):
            mine = [one for g, s, one in jobs if (g, s) == (group, seed)]
            turned = mine[seed % len(mine) :] + mine[: seed % len(mine)]
            found += [replace(one, order=(seed, place, i)) for i, one in enumerate(turned)]
    return found


class Failed(Exception):
    """A job that others depend on."""


class Runs:
    """Trainings, one at a time where their seconds count, else side by side.

    Attributes:
        outcomes: By group, arm and seed.
    """

    def __init__(self, options: argparse.Namespace, store: Store) -> None:
        self.options, self.store, self.outcomes = options, store, dict[tuple[str, str, int], Outcome]()

    def run(self, jobs: dict[tuple[str, str, int], Job]) -> None:
        """Side by side."""
        with Workers(self.store, self.options.output.with_suffix(".work"), self.options.workers) as workers:
            done = workers.run(jobs.values())
        self.outcomes |= {key: done[one.name] for key, one in jobs.items()}

    def alone(self, jobs: dict[tuple[str, str, int], Job]) -> None:
        """One after the other, the arms of a seed in turns."""
        timed = in_turns([(group, seed, one) for (group, _, seed), one in jobs.items()])
        # A process has costs of its own at its first training.
        short = {**timed[0].parameters, "steps": 16, "trial": "first", "begun": time.time()}
        with Workers(self.store, self.options.output.with_suffix(".work"), 1) as workers:
            done = workers.run([replace(timed[0], name="first", parameters=short, order=(-1,)), *timed])
        self.outcomes |= {key: done[one.name] for key, one in jobs.items()}
        self.check(jobs)

    def check(self, keys: Iterable[tuple[str, str, int]]) -> None:
        """Raise Failed where a job failed: later ones are chosen by its figures, and would be others without them."""
        if failed := ["-".join(map(str, key)) for key in keys if "error" in self.outcomes[key]]:
            raise Failed(f"{', '.join(failed)} failed: run it again")

    def with_rates(self, trainings: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Each at the rate that validation data prefer of `TRIED_RATES`, in the mean over the first seeds.

        Where that is at an edge, one rate more is tried beyond it, up to `_BEYOND` times.
        """
        factors = {key: list(TRIED_RATES) for key in trainings}
        best = self._best_factors(trainings, factors)
        for _ in range(_BEYOND):
            for key, factor in best.items():
                beyond = {min(factors[key]): factor / 2, max(factors[key]): factor * 2}
                factors[key] += [beyond[factor]] if factor in beyond else []
            best = self._best_factors(trainings, factors)
        return {key: {**one, "rate": best[key] * one["rate"]} for key, one in trainings.items()}

    def _best_factors(
        self, trainings: dict[tuple[str, str], dict[str, Any]], factors: dict[tuple[str, str], list[float]]
    ) -> dict[tuple[str, str], float]:
        jobs, names = dict[tuple[str, str, int], Job](), {}
        for (group, arm), training in trainings.items():
            for factor, seed in itertools.product(factors[group, arm], range(min(_CHOOSE, self.options.seeds))):
                name = names[group, arm, factor] = f"{arm}, {factor:g}{TRIED}"
                # By validation data alone.
                parameters = {**training, "rate": factor * training["rate"], "test": False}
                jobs[group, name, seed] = job(self.options, group, name, seed, parameters)
        self.run({key: one for key, one in jobs.items() if key not in self.outcomes})
        self.check(jobs)
        table, found = self.table(), dict[tuple[str, str], float]()
        for key in trainings:
            of_factor = {names[(*key, factor)]: factor for factor in factors[key]}
            found[key] = of_factor[preferred(table, key[0], list(of_factor)) or names[(*key, 1.0)]]
        return found

    def table(self) -> Table:
        """Of all so far."""
        return Table(rows_of(self.outcomes))


def equal_time(table: Table, every: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Full trainings, of the usual rate, that take as long as the arm whose time is compared, by group."""
    found = {}
    for group, arm in TIMED.items():
        if (speed := table.speed(group, arm)) is not None:
            full = every[group, FULL]
            found[group, EQUAL] = {**full, "steps": max(2, round(full["steps"] / speed))}
    return found


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    # The networks are for images of 28x28.
    options = parse(__doc__, PRESETS, SEEDS, data_sets=("mnist", "fashion_mnist"), usual="mnist")
    try:
        return compare(options)
    except Failed as error:
        print(error)
        return 1


def compare(options: argparse.Namespace) -> int:
    """Run the stages, one after the other.

    Raises:
        Failed: A job that a later stage depends on.
    """
    store, every = Store(options.output), arms(options.preset)
    runs = Runs(options, store)
    untimed = {
        (g, a, seed): job(options, g, a, seed, p)
        for seed in range(options.seeds)
        for (g, a), p in every.items()
        if not is_timed(g, a)
    }
    runs.run({key: one for key, one in untimed.items() if not is_last(key[0])})
    written(options, runs, complete=False)
    # With full training, and the control of chance of the same form; augmented arms, and what they are compared with,
    # have the usual rate.
    tried = [(group, name) for group, arm in TIMED.items() for name in (FULL, arm, arm.replace("gain", "random"))]
    every |= runs.with_rates({key: every[key] for key in dict.fromkeys(tried)})
    timed = {
        (g, a, seed): job(options, g, a, seed, p)
        for seed in range(options.seeds)
        for (g, a), p in every.items()
        if is_timed(g, a) and (seed < _AUGMENTED or not a.endswith("augmented"))
    }
    # What is timed needs the machine for itself.
    runs.alone(timed)
    written(options, runs, complete=False)
    shorter = runs.with_rates(equal_time(runs.table(), arms(options.preset)))
    controls = {
        (g, a, seed): job(options, g, a, seed, p) for seed in range(options.seeds) for (g, a), p in shorter.items()
    }
    if controls:
        runs.alone(controls)
        written(options, runs, complete=False)
    runs.run({key: one for key, one in untimed.items() if is_last(key[0])})
    rows, tested, found = written(options, runs, complete=True)
    print_tables(runs.table())
    for row in tested:
        print(f"{row['test']:<36}{row['difference']:>8.3f}  p {row['p']:.2g}, Holm {row['p_holm']:.2g}")
    print(*found, sep="\n")
    return 0 if all("error" not in row for row in rows) else 1


def written(
    options: argparse.Namespace, runs: Runs, *, complete: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Target]]:
    """Write the result of what has been run, and its figure: rows, tests and targets."""
    rows, table = rows_of(runs.outcomes), runs.table()
    found, tested = targets(table), tests(table)
    more: dict[str, Any] = {
        "seconds": runs.store.seconds,
        "workers": options.workers,
        "complete": complete and all("error" not in row for row in rows),
        "intervals": intervals(table),
    }
    write_result(options, NAME, [*rows, *tested], found, **more)
    draw(rows, table.mean, options.output.with_suffix(".png"))
    return rows, tested, found


if __name__ == "__main__":
    raise SystemExit(main())
