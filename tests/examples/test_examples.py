"""The examples run as their first lines say."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.search import run_search

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OWN = EXAMPLES / "own_project"
TINY = [
    "data.args.n=200",
    "search.epochs=2",
    "search.warmup_epochs=1",
    "search.lambdas=2",
    "search.random=0",
    "retrain.epochs=1",
    "experiment.threads=1",
    "experiment.device=cpu",
]


def run(*command: str, cwd: Path, home: Path, timeout: float = 280) -> str:
    """Standard output of a process with a home folder of its own, which must end well."""
    home.mkdir(exist_ok=True)
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    env = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, text=True, capture_output=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_nas_experiment(tmp_path: Path) -> None:
    """Three distinct networks from large to small; a search that ended early goes on."""
    script = str(EXAMPLES / "01_nas_experiment.py")
    run(script, "--epochs", "4", "--output", "first", cwd=tmp_path, home=tmp_path / "home")
    checkpoint = str(tmp_path / "first" / "last.ckpt")
    out = run(
        script, "--epochs", "8", "--resume", checkpoint, "--output", "second", cwd=tmp_path, home=tmp_path / "home"
    )
    rows = re.findall(r"^ *(\d+) parameters: (\{.*\})$", out, flags=re.MULTILINE)
    sizes = [int(size) for size, _ in rows]
    assert len({choices for _, choices in rows}) == 3
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_own_data(tmp_path: Path, task: str) -> None:
    """Distinct networks from large to small, each with its scores; a second run begins anew."""
    command = [str(EXAMPLES / "04_own_data.py"), "--task", task, "--epochs", "6"]
    out = run(*command, cwd=tmp_path, home=tmp_path / "home")
    again = run(*command, cwd=tmp_path, home=tmp_path / "home")
    rows = re.findall(r"^ *(\d+) parameters, .*validation (\S+), test (\S+), layers", out, flags=re.MULTILINE)
    sizes = [int(size) for size, _, _ in rows]
    assert len(sizes) >= 2 and sizes == sorted(set(sizes), reverse=True)
    assert rows == re.findall(r"^ *(\d+) parameters, .*validation (\S+), test (\S+), layers", again, re.MULTILINE)
    if task == "classification":
        assert all(float(test) > 0.9 for _, _, test in rows)


@pytest.mark.slow
def test_size_budget(tmp_path: Path) -> None:
    """Every network keeps to its budget, smaller budgets never give larger ones, and an impossible one is refused."""
    command = [str(EXAMPLES / "03_size_budget.py"), "--epochs", "4", "--retrain-epochs", "6"]
    out = run(*command, cwd=tmp_path, home=tmp_path / "home").replace(",", "")
    rows = re.findall(r"^(max_\w+) +(\d+): +(\d+) parameters +(\d+) MACs lambda (\S+) (\S+)$", out, re.MULTILINE)
    assert [row[0] for row in rows] == 5 * ["max_params"] + 3 * ["max_macs"]
    for kind in ("max_params", "max_macs"):
        column = 2 if kind == "max_params" else 3
        budgets = [int(row[1]) for row in rows if row[0] == kind]
        sizes = [int(row[column]) for row in rows if row[0] == kind]
        assert all(size <= budget for size, budget in zip(sizes, budgets, strict=True))
        assert sizes == sorted(sizes, reverse=True) and sizes[0] == budgets[0] > sizes[-1]
    assert all(0 < float(row[5]) <= 1 for row in rows)
    refused = re.search(r"^max_params +(\d+): refused: .*which has (\d+) parameters", out, re.MULTILINE)
    assert refused is not None and int(refused[1]) < int(refused[2]) <= int(rows[4][2])
    trained = re.search(r"within (\d+): (\d+) parameters test accuracy (\S+)$", out, re.MULTILINE)
    assert trained is not None and int(trained[2]) <= int(trained[1]) and float(trained[3]) > 0.8


@pytest.mark.nni
@pytest.mark.slow
def test_posterior(tmp_path: Path) -> None:
    """Draws are trained as trials, and their ensemble stands beside its best member and as many seeds of that."""
    changes = ["search.samples=1", "search.epochs=3", "search.warmup_epochs=1", "retrain.epochs=2"]
    changes += ["retrain.repeats=2", "retrain.replicas=1", "experiment.concurrency=2"]
    sets = [part for change in changes for part in ("--set", change)]
    out = run(str(EXAMPLES / "05_posterior.py"), *sets, "--output", "mine", cwd=tmp_path, home=tmp_path / "home")
    assert len(re.findall(r"^  cell0/\d_\d +\w+ +[01]\.\d\d$", out, re.MULTILINE)) == 5
    for name in ("posterior of s0, weighted", "best member of s0 by validation", "2 seeds of the best member of s0"):
        assert re.search(rf"^{name} +2 +0\.\d{{4}} +\d\.\d{{4}} +0\.\d{{4}}", out, re.MULTILINE), name
    assert (tmp_path / "mine" / "report.html").exists()


@pytest.mark.nni
@pytest.mark.slow
def test_joint_posterior(tmp_path: Path) -> None:
    """Networks of all lambda come from the search itself; NNI's trials train the same architectures anew."""
    changes = ["search.epochs=3", "search.warmup_epochs=1", "retrain.epochs=1", "compress.finetune_epochs=1"]
    sets = [part for change in (*changes, "space.args.width=4") for part in ("--set", change)]
    out = run(str(EXAMPLES / "06_joint_posterior.py"), *sets, "--output", "mine", cwd=tmp_path, home=tmp_path / "home")
    rows = [line.split() for line in out.splitlines() if re.match(r"^ +0\.\d+ +\d+ +\d+ +\d", line)]
    assert [float(row[0]) for row in rows] == pytest.approx([0.01, 0.0234, 0.0548, 0.128, 0.3], rel=1e-2)
    assert all(int(row[2]) <= int(row[1]) and 0 < float(row[7]) <= 100 for row in rows)
    assert (tmp_path / "mine" / "joint.png").stat().st_size > 20_000
    report = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    assert "search-s0" in report and (tmp_path / "mine" / "trials" / "search-s0" / "networks").is_dir()


@pytest.mark.slow
def test_selective_training(tmp_path: Path) -> None:
    """Five trainings, of which three freeze something."""
    out = run(str(EXAMPLES / "07_selective_training.py"), "--epochs", "5", cwd=tmp_path, home=tmp_path / "home")
    for name in ("all", "beginning frozen", "a tenth of the neurons", "output layer alone", "all, for as long as that"):
        assert re.search(rf"^{name} +\d+\.\d\d +\d+\.\d", out, re.MULTILINE), name
    assert (tmp_path / "runs" / "selective-training.png").stat().st_size > 20_000


@pytest.mark.nni
@pytest.mark.slow
def test_predict_architecture(tmp_path: Path) -> None:
    """The bank, one decoder, three budgets; the figure is drawn."""
    changes = ["tasks=4", "tasks_per_trial=2", "candidates=3", "steps=20", "fit_steps=10", "train_steps=30", "draws=4"]
    sets = [part for change in changes for part in ("--set", f"predict.{change}")]
    script = str(EXAMPLES / "08_predict_architecture.py")
    out = run(script, *sets, "--output", "mine", cwd=tmp_path, home=tmp_path / "home")
    rows = re.findall(r"^ +(\d+)  predicted, doubly recurrent +(\d+) +\d+\.\d\d +\d+\.\d\d$", out, re.MULTILINE)
    assert [int(budget) for budget, _ in rows] == [64, 320, 442]
    assert all(int(connections) <= int(budget) for budget, connections in rows)
    assert (tmp_path / "mine" / "prediction.png").stat().st_size > 20_000


def test_the_example_fits_a_page() -> None:
    assert len((EXAMPLES / "01_nas_experiment.py").read_text(encoding="utf-8").splitlines()) <= 80


@pytest.fixture
def own_project(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the command line sees it: last on the path."""
    monkeypatch.chdir(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path, str(OWN)])
    for name in ("my_space", "my_data", "strategies", "strategies.anneal"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return OWN


def test_own_project_validates(own_project: Path) -> None:
    config = validate(load_config(own_project / "config.yaml"))
    assert config.strategy.args["factor"] == 0.95
    assert validate(Config.from_dict(config.to_dict())) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.args.facto=0.9", "factor"),
        ("strategy.args.factor=2.0", "factor must lie in"),
        ("data.args.nois=1.0", "noise"),
        ("space.args.width=wide", "width"),
        ("space.name=my_space:TwoPathsSpace", "TwoPathSpace"),
        ("space.name=my_spaces:TwoPathSpace", "my_spaces"),
    ],
)
def test_own_project_refuses_mistakes(own_project: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(load_config(own_project / "config.yaml", [override]))


def test_own_project_searches(own_project: Path, tmp_path: Path) -> None:
    config = validate(load_config(own_project / "config.yaml", TINY))
    terms: list[dict[str, Any]] = []
    result = run_search(config, {"trial": "search-s0", "seed": 0}, tmp_path, terms.append)
    assert len(terms) == 2
    assert result["search"]["strategy"] == "strategies.anneal:AnnealedHyperDARTS"
    assert set(result["architectures"][0]["choices"]) == {"first", "second", "seen"}


@pytest.mark.nni
@pytest.mark.slow
def test_own_project_runs(tmp_path: Path) -> None:
    """The real thing: manager, tuner and trials find the user's modules."""
    options = [word for override in TINY for word in ("--set", override)]
    output = tmp_path / "out"
    command = ["-m", "nni_bayes_nas", "run", "config.yaml", "--output", str(output), *options]
    run(*command, "--set", f"experiment.port={free_port()}", cwd=OWN, home=tmp_path / "home")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["status"] == "done" and summary["experiment"]["trials_failed"] == 0
    assert all(row["test_accuracy_mean"] is not None for row in summary["architectures"])
    assert yaml.safe_load((output / "config.yaml").read_text())["space"]["name"] == "my_space:TwoPathSpace"
    assert (output / "report.html").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_search_step_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The result file follows the contract of the benchmarks, and what it holds is not measured again."""
    script, output = EXAMPLES / "benchmarks" / "search_step.py", tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [str(script), "--preset", "smoke", "--seeds", "1", "--output", str(output)])
    monkeypatch.syspath_prepend(script.parent)  # memory is measured in processes of their own, which import it again
    threads = torch.get_num_threads()
    try:
        benchmark = load(script)
        assert benchmark.main() == 0
        first = json.loads(output.read_text())
        # Nor does it mind that an arm was not there yet.
        older = json.loads(output.read_text())
        del older["rows"][0]["ms"]["Dirichlet"]
        output.write_text(json.dumps(older))
        assert benchmark.main() == 0
    finally:
        torch.set_num_threads(threads)
    assert {"schema", "benchmark", "preset", "command", "environment", "seconds", "rows", "targets"} <= set(first)
    (row,), (target,) = first["rows"], first["targets"]
    arms = {"NNI", "NNI channels_last", "plain", "fused", "fused, bf16", "fused, order 2"}
    arms |= {f"Dirichlet{weights}{turn}" for weights in ("", ", Gaussian weights") for turn in ("", ", in turn")}
    assert (
        row["seed"] == 0 and row["seconds"] > 0 and set(row["ms"]) == arms and set(row["peak_mib"]) == {"NNI", "fused"}
    )
    assert min(row["ms"].values()) > 0 and set(row["ratio_to_nni"]) == arms - {"NNI"}
    assert set(row["share_of_peak"]) == arms and all(0 < share < 1 for share in row["share_of_peak"].values())
    assert all(0 < error < 0.2 for error in row["error_of_bf16"].values()) and len(row["error_of_bf16"]) == 3
    axes = [grown["axis"] for grown in first["growth"]]
    assert {axis: axes.count(axis) for axis in axes} == {"cells": 1, "width": 1, "operations": 1, "lambda": 4}
    assert all(min(grown["ms"].values()) > 0 for grown in first["growth"])
    assert {"name", "what", "value", "limit", "better", "holds"} == set(target)
    assert target["holds"] == (target["value"] <= 1.0) and "plain / NNI" in capsys.readouterr().out
    again = json.loads(output.read_text())
    assert again["rows"] == older["rows"] and again["growth"] == first["growth"]


def load(script: Path) -> Any:
    """A script as a module; what it does to the filters of warnings ends here."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # dataclasses look their module up
    with warnings.catch_warnings():
        spec.loader.exec_module(module)
    return module
