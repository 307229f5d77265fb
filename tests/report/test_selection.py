"""What a report says of trainings that froze parameters."""

import json

import pytest

from nni_bayes_nas.report import selection, write_report
from nni_bayes_nas.report.read import read_run

LAYERS = {
    "net.0.weight": {"parameters": 1000, "active": 0, "rows": 10, "active_rows": 0},
    "net.2.weight": {"parameters": 200, "active": 50, "rows": 20, "active_rows": 5},
}
OF_A_SEARCH = {
    "layers": LAYERS,
    "state_bytes": {"before": 4800, "after": 200},
    "milliseconds": {"before": 12.345, "after": 8.0},
}
OF_A_RETRAINING = {
    **OF_A_SEARCH,
    "macs": {"before": {"total": 2_500_000}, "after": {"total": 900}},
    "cache_bytes": 3 * 2**20,
    "no_cache": None,
}


@pytest.fixture
def folder(run_folder):
    made = run_folder(n_lambdas=2, n_random=1)
    path = made / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["searches"][0]["selection"] = OF_A_SEARCH
    first, second = summary["architectures"][:2]
    first["retrain"][0] |= {"name": "retrain-s0-lam0-seed0", "selection": OF_A_RETRAINING}
    # The same network by another name is one training; why nothing was kept is said.
    second["retrain"][0] |= {
        "name": "retrain-s0-lam0-seed0",
        "selection": {**OF_A_RETRAINING, "no_cache": "cache=False"},
    }
    path.write_text(json.dumps(summary), encoding="utf-8")
    return made


def test_what_was_frozen_and_what_it_saved(folder):
    run = read_run(folder)
    search, retraining = selection.table(run)
    dash = selection.DASH
    moments = "4.7 KiB → 0.2 KiB"
    assert search == ["search-s0", "1,200", "50 (4.2 %)", dash, "12.3 → 8", dash, moments, dash]
    assert retraining[5:] == ["2.5 M → 900", moments, "cache=False"]
    assert len(search) == len(selection.COLUMNS)
    of_search, _ = selection.maps(run)
    assert of_search.sentence == "1 parameter of 2 frozen as a whole."
    assert of_search.rows[1] == ["2.weight", "200", "50", "25.0 %", "20", "5", dash]
    assert len(of_search.rows[1]) == len(selection.LAYER_COLUMNS)
    page = write_report([folder])[0].read_text(encoding="utf-8")
    assert "What was optimized to the end" in page and "2.weight" in page


def test_what_was_not_made_zero(folder):
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: {**row, "kept": n} for (name, row), n in zip(LAYERS.items(), (30, 10), strict=True)}
    summary["searches"][0]["selection"] = {**OF_A_SEARCH, "layers": kept}
    path.write_text(json.dumps(summary), encoding="utf-8")
    assert selection.table(read_run(folder))[0][3] == "40"
    assert [row[-1] for row in selection.maps(read_run(folder))[0].rows] == ["30", "10"]


def test_outputs_that_were_kept(folder):
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    del summary["architectures"][1]["retrain"][0]["selection"]
    path.write_text(json.dumps(summary), encoding="utf-8")
    assert selection.table(read_run(folder))[1][-1] == "3.0 MiB"


def test_a_run_that_froze_nothing_has_no_such_section(run_folder):
    made = run_folder(n_lambdas=2, n_random=1)
    assert selection.table(read_run(made)) == []
    assert "What was optimized to the end" not in write_report([made])[0].read_text(encoding="utf-8")
