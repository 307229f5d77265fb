"""A table of latencies: candidate operation -> milliseconds, read from a file, written to one, looked up by key.

The key of a candidate is `place/name@shape`: the place is the label of its choice, its cell, or the module that it is;
the name that of the candidate; the shape that of one input object (`16x8x8`). Place and shape may be left out, and `*`
and `?` stand for any text and any character. The entry `fixed` is the time of what every architecture has.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.yaml_text import parse_yaml, to_yaml

FIXED = "fixed"
_HEADER = ["operation", "milliseconds"]
_SUFFIXES = (".yaml", ".yml", ".json", ".csv")


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of candidate operations.

    Attributes:
        entries: Milliseconds by key.
        environment: Where and how they were measured.
        source: What to call the table in a message.
    """

    entries: Mapping[str, float]
    environment: Mapping[str, Any] = field(default_factory=dict)
    source: str = "the latency table"

    def __post_init__(self) -> None:
        for key, value in self.entries.items():
            if not isinstance(key, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{self.source} must map names to milliseconds, got {key!r}: {value!r}.")
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"a latency must be finite and not negative, but {self.source} has {key!r}: {value}; "
                    "it is the time of one pass in milliseconds."
                )
        near = difflib.get_close_matches(FIXED, [key for key in self.entries if key != FIXED], n=1, cutoff=0.8)
        if near:
            raise ConfigError(f"{self.source} has {near[0]!r}, did you mean {FIXED!r}? It is what all networks cost.")
        if not self.entries:
            raise ConfigError(f"{self.source} has no entry; write one line per candidate, e.g. `sep_conv_3x3: 0.42`.")

    @property
    def fixed(self) -> float:
        """Milliseconds of what every architecture has; 0 if the table does not say."""
        return float(self.entries.get(FIXED, 0.0))

    def find(self, place: str, name: str, shape: str | None = None, *, wildcards: bool = True) -> float | None:
        """Milliseconds of a candidate, or None.

        The first of `place/name@shape`, `place/name`, `name@shape` and `name` that the table has; then the first of
        its wildcards, in its order, that fits one of them; `wildcards` false leaves these out.

        Example:
            >>> table = LatencyTable({"conv_3x3": 0.5, "cell1/conv_3x3": 0.3, "*/sep_*@16x8x8": 0.4})
            >>> table.find("cell0", "conv_3x3"), table.find("cell1", "conv_3x3"), table.find("c", "sep_5", "16x8x8")
            (0.5, 0.3, 0.4)
        """
        keys = [key + at for key in (f"{place}/{name}", name) for at in ([f"@{shape}", ""] if shape else [""])]
        for key in keys:
            if key in self.entries:
                return float(self.entries[key])
        for pattern, value in self.entries.items() if wildcards else ():
            if ("*" in pattern or "?" in pattern) and any(_fits(pattern, key) for key in keys):
                return float(value)
        return None


def _fits(pattern: str, key: str) -> bool:
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, key) is not None


def read_latency_table(path: str | Path) -> LatencyTable:
    """Read a table from YAML or JSON (`key: milliseconds`, also under `latency_ms`) or CSV (`operation,milliseconds`).

    Raises:
        ConfigError: If the file is missing, of another kind, malformed, or holds something that is no latency.
    """
    path = Path(path)
    source = f"latency table {path}"
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"a latency table must be one of {', '.join(_SUFFIXES)}, got {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} cannot be read: {error}; give the path of a YAML, JSON or CSV file.") from error
    if path.suffix == ".csv":
        return LatencyTable(_from_csv(text, source), {}, source)
    try:
        if path.suffix == ".json":
            values = json.loads(text, object_pairs_hook=lambda pairs: _without_repeats(pairs, source))
        else:
            values = parse_yaml(text, source)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source} is no JSON: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must map names to milliseconds, got {type(values).__name__}.")
    if isinstance(values.get("latency_ms"), dict):
        if unknown := sorted(set(values) - {"latency_ms", "environment"}):
            raise ConfigError(
                f"{source} may hold `environment` beside `latency_ms`, got {unknown[0]!r}; move it under latency_ms."
            )
        return LatencyTable(values["latency_ms"], values.get("environment") or {}, source)
    return LatencyTable(values, {}, source)


def _without_repeats(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if repeated := [key for i, key in enumerate(keys) if key in keys[:i]]:
        raise ConfigError(f"{source} must name an operation once, but it repeats {repeated[0]!r}.")
    return dict(pairs)


def _from_csv(text: str, source: str) -> dict[str, float]:
    entries: dict[str, float] = {}
    for line, row in enumerate(csv.reader(text.splitlines()), start=1):
        if not row or row[0].startswith("#") or [cell.strip().lower() for cell in row] == _HEADER:
            continue
        try:
            key, value = row[0].strip(), float(row[1])
        except (IndexError, ValueError) as error:
            raise ConfigError(
                f"{source} must have two columns, operation and milliseconds, got {','.join(row)!r} in line {line}."
            ) from error
        if key in entries:
            raise ConfigError(f"{source} must name an operation once, but line {line} repeats {key!r}.")
        entries[key] = value
    return entries


def write_latency_table(path: str | Path, table: LatencyTable | Mapping[str, float], environment: Any = None) -> None:
    """Write a table so that `read_latency_table` reads it; the environment is kept with it.

    Args:
        path: Its suffix says the kind: .yaml, .yml, .json or .csv.
        table: Milliseconds by key.
        environment: Where and how they were measured; None takes the table's own.
    """
    path = Path(path)
    if not isinstance(table, LatencyTable):
        table = LatencyTable(table)
    environment = dict(environment if environment is not None else table.environment)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(f"# {key}: {value}\n" for key, value in environment.items())
            csv.writer(file, lineterminator="\n").writerows([("operation", "milliseconds"), *table.entries.items()])
        return
    values = {"environment": environment, "latency_ms": dict(table.entries)}
    if path.suffix == ".json":
        text = json.dumps(values, indent=1) + "\n"
    elif path.suffix in _SUFFIXES:
        text = to_yaml(values)
    else:
        raise ConfigError(f"a latency table must be one of {', '.join(_SUFFIXES)}, got {path}.")
    path.write_text(text, encoding="utf-8")


def clock(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median_ms(run: Callable[[], float], *, repeats: int = 20, warmup: int = 5) -> float:
    """Median milliseconds of what `run` returns in seconds, over `repeats` calls after `warmup` uncounted ones."""
    if repeats < 1 or warmup < 0:
        raise ConfigError(f"repeats must be at least 1 and warmup not negative, got {repeats} and {warmup}.")
    for _ in range(warmup):
        run()
    return 1e3 * statistics.median(run() for _ in range(repeats))
