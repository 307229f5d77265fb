"""On a GPU: how much faster a training is by what it freezes, where the criterion itself chooses.

    python examples/benchmarks/selection_gpu.py --preset gpu --data mnist --root DATA --output FILE.json

Two networks of three convolutions with batch normalization, Adam, 5 epochs, one training at a time, arms in an order
that turns with the seed:

    full         all parameters to the end
    automatic    after a fifth of the steps what the measured time of layers and their gain say is frozen ("auto"), and
                 what the frozen beginning gives is kept for every image, in up to 16 GiB

cnn-normalized has 16 to 64 channels and batches of 128, as in `selection.py`: a step is launches and the training
loop. cnn-wide has 256 to 1024 channels and batches of 512: a step is arithmetic. Each arm has the rate, of .001, .002,
.004 and .008, that validation data of another seed prefer (of cnn-wide with half the channels). Seconds are those of a
wall clock until all is computed, what selection takes included. There are no targets: those are of `selection.py`.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from typing import Any

from contract import data_section, parse, write_result
from selection_tables import Table
from workers import Job, Outcome, Store, Workers

NAME = "selection_gpu"
ARMS = FULL, AUTOMATIC = "full", "automatic"
# Objects of a batch, and the rates of the arms, by network.
NETWORKS = {"cnn-normalized": (128, (0.004, 0.008)), "cnn-wide": (512, (0.001, 0.002))}


@dataclass(frozen=True)
class Setting:
    """How large a preset is."""

    limit: int | None
    objects: int
    epochs: int
    device: str
    networks: tuple[str, ...]


PRESETS = {
    "smoke": Setting(1_024, 1_024, 3, "cpu", ("cnn-normalized",)),
    "gpu": Setting(None, 55_000, 5, "gpu", tuple(NETWORKS)),
}
SEEDS = {"smoke": 1, "gpu": 3}


def job(options: argparse.Namespace, network: str, arm: str, seed: int, *, test: bool = True) -> Job:
    """One training."""
    setting, (size, rates) = PRESETS[options.preset], NETWORKS[network]
    rate = rates[ARMS.index(arm)]
    parts: dict[str, Any] = {"val_limit": 200} if options.preset == "smoke" else {"val_fraction": 1 / 12}
    config = {"data": data_section(options, setting.limit, **{"val_limit": None, **parts})}
    parameters: dict[str, Any] = {"optimizer": "adam", "rate": rate, "falls": True, "batch_size": size, "test": test}
    parameters |= {"network": network, "device": setting.device, "seed": seed}
    steps = parameters["steps"] = setting.epochs * (setting.objects // size)
    if arm == AUTOMATIC:
        chosen = {"active": "auto", "criterion": "gain", "granularity": "prefix", "start": 0.2}
        parameters["selection"] = {**chosen, "window": max(2, min(100, steps // 8)), "cache_limit": 16 * 2**30}
    name = f"s{seed}-{network}-{arm}"
    return Job(name, "selection_runs:run_selection", config, {"trial": name, **parameters}, (seed,))


def rows_of(jobs: dict[tuple[str, str, int], Job], outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """A row for every training."""
    rows = []
    for (network, arm, seed), one in jobs.items():
        outcome, head = outcomes[one.name], {"group": network, "arm": arm, "seed": seed}
        if "error" in outcome:
            rows.append({**head, "error": outcome["error"]})
            continue
        result = outcome["result"]
        names = ("rate", "steps", "wall_seconds", "test_accuracy", "val_accuracy", "frozen", "no_cache", "milliseconds")
        rows.append({**head, "run": outcome["run"], **{name: result.get(name) for name in names}})
    return rows


def intervals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By network, paired by seed: points of test accuracy lost and times as fast."""
    found, table = [], Table(rows, "wall_seconds")
    for network in NETWORKS:
        if (lost := table.difference(network, FULL, AUTOMATIC)) is not None:
            speeds = table.speeds(network, AUTOMATIC)
            row = {"group": network, **lost, "times_as_fast": table.speed(network, AUTOMATIC)}
            found.append({**row, "least": min(speeds, default=None), "most": max(speeds, default=None)})
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line an arm, means over seeds; and what is lost and saved."""
    print(f"\n{'':<36}{'rate':>7}{'accuracy, %':>13}{'s':>8}  frozen as a whole")
    table = Table(rows, "wall_seconds")
    for network, arm in dict.fromkeys((row["group"], row["arm"]) for row in table.rows):
        figures = [table.mean(network, arm, name) for name in ("rate", "test_accuracy", "wall_seconds")]
        rate, accuracy, seconds = (math.nan if figure is None else figure for figure in figures)
        frozen = table.frozen(network, arm)
        print(f"{network + ', ' + arm:<36}{rate:>7g}{accuracy:>13.2f}{seconds:>8.1f}  {frozen}")
    for row in intervals(rows):
        half, times = row["half_width"], row["times_as_fast"]
        said = f"{row['mean']:.2f}" + ("" if half is None else f" +- {half:.2f}")
        fast = "-" if times is None else f"{times:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        print(f"{row['group']}, {AUTOMATIC}: {said} points lost, {fast} times as fast")


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    # The networks are for images of 28x28.
    options = parse(__doc__, PRESETS, SEEDS, data_sets=("mnist", "fashion_mnist"), usual="mnist", workers=None)
    store, jobs, networks = Store(options.output), {}, PRESETS[options.preset].networks
    for seed in range(options.seeds):
        for place, network in enumerate(networks):
            for turn, arm in enumerate(ARMS[seed % 2 :] + ARMS[: seed % 2]):
                jobs[network, arm, seed] = replace(job(options, network, arm, seed), order=(seed, place, turn))
    with Workers(store, options.output.with_suffix(".work"), 1) as workers:
        # A process has costs of its own at its first training of a network; and has them in every run.
        firsts = [job(options, network, AUTOMATIC, -1, test=False) for network in networks]
        firsts = [replace(one, order=(-1,), parameters={**one.parameters, "begun": time.time()}) for one in firsts]
        rows = rows_of(jobs, workers.run([*firsts, *jobs.values()]))
    complete = all("error" not in row for row in rows)
    more: dict[str, Any] = {"seconds": store.seconds, "workers": 1, "complete": complete}
    write_result(options, NAME, rows, [], **more, intervals=intervals(rows))
    print_table(rows)
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
