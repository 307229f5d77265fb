"""What bad input gets: exit code 2, at most three lines that name the value, nothing written, no time spent."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nni_bayes_nas.cli import main
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.check import checked

SPACE = """
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch.autograd.function import once_differentiable


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient


class Doubled(torch.nn.Module):
    def forward(self, x):
        return Once.apply(x)


class OnceSpace(ModelSpace):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, num_classes, 3)
        wide = torch.nn.Sequential(torch.nn.Conv2d(num_classes, num_classes, 3, padding=1), Doubled())
        self.layer = LayerChoice({"skip": torch.nn.Identity(), "twice": wide}, label="layer")

    def forward(self, x):
        return self.layer(self.stem(x)).mean((-2, -1))


class Empty(ModelSpace):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, num_classes, 3)

    def forward(self, x):
        return self.stem(x).mean((-2, -1))
"""
ONCE = {"space": {"name": "once_space:OnceSpace"}}


def strategy(name: str = "hyper_darts", /, **args: Any) -> dict[str, Any]:
    return {"strategy": {"name": name, "args": args}, "space": {"name": "chain"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start commands in, with data, latency tables and a space of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "once_space", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "once_space.py").write_text(SPACE)
    (tmp_path / "lacks.yaml").write_text("identity: 0.0\nlayer1/conv_3x3: 0.5\n")
    (tmp_path / "negative.yaml").write_text("identity: -1.0\n")
    (tmp_path / "typo.yaml").write_text('"*": 0.1\nfixde: 3.0\n')
    (tmp_path / "full.csv").write_text("operation,milliseconds\nidentity,0.01\nconv_1x1,0.2\nconv_3x3,0.7\n")
    np.save(tmp_path / "one.npy", np.zeros(3))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "real.npz", x=rng.random((60, 1, 8, 8)), y=rng.random(60))
    np.savez(tmp_path / "wide.npz", x=rng.random((60, 1, 20, 16)), y=np.arange(60) % 10)
    np.savez(tmp_path / "same.npz", x=rng.random((60, 1, 8, 8)), y=np.zeros(60))
    return tmp_path


def refusal(values: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (folder / "config.yaml").write_text(json.dumps(values))
    before = sorted(folder.rglob("*"))
    code = main(["search", "config.yaml", "--output", "out"])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) <= 3
    assert sorted(folder.rglob("*")) == before
    return captured.err


@pytest.mark.parametrize(
    ("values", "names"),
    [
        # What the issue lists.
        (strategy(cost="latency", latency_table="lacks.yaml"), ["layer0/conv_1x1", "lacks.yaml", "add lines"]),
        (strategy(order=2) | ONCE, ["layer.twice.1", "Doubled", "finite_difference", "order=1"]),
        (strategy("regularized_darts", order=2) | ONCE, ["layer.twice.1", "order=1"]),
        ({"data": {"name": "npz", "path": "real.npz"}, "space": {"name": "chain"}}, ["class numbers", "regression"]),
        ({"data": {"name": "diabetes"}, "space": {"name": "dense"}}, ["class numbers", "data.task: regression"]),
        (
            {"data": {"task": "regression"}, "space": {"name": "chain", "args": {"num_classes": 10}}},
            ["one real target", "10 outputs", "num_classes"],
        ),
        ({"space": {"name": "dense", "args": {"num_outputs": 3}}}, ["10 classes", "3 outputs", "num_outputs"]),
        ({"data": {"name": "npz", "path": "wide.npz"}}, ["stem", "20 pixels", "got 8", "4 times the work"]),
        ({"data": {"name": "npz", "path": "same.npz", "task": "regression"}}, ["targets differ", "0 to 0"]),
        (
            {"data": {"task": "regression"}, "retrain": {"label_smoothing": 0.1}, "space": {"name": "chain"}},
            ["label_smoothing", "0.1", "set it to 0"],
        ),
        # Latency.
        (strategy(cost="latency"), ["latency_table", "None", "both"]),
        (strategy(latency_table="full.csv"), ["latency_table", "full.csv", "both"]),
        (strategy("regularized_darts", cost="latency"), ["latency_table", "both"]),
        (strategy(cost="latency", latency_table="nowhere.yaml"), ["nowhere.yaml", "cannot be read"]),
        (strategy(cost="latency", latency_table="once_space.py"), ["once_space.py", ".csv"]),
        (strategy(cost="latency", latency_table="negative.yaml"), ["negative.yaml", "identity", "-1.0"]),
        (strategy(cost="latency", latency_table="typo.yaml"), ["typo.yaml", "'fixde'", "'fixed'"]),
        # Spaces, batches and hooks.
        ({"space": {"name": "once_space:Empty"}}, ["at least one choice", "LayerChoice"]),
        (
            {"data": {"name": "diabetes", "task": "regression", "limit": 8}, "space": {"name": "dense"}}
            | {"search": {"batch_size": 1}},
            ["search.batch_size", "2 objects", "raise it"],
        ),
        (
            {"data": {"name": "diabetes", "task": "regression", "limit": 40}, "space": {"name": "dense"}}
            | {"retrain": {"batch_size": 1}},
            ["retrain.batch_size", "2 objects"],
        ),
        ({"retrain": {"space": {"width": 0}}, "space": {"name": "cell"}}, ["retrain.space", "width", "got 0"]),
        ({"data": {"name": "npz", "path": "full.csv"}, "space": {"name": "chain"}}, ["full.csv", "numpy.savez"]),
        ({"data": {"name": "npz", "path": "one.npy"}, "space": {"name": "chain"}}, ["one.npy", "one array"]),
        (strategy(mutation_hooks=[1]), ["mutation_hooks", "functions", "[1]"]),
        (strategy("regularized_darts", mutation_hooks=[1]), ["mutation_hooks", "functions", "[1]"]),
        # What excludes each other.
        (strategy(relaxation="sigmoid"), ["price", "sigmoid", "piecewise_linear"]),
        (strategy(relaxation="identity"), ["price", "identity", "piecewise_linear"]),
        (strategy(axis="literal"), ["price", "literal", "linear"]),
        (strategy(complexity="none"), ["price", "none", "target"]),
        (strategy(complexity_weight=20.0), ["price", "complexity_weight", "20.0", "leave it out"]),
        (strategy(complexity="penalty", complexity_weight=0.0), ["complexity_weight", "0.0", "above 0"]),
        (strategy(n_knots=4), ["n_knots", "5", "got 4"]),
        (strategy(target_range=[1.0, 0.1]), ["target_range", "(1.0, 0.1)", "inside (0, 1)"]),
        (strategy(ramp=0.5, hypernet="linear"), ["ramp", "price", "0.5", "leave it out"]),
        (strategy(lambda_range="auto"), ["auto", "target", "penalty"]),
        (strategy(lambda_range="auto", complexity="none", hypernet="linear"), ["auto", "none"]),
        (
            strategy(lambda_range="auto", complexity="penalty", axis="literal", hypernet="linear"),
            ["auto", "literal", "(0.001, 1.0)"],
        ),
        (strategy(relaxation="sigmoid", mixing="marginals", hypernet="linear"), ["marginals", "sigmoid"]),
        (strategy(relaxation="identity", mixing="marginals", hypernet="mlp"), ["marginals", "identity"]),
        (strategy("regularized_darts", relaxation="sigmoid", mixing="marginals"), ["marginals", "sigmoid"]),
        # Names and ranges.
        (strategy(lambda_range="atuo"), ["lambda_range", "a list of 2 values or 'auto'", "atuo"]),
        (strategy(lambda_range=[1.0, 0.1]), ["lambda_range", "(1.0, 0.1)", "0 < low < high"]),
        (strategy(lambda_range=[0.0, 0.1]), ["lambda_range", "(0.0, 0.1)"]),
        (strategy(lambda_range=[0.1]), ["lambda_range"]),
        (strategy(axis="literal", hypernet="linear", lambda_range=[2.0, -1.0]), ["lambda_range", "(2.0, -1.0)"]),
        (strategy(order=3), ["order", "3"]),
        (strategy(order=2, second_order="approximate"), ["second_order", "finite_difference"]),
        (strategy(relaxation="gumble"), ["relaxation", "gumbel"]),
        (strategy(temperature_schedule="linaer"), ["temperature_schedule", "linear"]),
        (strategy(hypernet="cubic"), ["hypernet", "cubic"]),
        (strategy(cost="flops"), ["cost", "flops", "macs"]),
        (strategy(complexity="budget"), ["complexity", "budget"]),
        (strategy(lambda_per="batch"), ["lambda_per", "batch"]),
        (strategy(lambdas_per_stop=2), ["lambdas_per_stop", "did you mean `lambdas_per_step`?"]),
        (strategy("regularized_darts", lambda_range=[0.1, 1.0]), ["lambda_range"]),
        (strategy(lambdas_per_step=0), ["lambdas_per_step", "0"]),
        (strategy(one_hot_passes=-1), ["one_hot_passes", "-1"]),
        (strategy(n_knots=1), ["n_knots", "1"]),
        (strategy(target_range=[0.05, 0.95]), ["target_range", "0.05"]),
        (strategy(target_range=[1.5, 0.0]), ["target_range", "1.5"]),
        (strategy(validation_points=[]), ["validation_points"]),
        (strategy(validation_points=[0.0, 1.5]), ["validation_points", "1.5"]),
        (strategy(mixing_temperature=0.0), ["mixing_temperature", "0.0"]),
        (strategy(temperature=1.5), ["temperature", "1.5"]),
        (strategy(arc_learning_rate=0.0), ["arc_learning_rate"]),
        (strategy(complexity_weight=-1.0, complexity="penalty"), ["complexity", "-1.0"]),
        (strategy(ramp=1.5), ["ramp", "1.5"]),
        (strategy(zero_one=-1.0), ["zero_one", "-1.0"]),
        (strategy("regularized_darts", penalty=-0.1), ["penalty", "-0.1"]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_refused_before_time_is_spent(
    values: dict[str, Any], names: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(values, folder, capsys)
    assert all(name in said for name in names), said


@pytest.mark.parametrize("written", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    "name",
    [
        "complexity_weight",
        "temperature",
        "mixing_temperature",
        "monotonicity",
        "zero_one",
        "l1",
        "arc_learning_rate",
        "arc_weight_decay",
    ],
)
def test_not_a_number_is_refused_by_its_key(
    name: str, written: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.yaml").write_text(f"strategy: {{args: {{{name}: {written}}}}}")
    assert main(["search", "config.yaml"]) == 2
    assert f"`strategy.args.{name}` must be a finite number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [
        strategy(cost="latency", latency_table="full.csv"),
        strategy(order=2),
        strategy(order=2, second_order="finite_difference") | ONCE,
        strategy(order=1) | ONCE,
        {"data": {"name": "npz", "path": "real.npz", "task": "regression"}, "space": {"name": "chain"}},
        strategy(lambda_range="auto", complexity="penalty"),
        strategy(axis="literal", hypernet="linear", relaxation="identity", lambda_range=[-1.0, 1.0]),
    ],
    ids=str,
)
def test_what_is_allowed_stays_allowed(values: dict[str, Any], folder: Path) -> None:
    config = checked(Config.from_dict(values))
    assert checked(config) == config
