"""What every benchmark shares: its options, its data, its targets and its result file."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nni_bayes_nas.experiment.environment import describe
from nni_bayes_nas.experiment.record import read_rows, write_text

STEMS = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}
"""The stem of the cell space for the images of a data set; the benchmarks know these."""


@dataclass(frozen=True)
class Target:
    """What is aimed at, as a number: `value` must reach `limit`."""

    name: str
    what: str
    value: float | None
    limit: float
    better: Literal["higher", "lower"]

    @property
    def holds(self) -> bool:
        """False also where nothing was measured."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.better == "higher" else self.value <= self.limit

    def row(self) -> dict[str, Any]:
        """As the result file holds it."""
        value = None if self.value is None else round(self.value, 5)
        return {**asdict(self), "value": value, "holds": self.holds}

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name:<16}{'not run':>9}  {self.what}"
        sign = ">=" if self.better == "higher" else "<="
        verdict = "holds" if self.holds else "FAILS"
        return f"{self.name:<16}{self.value:>9.4g} {sign} {self.limit:<8.4g}{verdict}  {self.what}"


def half_width(values: Sequence[float]) -> float | None:
    """Of Student's 95 % interval of their mean; None of fewer than two."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else None


def correct(tests: Sequence[dict[str, Any]]) -> None:
    """Holm's correction: from "p" of every test its "p_holm"."""
    largest = 0.0
    for rank, row in enumerate(sorted(tests, key=lambda row: row["p"])):
        largest = max(largest, min(1.0, row["p"] * (len(tests) - rank)))
        row["p_holm"] = largest


def parse(
    description: str | None,
    presets: dict[str, Any],
    seeds: dict[str, int],
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    data_sets: Sequence[str] = tuple(STEMS),
    workers: int | None = 2,
    usual: str | None = None,
) -> argparse.Namespace:
    """The options of a benchmark.

    Args:
        description: The script's docstring.
        presets: By name.
        seeds: Default number of seeds by preset.
        more: Adds options of the benchmark's own.
        data_sets: Names that `--data` may be.
        workers: Default number of jobs at a time; None where there are none.
        usual: Default of `--data`; None: digits for smoke and where there is no MNIST, else mnist.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets, default="smoke")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"default: {seeds}")
    parser.add_argument("--data", choices=data_sets, help=f"default: {usual or 'digits for smoke, else mnist'}")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the data (torchvision), not for digits")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    if workers is not None:
        parser.add_argument(
            "--workers", type=int, default=workers, metavar="N", help=f"jobs at a time, default {workers}"
        )
    more(parser)
    options = parser.parse_args()
    options.seeds = seeds[options.preset] if options.seeds is None else options.seeds
    embedded = options.preset == "smoke" or "mnist" not in data_sets
    options.data = options.data or usual or ("digits" if embedded else "mnist")
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if workers is not None and options.workers < 1:
        parser.error("--workers must be at least 1")
    if options.data != "digits" and options.root is None:
        parser.error(f"--data {options.data} needs --root DIR")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    return options


def data_section(options: argparse.Namespace, limit: int | None, val_limit: int | None, **more: Any) -> dict[str, Any]:
    """`data` of the configuration: `limit` images for training, `val_limit` for validation."""
    section = {"name": options.data, "limit": limit, "val_limit": val_limit, **more}
    return section if options.data == "digits" else {**section, "root": str(Path(options.root).resolve())}


def write_result(
    options: argparse.Namespace,
    name: str,
    rows: list[dict[str, Any]],
    targets: list[Target],
    *,
    seconds: float,
    workers: int,
    complete: bool = True,
    intervals: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Write and give back the result; a row a line, so that a long file stays readable."""
    command = shlex.join(["python", f"examples/benchmarks/{name}.py", *sys.argv[1:]])
    here = Path(__file__).resolve().parent
    environment = describe(None, here, _gpus(options.preset), workers, 1)
    del environment["command"], environment["code_directory"]
    result: dict[str, Any] = {
        "schema": 1,
        "benchmark": name,
        "preset": options.preset,
        "command": command,
        "complete": complete,
        "environment": {**environment, "load_average": [round(load, 2) for load in os.getloadavg()]},
        "seconds": round(seconds, 1),
        "jobs": _made(options.output),
    }
    lists = {"rows": rows, "targets": [target.row() for target in targets]}
    if intervals:
        lists["intervals"] = list(intervals)
    head = json.dumps(result, indent=1)[:-2]
    body = ",\n".join(
        f' "{key}": [\n' + ",\n".join(f"  {json.dumps(finite(item), allow_nan=False)}" for item in items) + "\n ]"
        for key, items in lists.items()
    )
    write_text(options.output, f"{head},\n{body}\n}}\n")
    return {**result, **lists}


def _made(output: Path) -> list[dict[str, Any]]:
    """How many of the finished jobs beside a result are by which code on which machine; None before this was kept."""
    rows = read_rows(output.with_suffix(".jobs.jsonl"))
    every = Counter((row.get("commit"), row.get("cpu")) for row in rows)
    return [{"commit": commit, "cpu": cpu, "jobs": n} for (commit, cpu), n in every.items()]


def finite(value: Any) -> Any:
    """Plain types with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _gpus(preset: str) -> int:
    if "gpu" not in preset and preset != "imagenet":
        return 0
    import torch

    return int(torch.cuda.device_count())
