"""The facts of a task, and regression from the configuration to the report."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nni_bayes_nas.compliance import StrategyCompliance
from nni_bayes_nas.config import Config, DataConfig, load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import in_process
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.callbacks import METRICS
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.evaluator import ClassificationModule, RegressionModule
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain
from nni_bayes_nas.experiment.record import Record, read_rows
from nni_bayes_nas.experiment.retrain import run_retrain
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.experiment.summary import summarize
from nni_bayes_nas.experiment.tasks import TASKS, evaluation_module
from nni_bayes_nas.report import write_report

REGRESSION: dict[str, Any] = {
    "space": {"name": "dense", "args": {"width": 16}},
    "data": {"name": "diabetes", "task": "regression"},
    "search": {"epochs": 6, "warmup_epochs": 2, "batch_size": 32, "lambdas": 3, "random": 1, "weight_decay": 0.1},
    "retrain": {"epochs": 20, "batch_size": 32, "learning_rate": 0.02, "weight_decay": 0.1},
    "experiment": {"device": "cpu", "threads": 1, "concurrency": 1},
}


def test_the_names_of_terms_are_known_without_torch() -> None:
    """NNI's tuner writes the summary, and must start fast."""
    code = "import sys; from nni_bayes_nas.experiment import summary, tasks; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_modules_follow_the_data_and_the_settings() -> None:
    config = Config.from_dict({"retrain": {"learning_rate": 0.3, "momentum": 0.5, "weight_decay": 0.01}})
    classes = evaluation_module(load_data(DataConfig()), config.retrain, label_smoothing=0.1, auxiliary_weight=0.4)
    assert isinstance(classes, ClassificationModule) and classes.num_classes == 10
    assert (classes.learning_rate, classes.momentum, classes.weight_decay) == (0.3, 0.5, 0.01)
    assert (classes.label_smoothing, classes.auxiliary_weight) == (0.1, 0.4)
    data = load_data(DataConfig(name="diabetes", task="regression"))
    real = evaluation_module(data, config.search, label_smoothing=0.0, auxiliary_weight=0.2)
    assert isinstance(real, RegressionModule) and real.target_sd == data.target_sd and real.auxiliary_weight == 0.2
    with pytest.raises(ConfigError, match=r"label_smoothing is 0\.1"):
        evaluation_module(data, config.search, label_smoothing=0.1)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_a_trial_reports_is_what_the_task_measures(task: Any) -> None:
    terms = {name: float(i) for i, name in enumerate([*task.retrain_terms, "val_other"])}
    result = task.result(terms)
    assert result["default"] == terms[task.val_score]
    assert {task.val_score, task.test_score, *(key for key, _, _ in task.beside)} <= set(result)
    assert "val_other" not in result


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, dict[str, Any], list[dict[str, Any]]]:
    """A search and all its retrainings, in this process: configuration, run folder, summary, reported rows."""
    folder = tmp_path_factory.mktemp("regression")
    config = validate(Config.from_dict(REGRESSION))
    record = Record.create(folder / "out", config, {"command": "test"})
    ledger, reported = Ledger(SearchAndRetrain(config)), []
    while specs := ledger.take():
        for spec in specs:
            directory = record.trial_directory(spec.name)
            directory.mkdir(parents=True)
            function = run_search if spec.kind == "search" else run_retrain
            parameters = {"trial": spec.name, **spec.parameters}
            ledger.done(spec.name, function(config, parameters, directory, reported.append), f"job-{spec.name}")
    record.collect_metrics(ledger.order())
    summary = summarize(config, ledger, experiment=None, status="done")
    record.write_summary(summary)
    return config, record.output, summary, reported


def test_regression_reports_r2_to_nni(regression: Any) -> None:
    _, output, summary, reported = regression
    rows = [row["terms"] for row in read_rows(output / "trials" / "search-s0" / METRICS) if "terms" in row]
    assert len(rows) == 6
    assert [row["default"] for row in reported[:6]] == [row["val_r2"] for row in rows]
    for row in rows:
        assert {"val_r2", "val_rmse", "val_nll", "val_r2_lambda0", "train_loss"} <= set(row)
        assert "val_accuracy" not in row and "val_precision" not in row
    assert summary["searches"][0]["val_r2"] == rows[-1]["val_r2"]


def test_regression_learns(regression: Any) -> None:
    """Linear regression reaches R^2 of about 0.45 on these test data; the units are those of the targets."""
    config, _, summary, _ = regression
    data = load_data(config.data)
    y = data.test.tensors[1].double() * data.target_sd
    for row in summary["architectures"]:
        for result in row["retrain"]:
            assert result["test_r2"] > 0.3
            from_r2 = math.sqrt((1 - result["test_r2"]) * float(y.var(correction=0)))
            assert result["test_rmse"] == pytest.approx(from_r2, rel=1e-4)
            assert 4.0 < result["test_nll"] < 6.5
            assert "test_accuracy" not in result


def test_summary_of_a_regression(regression: Any) -> None:
    _, _, summary, _ = regression
    assert summary["task"] == "regression" and summary["score"]["term"] == "r2"
    for row in summary["architectures"]:
        scores = [result["test_r2"] for result in row["retrain"]]
        assert row["test_score_mean"] == row["test_r2_mean"] == pytest.approx(sum(scores) / len(scores))
        assert row["test_score_sd"] is None and "test_accuracy_mean" not in row
    json.dumps(summary, allow_nan=False)


def test_report_of_a_regression(regression: Any) -> None:
    _, output, summary, _ = regression
    text = write_report([output])[0].read_text(encoding="utf-8")
    titles = re.findall(r"<h3>([^<]*)</h3>\s*<svg", text)
    assert "R² against parameters" in titles and "Search: validation R²" in titles
    assert "Retraining: validation R²" in titles and "Search: losses" in titles
    assert ">R²</text>" in text and "Test RMSE" in text and "Test NLL (nats)" in text
    assert "ccuracy" not in text
    best = max(summary["architectures"][:3], key=lambda row: row["retrain"][0]["val_r2"])
    assert f"test R² {best['test_score_mean']:.4g}" in text


def test_the_command_search_names_the_score(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = {**REGRESSION, "search": {**REGRESSION["search"], "epochs": 3, "lambdas": 2, "random": 0}}
    in_process.search_in_process(Config.from_dict(values), tmp_path / "out", False, "search")
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if re.match(r"epoch \d: validation R² -?\d+\.\d{4}, entropy", line)]) == 3


class TestRegressionSearch(StrategyCompliance):
    """A search with a learned noise repeats, resumes and refuses NaN as one of classes does."""

    name = "hyper_darts"

    @classmethod
    def config(cls) -> Config:
        small = {"epochs": cls.epochs, "warmup_epochs": 1, "batch_size": 32, "lambdas": 2, "random": 1}
        return Config.from_dict({**REGRESSION, "strategy": {"name": cls.name}, "search": small})


def test_the_example_configuration_is_one() -> None:
    config = validate(load_config(Path(__file__).parents[2] / "examples" / "configs" / "diabetes.yaml"))
    assert config.data.task == "regression" and config.space.name == "dense"


def test_classification_keeps_its_names() -> None:
    config = Config.from_dict({})
    ledger = Ledger(SearchAndRetrain(config))
    ledger.take()
    row = {"lambda": 0.1, "origin": "lambda", "choices": {"a": 1}, "params": 1, "macs": 1}
    ledger.done("search-s0", {"default": 0.9, "search": {}, "architectures": [row]})
    (spec,) = ledger.take()
    terms = {"val_accuracy": 0.9, "val_precision": 0.8, "test_accuracy": 0.7, "test_precision": 0.6}
    ledger.done(spec.name, {"default": 0.9, **terms, "params": 1, "macs": 1, "seconds": 1.0})
    summary = summarize(config, ledger, experiment=None, status="done")
    assert summary["task"] == "classification" and summary["score"]["title"] == "accuracy"
    (architecture,) = summary["architectures"]
    assert terms.items() <= architecture["retrain"][0].items()
    assert architecture["test_accuracy_mean"] == architecture["test_score_mean"] == 0.7
    assert architecture["test_accuracy_sd"] is architecture["test_score_sd"] is None


@pytest.mark.parametrize("second_order", ["exact", "finite_difference"])
def test_order_2_follows_an_optimizer_that_spares_the_noise_its_decay(second_order: str, tmp_path: Path) -> None:
    strategy = {"args": {"order": 2, "second_order": second_order, "one_hot_passes": 0}}
    values = {**REGRESSION, "strategy": strategy, "search": {**REGRESSION["search"], "epochs": 3, "warmup_epochs": 1}}
    result = run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)
    assert result["search"]["val_r2"] > -1 and result["search"]["optimizer_steps_after_search"] == 0
    assert all(math.isfinite(row["one_hot_r2"]) for row in result["architectures"])
