"""The halves of a step on a single level one after the other: without normalization exactly what they are together."""

import json

import pytest
import torch
from torch import nn

from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.replicas import run_searches
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.layers import gaussian_output
from nni_bayes_nas.search_spaces import dense
from nni_bayes_nas.strategies import DirichletDARTS

VALUES = {
    "space": {"name": "dense", "args": {"width": 8, "depth": 2}},
    "data": {"limit": 192},
    "search": {"epochs": 4, "warmup_epochs": 1, "batch_size": 32, "learning_rate": 0.05, "random": 0},
}
CASES = {
    "a draw for every object": {},
    "a draw a step": {"draw_per": "step"},
    "no draws": {"family": "softmax"},
    "one-hot passes": {"one_hot_passes": 2},
    "gated weights": {"weights": "variational", "dependence": "gated", "rho": -3.0},
    "over lambda": {"lambda_range": [0.01, 1.0], "complexity": "penalty"},
}


def config(args, **search):
    args = {"arc_learning_rate": 0.1, **args}
    return Config.from_dict(
        {**VALUES, "search": {**VALUES["search"], **search}, "strategy": {"name": "dirichlet_darts", "args": args}}
    )


def searched(folder, **args):
    """Mean probabilities, and the terms of all epochs."""
    folder.mkdir(parents=True)
    run_search(config(args), {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
    q = ArchitecturePosterior.from_dict(json.loads((folder / "posterior.json").read_text()))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.cat([p.flatten() for p in q.probs]), [row["terms"] for row in lines if "terms" in row]


@pytest.mark.parametrize("name", CASES)
def test_halves_one_after_the_other_are_the_whole(name, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "_end", lambda width: (nn.Identity(), nn.ReLU()))
    monkeypatch.setattr(gaussian_output, "gaussian_like", torch.ones_like)
    together, first = searched(tmp_path / "together", **CASES[name])
    in_turn, second = searched(tmp_path / "in_turn", accumulate=True, **CASES[name])
    uniform = torch.cat([torch.full((1, len(together) // 2), 2 / len(together)).flatten()] * 2).double()
    assert float((together - uniform).abs().max()) > 5e-3  # something was learned
    torch.testing.assert_close(in_turn, together, rtol=1e-2, atol=1e-3)
    for a, b in zip(first, second, strict=True):
        assert a["structure_loss"] == pytest.approx(b["structure_loss"], rel=2e-3)


def test_searches_side_by_side(tmp_path):
    """Members of a group take the gradients of their first halves together, and end where they end alone."""
    seeds = {"search-s0": 0, "search-s1": 1}
    whole = config({"accumulate": True}, searches=2, replicas=2)
    together = run_searches(whole, {"trial": "t", "seeds": seeds}, tmp_path / "t", lambda row: None)
    assert together["failures"] == []
    for name, seed in seeds.items():
        folder = tmp_path / "alone" / name
        folder.mkdir(parents=True)
        run_search(config({"accumulate": True}), {"trial": name, "seed": seed}, folder, lambda row: None)
        q, alone = (
            ArchitecturePosterior.from_dict(json.loads((where / "posterior.json").read_text()))
            for where in (tmp_path / "t" / name if (tmp_path / "t" / name).exists() else tmp_path / name, folder)
        )
        for a, b in zip(q.probs, alone.probs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scheme": "bilevel"}, "accumulate is of the two halves of a single level .* got scheme 'bilevel'"),
        (
            {"weight_hypernet": "linear", "lambda_range": (0.1, 1.0), "weights": "variational"},
            "and weight_hypernet 'linear'; leave it out",
        ),
        ({"cuda_graphs": True}, "cuda_graphs records a step as one pass, got accumulate too"),
    ],
)
def test_what_has_no_halves(options, match):
    with pytest.raises(ConfigError, match=match):
        DirichletDARTS(accumulate=True, **options)
