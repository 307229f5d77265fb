"""The second head of predictions: cells that are searched on parts, and stages that fail."""

import json

import pytest
from small_predict import SMALL, config, silent

from nni_bayes_nas.config import Config, config_to_yaml
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.bank import read_bank
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.cells import on_part, run_cells, run_predict_cells
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.parts import Parts, part_of
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.architecture_prediction import ArchitecturePrediction
from nni_bayes_nas.experiment.predict import run_predict
from nni_bayes_nas.experiment.verify import predicted


def test_stages_that_fail_are_the_runs_failure_once_the_others_have_ended():
    ledger = Ledger(ArchitecturePrediction(config("digits", tasks=2, cells=2)), retries=0)
    bank, cells_0 = ledger.take()
    ledger.died(cells_0.name, "out of memory")
    assert ledger.verdict() is None  # the bank goes on
    numbers = {"tasks": 2, "entries": 4, "as_good": 2, "tasks_as_good": 1, "seconds": 2.5, "methods": {"snip": 4}}
    ledger.done(bank.name, {**numbers, "default": 0.5})
    (fit,) = ledger.take()
    ledger.done(fit.name, {"predictions": [{"budget": 64, "seconds": 0.1, "networks": []}], "bank": numbers})
    (verify,) = ledger.take()
    assert ledger.verdict() is None
    ledger.done(verify.name, {"budget": 64, "rows": []})
    assert str(ledger.verdict()).startswith("every search of cells failed")

    # A bank from which nothing can be learned ends no search of cells.
    other = Ledger(ArchitecturePrediction(config("digits", tasks=2, cells=2)), retries=0)
    bank, cells_0 = other.take()
    other.died(bank.name, "out of memory")
    assert other.verdict() is None
    other.died(cells_0.name, "out of memory")
    assert str(other.verdict()).startswith("every search of the bank failed")

    failed = Ledger(ArchitecturePrediction(config("digits", tasks=2, cells=2)), retries=0)
    bank, cells_0 = failed.take()
    failed.done(bank.name, {**numbers, "default": 0.5})
    failed.done(cells_0.name, {"tasks": 2, "seconds": 3.0, "default": 0.5})
    fit, of_cells = failed.take()
    failed.died(of_cells.name, "every search chose the same cell")
    failed.done(fit.name, {"predictions": [{"budget": 64, "seconds": 0.1, "networks": []}], "bank": numbers})
    (verify,) = failed.take()
    assert failed.verdict() is None
    failed.died(verify.name, "killed")
    assert str(failed.verdict()).startswith("every training of predicted networks failed")


def test_files_that_are_not_there_are_said(tmp_path):
    settings = config()
    with pytest.raises(ConfigError, match=r"the searches of the bank left nothing in .*: they ran where this folder"):
        run_predict(settings, {"decoder": "seq2seq", "banks": ["bank-0"], "seed": 0}, tmp_path / "x", silent)
    with pytest.raises(ConfigError, match=r"predictions.json is not there: the trial that predicted ran where"):
        predicted(tmp_path / "predict-seq2seq", 60)
    (tmp_path / "later").mkdir()
    later = Config.from_dict({**settings.to_dict(), "predict": {**SMALL, "bank": str(tmp_path / "gone")}})
    (tmp_path / "later" / "config.yaml").write_text(config_to_yaml(later), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"went on from .*gone, which is not there"):
        read_bank([tmp_path / "later"])


def test_cells_are_retrained_like_those_of_a_search():
    values = config("digits", cells=2).to_dict() | {"retrain": {"repeats": 2}}
    ledger = Ledger(ArchitecturePrediction(Config.from_dict(values)), retries=0)
    assert [spec.name for spec in ledger.take()] == ["bank-0", "bank-1", "cells-0"]
    ledger.done("cells-0", {"tasks": 2, "seconds": 3.0, "default": 0.5})
    (fit,) = ledger.take()
    assert (fit.name, fit.kind) == ("predict_cells", "predict_cells")
    row = {"choices": {"a": "conv"}, "lambda": None, "log_prob": -0.1, "origin": "predicted", "params": 5, "macs": 6}
    search = {"strategy": "cells", "seed": 0, "seconds": 1.0}
    result = {"search": search, "architectures": [row], "random": [], "curve": [], "seconds_predict": 0.1}
    ledger.done("predict_cells", result)
    specs = ledger.take()
    assert [spec.kind for spec in specs] == ["retrain", "retrain"]
    assert [spec.parameters["seed"] for spec in specs] == [0, 1] and specs[0].parameters["choices"] == {"a": "conv"}
    summary = ledger.summary()
    assert [one["origin"] for one in summary["architectures"]] == ["predicted"]
    assert summary["prediction"]["cells"] == {"tasks": 2, "seconds": 3.0, "seconds_predict": 0.1}


def test_a_part_is_a_data_set():
    settings = config("digits", cells=2)
    (task,) = Parts(settings, images=True).tasks(1)
    assert task.source == "digits" and len(task.features) == 64
    part = on_part(settings, task)
    data = load_data(part.data)
    assert data.shape == (1, 8, 8) and data.num_classes == len(task.classes)
    x, y, x_test, _ = part_of(**part.data.args)
    assert len(data.train) + len(data.val) == len(x) and set(y.tolist()) == set(range(len(task.classes)))
    rows = {tuple(row.flatten().tolist()) for row in x}
    assert not rows & {tuple(row.flatten().tolist()) for row in x_test}


CELLS = {
    "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
    "strategy": {"name": "dirichlet_darts"},
    "search": {"epochs": 2, "warmup_epochs": 0, "batch_size": 8, "random": 0},
    "retrain": {"epochs": 1},
}


def cells(**predict):
    return Config.from_dict({**config("digits", sources=[], cell_replicas=2, **predict).to_dict(), **CELLS})


@pytest.mark.slow
def test_cells_are_predicted_from_parts(tmp_path):
    settings = validate(cells(cells=3, least_objects=64, cell_draws=2))
    folder = tmp_path / "cells-0"
    folder.mkdir()
    found = run_cells(settings, {"first": 0, "count": 3}, folder, silent)
    rows = [json.loads(line) for line in (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found["tasks"] == 3 and [len(row["searches"]) for row in rows] == [2, 2, 2]
    again = run_cells(settings, {"first": 0, "count": 3}, folder, silent)
    assert again == found
    # What is learned from: cells that differ.
    for i, row in enumerate(rows):
        label = next(iter(row["searches"][0][0]["choices"]))
        row["searches"][0][0]["choices"][label] = ("conv_3x3", "identity")[i % 2]
    (folder / "cells.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (out := tmp_path / "predict_cells").mkdir()
    made = run_predict_cells(settings, {"banks": ["cells-0"], "seed": 0}, out, silent)
    assert made["default"] < 0 and 1 <= len(made["architectures"]) <= 2
    assert all(row["origin"] == "predicted" and row["params"] > 0 for row in made["architectures"])


def test_cells_must_know_lambda_and_leave_classes_to_the_data():
    values = cells(cells=2).to_dict()
    for change, match in (
        ({"space": {"name": "chain", "args": {"width": 4, "depth": 2, "num_classes": 10}}}, "must be left to the data"),
        ({"strategy": {"name": "hyper_darts", "args": {"lambda_range": "auto", "complexity": "penalty"}}}, "must know"),
        ({"strategy": {"name": "hyper_darts", "args": {"axis": "literal", "hypernet": "linear"}}}, "must know lambda"),
    ):
        with pytest.raises(ConfigError, match=match):
            validate(Config.from_dict({**values, **change}))


def test_searches_of_cells_run_side_by_side():
    """What cannot is refused before the trials, and the remedy is not one that is followed already."""
    values = cells(cells=2).to_dict()
    for change, match in (
        ({"strategy": {"name": "regularized_darts", "args": {"order": 2}}}, r"`predict.cells` .*order 2; set it to 0"),
        ({"search": {**values["search"], "collapse": "watch"}}, "collapse 'watch', and predict.cells has them"),
    ):
        with pytest.raises(ConfigError, match=match):
            validate(Config.from_dict({**values, **change}))


def test_parts_must_hold_batches():
    with pytest.raises(ConfigError, match=r"`search.batch_size` must be at most"):
        validate(Config.from_dict({**cells(cells=2).to_dict(), "search": {"batch_size": 64, "random": 0}}))
