"""Predictions in the report: text against known answers."""

import pytest

from nni_bayes_nas.report import prediction, tables, write_report
from nni_bayes_nas.report.read import read_run


def error(source="wine", depth=1, tau=0.5, chance=0.2):
    return {
        "source": source,
        "objects": 40,
        "features": 13,
        "budget": 13,
        "distance": 0.5,
        "depth_found": 1,
        "depth": depth,
        "units_found": 4,
        "units": 6,
        "length": 3 if depth == 1 else -1,
        "layers": [0.25, 0.5] if depth == 1 else [0.75],
        "inputs": 0.4,
        "inputs_chance": chance,
        "nats": 1.5,
        "loss": 0.6,
        "loss_found": 0.5,
        "loss_others": 0.9,
        "accuracy": 0.8,
        "accuracy_found": 0.85,
        "tau": tau,
    }


def network(method, connections, test, predicted=False):
    return {
        "method": method,
        "predicted": predicted,
        "connections": connections,
        "parameters": connections + 5,
        "val_accuracy": 0.9,
        "test_accuracy": test,
        "test_loss": 0.25,
        "seconds": 1.5,
    }


FIT = {
    "kind": "doubly_recurrent",
    "parameters": 155_985,
    "entries": 30,
    "seconds_fit": 61.0,
    "seconds_ranker": 9.0,
    "predictions": [{"budget": 13, "seconds": 0.25}, {"budget": 65, "seconds": 0.75}],
    "errors": [error(), error(depth=2, tau=None), {**error("digits", chance=None), "layers_chance": [0.125, 0.25]}],
}
FOUND = {
    "bank": {
        "tasks": 12,
        "entries": 36,
        "as_good": 20,
        "tasks_as_good": 9,
        "seconds": 125.0,
        "methods": {"random": 1, "snip": 35},
    },
    "fits": [FIT],
    "verified": [
        {"budget": 13, "rows": [network("seq2seq", 13, 0.75, True)], "skipped": {"low_rank": "nothing is so small."}},
        {"budget": 65, "rows": [network("seq2seq", 60, 0.875, True), network("dense", 410, 0.95)], "skipped": {}},
    ],
}


@pytest.fixture
def folder(run_folder, edit_summary):
    made = run_folder(with_metrics=False)
    empty = {"architectures": [], "searches": [], "curves": {}}
    clock = {"trials": {"bank-0": {"seconds": 100.0}, "verify-13": {"seconds": 20.0}}}
    edit_summary(made, lambda summary: summary.update(prediction=FOUND, wall_clock=clock, **empty))
    return made


def test_what_is_said(folder):
    run = read_run(folder)
    (said,) = prediction.headline(run)
    assert "predicted from searches on 12 parts of data sets: 36 entries, 2 min 5 s of searching." in said
    bank, fit, small = prediction.sentences(run)
    assert bank.startswith("On 9 of 12 parts a small network is no worse") and bank.endswith(
        "by snip (35), random (1)."
    )
    assert fit == (
        "doubly recurrent: 155,985 parameters, fitted to 30 entries in 1 min 1 s, what ranks its networks "
        "in 9.0 s; a prediction takes 0.75 s at most."
    )
    assert small == "Of 13 connections: nothing is so small."
    assert tables.trial_seconds(run) == 120.0


def test_the_tables(folder):
    run = read_run(folder)
    assert [row[:3] for row in prediction.table(run)] == [
        ["13", "predicted, seq2seq", "13"],
        ["65", "predicted, seq2seq", "60"],
        ["65", "dense", "410"],
    ]
    assert prediction.table(run)[1][3:] == ["65", "90.00 %", "87.50 %", "0.250", "1.5 s"]
    digits, wine = prediction.error_table(run)
    assert digits[:3] == ["doubly recurrent", "digits", "1"] and digits[6:8] == ["0.25 0.50 / 0.12 0.25", "0.40 / –"]
    # Layers that all of its networks have, the second one of which has only one.
    assert wine[2:] == ["2", "50 %", "6.0 / 4.0", "+1.0", "0.50", "0.40 / 0.20", "1.50", "80.0 / 85.0", "0.50"]
    assert len(wine) == len(prediction.ERROR_COLUMNS)


def test_the_page(folder):
    (path,) = write_report([folder])
    page = path.read_text(encoding="utf-8")
    assert "Predicted networks" in page and "Parts that were kept out of the fit" in page
    assert page.count("<svg") >= 2 and "Weights as functions of λ" not in page
    assert [plot.title for plot in prediction.plots(read_run(folder))] == [
        "Accuracy by connections",
        "Where predictions are wrong",
    ]


def test_before_anything_is_done(folder, edit_summary):
    empty = {"tasks": 0, "entries": 0, "as_good": 0, "tasks_as_good": 0, "seconds": 0, "methods": {}}
    edit_summary(folder, lambda s: s.update(prediction={"bank": empty, "fits": [], "verified": []}))
    run = read_run(folder)
    assert prediction.table(run) == [] and prediction.plots(run) == [] and prediction.sentences(run) == []
    assert write_report([folder])
    edit_summary(folder, lambda s: s.pop("prediction"))
    assert prediction.headline(read_run(folder)) == []
