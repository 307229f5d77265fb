"""The command `export` long after the training: data that changed or are gone do not change the network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.cli import main
from nni_bayes_nas.config import Config, config_to_yaml
from nni_bayes_nas.experiment.build import build_network
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.record import write_json, write_text
from nni_bayes_nas.experiment.retrain import run_retrain

CHOICES = {"layer0": "linear", "layer1": "low_rank_1", "layer2": "wide"}


def arrays(task: str) -> dict[str, Any]:
    """A table far from mean 0 and sd 1."""
    rng = np.random.default_rng(0)
    x = rng.normal([100.0, -3.0, 0.2], [20.0, 1.0, 0.01], (120, 3))
    return {"x": x, "y": 500.0 + 2.0 * x[:, 0] if task == "regression" else np.digitize(x[:, 0], [90.0, 110.0])}


def make_run(folder: Path, task: str) -> tuple[Path, np.ndarray, np.ndarray]:
    """A run folder; test objects as the table has them, and what the trained network says of them in its units."""
    path = folder / "table.npz"
    np.savez(path, **arrays(task))
    values = {
        "space": {"name": "dense", "args": {"width": 16}},
        "data": {"name": "npz", "path": str(path), "task": task},
        "retrain": {"epochs": 5, "batch_size": 16, "learning_rate": 0.05},
        "experiment": {"device": "cpu"},
    }
    config, run = Config.from_dict(values), folder / "run"
    trial = run / "trials" / "retrain"
    trial.mkdir(parents=True)
    result = run_retrain(config, {"choices": CHOICES, "seed": 3}, trial, lambda row: None)
    write_text(run / "config.yaml", config_to_yaml(config))
    row = {"id": "a", "choices": CHOICES, "params": result["params"], "retrain": [{"name": "retrain", **result}]}
    write_json(run / "summary.json", {"architectures": [row]})
    data = load_data(config.data)
    network = build_network(config, data, 3, Architecture(CHOICES)).eval()
    network.load_state_dict(torch.load(trial / "model.pt", weights_only=True))
    x = data.test.tensors[0]
    with torch.no_grad():
        said = network(x).double() * data.target_sd + data.target_mean
    return run, (x.double() * data.sd + data.mean).numpy(), said.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["changed", "gone"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_scale_is_that_of_the_training(task: str, fate: str, tmp_path: Path) -> None:
    run, x, said = make_run(tmp_path, task)
    path, output = tmp_path / "table.npz", tmp_path / "net.pt2"
    if fate == "gone":
        path.unlink()
    else:
        # More objects, elsewhere; targets in another unit.
        x_old, y_old = arrays(task).values()
        more = 10.0 * y_old if task == "regression" else y_old
        np.savez(path, x=np.concatenate([x_old, 3 * x_old + 50]), y=np.concatenate([y_old, more]))
    assert main(["export", str(run), "--architecture", "a", "--output", str(output)]) == 0
    with torch.no_grad():
        got = torch.export.load(output).module()(torch.from_numpy(x).float()).numpy()
    assert got.shape == said.shape == (24, 1 if task == "regression" else 3)
    # In units of how far the objects' outputs lie apart.
    assert np.abs(got - said).max() <= 1e-4 * np.ptp(said, axis=0).min()
