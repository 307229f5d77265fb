"""Facts in words and rows, against known answers."""

import json
import math

import pytest

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.report import family, tables, write_report
from nni_bayes_nas.report.read import read_run
from nni_bayes_nas.report.weights import weight_history


def test_sd_only_with_two_seeds_and_with_n_minus_one():
    assert tables.percent(tables.measure([0.9])) == "90.00 %"
    assert tables.percent(tables.measure([0.9, None])) == "90.00 %"
    assert tables.percent(tables.measure([0.9, 0.92])) == "91.00 ± 1.41 %"
    assert tables.percent(tables.measure([])) == "–"
    assert tables.measure([0.9, math.nan]).n == 1


@pytest.mark.parametrize(("repeats", "shown"), [(1, False), (2, True), (3, True)])
def test_sd_in_the_table_follows_the_seeds(run_folder, repeats, shown):
    run = read_run(run_folder(repeats=repeats, with_metrics=False))
    columns = tables.architecture_columns(run)
    column = columns.index("Test")
    rows = tables.architecture_rows(run)
    assert len(rows) == len(run.architectures)
    assert all(("±" in row[column]) is shown for row in rows)
    assert all(len(row) == len(columns) for row in rows)


def test_score_and_further_columns_are_those_of_the_summary(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)
    assert tables.architecture_columns(read_run(folder))[-5:] == ["Validation", "Test", "Seeds", "Time", "Trials"]
    beside = [["test_rmse", "Test RMSE", False], ["test_share", "Share", True], ["broken"]]

    def change(summary):
        summary["score"] = {"term": "r2", "title": "R²", "percent": False, "beside": beside}
        summary["architectures"] = summary["architectures"][:1]
        values = {"val_r2": -0.25, "test_r2": 0.5, "test_rmse": 54.321, "test_share": 0.25, "seconds": 1.0}
        summary["architectures"][0]["retrain"] = [{"seed": 0, **values}]

    edit_summary(folder, change)
    run = read_run(folder)
    (row,) = tables.architecture_rows(run)
    shown = dict(zip(tables.architecture_columns(run), row, strict=True))
    assert (shown["Validation"], shown["Test"]) == ("−0.25", "0.5")
    assert (shown["Test RMSE"], shown["Share"]) == ("54.32", "25.00 %")
    assert ("Test R²", "0.5") in [tile[:2] for tile in tables.tiles(run)]


def test_latency_has_a_column_and_a_sentence_where_a_search_knew_it(run_folder, edit_summary):
    folder = run_folder(with_metrics=False, n_lambdas=2, n_random=0)
    run = read_run(folder)
    assert "Latency (ms)" not in tables.architecture_columns(run) and family.latency_note(run) == ""
    assert "latency table" not in write_report([folder])[0].read_text(encoding="utf-8")
    edit_summary(folder, lambda summary: summary["architectures"][0].update(latency=1.23456))
    run = read_run(folder)
    column = tables.architecture_columns(run).index("Latency (ms)")
    assert [row[column] for row in tables.architecture_rows(run)] == ["1.235", "–"]
    assert family.latency_note(run) in write_report([folder])[0].read_text(encoding="utf-8")


def test_few_seeds_are_said_to_be_few(run_folder):
    texts = [tables.seeds_text(read_run(run_folder(f"r{n}", repeats=n, with_metrics=False))) for n in (1, 2, 3)]
    assert "no spread" in texts[0]
    assert "fewer than 3" in texts[1]
    assert texts[2] == "mean ± sd over 3 retraining seeds"


def test_shared_retraining_counts_once_in_the_time(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)

    def change(summary):
        summary["searches"] = [{"id": "s0", "seconds": 100.0}]
        shared = [{"seed": 0, "seconds": 10.0, "trial": "Tx"}]
        summary["architectures"] = [{"id": str(i), "choices": {}, "retrain": shared} for i in range(3)]

    edit_summary(folder, change)
    assert tables.trial_seconds(read_run(folder)) == 110.0


def test_best_is_chosen_by_validation_never_by_test(run_folder, edit_summary):
    folder = run_folder(with_metrics=False)

    def change(summary):
        a, b = summary["architectures"][:2]
        summary["architectures"] = [a, b]
        a["retrain"] = [{"seed": 0, "val_accuracy": 0.9, "test_accuracy": 0.5}]
        b["retrain"] = [{"seed": 0, "val_accuracy": 0.8, "test_accuracy": 0.99}]

    edit_summary(folder, change)
    run = read_run(folder)
    assert tables.best_by_validation(run) is run.architectures[0]


def test_commands_quote_and_name_the_seeds(run_folder):
    run = read_run(run_folder("my run", repeats=2, with_metrics=False))
    commands = [command for _, command in tables.repeat_commands(run)]
    assert commands[0] == "nni-bayes-nas run examples/configs/demo-digits.yaml --output runs/demo"
    assert f"nni-bayes-nas report '{run.path}'" in commands  # where it was started is not known
    assert ("Retraining seeds", "0, 1") in tables.seed_rows(run)


def test_commands_start_where_the_run_was_started(run_folder):
    """Modules of one's own and relative paths of data are found from there."""
    run = read_run(run_folder("my run", repeats=1, with_metrics=False))
    for start, path in ((run.path.parent, "my run"), (run.path.parent.parent, f"{run.path.parent.name}/my run")):
        run.environment["code_directory"] = str(start)
        _, again, report = (command for _, command in tables.repeat_commands(run))
        assert again == f"nni-bayes-nas run '{path}'/config.yaml --output '{path}-again'"
        assert report == f"nni-bayes-nas report '{path}'"
    for elsewhere in (run.path, run.path / "x", run.path.parent / "other"):
        run.environment["code_directory"] = str(elsewhere)
        assert tables.repeat_commands(run)[-1][1] == f"nni-bayes-nas report '{run.path}'"


def test_environment_is_unfolded(run_folder):
    folder = run_folder(with_metrics=False)
    environment = {"gpus": [], "cpu": {"cores": 2}, "git_commit": None, "cards": [{"name": "A"}, {"name": "B"}]}
    (folder / "environment.json").write_text(json.dumps(environment))
    rows = [("gpus", "none"), ("cpu.cores", "2"), ("git_commit", "–"), ("cards.0.name", "A"), ("cards.1.name", "B")]
    assert tables.environment_rows(read_run(folder)) == rows


def test_torn_line_repeated_epoch_and_copied_rows(run_folder):
    folder = run_folder(with_metrics=False)
    target = folder / "trials" / "search-s0"
    target.mkdir(parents=True)
    rows = [
        {"stage": "search", "trial": "search-s0", "epoch": e, "terms": {"val_loss": v}}
        for e, v in [(0, 3), (1, 2), (1, 1.5)]
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (target / "metrics.jsonl").write_text(lines + '{"stage": "search", "epo')
    other = {"stage": "retrain", "trial": "retrain-s0-lam0-seed0", "epoch": 0, "terms": {"val_accuracy": 0.5}}
    (folder / "metrics.jsonl").write_text(lines + json.dumps(other) + "\n")
    run = read_run(folder)
    assert run.per_epoch("search-s0") == {"val_loss": ([0, 1], [3.0, 1.5])}
    assert run.trials("retrain") == ["retrain-s0-lam0-seed0"]
    assert run.architecture_of("retrain-s0-lam0-seed0") == run.architectures[0]
    assert run.architecture_of("retrain-s0-rand2-seed0")["id"] == "s0-rand-2"
    assert run.architecture_of("something else") is None


def test_weight_history_has_one_row_per_option_and_marks_gaps(run_folder):
    folder = run_folder(with_metrics=False)
    rows = [
        {"stage": "search", "trial": "t", "epoch": 0, "weights": {"0.0": {"c": {"a": 0.25, "b": 0.75}}}},
        {"stage": "search", "trial": "t", "epoch": 1, "weights": {"0.0": {"c": {"a": 1.0}}}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = weight_history(read_run(folder), "t")
    assert history["c"]["0.0"]["a"].tolist() == [0.25, 1.0]
    assert history["c"]["0.0"]["b"][0] == 0.75 and math.isnan(history["c"]["0.0"]["b"][1])


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_summary_is_the_users_news(run_folder, text):
    folder = run_folder(with_metrics=False)
    (folder / "summary.json").write_text(text)
    with pytest.raises(ConfigError, match=r"summary\.json of a run folder must"):
        read_run(folder)
