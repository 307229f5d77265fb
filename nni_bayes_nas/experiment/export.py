"""The command `export`: a network of a run as one file that needs neither NNI nor this package."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bayes_nas.coercion import closest
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment import standalone
from nni_bayes_nas.experiment.compressed import Compressed, find_compressed
from nni_bayes_nas.experiment.compressed import rebuild as rebuild_compressed
from nni_bayes_nas.experiment.retrained import Retraining, find_retraining, rebuild

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nni_bayes_nas.experiment.data import DataSplits

FORMATS: dict[str, tuple[str, ...]] = {"pt2": (), "onnx": ("onnx", "onnxscript")}
"""Format, which is the file's suffix too -> the packages of the extra `export` that it needs."""

TOLERANCE = 1e-5
"""Largest absolute difference of a logit from the source network's, in float32."""

_BATCHES = (1, 5)
_TRACED_BATCH = 2
_NOT_NEEDED = {"nni", "nni_bayes_nas"}


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: The file.
        source: Where its weights come from.
        shape: Of one input object.
        outputs: How many numbers it gives for one.
        standardized: Whether the caller must standardize the input.
        regression: Whether outputs are predictions in the units of the targets, not logits.
        parameters: Of the network, counted on it.
        difference: The largest absolute difference of an output from the source network's.
    """

    path: Path
    source: Retraining | Compressed
    shape: tuple[int, ...]
    outputs: int
    standardized: bool
    regression: bool
    parameters: int
    difference: float

    def lines(self) -> list[str]:
        """For the user: the file, what goes in and what comes out, how it was checked."""
        sizes = ", ".join(str(n) for n in self.shape)
        form = "standardized by the caller" if self.standardized else "as the data set gives it, 8-bit values over 255"
        gives = "predictions in the units of the targets" if self.regression else "logits"
        return [
            str(self.path),
            f"  network: {self.source.words}",
            f"  input x: float32 (batch, {sizes}), {form}",
            f"  output: float32 (batch, {self.outputs}), {gives}",
            f"  size: {self.parameters} parameters, {self.path.stat().st_size} bytes",
            f"  checked where NNI and this package are blocked, with batches of {_BATCHES[0]} and {_BATCHES[1]}: "
            f"largest difference {self.difference:.1e}",
        ]


def export(
    run: Path,
    architecture: str,
    format: str,
    *,
    output: Path | None = None,
    seed: int | None = None,
    standardized: bool = False,
    tolerance: float | None = None,
) -> Exported:
    """Writes a retrained network as one file with a dynamic batch dimension, and checks it.

    The scale of inputs and targets is that of the training, as the trial saved it; the data are not read.

    The file is run in a fresh process in which NNI, this package and the module of the space cannot be imported, and
    must give the outputs of the source network; only then it takes the place of `output`.

    Args:
        run: The run folder.
        architecture: Its id in summary.json.
        format: "pt2" (torch.export) or "onnx".
        output: The file; `RUN/export/ID.FORMAT` if None.
        seed: Of the retraining; None takes the one of the best validation score.
        standardized: False builds the standardization of the inputs into the file: it takes objects as the data set
            gives them. True leaves it to the caller.
        tolerance: Largest absolute difference of an output, for a regression in units of |mean| + sd of the targets;
            None is `TOLERANCE`.

    Raises:
        ConfigError: The user's mistake: see `find_retraining` and `rebuild`; an unknown format, a package that is
            missing, an output that cannot be written. Nothing is written.
        RunError: The network cannot be exported, or the file does not give its outputs. Nothing is written.
    """
    _check_format(format)
    return _export(run, find_retraining(run, architecture, seed), format, output, standardized, tolerance)


def export_compressed(
    run: Path,
    name: str,
    format: str,
    *,
    lam: float | None = None,
    fraction: float | None = None,
    trained_on: bool = False,
    output: Path | None = None,
    standardized: bool = False,
    tolerance: float | None = None,
) -> Exported:
    """Writes a compressed network as `export` does a retrained one.

    Mostly empty weights are packed in the file, which unpacks them (`compression.packing`); where whole neurons went
    and the network is a chain, it is the smaller dense one.

    Args:
        run: The folder of a run of `nni-bayes-nas compress`.
        name: Of the compression in summary.json.
        format: See `export`.
        lam: Lambda, see `find_compressed`.
        fraction: Share of the weights that is left out, see there.
        trained_on: See there.
        output: The file; `RUN/export/NAME-lambdaL-fractionF.FORMAT` if None.
        standardized: See `export`.
        tolerance: See `export`.

    Raises:
        ConfigError: The user's mistake: see `find_compressed`, and as `export`. Nothing is written.
        RunError: As `export`.
    """
    _check_format(format)
    found = find_compressed(run, name, lam, fraction, trained_on=trained_on)
    return _export(run, found, format, output, standardized, tolerance)


def _export(
    run: Path,
    source: Retraining | Compressed,
    format: str,
    output: Path | None,
    standardized: bool,
    tolerance: float | None,
) -> Exported:
    tolerance = TOLERANCE if tolerance is None else tolerance
    if not tolerance > 0:
        raise ConfigError(f"`--tolerance` must be positive, got {tolerance}; {TOLERANCE:g} is the default")
    plain = re.sub(r"[^\w.+-]", "-", source.name)
    path = _check_output(output or run / "export" / f"{plain}.{format}", format)
    network, data = rebuild(source) if isinstance(source, Retraining) else rebuild_compressed(source)

    import torch

    from nni_bayes_nas.complexity.measure import count_parameters
    from nni_bayes_nas.experiment.program import Scaled, write_program

    regression = data.task == "regression"
    whole = Scaled(
        network,
        inputs=None if standardized else (data.mean, data.sd),
        targets=(data.target_mean, data.target_sd) if regression else None,
    ).eval()
    shape = tuple(data.shape)
    samples = {str(n): _sample(data, n, standardized) for n in _BATCHES}
    with torch.no_grad():
        expected = {name: whole(x) for name, x in samples.items()}
    with _quiet(), _new_folder(path) as folder:
        program = folder / path.name
        try:
            write_program(whole, _sample(data, _TRACED_BATCH, standardized), program)
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise RunError(
                f"`{source.name}` must be a network that torch.export can trace, but writing {format} failed: {said}"
            ) from error
        outputs = _run_alone(program, samples, _NOT_NEEDED | _own_modules(network))
        # In float32 a prediction is no finer than its own size allows; logits are taken as they are.
        unit = abs(data.target_mean) + data.target_sd if regression else 1.0
        difference = _compare(expected, outputs, tolerance * unit)
        _put(program, path)
    return Exported(
        path=path,
        source=source,
        shape=shape,
        outputs=expected[str(_BATCHES[0])].shape[1],
        standardized=standardized,
        regression=regression,
        parameters=count_parameters(network),
        difference=difference,
    )


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ConfigError(f"`--format` must be one of {', '.join(FORMATS)}, got `{format}`, {closest(format, FORMATS)}")
    if missing := [name for name in FORMATS[format] if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"`--format {format}` needs the extra `export`, but {' and '.join(missing)} cannot be imported\n"
            f"install them: pip install {' '.join(missing)}; or take --format pt2"
        )


def _check_output(path: Path, format: str) -> Path:
    """The suffix is fixed: a slip must not replace a file of another kind."""
    if path.suffix != f".{format}":
        raise ConfigError(f"`--output` must end in .{format} for this format, got `{path}`")
    if path.is_dir():
        raise ConfigError(f"`--output` must be a file: `{path}` is a folder\ngive another --output")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"`--output` must lie in a folder that can be written, got `{path}`\ngive another --output")
    return path


def _sample(data: DataSplits, n: int, standardized: bool) -> Tensor:
    """`n` random objects `(n, *shape)`, standard normal once they are standardized."""
    import torch

    x = torch.randn(n, *data.shape, generator=torch.Generator().manual_seed(n))
    return x if standardized else x * data.sd + data.mean


def _own_modules(network: nn.Module) -> set[str]:
    """The packages that define the network's modules, but for torch's own: the user's space is among them."""
    names = {type(module).__module__.partition(".")[0] for module in network.modules()}
    return names - {"torch", "torchvision", "__main__"} - sys.stdlib_module_names


def _run_alone(program: Path, inputs: dict[str, Tensor], blocked: set[str]) -> dict[str, Any]:
    """The outputs of the file in a fresh process that cannot import these packages.

    Raises:
        RunError: The process failed.
    """
    import numpy as np

    given, found = program.with_name("inputs.npz"), program.with_name("outputs.npz")
    arrays: dict[str, Any] = {name: x.numpy() for name, x in inputs.items()}
    np.savez(given, **arrays)
    # -P: the script's own folder must not be searched for modules.
    command = [sys.executable, "-P", standalone.__file__, str(program), str(given), str(found), ",".join(blocked)]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True)
    if done.returncode != 0:
        # torch.export logs the cause, line by line behind a prefix; its exception says only that it failed.
        errors = re.findall(r"^(?:[A-Z]\d{4} .*?\] )?([\w.]*(?:Error|Exception): .*)", done.stderr, re.MULTILINE)
        said = (errors or done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0][:200]
        raise RunError(f"the exported network must run without NNI and this package, but it failed: {said}")
    with np.load(found) as results:
        return {name: results[name] for name in results.files}


def _compare(expected: dict[str, Tensor], outputs: dict[str, Any], tolerance: float) -> float:
    """The largest absolute difference.

    Raises:
        RunError: It exceeds the tolerance, or is not a number.
    """
    difference = 0.0
    for name, wanted in expected.items():
        y = wanted.numpy()
        if outputs[name].shape != y.shape:
            raise RunError(f"the exported network must give outputs {y.shape}, it gives {outputs[name].shape}")
        worst = float(abs(outputs[name] - y).max())
        if not worst <= tolerance:
            raise RunError(
                f"the exported network must give the outputs of its source within {tolerance:g}, it is off by "
                f"{worst:.1e} where outputs reach {float(abs(y).max()):.3g}; nothing was written; "
                "where they are large, --tolerance allows more"
            )
        difference = max(difference, worst)
    return difference


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, on the disk of `path`, so that its file can be moved there in one step."""
    existing = next(parent for parent in path.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(dir=existing, prefix=".export-") as name:
        yield Path(name)


def _put(program: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with program.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(program, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
