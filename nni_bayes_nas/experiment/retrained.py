"""A retrained network of a run folder: saved, found without torch, rebuilt with its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.coercion import closest
from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.record import read_json, write_json
from nni_bayes_nas.experiment.tasks import Task, task_of
from nni_bayes_nas.registry import check_names

if TYPE_CHECKING:
    from torch import nn

    from nni_bayes_nas.experiment.data import DataSplits

_FILES = ("model.pt", "data.json", "architecture.json")


@dataclass(frozen=True)
class Retraining:
    """One retraining of one architecture of a run.

    Attributes:
        config: The configuration of the run.
        architecture: The row of the architecture in summary.json.
        row: The row of the retraining in it.
        directory: `RUN/trials/NAME`, which holds architecture.json, data.json and model.pt.
    """

    config: Config
    architecture: dict[str, Any]
    row: dict[str, Any]
    directory: Path

    @property
    def name(self) -> str:
        """For messages and files."""
        return str(self.architecture["id"])

    @property
    def words(self) -> str:
        """What it is, for the user."""
        words, score = self.score
        return f"{self.name}, retrained with seed {self.row['seed']}, {words} {score:.4f}"

    @property
    def score(self) -> tuple[str, float]:
        """What the task maximizes, in words, and its value on the validation data."""
        task = task_of(self.config.data)
        return f"validation {task.title}", _score(self.row, task)


def save(network: nn.Module, data: DataSplits, directory: Path) -> None:
    """Writes model.pt (a state dict) and data.json: shape, outputs and scale of the data that the weights belong to."""
    import torch

    facts = {
        "task": data.task,
        "shape": list(data.shape),
        "num_classes": data.num_classes,
        # Every float32 is a float64, which JSON keeps to the bit.
        "mean": data.mean.tolist(),
        "sd": data.sd.tolist(),
        "target_mean": data.target_mean,
        "target_sd": data.target_sd,
    }
    write_json(directory / "data.json", facts)
    torch.save(network.state_dict(), directory / "model.pt")


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a run folder.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    summary = read_json(run / "summary.json")
    if not isinstance(summary, dict):
        there = (run / "summary.json").is_file()
        raise ConfigError(
            f"`{run}` is no run folder: "
            + ("its summary.json is damaged\n" if there else "it has no summary.json\n")
            + "give the folder that `nni-bayes-nas run` wrote, for example runs/demo"
        )
    return summary


def find_retraining(run: Path, architecture: str, seed: int | None = None) -> Retraining:
    """The retraining of an architecture with this seed; without a seed, the one of the best validation score.

    Raises:
        ConfigError: The folder holds no run, the run has no such architecture or did not retrain it (with this seed),
            or one of its files is not in the folder. Without data.json (a run of an earlier version) nobody knows the
            scale of the training: the data may be others by now.
    """
    summary = read_summary(run)
    try:
        rows = {str(row["id"]): row for row in summary.get("architectures", [])}
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"`{run}/summary.json` must name its architectures, but one has no id\nrun it again, or take another folder"
        ) from error
    if architecture not in rows:
        raise ConfigError(f"`{run}` has no architecture `{architecture}`, {closest(architecture, rows)}")
    retrained = {int(row["seed"]): row for row in rows[architecture].get("retrain", []) if row.get("name")}
    if not retrained:
        raise ConfigError(_not_retrained(run, architecture, summary))
    config = load_config(run / "config.yaml")
    check_names(config)
    if seed is None:
        task = task_of(config.data)
        # max keeps the first of equals, so that the choice repeats.
        seed = max(retrained, key=lambda number: _score(retrained[number], task))
    if seed not in retrained:
        seeds = ", ".join(str(s) for s in sorted(retrained))
        raise ConfigError(f"`--seed` must be one of {seeds}: with these `{architecture}` was retrained, got {seed}")
    row = retrained[seed]
    directory = run / "trials" / str(row["name"])
    for name in _FILES:
        if not (directory / name).is_file():
            raise ConfigError(
                f"`{architecture}` needs the file {directory / name}, which is not there:\n"
                "the trial ran where this folder is not visible, its files were removed, or an earlier version ran it\n"
                f"copy trials/{row['name']} from the machine that ran it, or retrain on a disk that both see"
            )
    return Retraining(config, rows[architecture], row, directory)


def rebuild(retraining: Retraining) -> tuple[nn.Module, DataSplits]:
    """The network as it was retrained, with its weights, in evaluation mode on the CPU; and the data of its training.

    These have shape, outputs and scale, but no objects: the data set itself may have changed or gone since.

    Raises:
        ConfigError: The space is not what it was, or a file of the trial cannot be read.
    """
    import torch

    from nni_bayes_nas.experiment.build import build_network

    config, directory = retraining.config, retraining.directory
    # The choices as the trial was given them: architecture.json orders the slots of a node anew, and the names of the
    # weights count the slots.
    architecture = Architecture(retraining.architecture["choices"])
    trained = Architecture.from_json((directory / "architecture.json").read_text(encoding="utf-8"))
    if trained.key != architecture.key:
        raise ConfigError(
            f"{directory / 'architecture.json'} must hold the choices of `{retraining.architecture['id']}`, "
            "but it is another architecture's\nwrite summary.json anew: nni-bayes-nas run with --resume"
        )
    data = saved_data(directory / "data.json")
    # As run_retrain builds it, and leaves it at the end.
    network = build_network(config, data, int(retraining.row["seed"]), architecture)
    path = directory / "model.pt"
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} must hold the weights of the network that config.yaml describes, but loading failed:\n{said}\n"
            "use the code of the run, or retrain"
        ) from error
    return network.eval(), data


def saved_data(path: Path) -> DataSplits:
    """Shape, outputs and scale of the data of a training, from data.json; without objects.

    Raises:
        ConfigError: The file cannot be read.
    """
    import torch
    from torch.utils.data import TensorDataset

    from nni_bayes_nas.experiment.data import DataSplits

    facts = read_json(path)
    try:
        none = TensorDataset(torch.empty(0, *facts["shape"]), torch.empty(0))
        return DataSplits(
            none,
            none,
            none,
            facts["num_classes"],
            torch.tensor(facts["mean"]),
            torch.tensor(facts["sd"]),
            facts["task"],
            facts["target_mean"],
            facts["target_sd"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} must hold shape, outputs and scale of the data of the training, but reading it failed: {error!r}\n"
            "take the file that the trial wrote, or retrain"
        ) from error


def _score(row: dict[str, Any], task: Task) -> float:
    value = row.get(task.val_score)
    return -math.inf if value is None else float(value)


def _not_retrained(run: Path, architecture: str, summary: dict[str, Any]) -> str:
    start = f"`{architecture}` must have been retrained, but `{run}` has no retraining of it"
    if summary.get("status") == "running":
        return f"{start} yet: the run still goes on\nwait for its retrain trials, or resume it with --resume"
    if (summary.get("experiment") or {}).get("id") is None:
        return f"{start}: `nni-bayes-nas search` only searches\nrun the same configuration with `nni-bayes-nas run`"
    return f"{start}: its retrain trials failed, see `failures` in summary.json\nchoose another one, or run again"
