"""The command `export`: the file gives the network's outputs where NNI and this package cannot be imported."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.cli import main
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment import export as exporting
from nni_bayes_nas.experiment import standalone
from nni_bayes_nas.experiment.build import build_space
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.export import export
from nni_bayes_nas.experiment.program import Scaled, write_program
from nni_bayes_nas.experiment.record import read_json, write_json
from nni_bayes_nas.experiment.retrained import find_retraining, rebuild
from nni_bayes_nas.registry import SEARCH_SPACES

SMALL: dict[str, Any] = {
    "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
    "data": {"limit": 200},
    "search": {"lambdas": 2, "random": 0},
    "retrain": {"epochs": 4, "batch_size": 8, "learning_rate": 0.1, "repeats": 2},
    "experiment": {"device": "cpu"},
    "seed": 3,
}
DIABETES = {"name": "diabetes", "task": "regression"}

onnx = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the extra `export`")


@pytest.fixture(scope="module")
def one_retrained(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """Makes a run whose search found these choices, and one that was not retrained yet."""

    def make(folder: Path, values: dict[str, Any], choices: dict[str, Any]) -> Path:
        rows = [{"lambda": lam, "origin": "lambda", "choices": c} for lam, c in ((1e-3, choices), (1.0, {}))]
        return make_run(folder, values, rows, "retrain-s0-lam0-")

    return make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, one_retrained: Callable[..., Path]) -> Path:
    choices = {"layer0": "conv_3x3", "layer1": "conv_1x1"}
    return one_retrained(tmp_path_factory.mktemp("made") / "run", SMALL, choices)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def architecture(run: Path) -> str:
    return str(read_json(run / "summary.json")["architectures"][0]["id"])


def call(program: Path, x: torch.Tensor) -> np.ndarray:
    """What a user gets who has torch, or onnxruntime, and the file."""
    if program.suffix == ".pt2":
        with torch.no_grad():
            return np.asarray(torch.export.load(program).module()(x))
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(program).run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("format", ["pt2", pytest.param("onnx", marks=onnx)])
def test_the_file_has_the_accuracy_of_the_run(
    format: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On raw test objects, all at once: standardization and dynamic batch are inside."""
    name, output = architecture(made), tmp_path / f"net.{format}"
    assert main(["export", str(made), "--architecture", name, "--format", format, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    data = load_data(Config.from_dict(SMALL).data)
    x, y = data.test.tensors
    logits = call(output, x * data.sd + data.mean)
    retraining = find_retraining(made, name)
    assert retraining.row["test_accuracy"] > 0.25
    assert (logits.argmax(1) == y.numpy()).mean() == pytest.approx(retraining.row["test_accuracy"], abs=1e-6)
    network, _ = rebuild(retraining)
    with torch.no_grad():
        assert np.abs(logits - network(x).numpy()).max() < 1e-4
    assert f"{name}, retrained with seed {retraining.row['seed']}" in printed
    assert "float32 (batch, 1, 8, 8), as the data set gives it" in printed
    assert f"{retraining.architecture['params']} parameters, {output.stat().st_size} bytes" in printed
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    assert str(Path(__file__).parents[2]).encode() not in output.read_bytes()


def test_without_a_seed_the_best_on_validation_data(run: Path) -> None:
    summary = read_json(run / "summary.json")
    name = architecture(run)
    for best in (3, 4):
        for row in summary["architectures"][0]["retrain"]:
            # The test data must have no say.
            row.update(val_accuracy=0.5 + 0.1 * (row["seed"] == best), test_accuracy=0.9 - 0.1 * (row["seed"] == best))
        write_json(run / "summary.json", summary)
        assert find_retraining(run, name).directory.name == f"retrain-s0-lam0-seed{best}"
        assert find_retraining(run, name).score == ("validation accuracy", 0.6)
    assert find_retraining(run, name, 3).directory.name == "retrain-s0-lam0-seed3"


def test_the_weights_are_those_of_the_trial(made: Path) -> None:
    for seed in (3, 4):
        retraining = find_retraining(made, architecture(made), seed)
        network, known = rebuild(retraining)
        state = torch.load(retraining.directory / "model.pt", weights_only=True)
        assert not network.training
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        data = load_data(Config.from_dict(SMALL).data)
        assert torch.equal(known.mean, data.mean) and torch.equal(known.sd, data.sd)
        assert (known.shape, known.num_classes, known.task) == (data.shape, data.num_classes, data.task)


def spoil(run: Path, how: str) -> None:
    summary = read_json(run / "summary.json")
    trial = run / "trials" / "retrain-s0-lam0-seed3"
    if how == "no weights":
        (trial / "model.pt").unlink()
    elif how == "earlier version":
        (trial / "data.json").unlink()
    elif how == "torn data":
        (trial / "data.json").write_text("{")
    elif how == "no scale":
        write_json(trial / "data.json", {"shape": [1, 8, 8], "num_classes": 10})
    elif how == "no trials":
        shutil.rmtree(run / "trials")
    elif how == "other architecture":
        choices = json.loads((trial / "architecture.json").read_text())
        other = {"identity": "conv_1x1", "conv_1x1": "conv_3x3", "conv_3x3": "identity"}
        (trial / "architecture.json").write_text(json.dumps({k: other[v] for k, v in choices.items()}))
    elif how == "other width":
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("width: 4", "width: 5"))
    elif how == "torn weights":
        (trial / "model.pt").write_bytes((trial / "model.pt").read_bytes()[:100])
    elif how == "pickle":
        torch.save({"w": Path("x")}, trial / "model.pt")
    elif how == "torn summary":
        (run / "summary.json").write_text("{")
    elif how == "nameless":
        write_json(run / "summary.json", {"architectures": [{"x": 1}]})
    elif how in ("searched", "running", "failed"):
        summary["architectures"][0]["retrain"] = []
        summary["status"] = {"searched": "done"}.get(how, how)
        summary["experiment"]["id"] = None if how == "searched" else "abc"
        write_json(run / "summary.json", summary)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no weights", "copy trials/retrain-s0-lam0-seed3"),
        ("earlier version", "data.json, which is not there"),
        ("torn data", "data.json must hold shape, outputs and scale"),
        ("no scale", "KeyError('mean')"),
        ("no trials", "where this folder is not visible"),
        ("other architecture", "another architecture's"),
        ("other width", "loading failed"),
        ("torn weights", "loading failed"),
        ("pickle", "loading failed"),
        ("torn summary", "its summary.json is damaged"),
        ("nameless", "one has no id"),
        ("searched", "only searches"),
        ("running", "the run still goes on"),
        ("failed", "its retrain trials failed"),
    ],
)
def test_what_is_refused(how: str, says: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = architecture(run)
    spoil(run, how)
    before = sorted(run.rglob("*"))
    assert main(["export", str(run), "--architecture", name, "--seed", "3"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.startswith("error: ") and len(captured.err.splitlines()) <= 3
    assert captured.out == "" and sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--architecture", "s0-lam-0.01"], "did you mean `s0-lam-0.001`?"),
        (["--architecture", "s0-lam-0.001", "--seed", "7"], "one of 3, 4"),
        (["--architecture", "s0-lam-0.001", "--format", "onxx"], "did you mean `onnx`?"),
        (["--architecture", "s0-lam-0.001", "--output", "net.onnx"], "must end in .pt2"),
        (["--architecture", "s0-lam-0.001", "--output", "config.yaml/net.pt2"], "can be written"),
        (["--architecture", "s0-lam-0.001", "--tolerance", "0"], "must be positive"),
        (["--architecture", "s0-lam-0.001", "--tolerance", "nan"], "must be positive"),
        (["--architecture", "s0-lam-1"], "`s0-lam-1` must have been retrained"),
        (["--architecture", "s0-lam-0.001", "--raw-input", "--standardized-input"], "not allowed with"),
    ],
)
def test_what_a_user_may_get_wrong(
    arguments: list[str], says: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))
    try:
        code = main(["export", ".", *arguments])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    assert code == 2 and says in captured.err and len(captured.err.splitlines()) <= 3
    assert sorted(made.rglob("*")) == before


def test_a_missing_extra_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx and onnxscript cannot be imported\n.*pip install onnx onnxscript;"):
        export(Path("nowhere"), "s0", "onnx")


def test_a_file_that_differs_does_not_stay(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that an earlier export left stays as it was."""
    output = run / "net.pt2"
    output.write_bytes(b"earlier")
    before = sorted(run.rglob("*"))

    def other(program: Path, inputs: dict[str, Any], blocked: set[str]) -> dict[str, Any]:
        assert program.is_file() and {"nni", "nni_bayes_nas"} <= blocked
        return {name: np.full((len(x), 10), np.nan, np.float32) for name, x in inputs.items()}

    monkeypatch.setattr(exporting, "_run_alone", other)
    with pytest.raises(RunError, match="within 1e-05, it is off by nan"):
        export(run, architecture(run), "pt2", output=output)
    assert sorted(run.rglob("*")) == before and output.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("difference", "tolerance", "passes"), [(0.9e-5, 1e-5, True), (1.1e-5, 1e-5, False), (1.1e-5, 1e-4, True)]
)
def test_compare(difference: float, tolerance: float, passes: bool) -> None:
    expected = {"1": torch.zeros(1, 3), "5": torch.zeros(5, 3)}
    outputs = {"1": np.zeros((1, 3)), "5": np.full((5, 3), difference)}
    if passes:
        assert exporting._compare(expected, outputs, tolerance) == pytest.approx(difference)
    else:
        with pytest.raises(RunError, match=r"is off by 1\.1e-05"):
            exporting._compare(expected, outputs, tolerance)
    with pytest.raises(RunError, match=r"outputs \(1, 3\), it gives \(2, 3\)"):
        exporting._compare(expected, {**outputs, "1": np.zeros((2, 3))}, tolerance)


def test_block() -> None:
    block = standalone.Block({"nni", "nni_bayes_nas"})
    for name in ("nni", "nni.nas.nn", "nni_bayes_nas.search_spaces"):
        with pytest.raises(ModuleNotFoundError, match=f"must not need `{name}`"):
            block.find_spec(name)
    assert block.find_spec("nni_other") is None and block.find_spec("torch.nn") is None


@pytest.mark.slow
def test_a_program_that_needs_its_source_fails(tmp_path: Path) -> None:
    """The control of the check: an operator that a module of the user's defines is not in the file."""
    library = torch.library.Library("own_operators", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    library.impl("twice", lambda x: torch.empty_like(x), "Meta")

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.own_operators.twice(x)

    write_program(Network(), torch.ones(2, 3), tmp_path / "net.pt2")
    with pytest.raises(RunError, match=r"must run without NNI and this package, but it failed: .*own_operators"):
        exporting._run_alone(tmp_path / "net.pt2", {"1": torch.ones(1, 3)}, {"nni"})


@pytest.mark.parametrize("space", SEARCH_SPACES)
def test_a_network_of_every_space_exports(space: str, tmp_path: Path) -> None:
    """With random statistics of the batch normalization: those of a fresh network hide what evaluation mode does."""
    vectors = space == "dense"
    args = {"nasbench201": {"cells_per_stage": 1}}.get(space, {})
    values = {"space": {"name": space, "args": args}, "data": DIABETES if vectors else {"name": "digits"}}
    config = Config.from_dict(values)
    data = load_data(config.data)
    generator = torch.Generator().manual_seed(0)
    network: Any = build_space(config, data, 0).random(random_state=np.random.RandomState(0)).train()
    with torch.no_grad():
        network(torch.randn(16, *data.shape, generator=generator))
    source = Scaled(network.eval(), inputs=(data.mean, data.sd))
    write_program(source, torch.randn(2, *data.shape, generator=generator), tmp_path / "net.pt2")
    for n in (1, 7):
        x = torch.randn(n, *data.shape, generator=generator)
        with torch.no_grad():
            assert np.abs(call(tmp_path / "net.pt2", x) - source(x).numpy()).max() <= 1e-5


@onnx
def test_a_regression_predicts_in_the_units_of_its_targets(tmp_path: Path, one_retrained: Callable[..., Path]) -> None:
    values = {**SMALL, "space": {"name": "dense"}, "data": DIABETES, "retrain": {"epochs": 3}}
    config = Config.from_dict(values)
    choices = {"layer0": "linear", "layer1": "low_rank_4", "layer2": "wide"}
    run = one_retrained(tmp_path / "run", values, choices)
    written = export(run, "s0-lam-0.001", "onnx")
    assert written.path == run / "export" / "s0-lam-0.001.onnx"
    assert "predictions in the units of the targets" in "\n".join(written.lines())
    assert written.source.score == ("validation R²", written.source.row["val_r2"])
    data = load_data(config.data)
    x, z = data.test.tensors
    y = (z * data.target_sd + data.target_mean).numpy()
    predicted = call(written.path, x * data.sd + data.mean)[:, 0]
    assert 25 < y.min() and y.max() < 347  # the scores of the disease as published
    rmse = np.sqrt(((predicted - y) ** 2).mean())
    assert rmse == pytest.approx(written.source.row["test_rmse"], rel=1e-4)
    r2 = 1 - ((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert r2 == pytest.approx(written.source.row["test_r2"], abs=1e-4)


@pytest.mark.slow
@onnx
def test_what_served_in_training_only_is_left_out(tmp_path: Path, one_retrained: Callable[..., Path]) -> None:
    """Retrained at another scale, with an auxiliary classifier and drop-path."""
    values = {
        **SMALL,
        "space": {"name": "cell", "args": {"width": 4, "n_nodes": 2, "share": "all"}},
        "retrain": {
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 0.1,
            "space": {"n_cells": 3, "width": 6, "auxiliary": True},
            "drop_path": 0.1,
        },
    }
    config = Config.from_dict(values)
    data = load_data(config.data)
    # Not in the order of architecture.json, from which weights of equal shapes were loaded into each other's places.
    slots = (("2_0", "conv_3x3", 1), ("2_1", "conv_3x3", 0), ("3_0", "dil_conv_3x3", 2), ("3_1", "sep_conv_3x3", 0))
    choices = {f"cell/op_{slot}": operation for slot, operation, _ in slots}
    choices |= {f"cell/input_{slot}": [node] for slot, _, node in slots}
    assert Architecture(choices).canonical() != choices
    run = one_retrained(tmp_path / "run", values, choices)
    written = export(run, "s0-lam-0.001", "onnx")
    row = written.source.row
    assert row["test_accuracy"] > 0.25
    assert written.parameters == written.source.architecture["params"]
    assert not [name for name in torch.load(written.source.directory / "model.pt") if "auxiliary" in name]
    assert b"auxiliary" not in written.path.read_bytes()
    x, y = data.test.tensors
    logits = call(written.path, x * data.sd + data.mean)
    assert (logits.argmax(1) == y.numpy()).mean() == pytest.approx(row["test_accuracy"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.nni
@pytest.mark.parametrize("format", ["pt2", pytest.param("onnx", marks=onnx)])
def test_export_of_a_run_under_nni(format: str, pipeline: Callable[..., Any], tmp_path: Path) -> None:
    """From the configuration to outputs in a process that hides NNI by other means than the command itself does."""
    values = {
        **SMALL,
        "search": {"epochs": 2, "warmup_epochs": 1, "lambdas": 2, "random": 0},
        "retrain": {"epochs": 1},
    }
    run = pipeline(values)
    run.run()
    row = run.summary["architectures"][0]
    output = tmp_path / f"net.{format}"
    command = [sys.executable, "-m", "nni_bayes_nas", "export", str(run.output), "--architecture", row["id"]]
    subprocess.run([*command, "--format", format, "--output", str(output)], check=True)
    data = load_data(Config.from_dict(SMALL).data)
    x, y = data.test.tensors
    np.save(tmp_path / "x.npy", (x * data.sd + data.mean).numpy())
    call = {
        "pt2": "import torch; y = torch.export.load('net.pt2').module()(torch.from_numpy(x)).detach().numpy()",
        "onnx": "import onnxruntime; y = onnxruntime.InferenceSession('net.onnx').run(None, {'x': x})[0]",
    }
    hidden = "import sys; sys.modules.update(dict.fromkeys(['nni', 'nni_bayes_nas', 'pytorch_lightning']))"
    code = f"{hidden}; import numpy as np; x = np.load('x.npy'); {call[format]}; np.save('y.npy', y)"
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)
    accuracy = (np.load(tmp_path / "y.npy").argmax(1) == y.numpy()).mean()
    assert accuracy == pytest.approx(row["retrain"][0]["test_accuracy"], abs=1e-6)
