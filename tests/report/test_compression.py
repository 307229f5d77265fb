"""Compressions in the report: text against known answers, figures that say nothing false."""

import json

import pytest

from nni_bayes_nas.report import compression, write_report
from nni_bayes_nas.report.read import read_run


def row(lam, accuracy, tuned=None):
    point = {"kept": 100, "test_accuracy": accuracy}
    curve = [{**point, "compression": 1.0}, {**point, "compression": 2.0, "test_accuracy": accuracy - 0.05}]
    if tuned is not None:
        curve[1]["finetuned"] = {"test_accuracy": tuned}
    return {
        "lambda": lam,
        "objective": -1000.0 * lam,
        "expected_log_likelihood": -500.0,
        "kl": 500.4,
        "val_accuracy": accuracy,
        "test_accuracy": accuracy,
        "predictive": {"accuracy": accuracy, "nll": 0.125, "ece": 0.01},
        "z_above_1": 1234,
        "bits": {"total": 8000},
        "curve": curve,
    }


def trained(kind, seed, seconds, *rows):
    return {"hypernet": kind, "lambda": None, "seed": seed, "training_seconds": seconds, "rows": list(rows)}


TRAINED = [
    trained("piecewise_linear", 0, 10.4, row(0.1, 0.9), row(1.0, 0.8, 0.85)),
    trained("piecewise_linear", 1, 9.6, row(0.1, 0.92), row(1.0, 0.8, 0.87)),
    trained("constant", 0, 5.0, {**row(1.0, 0.7), "objective": -1050.0}),
]


@pytest.fixture
def folder(run_folder, edit_summary):
    made = run_folder(with_metrics=False)
    edit_summary(made, lambda summary: summary.update(compression=TRAINED, architectures=[], searches=[], curves={}))
    path = made / "config.yaml"
    section = "\ncompress: {network: mlp, weights: variational, priors: [ard]}\n"
    path.write_text(path.read_text(encoding="utf-8") + section, encoding="utf-8")
    trial = made / "trials" / "compress-piecewise_linear-seed0"
    trial.mkdir(parents=True)
    head = {"stage": "compress", "trial": trial.name}
    rows = [{**head, "epoch": e, "step": e, "terms": {"val_accuracy/0.1": 0.5 + e / 10}} for e in range(3)]
    (trial / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return made


def test_means_and_standard_deviations_over_repeats(folder):
    first, second, direct = compression.table(read_run(folder))
    assert first[:6] == ["piecewise linear", "0.1", "2", "−100 ± 0", "−500 ± 0", "500 ± 0"]
    assert first[7] == "91.00 ± 1.41 %"
    assert first[10:] == ["0.1250 ± 0.0000", "0.0100 ± 0.0000", "1,234", "1,000"]
    assert second[1] == "1" and direct[:4] == ["direct", "1", "1", "−1,050"]
    assert (first[6], second[6], direct[6]) == ("–", "−50", "–")
    columns, rows = compression.curve_table(read_run(folder))
    assert columns == ["Trained", "λ", "1 ×", "2 ×"]
    assert rows[1] == ["piecewise linear", "1", "80.00 ± 0.00 %", "75.00 ± 0.00 % → 86.00 ± 1.41 %"]
    assert rows[2][-1] == "65.00 %"


def test_several_priors(folder, edit_summary):
    others = [{**one, "prior": "fixed"} for one in TRAINED]
    both = [{**one, "prior": "ard"} for one in TRAINED] + others
    edit_summary(folder, lambda summary: summary.update(compression=both))
    rows = compression.table(read_run(folder))
    assert [row[0] for row in rows[2:4]] == ["direct, ard", "piecewise linear, fixed"] and rows[1][6] == "−50"
    page = write_report([folder])[0].read_text(encoding="utf-8")
    assert "λ = 1, direct, fixed" in page


def test_an_improper_prior_is_no_evidence(folder, edit_summary):
    """Whichever section it comes from: that of a search is its strategy's."""
    said = "log-uniform is improper: its J is no evidence"
    for prior, there in (("ard", False), ("log_uniform", True)):
        every = [{**one, "prior": prior} for one in TRAINED]
        edit_summary(folder, lambda summary, every=every: summary.update(compression=every))
        assert (said in write_report([folder])[0].read_text(encoding="utf-8")) is there


def test_what_was_trained_on_stands_beside_what_was_read_off(folder, edit_summary):
    further = {**row(0.1, 0.95), "objective": -90.0}
    one = trained("piecewise_linear", 0, 10.4, {**row(0.1, 0.9), "posterior_finetuned": further})
    edit_summary(folder, lambda summary: summary.update(compression=[one]))
    rows = compression.table(read_run(folder))
    assert [cells[0] for cells in rows] == ["piecewise linear", "piecewise linear, trained on"]
    assert rows[1][3] == "−90" and rows[1][7] == "95.00 %"
    assert "λ = 0.1, piecewise linear, trained on" in write_report([folder])[0].read_text(encoding="utf-8")


def test_words(folder):
    run = read_run(folder)
    assert compression.sentence(run) == "2 hypernetworks in 10 s of training each and 1 direct run in 5 s each."
    assert compression.headline(run) == []
    run.config["experiment"] = {"plan": "compression"}
    assert compression.headline(run)[0].endswith("variational weights, prior ard: 3 finished trainings.")


def test_the_page(folder):
    page = write_report([folder])[0].read_text(encoding="utf-8")
    for words in ("Weights as functions of λ", "Test error against compression", "The objective over λ", "λ = 0.1"):
        assert words in page
    assert "Validation accuracy in training" in page and "Mixing weights over time" not in page
    assert "No architecture is retrained yet" not in page


def test_a_run_without_any(run_folder):
    run = read_run(run_folder(with_metrics=False))
    assert compression.plots(run) == compression.table(run) == compression.headline(run) == []
    assert compression.curve_table(run) == ([], []) and compression.sentence(run) == ""
    assert compression.learning_plots(run) == []
