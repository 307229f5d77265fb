"""What a search gives a refinement: its most probable architectures, each network once, within a budget."""

import json

import pytest

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.experiment.plans.posterior_refinement import unpack
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.search_spaces.cell import isomorphism_key

CHAIN = {"name": "chain", "args": {"width": 4, "depth": 2}}
CELL = {
    "name": "cell",
    "args": {"width": 4, "n_cells": 1, "n_nodes": 2, "operations": ["skip_connect", "sep_conv_3x3"]},
}


def search(folder, strategy, space=CHAIN, samples=0, **parameters):
    folder.mkdir()
    values = {"space": space, "strategy": {"name": strategy}, "data": {"limit": 100, "val_limit": 40}}
    values |= {
        "search": {"epochs": 2, "warmup_epochs": 1, "random": 0, "samples": samples},
        "experiment": {"device": "cpu"},
    }
    about = {"trial": "search-s0", "seed": 0, **parameters}
    return run_search(Config.from_dict(values), about, folder, lambda row: None)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("regularized_darts", "dirichlet_darts")]


@pytest.mark.parametrize("strategy", ["hyper_darts", *SLOW])
def test_a_budget_leaves_the_smaller_ones_in_their_order(strategy, tmp_path):
    every = unpack(search(tmp_path / "all", strategy, candidates=1_000)["candidates"])
    sizes = sorted(row["params"] for row in every)
    assert len({Architecture(row["choices"]).key for row in every}) == len(every) and sizes[0] < sizes[-1]
    assert [row["log_prob"] for row in every] == sorted((row["log_prob"] for row in every), reverse=True)
    most = sizes[len(sizes) // 2]
    within = unpack(search(tmp_path / "within", strategy, candidates=3, max_params=most)["candidates"])
    assert within == [row for row in every if row["params"] <= most][:3]
    with pytest.raises(SpaceError, match=rf"none has at most {sizes[0] - 1} parameters"):
        search(tmp_path / "none", strategy, candidates=3, max_params=sizes[0] - 1)


def test_networks_come_once_among_candidates_and_draws(tmp_path):
    result = search(tmp_path / "run", "dirichlet_darts", CELL, candidates=1_000, samples=6)
    keys = [isomorphism_key(row["choices"]) for row in unpack(result["candidates"])]
    drawn = [isomorphism_key(row["choices"]) for row in result["architectures"]]
    read = json.loads((tmp_path / "run" / "posterior.json").read_text())
    assert len(set(keys)) == len(keys) == read["networks"]["count"] and len(set(drawn)) == len(drawn) == 7
