"""A stack of cells whose structure a Bayesian search chose, against random cells of equal size.

    python examples/benchmarks/cifar10_cells.py --preset cpu --data cifar10 --root DATA --output cells.json

A cell is searched in a network of four (Dirichlet, single level, guarded) and retrained in a deeper one, of the width
at which it comes nearest to one size, beside five random cells of that size, drawn without looking at the data. Where
the preset says so its posterior is refined: short trainings of probable cells in the deeper network, each at that size,
choose one more cell, by validation data (`posterior_refinement`):

    cpu         a subset of CIFAR-10, an hour on two cores
    gpu         CIFAR-10 as in DARTS: 14 cells, 600 epochs; beside 2.46 % of DrNAS (test error, 4.1 M parameters)
    imagenet    an image folder of ImageNet's, at 64 pixels, in memory (of 1.3 million images about 40 GiB); --data
                image_folder --root FOLDER

The last two are for GPUs, with `--workers 1` for one whose memory a training fills, and were not run; on a generated
image folder a test goes through the last one. A benchmark that was killed goes on where it was, trainings from their
last epoch.

Targets (5): the mean test accuracy of the searched cells, and of the refined
ones, above that of the random ones by more than the half width of the 95 % interval of the difference (Welch).
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from contract import STEMS, Target, data_section, parse, write_result
from scipy.stats import t
from workers import Job, Outcome, Store, Workers

NAME = "cifar10_cells"
# Random cells and searches have seeds of their own, so that another try of the search is not that of looked-at seeds.
FIRST_SEED, FIRST_RANDOM, RANDOM = 191, 91, 5
# Chen et al., 2021, arXiv 2006.10355: a test error of 2.46 %.
_DRNAS = 0.9754
_FLIPPED = {"crop_padding": 4, "horizontal_flip": True}
_DARTS = {"crop_padding": 4, "horizontal_flip": True, "cutout": 16, "auxiliary_weight": 0.4, "drop_path": 0.2}


@dataclass(frozen=True)
class Setting:
    """How large a preset is."""

    width: int
    n_nodes: int
    limit: int | None
    val_limit: int | None
    epochs: int
    warmup_epochs: int
    cells: int
    train_epochs: int
    size: int
    widths: tuple[int, ...]
    augmentation: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    stem: int | None = None
    image_size: int | None = None
    refine: dict[str, Any] | None = None


PRESETS = {
    "smoke": Setting(
        *(2, 2, 160, 80, 2, 1, 5, 1, 1_500, tuple(range(2, 9)), {"crop_padding": 1}),
        image_size=16,
        refine={"candidates": 6, "parallel": 2, "evaluations": 3, "epochs": 1, "rungs": ((1, 2),)},
    ),
    "cpu": Setting(
        *(8, 2, 4_000, 1_000, 10, 4, 6, 10, 60_000, tuple(range(4, 65)), _FLIPPED),
        refine={"candidates": 64, "parallel": 2, "evaluations": 12, "epochs": 2, "rungs": ((3, 5),)},
    ),
    "gpu": Setting(16, 4, None, 5_000, 50, 20, 14, 600, 4_000_000, tuple(range(8, 97)), _DARTS, 96),
    "imagenet": Setting(16, 4, None, 50_000, 25, 10, 14, 250, 5_000_000, tuple(range(8, 129)), _DARTS, 128, 64, 64),
}
SEEDS = {"smoke": 1, "cpu": 3, "gpu": 4, "imagenet": 1}


def common(options: argparse.Namespace) -> dict[str, Any]:
    """What all configurations share."""
    setting: Setting = PRESETS[options.preset]
    stem = setting.stem or STEMS.get(options.data, 32)
    shared = {"share": "all", "reduce": "thirds", "growth": 2.0}
    space = {"stem": stem, "width": setting.width, "n_cells": 4, "n_nodes": setting.n_nodes, **shared}
    more = {"image_size": setting.image_size} if options.data == "image_folder" else {}
    on_gpu = options.preset in ("gpu", "imagenet")
    return {
        "space": {"name": "cell", "args": space},
        "data": data_section(options, setting.limit, setting.val_limit, **more),
        "experiment": {"device": "gpu" if on_gpu else "cpu", "threads": 1},
    }


def search(options: argparse.Namespace, seed: int) -> Job:
    """One search."""
    setting: Setting = PRESETS[options.preset]
    strategy = {"arc_learning_rate": 0.06, "auxiliary": 1.0, "normalize": True}
    section = {
        "epochs": setting.epochs,
        "warmup_epochs": setting.warmup_epochs,
        "batch_size": setting.batch_size // 2,
        "learning_rate": 0.05,
        "random": 0,
    }
    parameters: dict[str, Any] = {"trial": f"search-{seed}", "seed": seed}
    if setting.refine is not None:
        parameters["candidates"] = setting.refine["candidates"]
    config = {**common(options), "strategy": {"name": "dirichlet_darts", "args": strategy}, "search": section}
    return Job(f"s{seed}", "search", config, parameters, (0, seed), keep=True)


def training(options: argparse.Namespace, name: str, seed: int, choices: dict[str, Any]) -> Job:
    """The training of a cell in the deeper network."""
    parameters = {"trial": f"train-{name}", "choices": choices, "seed": seed}
    return Job(f"train-{name}", "retrain", deeper(options, choices), parameters, (1, seed), keep=True)


def deeper(options: argparse.Namespace, choices: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a training of a cell in the deeper network, of the common size."""
    setting: Setting = PRESETS[options.preset]
    section = {
        "epochs": setting.train_epochs,
        "batch_size": setting.batch_size,
        "learning_rate": 0.025 if options.preset in ("gpu", "imagenet") else 0.1,
        "space": {
            "n_cells": setting.cells,
            "width": width_of(options, choices),
            "affine": True,
            "auxiliary": True,
        },
        **setting.augmentation,
    }
    return {**common(options), "retrain": section}


def width_of(options: argparse.Namespace, choices: dict[str, Any]) -> int:
    """The width at which the deeper network of a cell comes nearest to the common size."""
    from baselines import nearest_width

    setting: Setting = PRESETS[options.preset]
    channels = 1 if options.data in ("digits", "mnist", "fashion_mnist") else 3
    deeper = {"in_channels": channels, "n_cells": setting.cells, "affine": True}
    return nearest_width({**common(options)["space"]["args"], **deeper}, choices, setting.widths, setting.size)


def difference(ours: list[float], theirs: list[float]) -> dict[str, float] | None:
    """Mean difference and its 95 % interval (Welch); None with fewer than two of either."""
    if len(ours) < 2 or len(theirs) < 2:
        return None
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    mean, error = statistics.fmean(ours) - statistics.fmean(theirs), math.sqrt(sum(parts))
    if error == 0:
        return {"mean": mean, "half_width": 0.0}
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (ours, theirs), strict=True))
    return {"mean": mean, "half_width": float(t.ppf(0.975, freedom)) * error}


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS, data_sets=(*STEMS, "image_folder"))
    from judged import random_choices
    from refinement import Refinements

    from nni_bayes_nas.search_spaces.cell import isomorphism_key

    store, refine = Store(options.output), PRESETS[options.preset].refine
    searches = {f"s{seed}": search(options, seed) for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)}
    begun: dict[str, tuple[str, int]] = {}
    refined = Refinements(
        {name: int(job.parameters["seed"]) for name, job in searches.items()} if refine else {},
        lambda choices: deeper(options, choices),
        refine or {},
        lambda choices: 0.0,
        isomorphism_key,
        ("posterior",),
    )

    def follow(finished: Job, outcome: Outcome) -> list[Job]:
        jobs = refined.follow(finished, outcome)
        for (_, seed), one in refined.found.items():
            name = f"train-refined-s{seed}"
            if name not in begun and one.choices is not None:
                begun[name] = ("refined", seed)
                jobs.append(training(options, f"refined-s{seed}", seed, one.choices))
        return [*jobs, *follow_search(finished, outcome)]

    def follow_search(finished: Job, outcome: Outcome) -> list[Job]:
        if finished.name not in searches or "error" in outcome:
            return []
        seed, result = int(finished.parameters["seed"]), outcome["result"]
        found = [("searched", f"s{seed}", seed, result["architectures"][0]["choices"])]
        if seed == FIRST_SEED:  # with a seed each: what one seed does to all would not show in their spread
            drawn = random_choices(result, RANDOM, FIRST_RANDOM)
            found += [("random", f"random{i}", FIRST_RANDOM + i, choices) for i, choices in enumerate(drawn)]
        jobs = [training(options, name, own, choices) for _, name, own, choices in found]
        begun.update({job.name: (arm, own) for job, (arm, _, own, _) in zip(jobs, found, strict=True)})
        return jobs

    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        outcomes = workers.run(searches.values(), follow)
    rows: list[dict[str, Any]] = []
    for name, (arm, seed) in begun.items():
        head, outcome = {"arm": arm, "seed": seed, "network": name}, outcomes[name]
        if "error" in outcome:
            rows.append({**head, "error": outcome["error"]})
            continue
        numbers = {key: outcome["result"][key] for key in ("params", "macs", "val_accuracy", "test_accuracy")}
        rows.append({**head, **numbers, "seconds": outcome["seconds"]})
    if options.preset == "gpu":
        rows.append({"arm": "DrNAS, as published", "seed": None, "network": "DrNAS", "test_accuracy": _DRNAS})
    rows += [{"arm": "searched", "network": s, **outcomes[s]} for s in searches if "error" in outcomes[s]]
    done = [row for row in rows if "error" not in row]
    kinds = ("searched", *(("refined",) if refine else ()), "random")
    by_arm = {a: [100 * row["test_accuracy"] for row in done if row["arm"] == a] for a in kinds}
    found = {arm: difference(by_arm[arm], by_arm["random"]) for arm in kinds[:-1]}
    sizes = [row["params"] for row in rows if "params" in row]
    goals = [
        Target("5", "largest size / smallest size", max(sizes) / min(sizes) if sizes else None, 1.1 / 0.9, "lower")
    ]
    for arm, gap in found.items():
        sure = gap["mean"] - gap["half_width"] if gap else None
        goals.append(Target("5", f"{arm} - random, less the half width", sure, 0.0, "higher"))
    complete = all("error" not in row for row in rows)
    write_result(options, NAME, rows, goals, seconds=store.seconds, workers=workers.n, complete=complete)
    print(f"\n{'arm':<12}{'n':>3}{'parameters':>24}{'test accuracy, %':>22}")
    for arm, values in by_arm.items():
        counted = [row["params"] for row in rows if row["arm"] == arm and "params" in row]
        if values:
            spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            sizes_text = f"{min(counted):,} ... {max(counted):,}"
            print(f"{arm:<12}{len(values):>3}{sizes_text:>24}{f'{statistics.fmean(values):.2f}{spread}':>22}")
    for arm, gap in found.items():
        if gap:
            print(f"{arm} - random {gap['mean']:+.2f} +- {gap['half_width']:.2f} (95 %)")
    print(*goals, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
