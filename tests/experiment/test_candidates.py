"""What a search gives a refinement: its most probable architectures, each network once, within a budget."""

import copy
import itertools
import json
import math

import pytest

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.plans.posterior_refinement import unpack
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.search_spaces.cell import CellSpace, isomorphism_key
from nni_bayes_nas.strategies import DirichletDARTS

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
    # What they weigh is the probability of the network, in whatever form it was found.
    merged = ArchitecturePosterior.from_dict(read).merged(isomorphism_key)
    assert max(one.members for one in merged.values()) > 1
    for row in (*unpack(result["candidates"]), *result["architectures"]):
        assert row["log_prob"] == pytest.approx(merged[isomorphism_key(row["choices"])].log_prob, abs=1e-4)
    logs = [row["log_prob"] for row in unpack(result["candidates"])]
    assert sum(map(math.exp, logs)) == pytest.approx(1) and logs == sorted(logs, reverse=True)


def test_more_networks_than_there_are_are_refused_before_the_search():
    """Which cells are one network does not depend on the search."""
    space = CellSpace(**CELL["args"], in_channels=1, num_classes=10)
    strategy = DirichletDARTS(input_shape=(1, 8, 8))
    strategy.mutate_model(copy.deepcopy(space))
    parts = itertools.product(*map(law.enumerate_choices, strategy.structure.units))
    cells = [{label: choice for part in each for label, choice in part.items()} for each in parts]
    n = len({isomorphism_key(cell) for cell in cells})
    assert n < len(cells)
    values = {"space": CELL, "strategy": {"name": "dirichlet_darts"}, "data": {"limit": 192}}
    validate(Config.from_dict({**values, "search": {"samples": n - 1}}))
    with pytest.raises(ConfigError, match=f"of which there are {n - 1} at the end of the search, got {n}"):
        validate(Config.from_dict({**values, "search": {"samples": n}}))
    refined = {**values, "experiment": {"plan": "posterior_refinement"}, "search": {"random": 0}}
    with pytest.raises(ConfigError, match=f"distinct architectures, of which there are {n} at the end .*, got {n + 1}"):
        validate(Config.from_dict({**refined, "refine": {"evaluations": n + 1, "rungs": [[2, 16]]}}))
