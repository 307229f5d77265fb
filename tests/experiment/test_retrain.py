"""Retraining: at the scale of the search or another, with all that serves in training only, interrupted or not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.build import build_network, build_space, effective, validate
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.record import read_rows
from nni_bayes_nas.experiment.retrain import run_retrain
from nni_bayes_nas.search_spaces.nasbench201 import from_arch_string

SEARCHED = {"width": 4, "n_cells": 2, "n_nodes": 2, "share": "all", "operations": ["skip_connect", "conv_3x3"]}
LARGER = {"width": 6, "n_cells": 3, "growth": 1.5, "auxiliary": True, "dropout": 0.2, "affine": True}
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


class Interrupted(Exception):
    """Stands for the death of the trial."""


def config(**retrain: Any) -> Config:
    everything = {
        "space": LARGER,
        "crop_padding": 1,
        "horizontal_flip": True,
        "cutout": 3,
        "label_smoothing": 0.1,
        "drop_path": 0.2,
        "epochs": 3,
        "batch_size": 16,
        **retrain,
    }
    return Config.from_dict(
        {"space": {"args": SEARCHED}, "data": {"limit": 160}, "retrain": everything, "experiment": {"device": "cpu"}}
    )


def retrained(settings: Config, directory: Path, *, die_in: int | None = None) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)

    def report(terms: dict[str, Any]) -> None:
        if terms["epoch"] == die_in:
            raise Interrupted

    return run_retrain(settings, {"choices": CHOICES, "seed": 1, "lambda": None}, directory, report)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("retrain") / "retrain-s0-lam0-seed1"
    return directory, retrained(config(), directory)


def test_the_counted_network_is_the_retrained_one(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory, result = undisturbed
    settings = config()
    data = load_data(settings.data)
    # The same choices at that scale, without what serves in training only.
    changed = {**SEARCHED, **LARGER, "auxiliary": False}
    expected = Architecture(CHOICES).build(build_space(Config.from_dict({"space": {"args": changed}}), data, 0))
    searched = Architecture(CHOICES).build(build_space(settings, data, 0))
    assert result["params"] == count_parameters(expected) > count_parameters(searched)
    assert result["macs"] == count_macs(expected, data.shape) > count_macs(searched, data.shape)
    saved = torch.load(directory / "model.pt", weights_only=True)
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in expected.state_dict().items()
    }


def test_the_saved_network_gives_the_reported_accuracy(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory, result = undisturbed
    settings = config()
    data = load_data(settings.data)
    network = build_network(settings, data, 1, Architecture(CHOICES))
    network.load_state_dict(torch.load(directory / "model.pt", weights_only=True))
    x, y = data.val.tensors
    with torch.no_grad():
        accuracy = float((network.eval()(x).argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(result["val_accuracy"], abs=1e-6) and accuracy > 0.2
    assert result["default"] == result["val_accuracy"]


def test_resumed_equals_undisturbed(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Bit for bit, with crops, flips, cutout, dropout and drop-path."""
    directory, result = undisturbed
    again = tmp_path / directory.name
    with pytest.raises(Interrupted):
        retrained(config(), again, die_in=2)
    resumed = retrained(config(), again)
    timed = {"seconds": 0, "stage_seconds": {}}
    assert {**resumed, **timed} == {**result, **timed}
    assert read_rows(again / "metrics.jsonl") == read_rows(directory / "metrics.jsonl")
    first, second = (torch.load(d / "model.pt", weights_only=True) for d in (directory, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def with_all(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The weights after two epochs with every setting."""
    directory = tmp_path_factory.mktemp("all")
    retrained(config(epochs=2), directory)
    weights: dict[str, Any] = torch.load(directory / "model.pt", weights_only=True)
    return weights


@pytest.mark.parametrize(
    "change",
    [
        {"crop_padding": 0},
        {"horizontal_flip": False},
        {"cutout": 0},
        {"drop_path": 0.0},
        {"label_smoothing": 0.0},
        {"auxiliary_weight": 0.0},
    ],
)
def test_every_setting_acts(with_all: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    """Without one of them the same seed gives other weights after two epochs."""
    retrained(config(epochs=2, **change), tmp_path)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not torch.equal(weights["stem.0.weight"], with_all["stem.0.weight"])


def test_training_data_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nni_bayes_nas.experiment import retrain

    data = load_data(config().data)
    before = data.train.tensors[0].clone()
    monkeypatch.setattr(retrain, "load_data_on", lambda *_: data)
    retrained(config(epochs=1), tmp_path)
    assert torch.equal(data.train.tensors[0], before)


def test_validation_accepts_another_scale_and_keeps_what_was_given() -> None:
    given = {"width": 6, "n_cells": 3, "growth": 2}
    effective_config = effective(config(space=given))
    assert effective_config.retrain.space == {"width": 6, "n_cells": 3, "growth": 2.0}
    assert isinstance(effective_config.retrain.space["growth"], float)
    assert effective_config.space.args["n_cells"] == 2
    assert validate(config(space=given)) == effective_config
    assert effective(effective_config) == effective_config


def test_the_override_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("retrain:\n  space:\n", encoding="utf-8")
    assert load_config(path).retrain.space == {}
    assert load_config(path, ["retrain.space.width=8"]).retrain.space == {"width": 8}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retrain": {"space": {"n_cells": 4}}}, r"16 of their choices.*cell2/input_2_0.*\n.*share=all"),
        ({"retrain": {"space": {"operations": ["skip_connect", "conv_1x1"]}}}, "must take the architectures"),
        ({"retrain": {"space": {"share": "all"}}}, "must take the architectures"),
        ({"retrain": {"space": {"widht": 4}}}, r"`retrain.space.widht`, did you mean `width`"),
        ({"retrain": {"space": {"stem": 30}}}, r"`retrain.space.stem` must be one of"),
        ({"retrain": {"space": {"num_classes": 4}}}, "10 classes"),
        ({"retrain": {"drop_path": 0.1, "space": {"drop_path": 0.2}}}, "retrain.space too"),
        ({"retrain": {"drop_path": 0.1}, "space": {"name": "chain"}}, "argument drop_path"),
        ({"retrain": {"drop_path": 1.0}}, r"\[0, 1\)"),
        ({"retrain": {"label_smoothing": -0.1}}, r"\[0, 1\)"),
        ({"retrain": {"auxiliary_weight": -1.0}}, "must not be negative"),
        ({"retrain": {"cutout": -1}}, "at least 0"),
        ({"space": {"args": {"auxiliary": True}}}, "`space.args.auxiliary` serves in retraining only"),
        ({"space": {"args": {"drop_path": 0.1}}}, "`space.args.drop_path` serves in retraining only"),
    ],
)
def test_mistakes_are_refused_before_time_is_spent(values: dict[str, Any], message: str) -> None:
    small = {"width": 4, "n_nodes": 2, "operations": ["skip_connect", "conv_3x3"]}
    space = values.get("space", {})
    args = {**(small if "name" not in space else {}), **space.get("args", {})}
    with pytest.raises(ConfigError, match=message):
        validate(Config.from_dict({**values, "space": {**space, "args": args}}))


def test_a_cell_of_nas_bench_201_at_another_scale(tmp_path: Path) -> None:
    """Searched with 4 channels and a cell per stage, retrained with 6 channels and two."""
    space = {"name": "nasbench201", "args": {"width": 4, "cells_per_stage": 1}}
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
    larger = {"width": 6, "cells_per_stage": 2}
    settings = validate(
        Config.from_dict(
            {
                "space": space,
                "data": {"limit": 64},
                "retrain": {"epochs": 1, "space": larger, "cutout": 2},
                "experiment": {"device": "cpu"},
            }
        )
    )
    result = run_retrain(settings, {"choices": from_arch_string(text), "seed": 0}, tmp_path, lambda _: None)
    # A cell of C channels: 9 C^2 + 2 C of the 3x3 convolution, C^2 + 2 C of the 1x1.
    cells = sum(2 * (10 * c * c + 4 * c) for c in (6, 12, 24))
    between = sum(9 * c * 2 * c + 9 * 4 * c * c + 2 * c * c + 8 * c for c in (6, 12))
    assert result["params"] == cells + between + (9 * 6 + 12) + (48 + 24 * 10 + 10)
