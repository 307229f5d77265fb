"""What is known before retraining: columns, sentences, found ranges, scales; against known answers."""

import pytest
import yaml

from nni_bayes_nas.report import family, tables, write_report
from nni_bayes_nas.report.read import read_run


def change_config(folder, **sections):
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values}
    path.write_text(yaml.safe_dump(config, allow_unicode=True))


@pytest.fixture
def known(run_folder, edit_summary):
    """A run of two searches whose first family row has all three numbers, the second one none."""
    folder = run_folder(with_metrics=False, n_lambdas=2, n_random=1, searches=2)

    def change(summary):
        summary["architectures"][0].update(price=-0.01234, mixture_accuracy=0.5, one_hot_accuracy=0.25)
        summary["architectures"][2].update(one_hot_accuracy=0.125)
        for search, ends in zip(summary["searches"], ([0.00123, 4.56], [0.01, 2]), strict=True):
            search["lambda_range"] = ends

    edit_summary(folder, change)
    return folder


def test_rows_are_the_family_with_what_each_knows(known):
    run = read_run(known)
    columns, rows = family.known_before(run)
    assert columns == ["Architecture", "λ", "Parameters", "Price", "Mixture", "One-hot", "Retrained"]
    assert [row[0] for row in rows] == ["s0-lam-0.0001", "s0-lam-0.1", "s1-lam-0.0001", "s1-lam-0.1"]
    assert rows[0][3:6] == ["−0.0123", "50.00 %", "25.00 %"]
    assert rows[1][3:6] == ["–", "–", "–"]
    assert rows[0][6] == tables.percent(run.architectures[0]["retrain"][0]["val_accuracy"])


def test_columns_without_a_value_are_left_out_with_their_sentence(known, edit_summary):
    edit_summary(known, lambda summary: [row.pop("price", None) for row in summary["architectures"]])
    run = read_run(known)
    assert "Price" not in family.known_before(run)[0]
    assert [sentence.partition(":")[0] for sentence in family.explained(run)] == ["Mixture", "One-hot", "Retrained"]


def test_folders_of_older_runs_have_no_such_table(run_folder):
    folder = run_folder(with_metrics=False)
    assert family.known_before(read_run(folder)) == ([], []) and family.explained(read_run(folder)) == []
    assert "Before retraining" not in write_report([folder])[0].read_text(encoding="utf-8")


def test_nothing_is_said_of_retraining_before_there_is_any(known, edit_summary):
    edit_summary(known, lambda summary: [row.update(retrain=[]) for row in summary["architectures"]])
    run = read_run(known)
    assert family.known_before(run)[0][-1] == "One-hot"
    assert not any("retrained for" in sentence for sentence in tables.headline(run))


def test_scores_of_a_regression_are_its_own(known, edit_summary):
    def change(summary):
        summary["score"] = {"term": "r2", "title": "R²", "percent": False, "beside": []}
        summary["architectures"][0].update(mixture_r2=-0.5, one_hot_r2=0.5)

    edit_summary(known, change)
    assert family.known_before(read_run(known))[1][0][4:6] == ["−0.5", "0.5"]
    assert "validation R²" in family.explained(read_run(known))[1]


def test_price_is_lambda_under_a_penalty_alone(known):
    assert "it is λ itself" not in " ".join(family.explained(read_run(known)))
    change_config(known, strategy={"args": {"complexity": "penalty"}})
    assert "it is λ itself" in " ".join(family.explained(read_run(known)))


def test_price_is_lambda_times_the_weight_of_the_term(known):
    change_config(known, strategy={"args": {"complexity": "penalty", "complexity_weight": 4.0}})
    assert "it is λ times complexity_weight = 4.0 where" in " ".join(family.explained(read_run(known)))


def test_ranges_that_were_not_found_are_told_apart(known, edit_summary):
    change_config(known, strategy={"args": {"complexity": "penalty", "lambda_range": "auto"}})
    edit_summary(known, lambda summary: summary["searches"][1].update(lambda_found=False))
    text = family.found_ranges(read_run(known))
    assert "auto): 0.00123 to 4.56 (s0). What λ costs was not found" in text
    assert text.endswith("over the range: 0.01 to 2 (s1).")
    # Under a given range there is nothing to say but that.
    change_config(known, strategy={"args": {"complexity": "penalty", "lambda_range": [0.01, 2.0]}})
    text = family.found_ranges(read_run(known))
    assert text.startswith("What λ costs was not found") and text.endswith("over the range: 0.01 to 2 (s1).")


def test_a_range_that_leaves_out_where_lambda_decides_is_said(known, edit_summary):
    change_config(known, strategy={"args": {"complexity": "penalty", "lambda_range": [0.01, 2.0]}})
    edit_summary(known, lambda summary: summary["searches"][1].update(lambda_found=True, lambda_decides=[0.01, 2.0]))
    assert family.found_ranges(read_run(known)) == ""
    edit_summary(known, lambda summary: summary["searches"][1].update(lambda_decides=[0.5, 30.0]))
    text = family.found_ranges(read_run(known))
    assert text.startswith("In search s1 λ decides between 0.5 and 30: the range that was asked for, 0.01 to 2, leaves")
    change_config(known, strategy={"args": {"complexity": "penalty", "lambda_range": "auto"}})
    assert "leaves out" not in family.found_ranges(read_run(known))


def test_ranges_are_named_where_the_search_has_found_them(known):
    run = read_run(known)
    column = tables.SEARCH_COLUMNS.index("λ range")
    assert [row[column] for row in tables.search_rows(run)] == ["0.00123 to 4.56", "0.01 to 2"]
    assert family.found_ranges(run) == ""
    change_config(known, strategy={"args": {"complexity": "penalty", "lambda_range": "auto"}})
    sentence = "Range of λ found by the search itself (lambda_range: auto): 0.00123 to 4.56 (s0); 0.01 to 2 (s1)."
    assert family.found_ranges(read_run(known)) == sentence
    assert sentence in write_report([known])[0].read_text(encoding="utf-8")


def test_other_scale_is_said_and_its_sizes_are_not_drawn_on_the_curve(known):
    def page():
        return write_report([known])[0].read_text(encoding="utf-8")

    rings = "rings are the architectures of the table"
    assert rings in page() and "retrain.space" not in page().partition("effective configuration")[0]
    change_config(known, retrain={"space": {"n_cells": 8, "width": 32}})
    text = page().partition("effective configuration")[0]
    assert rings not in text
    # The captions of the curve, of the table before retraining and of the table of all architectures.
    assert text.count("retrain.space: n_cells 8, width 32") == 3
    assert "sizes are those at the scale of the search" in text
