"""Time and memory of one search step: ours, plain and fused, against NNI's own DARTS, on the same space and batches.

    python examples/benchmarks/search_step.py --preset cpu --output search_step.json

A step is what Lightning calls: the structure step and the weight step, both optimizers, clipping and logging included.
The arms take turns in blocks of a few steps, and who begins rotates, so that a machine that slows down slows all. Ours
have L1 and the cost penalty on; NNI's has none. Images are random numbers but for the digits: only time is measured.

    NNI                 NNI's DARTS as it comes
    NNI channels_last   the same with images channels_last, which a user of NNI can do; on a CPU
    plain               RegularizedDARTS(execution="plain")
    fused               RegularizedDARTS(execution="fused")
    fused, bf16         the same with the trainer's precision "bf16-mixed"; its errors are those of one pass
    fused, order 2      the same as fused with order=2, the exact second order; on a CPU
    Dirichlet           DirichletDARTS at its defaults, with weights that are points; and with Gaussian weights
    ..., in turn        the same with accumulate=True
    ..., bilevel        with scheme="bilevel", the steps of `fused`: a batch for the structure, one for the weights
    fused, CUDA graphs  the same as fused with cuda_graphs=True, on a GPU; and in bf16
    fused, compiled     the same as fused with compile=True; on a GPU and the smallest space alone: it takes minutes

Peak memory is taken in a process of its own for each arm: the largest resident size in a block, less what it was before
the space was built (Linux alone). On a GPU it is what its allocator says, less what it had given out before.

The share of the device's peak is that of the operations of convolutions and matrix products which plain execution takes
(elementwise work counts as nothing) in the product of two large matrices of the same precision, with TF32 where
convolutions may have it. Growth is measured on the smallest space, one number at a time: cells, width, operations; and
values of lambda in a step, for HyperDARTS.

Targets: fused / NNI at most 1 / 1.8 on NNI's DARTS space and on ours for MNIST, 1 /
1.5 on NAS-Bench-201, memory at most .6, order 2 at most 3.5 times order 1; on a GPU at most 1 / 5 on NNI's spaces, for
the fastest in single precision; and plain / NNI at most 1. A step with a posterior over the
structure at most 1.15 times `fused` in seconds and 1.1 in memory, with Gaussian weights 2.3 and 2.2. If the output
file exists, measurements that it already holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nni
import pytorch_lightning as pl
import torch
from contract import finite
from steps import Search, Setting, error_of_bf16, hub, peak_gflops, peak_mib, quiet

from nni_bayes_nas.search_spaces.cell import DEFAULT_OPERATIONS

MNIST = {"stem": 28, "n_cells": 2, "n_nodes": 3}
PRESETS = {
    "smoke": [Setting("digits", {"width": 4, "n_cells": 1, "n_nodes": 2}, 8, 2, 2)],
    "cpu": [
        Setting("digits", {}, 64, 10, 8),
        Setting("mnist", MNIST, 64, 8, 6),
        Setting("hub_nasbench201", {"stem_out_channels": 16, "num_modules_per_stack": 5}, 32, 4, 2),
        Setting("hub_darts", hub(16, 8), 32, 4, 2),
    ],
    "gpu": [
        Setting("hub_nasbench201", {"stem_out_channels": 16, "num_modules_per_stack": 5}, 64, 3, 3),
        Setting("hub_darts", hub(16, 8), 64, 3, 2),
        Setting("mnist", MNIST, 256, 4, 6),
        Setting("digits", {}, 256, 4, 8),
    ],
}

BAYESIAN = ("Dirichlet", "Dirichlet, Gaussian weights")
BAYESIAN += tuple(f"{arm}, {how}" for how in ("in turn", "bilevel") for arm in BAYESIAN)
ON_CPU = ("NNI", "NNI channels_last", "plain", "fused", "fused, bf16", "fused, order 2", *BAYESIAN[:4])
ON_GPU = ("NNI", "plain", "fused", "fused, bf16", "fused, CUDA graphs", "fused, bf16, CUDA graphs")
BAYESIAN_ALONE = {"single_level": ("NNI", "fused", *BAYESIAN[:4]), "bilevel": ("NNI", "fused", *BAYESIAN[4:])}
BY_PRESET = {"smoke": ON_CPU, "cpu": ON_CPU, "gpu": ON_GPU}
LAMBDA_ARMS = ("1 lambda", "2 lambda", "4 lambda", "lambda per object")

# Largest ratio of the seconds that is allowed, by space: fused / NNI; on a GPU with CUDA graphs.
LIMITS = {"hub_darts": 1 / 1.8, "mnist": 1 / 1.8, "hub_nasbench201": 1 / 1.5}
LIMITS_ON_GPU = {"hub_darts": 1 / 5, "hub_nasbench201": 1 / 5}


def in_turns(names: tuple[str, ...], setting: Setting, seed: int, device: str) -> dict[str, list[float]]:
    """Seconds of a step in every block of every arm."""
    searches = {arm: Search(arm, setting, seed, device) for arm in names}
    for search in searches.values():
        search.block()
    seconds: dict[str, list[float]] = {arm: [] for arm in names}
    for block in range(setting.blocks):
        for i in range(len(names)):
            arm = names[(i + block) % len(names)]
            seconds[arm].append(searches[arm].block())
    for search in searches.values():
        search.left.close()
    return seconds


def measure(names: tuple[str, ...], setting: Setting, seed: int, device: str) -> dict[str, Any]:
    """One row: all arms in turns, then each alone for its memory."""
    started = time.perf_counter()
    peaks = {low: peak_gflops(device, low) for low in (False, True)}
    memory = {}
    # Every process imports for ten seconds: a quick check looks at the two that the target compares.
    for arm in ("NNI", "fused") if setting in PRESETS["smoke"] else names:
        arguments = arm, setting, seed, device, torch.get_num_threads()
        if device == "gpu":
            memory[arm] = peak_mib(*arguments)
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory[arm] = pool.apply(peak_mib, arguments)
    # After it: all arms at once take more than is left for one beside them.
    seconds = in_turns(names, setting, seed, device)
    gflops = Search("plain", setting, seed, device).flops() / 1e9
    milliseconds = milliseconds_of(seconds)
    return {
        **asdict(setting),
        "seed": seed,
        "ms": milliseconds,
        "images_per_second": {arm: round(1e3 * setting.batch_size / value, 1) for arm, value in milliseconds.items()},
        "ms_quartiles": spread_of(seconds),
        "peak_gflops": {"float32": round(peaks[False], 1), "bfloat16": round(peaks[True], 1)},
        "gflop": round(gflops, 3),
        "share_of_peak": {
            arm: round(1e3 * gflops / value / peaks["bf16" in arm], 4) for arm, value in milliseconds.items()
        },
        "peak_mib": memory,
        "error_of_bf16": {name: round(error, 5) for name, error in error_of_bf16(setting, seed, device).items()},
        "ratio_to_nni": {arm: quartiles(seconds[arm], seconds["NNI"]) for arm in names if arm != "NNI"},
        "order_2_to_1": quartiles(seconds["fused, order 2"], seconds["fused"]) if "fused, order 2" in names else None,
        "seconds": round(time.perf_counter() - started, 1),
    }


def growth(setting: Setting, device: str, arms: tuple[str, ...]) -> list[dict[str, Any]]:
    """Milliseconds of a step as one number of the smallest space grows, and with the values of lambda in a step."""
    names, found = tuple(a for a in ("NNI", "plain", "fused", "fused, CUDA graphs") if a in arms), []
    axes: dict[str, list[tuple[int, dict[str, Any]]]] = {
        "cells": [(n, {"n_cells": n}) for n in (1, 2, 4)],
        "width": [(n, {"width": n}) for n in (8, 16, 32)],
        "operations": [(n, {"operations": DEFAULT_OPERATIONS[-n:]}) for n in (2, 4, len(DEFAULT_OPERATIONS))],
    }
    for axis, values in axes.items():
        for value, arguments in values[: setting.blocks]:  # a quick check looks at the first one
            taken = in_turns(names, replace(setting, arguments={**setting.arguments, **arguments}), 0, device)
            found.append({"axis": axis, "value": value, "ms": milliseconds_of(taken), "ms_quartiles": spread_of(taken)})
    for arm, seconds in in_turns(LAMBDA_ARMS, setting, 0, device).items():
        one = {"fused": seconds}
        found.append({"axis": "lambda", "value": arm, "ms": milliseconds_of(one), "ms_quartiles": spread_of(one)})
    return found


def milliseconds_of(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians over blocks."""
    return {arm: round(1e3 * statistics.median(values), 2) for arm, values in seconds.items()}


def spread_of(seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Lower and upper quartile of the milliseconds over blocks; empty for a single block."""
    return {
        arm: [round(1e3 * q, 2) for q in statistics.quantiles(values, n=4, method="inclusive")[::2]]
        for arm, values in seconds.items()
        if len(values) > 1
    }


def quartiles(a: list[float], b: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the ratios of blocks of the same turn."""
    return [
        round(q, 4) for q in statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4, method="inclusive")
    ]


def bayesian_targets(space: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds and memory of a step with a posterior, against those of `fused`; where they were measured."""
    found = []
    for arm, seconds, memory in zip(BAYESIAN, 3 * (1.15, 2.3), 3 * (1.1, 2.2), strict=True):
        mine = [row for row in rows if arm in row["ms"]]
        for what, key, limit in (("seconds of a step", "ms", seconds), ("peak memory", "peak_mib", memory)):
            if mine:
                ratio = statistics.median(row[key][arm] / row[key]["fused"] for row in mine)
                found.append(target(space, f"{what}, {arm} / fused", ratio, limit))
    return found


def target(name: str, what: str, value: float, limit: float) -> dict[str, Any]:
    """A row of the targets."""
    found = {"name": name, "what": what, "value": round(value, 4), "limit": round(limit, 4)}
    return {**found, "better": "lower", "holds": value <= limit}


def targets(rows: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """What is asked for, by space: medians over seeds."""
    found = []
    for space in dict.fromkeys(row["space"] for row in rows):
        mine = [row for row in rows if row["space"] == space]

        def median(value: Callable[[dict[str, Any]], float], mine: list[dict[str, Any]] = mine) -> float:
            return statistics.median(value(row) for row in mine)

        ratios = mine[0]["ratio_to_nni"]
        arm = "fused, CUDA graphs" if device == "gpu" else "fused"
        limits = LIMITS_ON_GPU if device == "gpu" else LIMITS
        fused = median(lambda row, arm=arm: row["ratio_to_nni"][arm][1])  # type: ignore[misc]
        if "plain" in ratios:
            plain = median(lambda row: row["ratio_to_nni"]["plain"][1])
            found.append(target(space, "seconds of a step, plain / NNI", plain, 1.0))
        if space in limits:
            found.append(target(space, f"seconds of a step, {arm} / NNI", fused, limits[space]))
            memory = median(lambda row, arm=arm: row["peak_mib"][arm] / row["peak_mib"]["NNI"])  # type: ignore[misc]
            found.append(target(space, "peak memory, fused / NNI", memory, 0.6))
            if mine[0]["order_2_to_1"]:
                found.append(target(space, "order 2 / order 1", median(lambda row: row["order_2_to_1"][1]), 3.5))
            if device == "cpu":
                found += bayesian_targets(space, mine)
    return found


def report(rows: list[dict[str, Any]], grown: list[dict[str, Any]], preset: str, seconds: float) -> dict[str, Any]:
    """The result file: rows, growth and targets."""
    device = "gpu" if preset == "gpu" else "cpu"
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nni": nni.__version__,
        "pytorch_lightning": pl.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if preset == "gpu" else platform.machine(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    command = shlex.join(["python", "examples/benchmarks/search_step.py", *sys.argv[1:]])
    head = {"schema": 3, "benchmark": "search_step", "preset": preset, "command": command, "environment": environment}
    return {**head, "seconds": round(seconds, 1), "rows": rows, "growth": grown, "targets": targets(rows, device)}


def main() -> int:
    """Measure what the output file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: 1, steadiest)")
    parser.add_argument(
        "--bayesian",
        choices=BAYESIAN_ALONE,
        metavar="SCHEME",
        help="only NNI, fused and the posteriors with this scheme",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    if options.bayesian and options.preset == "gpu":
        parser.error("--bayesian is of steps on a CPU, got --preset gpu; leave it out")
    torch.set_num_threads(options.threads)
    quiet()

    kept = json.loads(options.output.read_text()) if options.output and options.output.exists() else None
    if kept and (kept["preset"], kept["environment"]["threads"]) != (options.preset, torch.get_num_threads()):
        parser.error(f"{options.output} holds another preset or number of threads; give another --output")
    if kept and any(arm not in row["ms"] for row in kept["rows"] for arm in BAYESIAN_ALONE.get(options.bayesian, ())):
        parser.error(f"{options.output} holds other arms than those of {options.bayesian}; give another --output")
    rows, grown, spent = (kept["rows"], kept["growth"], kept["seconds"]) if kept else ([], [], 0.0)
    started, names = time.perf_counter(), BAYESIAN_ALONE.get(options.bayesian, BY_PRESET[options.preset])
    device = "gpu" if options.preset == "gpu" else "cpu"

    def keep() -> dict[str, Any]:
        result = report(rows, grown, options.preset, spent + time.perf_counter() - started)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(finite(result), indent=1, allow_nan=False)
            options.output.write_text(text + "\n", encoding="utf-8")
        return result

    print(f"{'space':<17}{'seed':>5}" + "".join(f"   {arm} ms" for arm in names) + "   MiB")
    for seed in range(options.seeds):
        for setting in PRESETS[options.preset]:
            done = [row for row in rows if (row["space"], row["seed"]) == (setting.space, seed)]
            arms = (*names, "fused, compiled") if (device, setting.space) == ("gpu", "digits") else names
            if not done:
                done = [measure(arms, setting, seed, device)]
                rows += done
            row = done[0]
            times = "".join(f"{row['ms'].get(arm, math.nan):>{len(arm) + 6}.1f}" for arm in names)
            print(f"{row['space']:<17}{seed:>5}{times}   {' '.join(map(str, row['peak_mib'].values()))}", flush=True)
            result = keep()
    if not grown and not options.bayesian:
        smallest = next(setting for setting in PRESETS[options.preset] if setting.space == "digits")
        grown += growth(replace(smallest, blocks=1 if options.preset == "smoke" else 3), device, names)
        result = keep()
    for row in grown:
        print(f"{row['axis']} {row['value']}: " + ", ".join(f"{arm} {ms:.1f} ms" for arm, ms in row["ms"].items()))
    for row in result["targets"]:
        verdict = "holds" if row["holds"] else "FAILS"
        print(f"{row['name']:<17}{row['what']:<56}{row['value']:>8.3f} <= {row['limit']:.3f}  {verdict}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
