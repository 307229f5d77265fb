"""Seconds of several searches side by side, in one process, against the same searches one after another.

    python examples/benchmarks/replicas.py --preset cpu --output replicas.json

Arms, which take turns (each search is a process of its own, reading off included, imports not):

    side by side     search.replicas = n: one process, all threads
    one by one       n searches, one after another, all threads each
    two at a time    n searches with half of the threads each, two at a time: what NNI does by default on a CPU

Target (issue "A fast exact bilevel step, and many searches at once"): eight side by side in at most .6 of the seconds
of eight one by one; final accuracies (one-hot, at both ends of the range of lambda) within one standard error over the
seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"searches": 2, "rounds": 1, "space": {"width": 4, "n_nodes": 2}, "epochs": 2, "limit": 160},
    "cpu": {
        "searches": 8,
        "rounds": 1,
        "space": {"width": 16, "n_cells": 2, "n_nodes": 3},
        "epochs": 30,
        "limit": None,
    },
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "regularized_darts": {"penalty": 0.1},
    "hyper_darts": {"arc_learning_rate": 0.05},
}


def configuration(preset: dict[str, Any], strategy: str) -> dict[str, Any]:
    """Of one arm, but for the number of searches and the seed."""
    return {
        "space": {"name": "cell", "args": preset["space"]},
        "data": {"name": "digits", "limit": preset["limit"]},
        "strategy": {"name": strategy, "args": STRATEGIES[strategy]},
        "search": {
            "epochs": preset["epochs"],
            "warmup_epochs": min(3, preset["epochs"] - 1),
            "lambdas": 2,
            "random": 0,
        },
    }


def work(task: dict[str, Any]) -> None:
    """In a process of its own: run the searches of a task, print what they gave."""
    import torch

    from nni_bayes_nas.config import Config
    from nni_bayes_nas.experiment.replicas import run_searches
    from nni_bayes_nas.experiment.search import run_search

    torch.set_num_threads(task["threads"])
    config, seeds = Config.from_dict(task["config"]), task["seeds"]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if len(seeds) == 1:
            own = {"trial": "search", "seed": seeds[0]}
            results = {seeds[0]: run_search(config, own, Path(folder), lambda row: None)}
        else:
            names = {f"search-s{seed}": seed for seed in seeds}
            parameters = {"trial": "searches", "seeds": names}
            together = run_searches(config, parameters, Path(folder) / "searches", lambda row: None)
            results = {names[name]: result for name, result in together["searches"].items()}
        seconds = time.perf_counter() - began
    scores = {seed: [row["one_hot_accuracy"] for row in result["architectures"]] for seed, result in results.items()}
    print(json.dumps({"seconds": seconds, "scores": scores}))


def start(config: dict[str, Any], seeds: list[int], threads: int) -> subprocess.Popen[str]:
    """A process that does the work."""
    task = json.dumps({"config": config, "seeds": seeds, "threads": threads})
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore", __file__, "--work", task]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process gave."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a search must end well, but it ended with {process.returncode}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def run_round(config: dict[str, Any], seeds: list[int], threads: int, first: int) -> dict[str, dict[str, Any]]:
    """One round of all arms; `first` begins."""

    def side_by_side() -> dict[str, Any]:
        return ended(start(config, seeds, threads))

    def one_by_one() -> dict[str, Any]:
        rows = [ended(start(config, [seed], threads)) for seed in seeds]
        return {"seconds": sum(row["seconds"] for row in rows), "scores": merged(rows)}

    def two_at_a_time() -> dict[str, Any]:
        began, rows = time.perf_counter(), []
        for i in range(0, len(seeds), 2):
            rows += [ended(p) for p in [start(config, [seed], max(1, threads // 2)) for seed in seeds[i : i + 2]]]
        # With the imports, which overlap with work.
        return {"seconds": time.perf_counter() - began, "scores": merged(rows)}

    arms = {"side by side": side_by_side, "one by one": one_by_one, "two at a time": two_at_a_time}
    order = list(arms)[first % len(arms) :] + list(arms)[: first % len(arms)]
    return {name: arms[name]() for name in order}


def merged(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Scores of all seeds."""
    return {seed: scores for row in rows for seed, scores in row["scores"].items()}


def report(strategy: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians of the seconds, their ratio, and how far the accuracies lie apart in standard errors."""
    seconds = {arm: statistics.median(r[arm]["seconds"] for r in rounds) for arm in rounds[0]}
    ours, theirs = rounds[0]["side by side"]["scores"], rounds[0]["one by one"]["scores"]
    differences = [statistics.fmean(ours[seed]) - statistics.fmean(theirs[seed]) for seed in theirs]
    spread = [statistics.fmean(scores) for scores in theirs.values()]
    error = statistics.stdev(spread) / len(spread) ** 0.5
    ratio = seconds["side by side"] / seconds["one by one"]
    return {
        "strategy": strategy,
        "seconds": seconds,
        "ratio": ratio,
        "ratio_to_two_at_a_time": seconds["side by side"] / seconds["two at a time"],
        "accuracy_difference": statistics.fmean(differences),
        "standard_error": error,
        "holds": ratio <= 0.6 and abs(statistics.fmean(differences)) <= error,
        "rounds": rounds,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--strategy", choices=STRATEGIES, action="append")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
        return 0
    preset, found = PRESETS[options.preset], []
    for strategy in options.strategy or STRATEGIES:
        config, seeds = configuration(preset, strategy), list(range(preset["searches"]))
        rounds = [run_round(config, seeds, options.threads, i) for i in range(preset["rounds"])]
        found.append(report(strategy, rounds))
        row = found[-1]
        arms = ", ".join(f"{arm} {value:.1f} s" for arm, value in row["seconds"].items())
        verdict = "holds" if row["holds"] else "FAILS"
        accuracy = f"accuracy {row['accuracy_difference']:+.4f} (standard error {row['standard_error']:.4f})"
        print(f"{strategy}: {arms}; ratio {row['ratio']:.2f} <= 0.60, {accuracy}: {verdict}", flush=True)
        if options.output:
            options.output.write_text(
                json.dumps({"schema": 1, "preset": options.preset, "rows": found}, indent=1) + "\n"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
