"""Seconds of several searches side by side, in one process, against the same searches by themselves.

    python examples/benchmarks/replicas.py --preset cpu --data digits --output replicas.json

`--seeds` is the number of searches. Arms, in processes of their own; reading off counts, imports do not:

    side by side     search.replicas: one process with all cores
    two groups       half of the searches side by side in each of two processes, each with half of the cores
    one by one       one search after another, each with all cores
    two at a time    two searches at a time, each with half of the cores: what a run on a CPU does without replicas

The processes of all arms take turns, so that the middles of the arms are at one time.

Targets: eight side by side, in one process or in two
trials as the README has it, in at most .6 of the seconds of eight one by one; mean accuracy at the end of the search
(validation data, mean over lambda) at most one standard error over the searches away. With numbers of double precision
both are equal to the last digits; with those of single precision rounding leads a search elsewhere, as a repetition
with another number of threads does. If the output file exists, strategies that it already holds are not run again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contract import STEMS, Target, data_section, parse, write_result

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"space": {"width": 4, "n_nodes": 2}, "epochs": 2, "limit": 160, "strategies": ("regularized_darts",)},
    "cpu": {
        "space": {"width": 16, "n_cells": 2, "n_nodes": 3},
        "epochs": 30,
        "limit": None,
        "strategies": ("regularized_darts", "hyper_darts"),
    },
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "regularized_darts": {"penalty": 0.1},
    "hyper_darts": {"arc_learning_rate": 0.05},
}


def work(config: dict[str, Any], seeds: list[int], threads: int) -> dict[str, Any]:
    """The searches of one process: their seconds, and the accuracy at the end of each."""
    import torch

    from nni_bayes_nas.config import Config
    from nni_bayes_nas.experiment.replicas import run_searches
    from nni_bayes_nas.experiment.search import run_search

    torch.set_num_threads(threads)
    read, names = Config.from_dict(config), {f"search-s{seed}": seed for seed in seeds}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if len(seeds) == 1:
            ((name, seed),) = names.items()
            found = {name: run_search(read, {"trial": name, "seed": seed}, Path(folder), _silent)}
        else:
            parameters = {"trial": "searches", "seeds": names}
            found = run_searches(read, parameters, Path(folder) / "searches", _silent)["searches"]
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "scores": [result["default"] for result in found.values()]}


def _silent(row: dict[str, Any]) -> None:
    """Nobody watches."""


def searched(config: dict[str, Any], groups: list[list[int]], threads: int) -> dict[str, Any]:
    """The searches of some groups of seeds at the same time, a process each: seconds of the slowest, and all scores."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running = []
    for seeds in groups:
        command = [sys.executable, "-W", "ignore", __file__, "--work", json.dumps([config, seeds, threads])]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in running]
    if failed := [process.returncode for process in running if process.returncode]:
        raise RuntimeError(f"every process must end well, but {len(failed)} of {len(running)} did not.")
    rows = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {"seconds": max(row["seconds"] for row in rows), "scores": [s for row in rows for s in row["scores"]]}


def measure(config: dict[str, Any], n: int) -> dict[str, Any]:
    """All arms for one strategy."""
    seeds, cores = list(range(n)), os.cpu_count() or 1
    half = max(1, cores // 2)
    # Arm -> threads of a process; what runs at one time after another: the seeds of each of its processes.
    arms: dict[str, tuple[int, list[list[list[int]]]]] = {
        "side by side": (cores, [[seeds]]),
        "two groups": (half, [[seeds[: n // 2], seeds[n // 2 :]]]),
        "one by one": (cores, [[[seed]] for seed in seeds]),
        "two at a time": (half, [[[seed] for seed in seeds[i : i + 2]] for i in range(0, n, 2)]),
    }
    # The middle of every arm in the middle of the whole: a machine that slows down slows all.
    parts = [((i + 0.5) / len(times), i, arm) for arm, (_, times) in arms.items() for i in range(len(times))]
    found: dict[str, Any] = {arm: {"seconds": 0.0, "scores": []} for arm in arms}
    for _, i, arm in sorted(parts):
        threads, times = arms[arm]
        row = searched(config, times[i], threads)
        found[arm]["seconds"] += row["seconds"]
        found[arm]["scores"] += row["scores"]
    seconds = {name: row["seconds"] for name, row in found.items()}
    return {
        "strategy": config["strategy"]["name"],
        "searches": n,
        "seconds": seconds,
        "ratio_to_one_by_one": {arm: value / seconds["one by one"] for arm, value in seconds.items()},
        "scores": {name: row["scores"] for name, row in found.items()},
    }


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    """What is asked for, by strategy."""
    found = []
    for row in rows:
        theirs = row["scores"]["one by one"]
        error = max(statistics.stdev(theirs) / len(theirs) ** 0.5, 1e-9)
        for arm in ("two groups", "side by side"):
            ratio = row["ratio_to_one_by_one"][arm]
            errors = abs(statistics.fmean(row["scores"][arm]) - statistics.fmean(theirs)) / error
            found.append(Target(row["strategy"], f"seconds, {arm} / one by one", ratio, 0.6, "lower"))
            found.append(Target(row["strategy"], f"accuracy, {arm}: standard errors apart", errors, 1.0, "lower"))
    return found


def main() -> int:
    """The command."""
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(work(*json.loads(sys.argv[2]))))
        return 0
    options = parse(__doc__, PRESETS, {"smoke": 2, "cpu": 8}, workers=None)
    if options.seeds < 2:
        sys.exit(f"--seeds must be at least 2 searches, which are compared, got {options.seeds}")
    preset, began = PRESETS[options.preset], time.perf_counter()
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    if kept and kept["preset"] != options.preset:
        sys.exit(f"{options.output} holds the preset {kept['preset']}; give another --output")
    setting = options.data, options.seeds
    rows = [row for row in kept.get("rows", []) if (row["data"], row["searches"]) == setting]
    before = kept["seconds"] if rows else 0.0

    def keep() -> None:
        seconds = before + time.perf_counter() - began
        write_result(options, "replicas", rows, targets(rows), seconds=seconds, workers=os.cpu_count() or 1)

    for name in preset["strategies"]:
        if name in {row["strategy"] for row in rows}:
            continue
        config = {
            "space": {"name": "cell", "args": {**preset["space"], "stem": STEMS[options.data]}},
            "data": data_section(options, preset["limit"], None),
            "strategy": {"name": name, "args": STRATEGIES[name]},
            "search": {
                "epochs": preset["epochs"],
                "warmup_epochs": min(3, preset["epochs"] - 1),
                "lambdas": 2,
                "random": 0,
            },
        }
        rows.append({"data": options.data, **measure(config, options.seeds)})
        print(f"{name}: " + ", ".join(f"{arm} {value:.1f} s" for arm, value in rows[-1]["seconds"].items()), flush=True)
        keep()
    keep()
    for target in targets(rows):
        print(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
