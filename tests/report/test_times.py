"""The table of where the time went: known answers."""

import pytest

from nni_bayes_nas.report import write_report
from nni_bayes_nas.report.read import read_run
from nni_bayes_nas.report.times import time_sentence, time_table

TIMES = {
    "seconds": 100.0,
    "phases": {"start": 8.0, "trials": 90.0, "report": 2.0},
    "slots": {"count": 2, "done": 120.0, "unfinished": 20.0, "idle": 40.0},
    "trials": {
        "search-s0": {"kind": "search", "seconds": 60.0, "stages": {"training": 50.0, "reading": 7.0, "nni": 3.0}},
        "a": {"kind": "my_module:retrain", "seconds": 30.0, "stages": {"training": 26.0, "nni": 4.0}},
        "b": {"kind": "my_module:retrain", "seconds": 30.0, "stages": {"training": 20.0, "nni": 8.0, "odd <stage>": 2}},
    },
}


def test_trials_of_several_trainings_are_named_in_words(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)
    stages = {"stages": {"training": 1.0}}
    trials = {"a": {"kind": "searches", **stages}, **{name: {"kind": "retrains", **stages} for name in "bc"}}
    edit_summary(folder, lambda summary: summary.update(wall_clock={**TIMES, "trials": trials}))
    assert time_table(read_run(folder))[0][1:3] == ["1 group of searches (s)", "2 × group of retrainings (s)"]


def test_known_answers(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)
    edit_summary(folder, lambda summary: summary.update(wall_clock=TIMES))
    columns, rows = time_table(read_run(folder))
    assert columns == ["Stage", "1 search (s)", "2 × retrain (s)", "Together (s)", "Share"]
    assert [row[1:] for row in rows] == [
        ["3.0", "12.0", "15.0", "8.3 %"],
        ["50.0", "46.0", "96.0", "53.3 %"],
        ["7.0", "–", "7.0", "3.9 %"],
        ["–", "2.0", "2.0", "1.1 %"],
        ["", "", "20.0", "11.1 %"],
        ["", "", "40.0", "22.2 %"],
        ["60.0", "60.0", "180.0", "100.0 %"],
    ]
    assert rows[1][0] == "Training" and rows[3][0] == "odd <stage>"
    assert time_sentence(read_run(folder)) == (
        "1 min 40 s so far: 8.0 s until the first trial was sent, 1 min 30 s of trials on 2 slots, "
        "2.0 s for the report."
    )
    write_report([folder])
    page = (folder / "report.html").read_text()
    assert "odd &lt;stage&gt;" in page and "Slots without a trial" in page


@pytest.mark.parametrize("times", [None, {}, {"trials": {}, "phases": {}}, {"trials": 3, "slots": "x", "phases": 1}])
def test_a_summary_without_times(times, run_folder, edit_summary):
    folder = run_folder(with_metrics=False)
    edit_summary(folder, lambda summary: summary.update(wall_clock=times))
    assert time_table(read_run(folder)) == ([], []) and time_sentence(read_run(folder)) == ""
    write_report([folder])
    assert "no times of finished trials" in (folder / "report.html").read_text()
