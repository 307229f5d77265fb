"""Tables that know the accuracy of every architecture of a space: what a search chose, by regret and rank."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nni_bayes_nas.errors import ConfigError, DataError


@dataclass(frozen=True)
class Place:
    """Where an architecture stands in a table.

    Attributes:
        value: Of the column, in its unit.
        regret: Best value of the table less this one, >= 0.
        rank: 1 for the best; equal values share the better rank.
        n: Architectures of the table.
    """

    value: float
    regret: float
    rank: int
    n: int


class BenchmarkTable:
    """One row an architecture: its name and numbers, larger ones better.

    Args:
        path: A CSV file with a header, gzipped if its name ends in `.gz`.
        key: Column of the name: of NAS-Bench-201 the arch string, `|nor_conv_3x3~0|+|...|`.

    Raises:
        DataError: No such file, no such column, a name that occurs twice, or a value that is no number.
    """

    def __init__(self, path: str | Path, key: str = "arch") -> None:
        self.path = Path(path)
        self.key = key
        if not self.path.is_file():
            raise DataError(f"a benchmark table must be a CSV file, but there is none at {self.path}.")
        self._rows = self._read()
        self._sorted: dict[str, list[float]] = {}

    def _read(self) -> dict[str, dict[str, str]]:
        rows: dict[str, dict[str, str]] = {}
        try:
            with (gzip.open if self.path.suffix == ".gz" else open)(
                self.path, "rt", encoding="utf-8", newline=""
            ) as file:
                reader = csv.DictReader(file)
                if self.key not in (reader.fieldnames or ()):
                    raise DataError(
                        f"{self.path} must have a column {self.key!r}, got {', '.join(reader.fieldnames or ())}."
                    )
                for row in reader:
                    if row[self.key] is None:
                        raise DataError(
                            f"{self.path} must have {self.key!r} in every row, but line {reader.line_num} ends before."
                        )
                    if row[self.key] in rows:
                        raise DataError(f"{self.path} must hold every architecture once, but {row[self.key]} twice.")
                    rows[row[self.key]] = row
        except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
            raise DataError(f"{self.path} must be CSV, gzipped if its name ends in .gz, but: {error}.") from error
        if not rows:
            raise DataError(f"a benchmark table must hold architectures, but {self.path} has none.")
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, arch: object) -> bool:
        return arch in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def value(self, arch: str, column: str) -> float:
        """A number of an architecture.

        Raises:
            ConfigError: The architecture or the column is not in the table.
            DataError: The value is no number.
        """
        if arch not in self._rows:
            raise ConfigError(
                f"an architecture must be one of the {len(self)} in {self.path}, got {arch!r}; "
                f"one is {next(iter(self._rows))!r}."
            )
        row = self._rows[arch]
        if column not in row:
            raise ConfigError(f"column must be one of {', '.join(c for c in row if c != self.key)}, got {column!r}.")
        try:
            value = float(row[column])
        except (TypeError, ValueError):  # nothing, in a short row
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{self.path} must hold numbers, but {column} of {arch} is {row[column]!r}.")
        return value

    def values(self, column: str) -> dict[str, float]:
        """A column, by architecture."""
        return {arch: self.value(arch, column) for arch in self._rows}

    def place(self, arch: str, column: str) -> Place:
        """Value, regret and rank of an architecture; raises as `value`."""
        value = self.value(arch, column)
        if column not in self._sorted:
            self._sorted[column] = sorted(self.values(column).values(), reverse=True)
        ordered = self._sorted[column]
        return Place(value, ordered[0] - value, ordered.index(value) + 1, len(ordered))
