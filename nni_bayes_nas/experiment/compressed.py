"""A compressed network of a run folder: found without torch, rebuilt with its weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.coercion import closest
from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.experiment.retrained import read_summary, saved_data
from nni_bayes_nas.variants import varied

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
        changes: What of the configuration is this search's own.
        trained_on: Whether it was trained on at its lambda by the bound before weights were left out.
    """

    config: Config
    row: dict[str, Any]
    lam: float
    point: dict[str, Any]
    directory: Path
    choices: dict[str, Any] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    trained_on: bool = False

    @property
    def measured(self) -> bool:
        """Whether it lies in the curve; else it is made of the weights as functions of lambda when it is asked for."""
        return "file" in self.point

    @property
    def name(self) -> str:
        """For messages and files."""
        on = "-trained-on" if self.trained_on else ""
        return f"{self.row['name']}-lambda{self.lam:g}{on}-fraction{self.point['fraction']:.8g}"

    @property
    def _share(self) -> str:
        return f"{100 * self.point['fraction']:.8g} %"

    @property
    def words(self) -> str:
        """What it is, for the user."""
        if not self.measured:
            return (
                f"{self.row['name']} at lambda {self.lam:g}, {self._share} of the weights left out; read off now, "
                "neither trained further nor measured"
            )
        scores = self.point.get("finetuned") or self.point
        tuned = " and trained further" if "finetuned" in self.point else ""
        on = ", trained on at it by the bound" if self.trained_on else ""
        return (
            f"{self.row['name']} at lambda {self.lam:g}{on}, {self._share} of the weights left out{tuned}, "
            f"validation accuracy {scores['val_accuracy']:.4f}"
        )


def find_compressed(
    run: Path, name: str, lam: float | None = None, fraction: float | None = None, *, trained_on: bool = False
) -> Compressed:
    """A network that a compression was read off as.

    Args:
        run: The run folder.
        name: Of the compression in summary.json.
        lam: Any in its range; None where it was read off at one alone.
        fraction: Share of the weights that is left out, in [0, 1); None where its curve has one alone.
        trained_on: Of the network that was trained on at its lambda (`compress.posterior_finetune_epochs`), whose curve
            alone can be had.

    Returns:
        The point of the curve, up to a rounding of lambda and share; one that is not measured where there is none.

    Raises:
        ConfigError: The folder holds no compressions, or not this one; lambda lies outside its range, or the share
            outside [0, 1); nothing was trained on there; or one of its files is not there.
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
    directory = run / "trials" / name
    config = load_config(run / "config.yaml")
    searches = {f"search-{one['id']}": one for one in summary.get("searches") or []}
    searched = searches.get(name, {})
    at = _near("--lambda", lam, {float(one["lambda"]): one for one in row["rows"]}, lambda value: value)
    if trained_on and "posterior_finetuned" not in (at or {}):
        known = [f"{one['lambda']:.4g}" for one in row["rows"] if "posterior_finetuned" in one]
        raise ConfigError(
            f"`--trained-on` must be for a lambda that `{name}` was trained on at, which are {', '.join(known)}, got "
            f"{lam:g}\ntake one of these"
            if known
            else f"`--trained-on` must be for a network that was trained on at its lambda, of `{name}` none was\n"
            "compress with posterior_finetune_epochs"
        )
    whole = at or row["rows"][0]
    curve = (whole["posterior_finetuned"] if trained_on else whole)["curve"]
    # Alike by the weights that are left.
    point = _near("--fraction", fraction, {float(one["fraction"]): one for one in curve}, lambda value: 1 - value)
    if at is None or point is None:
        point = {"fraction": point["fraction"] if point else fraction}
        low, high = searched.get("lambda_range") or config.compress.lambda_range
        if row["lambda"] is not None:
            low = high = float(row["lambda"])
        if at is None and not low <= float(lam or 0.0) <= high:
            raise ConfigError(
                f"`--lambda` must lie in the range of `{name}`, {low:g} to {high:g}, got {lam:g}; nothing is trained "
                "outside it"
            )
        if not 0 <= point["fraction"] < 1:
            raise ConfigError(f"`--fraction` must lie in [0, 1), got {fraction:g}; 0.9 leaves one weight in ten")
        if trained_on:
            shares = ", ".join(f"{one['fraction']:.4g}" for one in curve)
            raise ConfigError(f"`--fraction` with --trained-on must be one of {shares}, got {fraction:g}")
    at = at or {"lambda": lam}
    file = f"networks/{point['file']}" if "file" in point else "model.pt"
    for path in (directory / file, directory / "data.json"):
        if not path.is_file():
            raise ConfigError(
                f"`{name}` needs the file {path}, which is not there: the trial ran where this folder is not visible, "
                f"or its files were removed\ncopy trials/{name} from the machine that ran it, or run it again"
            )
    changes = searched.get("changes") or {}
    return Compressed(config, row, float(at["lambda"]), point, directory, at.get("choices"), changes, trained_on)


def rebuild(found: Compressed) -> tuple[nn.Module, DataSplits]:
    """The network, packed where that is smaller, in evaluation mode on the CPU; and the data of its training.

    What is no point of the curve is read off the weights as functions of lambda, see `read_off`. Where whole neurons
    and filters went, and the network is a chain, it is the smaller dense one.

    Raises:
        ConfigError: A file of the trial cannot be read, or is that of another network.
    """
    from nni_bayes_nas.compression.packing import pack
    from nni_bayes_nas.compression.shrink import shrink
    from nni_bayes_nas.experiment.read_off import gaussian_network, read_off

    data = saved_data(found.directory / "data.json")
    path = found.directory / ("networks/" + found.point["file"] if found.measured else "model.pt")
    try:
        network = _load(found, data, path) if found.measured else gaussian_network(found, data)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} must hold the weights of the network that config.yaml describes, but loading failed:\n{said}\n"
            "use the code of the run, or compress again"
        ) from error
    if not found.measured:
        network = read_off(network, found)
    if found.config.compress.structured:
        with contextlib.suppress(SpaceError):
            network = shrink(network)
    return pack(network).eval(), data


def _load(found: Compressed, data: DataSplits, path: Path) -> nn.Module:
    import torch

    from nni_bayes_nas.compression.packing import load_packed
    from nni_bayes_nas.experiment.build import build_space
    from nni_bayes_nas.experiment.compress import build_network

    state, seed = torch.load(path, map_location="cpu", weights_only=True), int(found.row["seed"])
    config = varied(found.config, found.changes)
    if found.choices is None:
        network = build_network(config, data, seed)
    else:
        network = Architecture(found.choices).build(build_space(config, data, seed))
    return load_packed(network, state)


def _near(
    option: str, value: float | None, every: dict[float, dict[str, Any]], scale: Callable[[float], float]
) -> dict[str, Any] | None:
    """The row of a value, up to a rounding of its scale; of the only one where none is given."""
    if value is None:
        if len(every) == 1:
            return next(iter(every.values()))
        known = ", ".join(f"{one:.4g}" for one in every)
        raise ConfigError(f"`{option}` must be given, measured are {known}; others can be read off too")
    near = min(every, key=lambda known: abs(known - value))
    return every[near] if math.isclose(scale(near), scale(value), rel_tol=_SAME) else None
