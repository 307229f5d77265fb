"""A compressed network of a run folder: found without torch, rebuilt with its weights."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.coercion import closest
from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.experiment.retrained import read_summary, saved_data

if TYPE_CHECKING:
    from torch import nn

    from nni_bayes_nas.experiment.data import DataSplits

_SAME = 1e-3


def with_architecture(config: Config) -> Config:
    """A configuration that holds the choices of `compress.architecture` itself, not the file that they are in.

    Raises:
        ConfigError: The file cannot be read.
    """
    path = config.compress.architecture
    if not isinstance(path, str):
        return config
    try:
        choices = Architecture.from_json(Path(path).read_text(encoding="utf-8")).canonical()
    except (OSError, ValueError) as error:
        raise ConfigError(f"`compress.architecture` must be an architecture.json, but {path}: {error}") from error
    return replace(config, compress=replace(config.compress, architecture=choices))


@dataclass(frozen=True)
class Compressed:
    """One point of a curve of a compression.

    Attributes:
        config: The configuration of the run.
        row: The compression in summary.json.
        lam: Lambda.
        point: The point in its curve.
        directory: `RUN/trials/NAME`, which holds data.json and the file of the point.
        choices: Of the architecture, where a search has found it with its weights.
    """

    config: Config
    row: dict[str, Any]
    lam: float
    point: dict[str, Any]
    directory: Path
    choices: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """For messages and files."""
        return f"{self.row['name']}-lambda{self.lam:g}-fraction{self.point['fraction']:.4g}"

    @property
    def words(self) -> str:
        """What it is, for the user."""
        scores = self.point.get("finetuned") or self.point
        tuned = " and trained further" if "finetuned" in self.point else ""
        return (
            f"{self.row['name']} at lambda {self.lam:g}, {self.point['fraction']:.1%} of the weights left out{tuned}, "
            f"validation accuracy {scores['val_accuracy']:.4f}"
        )


def find_compressed(run: Path, name: str, lam: float | None = None, fraction: float | None = None) -> Compressed:
    """A network that a compression was read off as.

    Args:
        run: The run folder.
        name: Of the compression in summary.json.
        lam: One of its lambda; None where there is one alone.
        fraction: One of the shares of weights that were left out; None where there is one alone.

    Raises:
        ConfigError: The folder holds no compressions, or not this one; or one of its files is not there.
    """
    summary = read_summary(run)
    rows = {str(row["name"]): row for row in summary.get("compression") or []}
    if not rows:
        raise ConfigError(
            f"`{run}` must be the folder of `nni-bayes-nas compress`, or of a search with weight_hypernet, but its "
            "summary.json has no compression\n"
            "for a retrained network give --architecture"
        )
    if name not in rows:
        raise ConfigError(f"`{run}` has no compression `{name}`, {closest(name, rows)}")
    row = rows[name]
    at = _one("--lambda", lam, {float(one["lambda"]): one for one in row["rows"]}, 0.0)
    point = _one("--fraction", fraction, {float(one["fraction"]): one for one in at["curve"]}, _SAME)
    directory = run / "trials" / name
    for path in (directory / "networks" / str(point.get("file")), directory / "data.json"):
        if not path.is_file():
            raise ConfigError(
                f"`{name}` needs the file {path}, which is not there: the trial ran where this folder is not visible, "
                f"or its files were removed\ncopy trials/{name} from the machine that ran it, or run it again"
            )
    return Compressed(load_config(run / "config.yaml"), row, float(at["lambda"]), point, directory, at.get("choices"))


def rebuild(found: Compressed) -> tuple[nn.Module, DataSplits]:
    """The network, packed where that is smaller, in evaluation mode on the CPU; and the data of its training.

    Where whole neurons and filters went, and the network is a chain, it is the smaller dense one.

    Raises:
        ConfigError: A file of the trial cannot be read, or is that of another network.
    """
    import torch

    from nni_bayes_nas.compression.packing import load_packed, pack
    from nni_bayes_nas.compression.shrink import shrink
    from nni_bayes_nas.experiment.build import build_space
    from nni_bayes_nas.experiment.compress import build_network

    data = saved_data(found.directory / "data.json")
    path = found.directory / "networks" / found.point["file"]
    try:
        state, seed = torch.load(path, map_location="cpu", weights_only=True), int(found.row["seed"])
        if found.choices is None:
            network = build_network(found.config, data, seed)
        else:
            network = Architecture(found.choices).build(build_space(found.config, data, seed))
        network = load_packed(network, state)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} must hold the weights of the network that config.yaml describes, but loading failed:\n{said}\n"
            "use the code of the run, or compress again"
        ) from error
    if found.config.compress.structured:
        with contextlib.suppress(SpaceError):
            network = shrink(network)
    return pack(network).eval(), data


def _one(option: str, value: float | None, every: dict[float, dict[str, Any]], slack: float) -> dict[str, Any]:
    """The row of a value, up to rounding; of the only one where none is given."""
    if value is None and len(every) == 1:
        return next(iter(every.values()))
    if value is not None:
        near = min(every, key=lambda known: abs(known - value))
        if math.isclose(near, value, abs_tol=slack, rel_tol=_SAME):
            return every[near]
    known = ", ".join(f"{one:.4g}" for one in every)
    raise ConfigError(f"`{option}` must be one of {known}, got {'none' if value is None else f'{value:g}'}")
