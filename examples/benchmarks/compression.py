"""How far networks can be cut: directly trained at single lambda, and read off one hypernetwork of lambda.

    python examples/benchmarks/compression.py --preset cpu --data mnist --root DATA --output FILE.json

Networks are 784-300-100-10 (LeNet-300-100), 784-100-10 and 784-50-10, pixels between 0 and 1 without augmentation,
51,000 images for training and 5,000 of the others for validation. Weights are ranked by their relative density over the
whole network; "at 50 x" one weight in 50 is kept. Errors are those of the network of the means on test data, in %;
wherever several lambda (or decays of the dense baseline) are at hand, the one of the smallest mean validation error is
meant.

Targets:

    2a   LeNet, direct: 50 x <= 2.25 without and <= 2.05 with three epochs of fine-tuning; 68 x <= 2.45 and <= 2.15
         (stretch 1.92); 100 x <= 2.65 fine-tuned; five minutes a run
    2b   784-100-10: <= 2.1 at 80 % removed, <= 2.2 at 90 %; 784-50-10: <= 2.75 and <= 3.0; both without fine-tuning;
         whole not worse than the dense network whose decay was tuned
    2c   LeNet, one hypernetwork: whole within .2 of a direct run at every lambda; 20 x <= 1.9 fine-tuned; 50 x within
         .25 of the direct run, fine-tuned; stretch: 68 x <= 1.92
    2d   weights that are kept, those above one standard deviation, fall strictly over five lambda, 10 x in all, with
         every seed: of the hypernetwork of 2c, and of another over .1 to 30
    2e   a step of the hypernetwork takes <= 1.3 x that of a direct run times its lambda per step (1, 2 and 4), in
         blocks that take turns in one process; its whole training <= .35 of that of five direct runs, by their
         epochs and these seconds, with those of looks at validation data after every epoch

Other presets: `seed`, the experiment of the original report, and whether what it says holds; `authors`, the table that
came of it, in its layout, beside theirs and ours; `evidence`, the bound and its parts for every prior and kind of
hypernetwork (10,000 images); `cnn` (10,000 images) and `cnn-gpu` (all), convolutions on CIFAR-10 (`--data cifar10`).
Each writes a figure beside FILE.json.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

from compression_arms import (
    AUTHORS,
    AUTHORS_LAMBDAS,
    PRESETS,
    PUBLISHED,
    SEED_LAMBDAS,
    SEEDS,
    SHARES,
    cost_jobs,
    jobs,
)
from compression_figure import draw
from compression_rows import FURTHER, Curves, gaps, print_curves, run_rows
from compression_targets import targets as of_the_networks
from contract import Target, parse, write_result
from workers import Store, Workers

NAME = "compression"
# What a point of accuracy that is lost is, in the claim of the original report.
LOSS = 1.0
SEED_HYPER = "seed, hypernetwork"


def authors_targets(rows: list[dict[str, Any]]) -> list[Target]:
    """The table, with 20 starts of hypernetworks and three of the rest; no numbers in it are aimed at."""
    entries = [
        Curves(rows, arm if kind == "constant" else f"{arm}, hypernetwork", kind).mean(lam, share, "test")
        for arm, kind in PUBLISHED
        for lam in AUTHORS_LAMBDAS
        for share in SHARES
    ]
    n = float(len(entries))
    found = [Target("4", "entries of the authors' table", n - entries.count(None), n, "higher")]
    starts: dict[bool, list[int]] = {True: [], False: []}
    for arm, kind in PUBLISHED:
        hyper = kind != "constant"
        of = Curves(rows, f"{arm}, hypernetwork" if hyper else arm, kind).rows
        starts[hyper].append(len({row["seed"] for row in of}))
    for hyper, least, what in ((True, 20.0, "starts of every hypernetwork"), (False, 3.0, "of every direct run")):
        found.append(Target("4", what, float(min(starts[hyper])), least, "higher"))
    return found


def seed_targets(rows: list[dict[str, Any]]) -> list[Target]:
    """The claim of the original report: some 80 % can be left out at all lambda but 0 and .1, where it cannot."""
    found = []
    for after, own in itertools.product(("", FURTHER), (False, True)):
        curves, than = Curves(rows, SEED_HYPER + after), "its own" if own else "the best"
        for above in (True, False):
            lams = [lam for lam in SEED_LAMBDAS if (lam > 0.1) == above]
            shares = [curves.removable(lam, LOSS, own) for lam in lams] if curves.rows else []
            within = f"that can go within {LOSS:g} point of {than} whole network, lambda"
            if above:
                what = f"least share {within} above .1{after}"
                found.append(Target("4", what, min(shares, default=None), 0.8, "higher"))
            else:
                what = f"largest share {within} 0 and .1{after}"
                found.append(Target("4", what, max(shares, default=None), 0.7999, "lower"))
    return found


def cnn_targets(rows: list[dict[str, Any]]) -> list[Target]:
    """What 20 x costs, and how long its file is."""
    found = []
    for arm in ("cnn, direct", "cnn, hypernetwork"):
        best, dense = Curves(rows, arm).best(1 - 1 / 20, tuned=True), Curves(rows, "cnn, dense").best(0.0)
        gap = best[1] - dense[1] if best and dense else None
        found.append(Target("6", f"{arm}, 20 x, fine-tuned: error - that of the whole dense one", gap, 0.3, "lower"))
        whole, cut = (Curves(rows, arm).sizes(fraction) for fraction in (0.0, 1 - 1 / 20))
        ratio = max(cut) / min(whole) if whole and cut else None
        found.append(Target("6", f"{arm}, 20 x: length of the file / that of the whole one", ratio, 0.1, "lower"))
    return found


def evidence_targets(rows: list[dict[str, Any]]) -> list[Target]:
    """A table and a figure are asked for: every prior, every kind."""
    done = {(row["arm"], row["hypernet"]) for row in rows if "error" not in row}
    wanted = {(arm.name, kind) for arm in PRESETS["evidence"].arms for kind, _ in arm.runs}
    return [Target("3", "priors and kinds", float(len(done & wanted)), float(len(wanted)), "higher")]


def print_authors(rows: list[dict[str, Any]]) -> None:
    """The authors' table in its layout: theirs, theirs run again, and ours; test accuracy in %."""
    lams = sorted(PUBLISHED["base", "constant"])
    print("\ntest accuracy, %, with 0 / 50 / 70 / 80 / 90 % of the weights left out; mean +- sd over starts")
    print(f"{'':<34}" + "".join(f"{f'lambda {lam:g}':>56}" for lam in lams))
    for arm in (*AUTHORS, "ours"):
        for kind in ("constant", "linear", "piecewise_linear"):
            curves = Curves(rows, arm if kind == "constant" else f"{arm}, hypernetwork", kind)
            name = f"{arm}{'' if kind == 'constant' else ', ' + kind}"
            if (arm, kind) in PUBLISHED:
                cells = [" ".join(f"{x:.1f}" for x in PUBLISHED[arm, kind][lam]) for lam in lams]
                print(f"{name + ', published':<34}" + "".join(f"{cell:>56}" for cell in cells))
            if curves.rows:
                starts = len({row["seed"] for row in curves.rows})
                cells = [" ".join(_accuracy(curves.values(lam, share, "test")) for share in SHARES) for lam in lams]
                print(f"{f'{name}, {starts} starts':<34}" + "".join(f"{cell:>56}" for cell in cells))
    print()


def _accuracy(errors: list[float]) -> str:
    spread = f"+-{statistics.stdev(errors):.1f}" if len(errors) > 1 else ""
    return f"{100 - statistics.fmean(errors):.1f}{spread}" if errors else "-"


def print_seed(rows: list[dict[str, Any]]) -> None:
    """How much can go at every lambda, and whether a run has come to its end: J and the divergence."""
    print(f"\nlargest share that can be left out within {LOSS:g} point of the best whole network; of its lambda's own")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        curves = Curves(rows, arm)
        for lam in curves.lambdas:
            best, own = (curves.removable(lam, LOSS, own) for own in (False, True))
            parts = (curves.mean_of(lam, name) for name in ("objective", "kl"))
            nats = "".join(f"{'-' if nat is None else format(nat, '.0f'):>10}" for nat in parts)
            print(f"{arm:<44}lambda {lam:<8g}{best:>8.0%}{own:>8.0%}   J, KL{nats}")
    print()


def print_evidence(rows: list[dict[str, Any]]) -> None:
    """J, expected log-likelihood and KL in nats, the gap of amortization, and weights kept."""
    print(
        "\nnats, of all training objects; log_uniform is improper, and no evidence; gap (of amortization): the largest"
    )
    print("J that is known at this lambda less J; on: what the same network gains when it is trained on at this lambda")
    print("alone; direct: J of a direct run less J; J of the prior scaled, whose width lambda sets, is E log p - KL,")
    print("another number than that of the others")
    head = "".join(f"{name:>11}" for name in ("lambda", "J", "L_E", "KL", "gap", "on", "direct", "kept", "error, %"))
    print(f"{'prior':<18}{'kind':<18}{head}")
    own = [row for row in rows if not row["arm"].endswith(FURTHER)]
    for arm, kind in dict.fromkeys((row["arm"], row["hypernet"]) for row in own):
        curves, direct, further = (
            Curves(rows, name, of) for name, of in ((arm, kind), (arm, "constant"), (arm + FURTHER, kind))
        )
        apart = gaps(rows, arm, kind)
        for lam in curves.lambdas:
            mine, fit, kl = (curves.mean_of(lam, name) for name in ("objective", "expected_log_likelihood", "kl"))
            more = [
                None if mine is None or theirs is None else theirs - mine
                for theirs in (further.mean_of(lam, "objective"), direct.mean_of(lam, "objective"))
            ]
            figures = (mine, fit, kl, apart.get(lam), more[0], None if kind == "constant" else more[1])
            figures += (curves.mean_of(lam, "kept"),)
            cells = "".join(f"{'' if value is None else format(value, '.0f'):>11}" for value in figures)
            error = curves.mean(lam, 0.0, "test")
            print(f"{arm:<18}{kind:<18}{lam:>11g}{cells}{'' if error is None else format(error, '.2f'):>11}")
    print()


TARGETS: dict[str, Callable[[list[dict[str, Any]]], list[Target]]] = {
    "authors": authors_targets,
    "seed": seed_targets,
    "cnn": cnn_targets,
    "cnn-gpu": cnn_targets,
    "evidence": evidence_targets,
}
TABLES = {"authors": print_authors, "seed": print_seed, "evidence": print_evidence}


def _of_cost(outcome: dict[str, Any]) -> dict[str, Any]:
    if "error" in outcome:
        return {"error": outcome["error"]}
    names = ("direct", "hypernetwork", "ratios", "validation", "steps", "ratio_of_epochs")
    return {name: outcome["result"][name] for name in names}


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS)
    store, wanted, timed = Store(options.output), jobs(options), cost_jobs(options)
    with Workers(store, options.output.with_suffix(".work"), 1) as alone:
        costs = alone.run(timed)
    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        outcomes = workers.run(wanted.values())
    rows = [row for (arm, *_), job in wanted.items() for row in run_rows(arm, job, outcomes[job.name])]
    rows += [{"arm": "cost", "hypernet": None, "seed": 0, **_of_cost(costs[job.name])} for job in timed]
    found = TARGETS.get(options.preset, of_the_networks)(rows)
    complete = all("error" not in row for row in rows)
    write_result(options, NAME, rows, found, seconds=store.seconds, workers=workers.n, complete=complete)
    networks = [row for row in rows if row["arm"] != "cost"]
    print_curves(networks)
    TABLES.get(options.preset, lambda rows: None)(rows)
    draw(options.preset, networks, options.output.with_suffix(".png"))
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
