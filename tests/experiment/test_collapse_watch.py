"""A search that is watched for collapse: what it logs, how it ends, how it goes on."""

import pytest
import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import collapse_watch
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.record import read_json, read_rows
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.report import family
from nni_bayes_nas.report.read import RunFolder

VALUES = {
    "space": {"name": "cell", "args": {"width": 4, "n_cells": 1, "n_nodes": 2}},
    "data": {"limit": 200, "val_limit": 80},
    "experiment": {"device": "cpu"},
}


def settings(strategy="regularized_darts", epochs=4, **search):
    section = {"epochs": epochs, "warmup_epochs": 1, "random": 0, "batch_size": 32, **search}
    return validate(Config.from_dict({**VALUES, "strategy": {"name": strategy}, "search": section}))


def searched(folder, config):
    folder.mkdir(exist_ok=True)
    return run_search(config, {"trial": "search-s0", "seed": 0}, folder, lambda row: None)


@pytest.mark.parametrize(
    "strategy", ["regularized_darts", "dirichlet_darts", pytest.param("hyper_darts", marks=pytest.mark.slow)]
)
def test_signs_are_logged_and_change_nothing(tmp_path, strategy):
    plain = searched(tmp_path / "plain", settings(strategy))
    watched = searched(tmp_path / "watched", settings(strategy, collapse="watch"))
    assert [a["choices"] for a in plain["architectures"]] == [a["choices"] for a in watched["architectures"]]
    rows = [row["terms"] for row in read_rows(tmp_path / "watched" / "metrics.jsonl") if "terms" in row]
    others = [row["terms"] for row in read_rows(tmp_path / "plain" / "metrics.jsonl") if "terms" in row]
    for ours, theirs in zip(rows, others, strict=True):
        assert {k: v for k, v in ours.items() if k in theirs} == pytest.approx(theirs, rel=1e-5)
    assert "parameter_free" not in rows[0]
    assert all(0 <= row["parameter_free"] <= 1 and row["curvature"] == row["curvature"] for row in rows[1:])
    assert "stopped" not in watched["search"]


@pytest.mark.slow
def test_curvature_is_that_of_the_weights_at_lambda(tmp_path, monkeypatch):
    """Where weights depend on lambda: not of those that the supernet had in the beginning."""
    found, curvature = [], collapse_watch.CollapseWatch.curvature

    def looked(self, search):
        values = [curvature(self, search)]
        for module in (search.training_module.model, search.hyper.means):
            parameters = list(module.parameters())
            with torch.no_grad():
                kept = [p.clone() for p in parameters]
                for p in parameters:
                    p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
            values.append(curvature(self, search))
            with torch.no_grad():
                for p, value in zip(parameters, kept, strict=True):
                    p.copy_(value)
        found.append(values)
        return values[0]

    monkeypatch.setattr(collapse_watch.CollapseWatch, "curvature", looked)
    joint = {"weights": "variational", "weight_hypernet": "linear", "weight_prior": "ard", "lambda_range": [0.1, 3.0]}
    section = {"epochs": 2, "warmup_epochs": 1, "random": 0, "batch_size": 32, "lambdas": 2, "collapse": "watch"}
    config = Config.from_dict({**VALUES, "strategy": {"name": "dirichlet_darts", "args": joint}, "search": section})
    searched(tmp_path, config)
    ((own, others, changed),) = found
    assert own is not None and others == pytest.approx(own, rel=1e-4) and changed != pytest.approx(own, rel=1e-2)


def test_it_ends_with_a_reason_and_stays_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(collapse_watch, "reason", lambda history: "enough" if len(history) == 2 else None)
    config = settings(epochs=6, collapse="stop")
    result = searched(tmp_path / "run", config)
    assert result["search"]["stopped"] == {"epoch": 3, "why": "enough"}
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "terms" in row]
    assert [row["epoch"] for row in rows] == [0, 1, 2] and result["architectures"]
    run = RunFolder(tmp_path, {"searches": [result["search"]]})
    assert family.stopped(run) == ["Search s0 ended after 3 epochs: enough."]
    # Read again, after a trial that died in the reading, it does not go on.
    monkeypatch.setattr(collapse_watch, "reason", lambda history: None)
    again = searched(tmp_path / "run", config)
    assert again["search"]["stopped"] == result["search"]["stopped"]
    assert again["architectures"] == result["architectures"]
    after = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "terms" in row]
    assert [row["epoch"] for row in after] == [0, 1, 2]


def test_a_search_that_was_killed_remembers_what_it_saw(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(collapse_watch, "reason", lambda history: seen.append(len(history)))
    searched(tmp_path / "run", settings(epochs=3, collapse="stop"))
    searched(tmp_path / "run", settings(epochs=5, collapse="stop"))
    assert seen == [1, 2, 3, 4] and read_json(tmp_path / "run" / "stopped.json") is None


def test_a_space_without_second_derivatives_has_the_other_signs(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("derivative for aten::odd is not implemented")

    monkeypatch.setattr(collapse_watch, "largest_eigenvalue", broken)
    searched(tmp_path / "run", settings(epochs=3, collapse="watch"))
    rows = [row["terms"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "terms" in row]
    assert "parameter_free" in rows[-1] and "curvature" not in rows[-1]


@pytest.mark.parametrize("how", ["watch", "stop"])
def test_searches_side_by_side_are_not_watched(how):
    with pytest.raises(ConfigError, match=rf"search\.collapse '{how}', and search\.replicas has them"):
        settings(searches=2, replicas=2, collapse=how)
