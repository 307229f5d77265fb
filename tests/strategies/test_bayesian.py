"""The Bayesian choice of architecture: its bound term by term, its draws, its posterior."""

import json
import math

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes import dirichlet, law, logistic_normal, normal
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.evaluator import ClassificationModule
from nni_bayes_nas.experiment.packed import unpack
from nni_bayes_nas.experiment.replicas import run_searches
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.layers import gaussian_output
from nni_bayes_nas.layers.variational import variational_layers
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.chain import ChainSpace
from nni_bayes_nas.search_spaces.nasbench201 import OPERATIONS, NasBench201Space, isomorphism_key
from nni_bayes_nas.strategies import DirichletDARTS
from nni_bayes_nas.strategies.gates import GateWalk
from nni_bayes_nas.strategies.structure import Structure

UNITS = [
    law.Node("cell", 3, ("a", "b"), 2),
    law.Choice("x", ("p", "none", "r")),
    law.Subset("s", (0, 1, 2, 3), 2),
]


def structure(relaxation, seed=0, **options):
    found = Structure(UNITS, relaxation=relaxation, seed=seed, **options)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return found


ZERO = torch.zeros(())


@pytest.mark.parametrize("relaxation", ["dirichlet", "logistic_normal", "gumbel"])
def test_draws_scatter_around_the_mean(relaxation):
    found = structure(relaxation)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = found.draw(torch.zeros(20_000), 1.0, generator)
        mean = found.mean()
    for label, weights in drawn.items():
        chosen = 2 if label == "s" else 1  # a subset mixes by inclusion probabilities
        torch.testing.assert_close(weights.sum(-1), torch.full(weights.shape[:-1], float(chosen)))
        assert float(weights.std(0).max()) > 0.05
        if relaxation == "dirichlet" and chosen == 1:  # of the others it is not the mean of the draws
            error = 5 * weights.std(0) / len(weights) ** 0.5
            assert bool(((weights.mean(0) - mean[label]).abs() < error).all())


def test_a_new_dirichlet_structure_is_uniform():
    found = Structure(UNITS, relaxation="dirichlet", seed=3)
    for unit, probs in zip(UNITS, found.probs(ZERO), strict=True):
        torch.testing.assert_close(probs, torch.full(unit.shape, 1 / unit.shape[1]), atol=1e-3, rtol=0)
    assert float(found.divergence(ZERO).detach()) == pytest.approx(0, abs=1e-4)


def rows(found, unit):
    flat = found.logits(ZERO)
    return found._split(found._blocks(flat))[unit]


def test_divergence_of_a_dirichlet_structure():
    found = structure("dirichlet")
    expected = 0.0
    for i, unit in enumerate(UNITS):
        prior = torch.full(unit.shape, 0.7)
        if i == 0:
            prior[:, -1] = 3.0
        if i == 1:
            prior[:, 1] = 3.0
        expected += float(dirichlet.kl(dirichlet.concentration(rows(found, i)), prior).sum().detach())
    assert float(found.divergence(ZERO, 0.7, 3.0).detach()) == pytest.approx(expected, rel=1e-5)


def test_divergence_of_a_logistic_normal_structure():
    found = structure("logistic_normal")
    flat = found.logits(ZERO)
    sds = found._split(found._blocks(flat[found._total :]))
    expected = sum(
        float(logistic_normal.kl(rows(found, i), normal.sd(rho)).sum().detach()) for i, rho in enumerate(sds)
    )
    assert float(found.divergence(ZERO).detach()) == pytest.approx(expected, rel=1e-5)


def test_divergence_of_a_concrete_structure():
    found = structure("gumbel")
    expected = sum(float((p * (p.log() + math.log(p.shape[-1]))).sum().detach()) for p in found.probs(ZERO))
    assert float(found.divergence(ZERO).detach()) == pytest.approx(expected, rel=1e-5)


def test_divergences_at_every_position_of_lambda():
    from nni_bayes_nas.complexity.axis import LambdaAxis

    found = structure("dirichlet", hypernet="piecewise_linear", axis=LambdaAxis(0.01, 1.0))
    u = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(found.divergence(u), torch.stack([found.divergence(x) for x in u]))


def test_equal_generators_give_equal_draws():
    found = structure("dirichlet")
    first, second = (found.draw(torch.zeros(5), 1.0, torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(first[label], second[label]) for label in first)


# -- variational weights in a supernet ---------------------------------------------------------------------------------


def strategy(space, shape, **options):
    torch.manual_seed(0)
    made = DirichletDARTS(weights="variational", input_shape=shape, **options)
    made._mutating = made.mutate_model(space)
    return made


def test_all_weights_of_a_supernet_are_gaussian_and_know_their_gates():
    made = strategy(CellSpace(width=4, n_nodes=2), (1, 8, 8))
    layers = variational_layers(made._mutating)
    gates = made.module_options()["gates"]
    assert set(gates) == set(layers.values())
    for name, layer in layers.items():
        ways = gates[layer]
        if ".ops." in name:  # of an operation on an edge: cells.0.ops.1.2.sep_conv_3x3...
            (way,) = ways
            ((label, options),) = way.items()
            node, edge, operation = name.split(".ops.")[1].split(".")[:3]
            unit = made._binding.units[label]
            assert (unit.index, len(options)) == (int(node) + 2, 1)
            (option,) = options
            assert divmod(option, len(unit.operations)) == (int(edge), unit.operations.index(operation))
        else:
            assert ways == [{}]


def test_gates_of_layer_choices():
    made = strategy(NasBench201Space(in_channels=3, width=4, cells_per_stage=1), (3, 8, 8))
    walk = GateWalk(made._mutating, list(made._binding.units.values()))
    gated = [way for ways in walk.gates.values() for way in ways if way]
    assert gated and all(len(way) == 1 for way in gated)


def test_a_gaussian_weight_costs_as_much_as_a_point():
    space = CellSpace(width=4, n_nodes=2)
    made, point = strategy(space, (1, 8, 8)), DirichletDARTS(input_shape=(1, 8, 8))
    made.measure(made._mutating, (1, 8, 8))
    point.measure(point.mutate_model(CellSpace(width=4, n_nodes=2)), (1, 8, 8))
    for choices in point.structure.random_samples(3, generator=torch.Generator().manual_seed(0)):
        for kind in ("params", "macs"):
            assert made.predicted_cost(kind, choices) == point.predicted_cost(kind, choices)


SEARCH = {
    "space": {"name": "cell", "args": {"width": 4, "n_nodes": 2}},
    "data": {"limit": 192},
    "search": {"epochs": 3, "warmup_epochs": 1, "batch_size": 32, "lambdas": 2, "random": 0},
    "experiment": {"device": "cpu"},  # where searches repeat to the bit
}


def searched(folder, **args):
    config = Config.from_dict({**SEARCH, "strategy": {"name": "dirichlet_darts", "args": args}})
    folder.mkdir(parents=True, exist_ok=True)
    result = run_search(config, {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result, [row["terms"] for row in lines if "terms" in row]


CASES = {
    "single level": {},
    "bilevel": {"scheme": "bilevel"},
    "one draw a step": {"draw_per": "step"},
    "concrete": {"family": "concrete"},
    "logistic-normal": {"family": "logistic_normal", "scheme": "bilevel"},
    "Gaussian weights": {"weights": "variational"},
    "gated": {"weights": "variational", "dependence": "gated"},
    "scaled, bilevel": {"weights": "variational", "dependence": "scaled", "scheme": "bilevel"},
    "flipout, ARD": {"weights": "variational", "estimator": "flipout", "weight_prior": "ard"},
    "over lambda": {"lambda_range": [0.01, 1.0], "complexity": "target", "complexity_weight": 20.0},
    "guarded": {"auxiliary": 1.0, "normalize": True, "without": ["skip_connect"]},
}


@pytest.mark.parametrize("name", CASES)
def test_searches(name, tmp_path):
    result, terms = searched(tmp_path / "search-s0", **CASES[name])
    assert result["architectures"]
    last = terms[-1]
    assert last["structure_structure_kl"] >= 0 and math.isfinite(last["structure_loss"])
    assert 0 < last["kl_warmth"] <= 1
    if "weights" in CASES[name]:
        bilevel = CASES[name].get("scheme") == "bilevel"
        assert last["weights_weight_kl" if bilevel else "structure_weight_kl"] > 0
    repeated, _ = searched(tmp_path / "again", **CASES[name])
    assert repeated["architectures"] == result["architectures"]


def test_a_heavy_divergence_keeps_the_structure_at_its_prior(tmp_path):
    missing = {}
    for weight in (0.0, 1e6):
        folder = tmp_path / str(weight)
        searched(folder, kl_structure=weight, arc_learning_rate=0.3, kl_warmup=0.0)
        q = ArchitecturePosterior.from_dict(json.loads((folder / "posterior.json").read_text()))
        uniform = ArchitecturePosterior(q.units, [torch.full_like(p, 1 / p.shape[1]) for p in q.probs])
        missing[weight] = uniform.entropy() - q.entropy()
    assert missing[0.0] > 0.1 and abs(missing[1e6]) < 0.01


def test_the_posterior_of_a_search_is_an_object():
    made = strategy(CellSpace(width=4, n_nodes=2), (1, 8, 8))
    q = made.posterior()
    assert q.entropy() == pytest.approx(q.log_count, abs=1e-2)
    best = q.top_k(3)
    assert best[0].log_prob >= best[1].log_prob and made.structure.export() == q.derived()
    assert float(made.structure.log_prob(best[0].choices).detach()) == pytest.approx(best[0].log_prob, abs=1e-5)


def test_layers_that_cannot_be_gaussian_are_named():
    class Recurrent(ModelSpace):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(4, 4)
            self.choice = LayerChoice({"a": nn.Linear(4, 4), "b": nn.Identity()}, label="a")

        def forward(self, x):
            return self.choice(self.rnn(x)[0])

    with pytest.raises(SpaceError, match=r"rnn \(LSTM\)"):
        DirichletDARTS(weights="variational").mutate_model(Recurrent())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prior": 0.0}, "prior is a concentration and must be above 0, got 0.0"),
        (
            {"prior": 0.1},
            "prior must be a concentration that the posterior can have, above the floor 0.1 and below 1000",
        ),
        ({"none_prior": 1e5}, "none_prior must be a concentration that the posterior can have, .* got 100000; 1 is"),
        ({"floor": 0.04}, "the floor of concentrations must be at least 0.05, got 0.04"),
        ({"floor": 0.2, "family": "concrete"}, "floor is one of concentrations, which family 'concrete' has not"),
        ({"prior": 0.5, "family": "concrete"}, "says nothing to family 'concrete', got prior 0.5"),
        ({"without": "none"}, r"without must be a list of names of options, got 'none'; write \[none\]"),
        ({"none_prior": -1.0}, "none_prior is a concentration and must be above 0"),
        ({"kl_structure": -0.1}, "kl_structure weighs a divergence and must be at least 0"),
        ({"kl_weights": -0.1}, "kl_weights weighs a divergence"),
        ({"kl_warmup": 1.5}, r"kl_warmup must lie in \[0, 1\], got 1.5"),
        ({"family": "beta"}, "family must be one of dirichlet, concrete, logistic_normal, softmax, got 'beta'"),
        ({"scheme": "trilevel"}, "scheme must be one of single_level, bilevel"),
        ({"weights": "random"}, "weights must be one of point, variational"),
        ({"dependence": "gated"}, "weights that are points depend on nothing"),
        ({"rho": -4.0}, "weights that are points .* got rho -4.0; set weights='variational', or leave it out"),
        ({"kl_weights": 0.1}, "weights that are points .* got kl_weights 0.1"),
        ({"n_knots": 1, "lambda_range": (0.1, 1.0), "complexity": "penalty"}, "n_knots must be at least 2, got 1"),
        ({"n_knots": 0, "lambda_range": (0.1, 1.0), "complexity": "penalty"}, "n_knots must be at least 2, got 0"),
        ({"target_range": (2.0, 3.0)}, r"target_range must be \(large, small\)"),
        ({"dependence": "total", "weights": "variational"}, "dependence must be one of independent, gated, scaled"),
        ({"weight_prior": "flat"}, "weight_prior must be one of fixed, empirical_bayes, ard"),
        ({"weight_prior_sd": 0.0}, "weight_prior_sd must be above 0"),
        ({"weight_prior_sd": float("inf")}, "weight_prior_sd must be above 0"),
        ({"weights": "variational", "weight_prior_sd": 0.1}, "of weight_prior 'fixed', got 0.1 with 'empirical_bayes'"),
        ({"estimator": "mean"}, "estimator must be one of local, flipout"),
        ({"lambda_range": (0.1, 1.0)}, "complexity and lambda_range belong together"),
        ({"complexity": "target"}, "complexity and lambda_range belong together"),
    ],
)
def test_options_that_cannot_be_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        DirichletDARTS(**options)


def test_a_prior_of_none_where_there_is_none_is_refused():
    made = DirichletDARTS(none_prior=5.0, input_shape=(1, 8, 8))
    made._mutating = made.mutate_model(ChainSpace(width=4, depth=1))
    with pytest.raises(SpaceError, match=r"got 5.0, but no choice of this space has one; leave it out"):
        made.module_options()


def test_the_floor_is_that_of_the_posterior():
    """Far below zero, where softplus is zero, concentrations are the floor; draws and divergences know it too."""
    for floor in (0.05, 0.5):
        found = Structure(UNITS, relaxation="dirichlet", floor=floor)
        raw = next(found.parameters())
        assert float(dirichlet.concentration(raw.detach(), floor).mean()) == pytest.approx(1.0, abs=1e-2)
        with torch.no_grad():
            raw.fill_(-60.0)
        a = torch.full((1, 3), floor)
        prior = torch.ones(1, 3, dtype=torch.float64)
        expected = dirichlet.kl(a.double(), prior).sum()
        found_kl = found.divergences(ZERO)["x"]
        assert float(found_kl.detach()) == pytest.approx(float(expected), rel=1e-4)
        drawn = found.draw(torch.zeros(4000), 1.0, torch.Generator().manual_seed(0))["x"].detach()
        # Of Dir(f, f, f) a share has the variance (1/3)(2/3) / (3 f + 1).
        assert float(drawn.var(0).mean()) == pytest.approx(2 / 9 / (3 * floor + 1), rel=0.1)


def test_architectures_of_the_posterior_beside_the_derived_one(tmp_path):
    config = Config.from_dict({**SEARCH, "strategy": {"name": "dirichlet_darts"}})
    values = config.to_dict()
    values["search"]["samples"] = 4
    folder = tmp_path / "search-s0"
    folder.mkdir()
    result = run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
    rows = result["architectures"]
    assert [row["origin"] for row in rows] == ["mean", *["sample"] * 4]
    assert len({Architecture(row["choices"]).key for row in rows}) == 5
    q = ArchitecturePosterior.from_dict(json.loads((folder / "posterior.json").read_text()))
    for row in rows:
        assert row["log_prob"] == pytest.approx(q.log_prob(row["choices"]), abs=1e-4) and row["params"] > 0


def test_more_samples_than_architectures_are_refused_before_the_search():
    space = {"name": "chain", "args": {"width": 4, "depth": 2}}
    values = {"space": space, "strategy": {"name": "dirichlet_darts"}, "data": {"limit": 192}}
    n = 1
    made = DirichletDARTS(input_shape=(1, 8, 8))
    made.mutate_model(ChainSpace(width=4, depth=2))
    for unit in made.structure.units:
        n *= law.count(unit)
    validate(Config.from_dict({**values, "search": {"samples": n - 1}}))
    with pytest.raises(ConfigError, match=f"of which there are {n - 1} at the end of the search, got {n}; lower it"):
        validate(Config.from_dict({**values, "search": {"samples": n}}))
    with pytest.raises(ConfigError, match="of a posterior without lambda, got 2 for a strategy with a range"):
        validate(Config.from_dict({**values, "strategy": {"name": "hyper_darts"}, "search": {"samples": 2}}))


def test_all_architectures_of_a_small_space_can_be_asked_for(tmp_path):
    space = {"name": "chain", "args": {"width": 4, "depth": 1}}
    made = DirichletDARTS(input_shape=(1, 8, 8))
    made.mutate_model(ChainSpace(width=4, depth=1))
    n = law.count(made.structure.units[0])
    values = {**SEARCH, "space": space, "strategy": {"name": "dirichlet_darts"}}
    values["search"] = {**SEARCH["search"], "samples": n - 1}
    result = run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)
    assert len(result["architectures"]) == n


def test_weight_decay_leaves_gaussian_weights_alone():
    made = strategy(CellSpace(width=4, n_nodes=1), (1, 8, 8))
    module = ClassificationModule(num_classes=10, learning_rate=0.1, momentum=0.9, weight_decay=1e-3)
    module.set_model(made._mutating)
    layers = variational_layers(made._mutating).values()
    spared = {id(p) for part in module.gaussian_parameters() for p in part}
    assert spared == {id(p) for layer in layers for p in (layer.weight, layer.rho)}


def test_searches_with_gaussian_weights_side_by_side(tmp_path, monkeypatch):
    """With one noise for all they are what they are alone; their layers are stacked like any others."""
    monkeypatch.setattr(gaussian_output, "gaussian_like", torch.ones_like)
    args = {"weights": "variational", "dependence": "gated", "rho": -3.0}
    search = {**SEARCH["search"], "searches": 2, "replicas": 2}
    config = Config.from_dict({**SEARCH, "search": search, "strategy": {"name": "dirichlet_darts", "args": args}})
    seeds = {"search-s0": 0, "search-s1": 1}
    together = run_searches(config, {"trial": "t", "seeds": seeds}, tmp_path / "t", lambda row: None)
    assert together["failures"] == []
    for name, seed in seeds.items():
        folder = tmp_path / "alone" / name
        folder.mkdir(parents=True)
        alone = run_search(config, {"trial": name, "seed": seed}, folder, lambda row: None)
        ours, theirs = together["searches"][name]["search"]["terms"], alone["search"]["terms"]
        assert ours == pytest.approx(theirs, rel=2e-2, abs=2e-2) and theirs["structure_weight_kl"] > 0


def test_a_posterior_counts_cells_that_compute_the_same_as_one(tmp_path):
    space = {"name": "nasbench201", "args": {"width": 4, "cells_per_stage": 1, "operations": OPERATIONS[:3]}}
    config = Config.from_dict({**SEARCH, "space": space, "strategy": {"name": "dirichlet_darts"}})
    result = run_search(config, {"trial": "search-s0", "seed": 0, "candidates": 500}, tmp_path, lambda row: None)
    read = json.loads((tmp_path / "posterior.json").read_text())
    q = ArchitecturePosterior.from_dict(read)
    merged = q.merged(isomorphism_key)
    assert read["networks"]["count"] == len(merged) < 3**6
    first = read["networks"]["most_probable"][0]
    assert first["probability"] == pytest.approx(next(iter(merged.values())).probability)
    assert isomorphism_key(first["choices"]) == next(iter(merged))
    keys = [isomorphism_key(row["choices"]) for row in unpack(result["candidates"])]
    assert len(keys) == len(set(keys)) == min(500, len(merged))


def test_a_posterior_over_lambda_is_kept_at_every_lambda(tmp_path):
    result, _ = searched(tmp_path / "search-s0", **CASES["over lambda"])
    read = json.loads((tmp_path / "search-s0" / "posterior.json").read_text())
    assert [row["lambda"] for row in read["by_lambda"]] == [row["lambda"] for row in result["architectures"]]
    for row, derived in zip(read["by_lambda"], result["architectures"], strict=True):
        q = ArchitecturePosterior.from_dict(row)
        assert q.log_prob(derived["choices"]) == pytest.approx(derived["log_prob"], abs=1e-4)
