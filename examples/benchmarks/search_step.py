"""Time of one search step: our RegularizedDARTS against NNI's own DARTS, on the same space, batches and threads.

A step is what Lightning calls: the structure step and the weight step, both optimizers, clipping and logging included.
The two strategies take turns in blocks of a few steps, and who begins alternates, so that a machine that slows down
slows both. Ours has its L1 and its cost penalty on; NNI's has none. The images of the hub's space are random numbers:
only time is measured.

    python examples/benchmarks/search_step.py --preset cpu --output search_step.json

Targets: 2-speed of the issue "The spine": ours takes no longer than NNI's, on every space. If the output file exists,
measurements that it already holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import nni  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from nni.nas.evaluator.pytorch import Classification, DataLoader  # noqa: E402
from nni.nas.execution import SequentialExecutionEngine  # noqa: E402
from nni.nas.hub.pytorch import DARTS as HubSpace  # noqa: E402
from nni.nas.space import RawFormatModelSpace  # noqa: E402
from nni.nas.strategy import DARTS  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from nni_bayes_nas.experiment.evaluator import quiet_lightning  # noqa: E402
from nni_bayes_nas.search_spaces.cell import CellSpace  # noqa: E402
from nni_bayes_nas.strategies import RegularizedDARTS  # noqa: E402


@dataclass(frozen=True)
class Setting:
    """One space and how it is timed."""

    space: str
    arguments: dict[str, Any]
    batch_size: int
    blocks: int
    steps: int  # per block, after one that is not timed

    def build(self) -> Any:
        """A fresh instance of the space."""
        return CellSpace(**self.arguments) if self.space == "cell" else HubSpace(**self.arguments)


def hub(width: int, num_cells: int) -> dict[str, Any]:
    """Arguments of NNI's own DARTS space."""
    return {"width": width, "num_cells": num_cells, "dataset": "cifar"}


PRESETS = {
    "smoke": [Setting("cell", {"width": 4, "n_cells": 1, "n_nodes": 2}, 8, 2, 2)],
    "cpu": [Setting("cell", {}, 64, 10, 8), Setting("hub_darts", hub(4, 3), 16, 6, 3)],
    "gpu": [Setting("cell", {}, 256, 20, 20), Setting("hub_darts", hub(16, 8), 64, 10, 10)],
}
STRATEGIES: dict[str, Callable[[int], Any]] = {
    "RegularizedDARTS": lambda seed: RegularizedDARTS(l1=1e-3, penalty=0.1, arc_learning_rate=3e-4, seed=seed),
    "NNI DARTS": lambda seed: DARTS(arc_learning_rate=3e-4, gradient_clip_val=5.0),
}
OURS, THEIRS = STRATEGIES


class Stopwatch(pl.Callback):
    """Seconds of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Before the step."""
        self._started = now()

    def on_train_batch_end(self, *_: Any) -> None:
        """After the step."""
        self.seconds.append(now() - self._started)


class Search:
    """One strategy on its own supernet, run block by block."""

    def __init__(self, strategy: Any, setting: Setting, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        data = dataset(setting)
        self.watch = Stopwatch()
        evaluator = Classification(
            num_classes=10,
            train_dataloaders=DataLoader(data, batch_size=setting.batch_size),
            val_dataloaders=DataLoader(data, batch_size=setting.batch_size),
            max_epochs=0,
            accelerator=device,
            devices=1,
            callbacks=[self.watch],
            limit_val_batches=0,
            **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
        )
        strategy.initialize(RawFormatModelSpace(setting.build(), evaluator), SequentialExecutionEngine())
        mutated = strategy._mutated_model_space
        self.trainer, self.module = mutated.evaluator.trainer, mutated.evaluator.module
        self.module.set_model(mutated.model_space)
        self.loaders = mutated.evaluator.train_dataloaders
        self.peak_bytes = 0

    def block(self) -> float:
        """Median seconds of the steps of a block but the first."""
        self.watch.seconds.clear()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.trainer.fit_loop.max_epochs += 1
        self.trainer.fit(self.module, self.loaders)
        if torch.cuda.is_available():
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated())
        return statistics.median(self.watch.seconds[1:])


def now() -> float:
    """Seconds, once the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def dataset(setting: Setting) -> TensorDataset:
    """The images of one block: the digits, or random 32x32 images."""
    n = setting.batch_size * (setting.steps + 1)
    if setting.space == "cell":
        digits = load_digits()
        index = torch.arange(n) % len(digits.target)
        images = torch.from_numpy(digits.images[:, None] / 16.0).float()
        return TensorDataset(images[index], torch.from_numpy(digits.target)[index])
    return TensorDataset(torch.randn(n, 3, 32, 32), torch.arange(n) % 10)


def measure(setting: Setting, seed: int, device: str) -> dict[str, Any]:
    """One row: both strategies in turns."""
    started = time.perf_counter()
    searches = {name: Search(make(seed), setting, seed, device) for name, make in STRATEGIES.items()}
    for search in searches.values():
        search.block()
    seconds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    for block in range(setting.blocks):
        for name in (OURS, THEIRS) if block % 2 == 0 else (THEIRS, OURS):
            seconds[name].append(searches[name].block())
    ratios = [ours / theirs for ours, theirs in zip(seconds[OURS], seconds[THEIRS], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    row = {
        **asdict(setting),
        "seed": seed,
        "ours_ms": round(1e3 * statistics.median(seconds[OURS]), 2),
        "nni_ms": round(1e3 * statistics.median(seconds[THEIRS]), 2),
        "ratio": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "ratio_blocks": [round(ratio, 4) for ratio in ratios],
        "seconds": round(time.perf_counter() - started, 1),
    }
    if device == "gpu":
        row |= {"ours_peak_mib": searches[OURS].peak_bytes >> 20, "nni_peak_mib": searches[THEIRS].peak_bytes >> 20}
    return row


def report(rows: list[dict[str, Any]], preset: str, seconds: float) -> dict[str, Any]:
    """The result file: rows and the target."""
    medians = [
        statistics.median(row["ratio"] for row in rows if row["space"] == space)
        for space in sorted({row["space"] for row in rows})
    ]
    target = {
        "name": "2-speed",
        "what": "search step of RegularizedDARTS / NNI's DARTS: median over seeds, largest over spaces",
        "value": max(medians),
        "limit": 1.0,
        "better": "lower",
        "holds": max(medians) <= 1.0,
    }
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
    head = {"schema": 1, "benchmark": "search_step", "preset": preset, "command": command, "environment": environment}
    return {**head, "seconds": round(seconds, 1), "rows": rows, "targets": [target]}


def main() -> int:
    """Measure what the output file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU (default: 1, steadiest)")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_lightning()
    logging.getLogger("nni").setLevel(logging.ERROR)

    kept = json.loads(options.output.read_text()) if options.output and options.output.exists() else None
    if kept and (kept["preset"], kept["environment"]["threads"]) != (options.preset, torch.get_num_threads()):
        parser.error(f"{options.output} holds another preset or number of threads; give another --output")
    rows, spent = (kept["rows"], kept["seconds"]) if kept else ([], 0.0)
    started = time.perf_counter()
    print(f"{'space':<12}{'seed':>5}{'ours ms':>10}{'NNI ms':>10}{'ratio':>8}   quartiles")
    for seed in range(options.seeds):
        for setting in PRESETS[options.preset]:
            done = [row for row in rows if (row["space"], row["seed"]) == (setting.space, seed)]
            if not done:
                done = [measure(setting, seed, "gpu" if options.preset == "gpu" else "cpu")]
                rows += done
            row = done[0]
            print(
                f"{row['space']:<12}{seed:>5}{row['ours_ms']:>10.1f}{row['nni_ms']:>10.1f}{row['ratio']:>8.3f}   "
                f"{row['ratio_quartiles'][0]:.3f} to {row['ratio_quartiles'][1]:.3f}",
                flush=True,
            )
            result = report(rows, options.preset, spent + time.perf_counter() - started)
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    target = result["targets"][0]
    verdict = "holds" if target["holds"] else "FAILS"
    print(f"{target['name']}: {target['value']:.3f}, at most {target['limit']}: {verdict}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
