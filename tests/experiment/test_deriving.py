"""Other ways to read an architecture off a search: on losses that are known, and off a real one."""

import itertools

import pytest
import torch

from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.deriving import best_of, by_perturbation
from nni_bayes_nas.experiment.search import run_search

UNITS = [
    law.Choice("a", ("x", "y", "z")),
    law.Subset("b", ("p", "q", "r"), 2),
    law.Node("cell", 3, ("skip", "conv"), 2),
]


def uniform():
    return ArchitecturePosterior(UNITS, [torch.full(u.shape, 1 / u.shape[1], dtype=torch.float64) for u in UNITS])


def worth(sample):
    """A loss that is smallest for z, {p, r}, and conv on the edges 0 and 2."""
    value = {"x": 0.0, "y": 1.0, "z": 2.0}[sample["a"]] + 3.0 * ("p" in sample["b"]) + 3.0 * ("r" in sample["b"])
    for slot in (0, 1):
        edge, operation = sample[f"cell/input_3_{slot}"][0], sample[f"cell/op_3_{slot}"]
        value += {0: 4.0, 1: 0.0, 2: 4.0}[edge] + (operation == "conv")
    return -value


def test_the_best_draw_is_the_best_of_all_where_all_are_drawn():
    everything = [
        {label: choice for part in parts for label, choice in part.items()}
        for parts in itertools.product(*(law.enumerate_choices(unit) for unit in UNITS))
    ]
    found = best_of(uniform(), 2000, worth, torch.Generator().manual_seed(0))
    assert worth(found) == min(map(worth, everything)) == -18.0
    looked = []
    best_of(uniform(), 300, lambda c: looked.append(c) or 0.0, torch.Generator().manual_seed(0))
    assert len(looked) < 301 and len({str(sorted(c.items())) for c in looked}) == len(looked)


def test_what_hurts_most_is_kept():
    """The supernet's loss falls with the weight of what is good; a draw of the posterior would not show it."""
    good = {"a": torch.tensor([0.0, 1.0, 2.0]), "b": torch.tensor([3.0, 0.0, 2.0])}
    good["cell/3"] = torch.tensor([[0.5, 1.0, 9.0], [0.2, 0.1, 9.0], [1.5, 0.3, 9.0]])

    def loss(weights):
        # The column of "none" is in no sum.
        parts = [(w * good[k])[..., :2] if k == "cell/3" else w * good[k] for k, w in weights.items()]
        return -float(sum(part.sum() for part in parts))

    weights = {"a": torch.full((3,), 1 / 3), "b": torch.full((3,), 2 / 3), "cell/3": torch.full((3, 3), 1 / 3)}
    before = {label: w.clone() for label, w in weights.items()}
    found = by_perturbation(UNITS, weights, loss)
    assert found["a"] == "z" and found["b"] == ["p", "r"]
    assert {k: v for k, v in found.items() if k.startswith("cell")} == UNITS[2].slots([(0, 1), (2, 0)])
    assert all(torch.equal(weights[label], w) for label, w in before.items())


def test_a_later_choice_sees_the_earlier_ones():
    """y is worth something beside q alone, which is chosen first."""
    units = [law.Choice("first", ("p", "q")), law.Choice("second", ("x", "y"))]

    def loss(weights):
        (p, q), (x, y) = weights["first"].tolist(), weights["second"].tolist()
        return -(0.1 * p + 1.0 * q + 0.4 * x + q * y)

    weights = {label: torch.tensor([0.5, 0.5]) for label in ("first", "second")}
    assert by_perturbation(units, weights, loss) == {"first": "q", "second": "y"}


VALUES = {
    "space": {"name": "cell", "args": {"width": 4, "n_cells": 1, "n_nodes": 2}},
    "data": {"limit": 200, "val_limit": 80},
    "search": {"epochs": 2, "warmup_epochs": 1, "random": 0, "batch_size": 32},
    "experiment": {"device": "cpu"},
}


@pytest.mark.parametrize("strategy", ["dirichlet_darts", "regularized_darts"])
@pytest.mark.parametrize("derive", ["best_of", "perturbation"])
def test_off_a_search(tmp_path, strategy, derive):
    found = {}
    for way in ("mean", derive):
        (tmp_path / way).mkdir()
        values = {
            **VALUES,
            "strategy": {"name": strategy},
            "search": {**VALUES["search"], "derive": way, "derive_draws": 8},
        }
        config = validate(Config.from_dict(values))
        result = run_search(config, {"trial": "search-s0", "seed": 0}, tmp_path / way, lambda row: None)
        (found[way],) = result["architectures"]
    assert found[derive]["choices"].keys() == found["mean"]["choices"].keys() and found[derive]["params"] > 0
    assert (found["mean"]["origin"], found[derive]["origin"]) == ("mean", derive)
    # The same search: what is read off is all that may differ.
    assert found[derive]["mixture_accuracy"] == found["mean"]["mixture_accuracy"]


def test_sizes_along_lambda_are_left_alone():
    values = {**VALUES, "search": {**VALUES["search"], "derive": "perturbation"}}
    with pytest.raises(ConfigError, match="'perturbation' for a strategy with a range of lambda"):
        validate(Config.from_dict(values))
