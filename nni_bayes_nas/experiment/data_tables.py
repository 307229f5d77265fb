"""Data sets that are tables: embedded ones, CSV files, and families of made-up ones."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.errors import DataError

# More different numbers than so many, each in fewer lines than so many in the mean: they were measured.
_MOST_NUMBERS, _LEAST_OF_EACH = 20, 10


def load_wine(config: DataConfig) -> tuple[Any, Any]:
    """scikit-learn's wine: 178 wines, 13 measurements, 3 cultivars (Forina et al., 1988); no network."""
    from sklearn import datasets

    wine = datasets.load_wine()
    return wine.data, wine.target


def load_breast_cancer(config: DataConfig) -> tuple[Any, Any]:
    """scikit-learn's breast cancer: 569 tumours, 30 measurements, 2 classes (Street et al., 1993); no network."""
    from sklearn import datasets

    cancer = datasets.load_breast_cancer()
    return cancer.data, cancer.target


def load_csv(config: DataConfig) -> tuple[Any, Any]:
    """A CSV file at `data.path` with a line of names, numbers in all columns but the last, and there the target.

    Classes may be any words; they are numbered in alphabetical order, numbers by size. For regression targets are
    numbers.

    Raises:
        DataError: No such file, no line of numbers, lines of different lengths, a value that is no number, or classes
            that look like what was measured.
    """
    if config.path is None:
        raise DataError("data.path must name a CSV file with a line of names, got none; give its path.")
    path = Path(config.path).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"data.path must name a CSV file, but there is no {path}; check it.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [text.strip() for text in line]) for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(f"data.path must name a CSV file in UTF-8, but reading {config.path} fails: {said}.") from error
    names = lines[0][1] if lines else []
    if len(lines) < 2 or len(names) < 2:
        raise DataError(
            f"a CSV file must have a line of names, lines of numbers and at least two columns, but {config.path} has "
            f"{len(lines)} lines and {len(names)} columns."
        )
    if all(map(_is_number, names)):
        raise DataError(
            f"a CSV file must begin with a line of names, but {config.path} begins with numbers; write a name of every "
            "column above them."
        )
    for number, row in lines[1:]:
        if len(row) != len(names):
            raise DataError(f"line {number} of {config.path} must have {len(names)} columns, got {len(row)}; mend it.")
        if not row[-1]:
            raise DataError(f"line {number} of {config.path} must have a target in its last column; write one.")
    x = [
        [_number(config, text, number, name) for text, name in zip(row, names[:-1], strict=False)]
        for number, row in lines[1:]
    ]
    if config.task == "regression":
        return np.array(x), np.array([_number(config, row[-1], number, names[-1]) for number, row in lines[1:]])
    words = [row[-1] for _, row in lines[1:]]
    # As numbers where all are: 1 and 1.0 are one class.
    numbers = all(map(_is_number, words))
    known: list[Any] = [float(word) for word in words] if numbers else words
    classes, y = np.unique(known, return_inverse=True)
    if numbers and len(classes) > _MOST_NUMBERS and len(y) < _LEAST_OF_EACH * len(classes):
        raise DataError(
            f"the target of {config.path} must be classes, but it is {len(classes)} different numbers in {len(y)} "
            "lines; if it was measured set data.task: regression, if these are classes write them as words."
        )
    return np.array(x), y


def synthetic(
    kind: Literal["blobs", "parity", "linear"] = "blobs",
    n_objects: int = 2000,
    n_features: int = 24,
    n_informative: int = 6,
    n_classes: int = 4,
    noise: float = 0.3,
    seed: int = 0,
) -> tuple[Any, Any]:
    """A made-up table of which some columns say the class, some repeat others, and the rest are noise.

    A third of the columns that say nothing of their own are sums of two informative ones.

    Args:
        kind: "blobs": two clusters a class, in the informative columns. "parity": classes are counts of positive values
            among the informative columns, modulo the number of classes; of two classes no column says anything by
            itself. "linear": the largest of as many random linear functions of the informative columns.
        n_objects: Rows.
        n_features: Columns.
        n_informative: That say the class.
        n_classes: At least two.
        noise: Standard deviation of what is added to the informative columns afterwards.
        seed: Of everything.

    Raises:
        DataError: More informative columns than columns, fewer than two classes, or a class without an object.
    """
    if kind not in ("blobs", "parity", "linear"):
        raise DataError(f"a made-up table is blobs, parity or linear, got {kind!r}; name one of them.")
    if not 1 <= n_informative <= n_features or n_classes < 2 or n_objects < n_classes:
        raise DataError(
            f"a made-up table needs 1 to n_features={n_features} informative columns, 2 classes and an object of each, "
            f"got n_informative={n_informative}, n_classes={n_classes}, n_objects={n_objects}."
        )
    draw = np.random.default_rng(seed)
    own = draw.normal(size=(n_objects, n_informative))
    if kind == "blobs":
        y = np.arange(n_objects) % n_classes
        centres = 1.5 * draw.normal(size=(n_classes, 2, n_informative))
        own = 0.7 * own + centres[y, draw.integers(2, size=n_objects)]
    elif kind == "parity":
        y = (own > 0).sum(1) % n_classes
        own = np.sign(own) * (0.5 + np.abs(own))
    else:
        y = (own @ draw.normal(size=(n_informative, n_classes))).argmax(1)
    if len(set(y.tolist())) < n_classes:
        raise DataError(
            f"a made-up table of {n_classes} classes needs an object of each, but n_informative={n_informative} gives "
            f"{len(set(y.tolist()))} with {kind}; raise it."
        )
    own = own + noise * draw.normal(size=own.shape)
    others = draw.normal(size=(n_objects, n_features - n_informative))
    for column in range(others.shape[1] // 3):
        first, second = draw.integers(n_informative, size=2)
        others[:, column] = own[:, first] + own[:, second] + noise * others[:, column]
    table = np.concatenate([own, others], 1)[:, draw.permutation(n_features)]
    return table, y


def _number(config: DataConfig, text: str, line: int, column: str) -> float:
    if not _is_number(text):
        raise DataError(
            f"column {column!r} of {config.path} must hold numbers, but line {line} has {text[:20]!r}; write a number."
        )
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
