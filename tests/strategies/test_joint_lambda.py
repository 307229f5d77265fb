"""Structure and weights as functions of one lambda: what a step sees, what is read off, what is refused."""

import pytest
import torch

from nni_bayes_nas.compression.lambda_weights import LambdaWeights, settle, swapped
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.layers.normalization import batch_statistics
from nni_bayes_nas.layers.variational import collect_kl, divergences, to_variational, variational_layers
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.chain import ChainSpace
from nni_bayes_nas.strategies import DirichletDARTS
from nni_bayes_nas.strategies.bayesian import BayesianModule

JOINT = {
    "weights": "variational",
    "weight_hypernet": "piecewise_linear",
    "weight_prior": "ard",
    "dependence": "gated",
    "lambda_range": [0.1, 3.0],
    "n_knots": 3,
}


def small():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).double()
    return to_variational(net, rho=-3.0)


def test_gradients_flow_through_weights_that_are_swapped():
    net = small()
    own = dict(net.named_parameters())
    hyper = LambdaWeights(net, "linear")
    values = hyper(0.25)
    x = torch.randn(3, 4, dtype=torch.float64)
    with swapped(net, values):
        assert net[0].weight is values["0.weight"]
        (net.eval()(x).square().sum() + variational_layers(net)["0"].kl()).backward()
    # (1 - t) of the gradient to one end, t to the other.
    low, high = (vector.grad for vector in hyper.means.vectors)
    torch.testing.assert_close(low * 0.25, high * 0.75)
    assert bool(low.any()) and bool(hyper.rhos.vectors[0].grad.any())
    assert all(p is own[name] and not p.requires_grad for name, p in net.named_parameters())
    with pytest.raises(RuntimeError), swapped(net, values):
        raise RuntimeError
    assert net[0].weight is own["0.weight"]
    with torch.no_grad():
        hyper.means.vectors[1].add_(1.0)
    settle(net, hyper(1.0))
    assert net[0].weight is own["0.weight"] and torch.equal(net[0].weight, hyper(1.0)["0.weight"])


VALUES = {
    "space": {"name": "cell", "args": {"width": 4, "n_cells": 1, "n_nodes": 1}},
    "data": {"name": "digits", "limit": 256, "val_limit": 64},
    "strategy": {"name": "dirichlet_darts", "args": JOINT},
    "search": {
        "epochs": 4,
        "warmup_epochs": 1,
        "batch_size": 32,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "rho_learning_rate": 0.02,
        "lambdas": 3,
        "random": 1,
    },
    "compress": {"fractions": [0.0, 0.5], "draws": 2, "posterior_finetune_epochs": 2, "batch_size": 32},
    "experiment": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A short search, its result, and its strategy."""
    folder, kept = tmp_path_factory.mktemp("joint"), []
    result = run_search(
        Config.from_dict(VALUES),
        {"trial": "search-s0", "seed": 0},
        folder,
        lambda row: None,
        inspect=lambda reader, rows: kept.append((reader, rows)),
    )
    return result, folder, kept[0][0]


def test_what_a_search_gives(searched):
    result, folder, _ = searched
    rows = result["compression"]
    assert [row["lambda"] for row in rows] == pytest.approx([0.1, 0.3**0.5, 3.0])
    assert result["search"]["optimizer_steps_after_search"] == 0
    for row in rows:
        assert row["structure_kl"] >= 0 and row["law_kl"] >= 0
        total = row["kl"] + row["structure_kl"]
        assert row["objective"] == pytest.approx(row["expected_log_likelihood"] - row["lambda"] * total, abs=0.01)
        assert [point["fraction"] for point in row["curve"]] == [0.0, 0.5] and row["structure_kl"] >= 0
        assert all((folder / "networks" / point["file"]).is_file() for point in row["curve"])
    # Each of these trained on by the bound, after it was looked at: no step of the search.
    for row in rows:
        after = row["posterior_finetuned"]
        complexity = row["lambda"] * (after["kl"] + row["structure_kl"])
        assert after["objective"] == pytest.approx(after["expected_log_likelihood"] - complexity, abs=0.01)
        assert after["objective"] > row["objective"]
        assert all((folder / "networks" / point["file"]).is_file() for point in after["curve"])
        assert {point["file"] for point in after["curve"]} & {point["file"] for point in row["curve"]} == set()
    # Weights and standard deviations learned, each with lambda.
    hyper = torch.load(folder / "model.pt")
    for part in ("means", "rhos"):
        vectors = [hyper[f"weights.{part}.vectors.{i}"] for i in range(3)]
        assert all(bool(v.any()) for v in vectors) and not torch.equal(vectors[0], vectors[2])


def test_the_network_of_its_own_is_a_part_of_the_supernet(searched):
    _, _, reader = searched
    strategy = reader.strategy
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for lam in (0.1, 3.0):
        choices = strategy.export(lam)
        network = strategy.materialize(lam, choices).eval()
        assert all(p.requires_grad for p in network.parameters()) and variational_layers(network)
        # The weights that a step of the search has at this lambda; the supernet's own are those of another.
        strategy.settle(0.5)
        module, structure = strategy.oneshot_module, strategy.structure
        supernet = module.training_module.model.eval()
        with torch.no_grad(), module.weights_at(structure.position(lam)):
            with module.binding.only(choices, structure.reference), batch_statistics(supernet):
                expected = supernet(x)
            on = module.gate_table(module.binding.weights_of(choices, structure.reference))
            divergence = float((on * divergences(list(module.gates))).sum())
        assert sum(float(kl.detach()) for kl in collect_kl(network).values()) == pytest.approx(divergence, rel=1e-4)
        with torch.no_grad(), batch_statistics(network):
            outputs.append(network(x))
        torch.testing.assert_close(outputs[-1], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1])
    with pytest.raises(ConfigError, match=r"lambda must lie in the trained range \[0.1, 3\], got 5"):
        strategy.materialize(5.0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"lambda_range": [0.1, 4.0]}, r"lambda_range was \[0.1, 3.0\], not \[0.1, 4.0\]; build that one"),
        ({"weight_prior": "empirical_bayes"}, "weight_prior was "),
        ({"n_knots": 4}, "n_knots was 3, not 4"),
        ({"floor": 0.2}, "floor was 0.1, not 0.2"),
    ],
)
def test_what_was_searched_says_what_it_is_of(searched, changes, said):
    _, folder, _ = searched
    made = DirichletDARTS(**{**JOINT, **changes}, input_shape=(1, 8, 8))
    with pytest.raises(ConfigError, match=f"what is loaded must be of a model like this one, but {said}"):
        made.restore(CellSpace(width=4, n_cells=1, n_nodes=1), torch.load(folder / "model.pt"))


def test_nothing_can_be_read_off_before_a_search():
    made = DirichletDARTS(**JOINT, input_shape=(1, 8, 8))
    for read in (made.materialize, made.settle, lambda: made.searched):
        with pytest.raises(RuntimeError, match="nothing was searched yet"):
            read()


def test_the_state_of_another_space_is_refused(searched):
    _, folder, _ = searched
    state = torch.load(folder / "model.pt")
    with pytest.raises(ConfigError, match=r"but .* was .*, not .*; build that one"):
        DirichletDARTS(**JOINT, input_shape=(1, 8, 8)).restore(CellSpace(width=6, n_cells=1, n_nodes=1), state)
    state = {name: value for name, value in state.items() if not name.startswith("weights.rhos")}
    with pytest.raises(ConfigError, match=r"must be that of a search with this space and strategy.*Missing key"):
        DirichletDARTS(**JOINT, input_shape=(1, 8, 8)).restore(CellSpace(width=4, n_cells=1, n_nodes=1), state)


@pytest.mark.parametrize("part, said", [("means", "weight_kl of"), ("rhos", "weight_kl of")])
def test_weights_that_are_not_finite_name_their_layer_and_step(tmp_path, part, said, monkeypatch):
    share = LambdaWeights.share

    def broken(self, alone):
        if not alone:  # after the warm-up
            with torch.no_grad():
                getattr(self, part).vectors[0].fill_(float("nan"))
        share(self, alone)

    monkeypatch.setattr(LambdaWeights, "share", broken)
    with pytest.raises(NumericsError, match=rf"`{said} \S+` is nan at step \d+"):
        run_search(Config.from_dict(VALUES), {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)


def test_outputs_that_are_not_finite_name_their_layer_lambda_and_step(tmp_path, monkeypatch):
    """Weights so large that what a layer gives overflows: all of them are finite."""
    share = LambdaWeights.share

    def large(self, alone):
        if not alone:
            with torch.no_grad():
                for vector in self.means.vectors:
                    vector.fill_(1e25)
        share(self, alone)

    monkeypatch.setattr(LambdaWeights, "share", large)
    monkeypatch.setattr(BayesianModule, "weight_divergences", lambda self, draws, part: {})
    with pytest.raises(NumericsError, match=r"`output of \S+ at lambda \S+` is (nan|inf|-inf) at step \d+"):
        run_search(Config.from_dict(VALUES), {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"weight_hypernet": "spline"}, "weight_hypernet must be one of constant, linear"),
        ({"lambda_range": None}, "weights that depend on lambda have a range of it"),
        (
            {"weights": "point", "dependence": "independent", "weight_prior": "empirical_bayes"},
            "got weight_hypernet 'piecewise_linear', lambda_range",
        ),
        ({"scheme": "bilevel"}, "and scheme 'bilevel'"),
        ({"complexity": "target"}, "set complexity to none or penalty"),
        ({"weight_hypernet": "constant"}, "complexity and lambda_range belong together"),
        (
            {"weight_hypernet": "mlp", "weight_rank": 0},
            "weight_rank and weight_hidden must be at least 1, got 0 and 32",
        ),
        ({"weight_rank": 2}, "are of weight_hypernet low_rank and mlp, got 2 and 32 with 'piecewise_linear'"),
    ],
)
def test_options_that_exclude_each_other(changes, said):
    with pytest.raises(ConfigError, match=said):
        DirichletDARTS(**{**JOINT, **changes})


def test_what_joint_weights_cannot_do():
    for guard in ({"auxiliary": 1.0}, {"normalize": True}):
        with pytest.raises(ConfigError, match="every network must be a part of the supernet, got auxiliary"):
            DirichletDARTS(**JOINT, **guard)
        with pytest.raises(ConfigError, match="what is materialized must be a part of the supernet"):
            DirichletDARTS(**guard).materialize()
    made = DirichletDARTS(**JOINT)
    with pytest.raises(ConfigError, match="searches side by side have weights that do not depend on lambda"):
        made.check_beside()


def test_the_size_of_the_weights_hypernetwork():
    made = DirichletDARTS(**{**JOINT, "weight_hypernet": "low_rank"}, weight_rank=2, weight_hidden=3)
    made._mutating = made.mutate_model(ChainSpace(width=4, depth=1))
    made.module_options()
    assert made.lambda_weights is not None
    assert made.lambda_weights.means.rank == 2 and made.lambda_weights.means.slopes.shape == (3,)
