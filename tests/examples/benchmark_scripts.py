"""What the tests of the benchmarks share: the scripts as modules, and each at its smallest size as a command."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"


def clean() -> None:
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module", autouse=True)
def script_folder() -> Iterator[None]:
    """The scripts find each other as they do when one of them is started: by their folder on the path."""
    sys.path.insert(0, str(FOLDER))
    clean()
    yield
    sys.path.remove(str(FOLDER))
    clean()


def module(name: str) -> Any:
    return importlib.import_module(name)


def command(name: str, output: Path, seeds: int = 1, *more: str) -> list[str]:
    options = ["--preset", "smoke", "--seeds", str(seeds), "--output", str(output)]
    return [sys.executable, str(FOLDER / f"{name}.py"), *options, *more]


def run(name: str, output: Path, seeds: int = 1, *more: str) -> tuple[str, dict[str, Any]]:
    done = subprocess.run(command(name, output, seeds, *more), text=True, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(output.read_text())
    assert {"schema", "benchmark", "preset", "command", "environment", "seconds", "rows", "targets"} <= set(result)
    assert (result["benchmark"], result["preset"], result["complete"]) == (name, "smoke", True)
    for target in result["targets"]:
        assert set(target) == {"name", "what", "value", "limit", "better", "holds"}
    return done.stdout, result


def fake_mnist(folder: Path) -> Path:
    """Images in the files of MNIST, whose class is a bright row."""
    import gzip

    import numpy as np

    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, n in (("train", 1300), ("t10k", 100)):
        y = generator.integers(0, 10, n).astype(np.uint8)
        x = generator.integers(0, 60, (n, 28, 28)).astype(np.uint8)
        x[np.arange(n), 2 * y + 4] += 150
        for name, values, magic in ((f"{part}-images-idx3-ubyte", x, 2051), (f"{part}-labels-idx1-ubyte", y, 2049)):
            head = np.array([magic, *values.shape], dtype=">i4").tobytes()
            (raw / name).write_bytes(head + values.tobytes())
            with gzip.open(raw / f"{name}.gz", "wb") as file:
                file.write(head + values.tobytes())
    return folder
