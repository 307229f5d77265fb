"""Section `retrain.selection`: fewer parameters are optimized after some steps, interrupted or not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.build import effective, validate
from nni_bayes_nas.experiment.retrain import run_probe, run_retrain

CHOICES = {
    "cell/op_2_0": "conv_3x3",
    "cell/op_2_1": "skip_connect",
    "cell/op_3_0": "conv_3x3",
    "cell/op_3_1": "conv_3x3",
    "cell/input_2_0": [0],
    "cell/input_2_1": [1],
    "cell/input_3_0": [1],
    "cell/input_3_1": [2],
}
SPACE = {"width": 4, "n_cells": 2, "n_nodes": 2, "share": "all", "operations": ["skip_connect", "conv_3x3"]}


def config(selection: Any, **retrain: Any) -> Config:
    section = {"epochs": 3, "batch_size": 16, "selection": selection, **retrain}
    data = {"limit": 160, "val_limit": 64}
    return Config.from_dict(
        {"space": {"args": SPACE}, "data": data, "retrain": section, "experiment": {"device": "cpu"}}
    )


class Interrupted(Exception):
    """Stands for the death of the trial."""


def retrained(settings: Config, directory: Path, die_in: int | None = None) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)

    def report(terms: dict[str, Any]) -> None:
        if terms["epoch"] == die_in:
            raise Interrupted

    parameters = {"trial": "a", "choices": CHOICES, "seed": 3}
    if die_in is None:
        return run_retrain(settings, parameters, directory, report)
    with pytest.raises(Interrupted):
        run_retrain(settings, parameters, directory, report)
    return {}


SELECTION = {"active": 0.2, "start": 8, "window": 5, "criterion": "gain", "thaw_every": 9, "probe": 3}


def test_a_retraining_optimizes_so_many_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """30 steps; it dies after the first choice."""
    settings = config(SELECTION)
    whole = retrained(settings, tmp_path / "whole")
    layers = whole["selection"]["layers"]
    total = sum(row["parameters"] for row in layers.values())
    assert sum(row["active"] for row in layers.values()) == round(0.2 * total)
    assert whole["selection"]["macs"]["after"]["total"] < whole["selection"]["macs"]["before"]["total"]
    assert whole["selection"]["no_cache"] == "the network is no nn.Sequential"
    retrained(settings, tmp_path / "again", die_in=1)
    again = retrained(settings, tmp_path / "again")
    states = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "again")]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert again["test_accuracy"] == whole["test_accuracy"]
    plain = retrained(config(None), tmp_path / "plain")
    assert "selection" not in plain
    other = torch.load(tmp_path / "plain" / "model.pt", weights_only=True)
    assert any(not torch.equal(value, other[name]) for name, value in states[0].items())


def test_probes_optimize_all(tmp_path: Path) -> None:
    parameters = {"trial": "a", "choices": CHOICES, "seed": 3, "epochs": 1}
    found = []
    for name, selection in (("a", SELECTION), ("b", None)):
        (tmp_path / name).mkdir()
        found.append(run_probe(config(selection), parameters, tmp_path / name, lambda terms: None)["val_loss"])
    assert found[0] == found[1]


def test_defaults_are_filled_in() -> None:
    filled = effective(config({"active": 50})).retrain.selection
    assert filled is not None and filled["criterion"] == "gain" and filled["active"] == 50
    assert isinstance(filled["active"], int) and "seed" not in filled
    assert effective(config(None)).retrain.selection is None


@pytest.mark.parametrize(
    ("selection", "retrain", "message"),
    [
        ({"activ": 0.1}, {}, r"unknown key `retrain.selection.activ`, did you mean `active`\?"),
        ({}, {}, r"`retrain.selection.active` is missing"),
        ({"active": 0.1, "criterion": "best"}, {}, r"retrain.selection.criterion"),
        ({"active": 1.5}, {}, r"`active` must be a number, or a float in \[0, 1\]"),
        ({"active": 0.1, "always": "net"}, {}, r"retrain.selection.always"),
        ({"active": 0.1}, {"replicas": 2, "repeats": 2}, r"`retrain.replicas` trains 2 side by side"),
    ],
)
def test_mistakes_are_refused_before_time_is_spent(selection: Any, retrain: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(config(selection, **retrain))
