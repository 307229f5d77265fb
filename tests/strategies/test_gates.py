"""Weights that know the structure: what gamma does to outputs and divergences, against the layers themselves."""

import copy

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, Repeat
from torch import nn

from nni_bayes_nas.bayes import elbo, objective
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import NumericsError, SpaceError
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.layers.variational import divergences, to_variational, variational_layers, weight_noise
from nni_bayes_nas.search_spaces.nasbench201 import NasBench201Space
from nni_bayes_nas.strategies import DirichletDARTS, bayesian
from nni_bayes_nas.strategies.bayesian import BayesianModule
from nni_bayes_nas.strategies.gates import own_factors


def conv(bias=True):
    return nn.Conv2d(2, 2, 1, bias=bias)


def norm():
    return nn.BatchNorm2d(2, eps=1e-12)


OPERATIONS = {
    "linear": (lambda: conv(), 1),
    "then ReLU": (lambda: nn.Sequential(conv(), nn.ReLU()), 1),
    "two": (lambda: nn.Sequential(conv(False), nn.ReLU(), conv(False)), 2),
    "normalized": (lambda: nn.Sequential(conv(), norm()), 1),
    "normalized, then ReLU": (lambda: nn.Sequential(conv(), norm(), nn.ReLU()), 1),
    "separable": (lambda: nn.Sequential(nn.ReLU(), conv(False), conv(False), norm()), 1),
    "normalized between": (lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(False)), 2),
    "normalized by groups": (lambda: nn.Sequential(conv(False), nn.GroupNorm(1, 2, eps=1e-12)), 1),
    "identity": (lambda: nn.Identity(), 0),
    "pooling": (lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), norm()), 0),
    "tanh of the input": (lambda: nn.Sequential(nn.Tanh(), conv(False)), 1),
}


class Choice(ModelSpace):
    """One choice of everything above."""

    def __init__(self, **more):
        super().__init__()
        made = {name: make() for name, (make, _) in OPERATIONS.items()} | {k: make() for k, make in more.items()}
        self.layer = LayerChoice(made, label="layer")

    def forward(self, x):
        return self.layer(x)


def strategy(space, **options):
    torch.manual_seed(0)
    made = DirichletDARTS(weights="variational", input_shape=(2, 5, 5), **options)
    made._mutating = made.mutate_model(space)
    return made


@pytest.mark.parametrize("name", OPERATIONS)
def test_factors_of_an_operation(name):
    make, expected = OPERATIONS[name]
    assert own_factors(to_variational(nn.Sequential(make()))) == (expected, None)


@torch.no_grad()
def scaled(operation, gamma):
    """The operation with gamma times the weights of its layers; the scale of normalization stands for those before."""
    operation = copy.deepcopy(operation)
    leaves = [m for m in operation.modules() if not list(m.children())]
    since = False
    for leaf in leaves:
        if isinstance(leaf, (nn.BatchNorm2d, nn.GroupNorm)):
            for parameter in leaf.parameters() if since else ():
                parameter.mul_(gamma)
            since = False
        elif leaf in variational_layers(operation).values():
            for parameter in (leaf.weight, leaf.bias) if leaf.bias is not None else (leaf.weight,):
                parameter.mul_(gamma)
            since = True
    return operation


def test_the_mixture_is_that_of_scaled_layers():
    """Sum of gamma_o o(x; gamma_o v), every layer with weights of its own scale: nothing is pulled out here."""
    made = strategy(Choice(), dependence="scaled")
    module = bare(made)
    supernet, options = made._mutating, list(OPERATIONS)
    with torch.no_grad():
        next(made.structure.parameters()).add_(torch.randn(len(options), generator=torch.Generator().manual_seed(1)))
    x = torch.randn(4, 2, 5, 5)
    plain = made.structure.probs(torch.zeros(()))[0][0].detach()
    made._binding.weights = module.structure.mean()
    with torch.no_grad(), weight_noise(supernet, False):
        found = supernet(x)
        layer = supernet.layer
        expected = sum(g * scaled(layer[name], float(g))(x) for g, name in zip(plain, options, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def bare(made):
    """The module of a strategy as far as its bound needs it, without a trainer."""
    options = made.module_options()
    module = BayesianModule.__new__(BayesianModule)
    torch.nn.Module.__init__(module)
    module.bayes, module.binding, module.current_step = options["bayes"], made._binding, 3
    module.structure, module.step_options = made.structure, made.step
    module.training_module = made._mutating
    module.__dict__["gates"], module._gate_table = options["gates"], None
    module._scale_by_structure(options["factors"])
    return module


def test_operations_through_which_no_factor_passes_are_named():
    """Tanh(gamma v x) is no multiple of Tanh(v x)."""

    def space():
        return Choice(squashed=lambda: nn.Sequential(conv(), nn.Tanh(), conv(), norm()))

    for dependence in ("gated", "independent"):
        strategy(space(), dependence=dependence).module_options()
    made = strategy(space(), dependence="scaled")
    with pytest.raises(SpaceError, match=r"but not so layer/squashed \(Tanh\); set dependence to gated"):
        made.module_options()


def test_a_divergence_of_weights_that_is_not_finite_names_its_layer():
    made = strategy(Choice())
    module = bare(made)
    module.__dict__["_per_object"] = lambda divergences, part: divergences
    with torch.no_grad():
        made._mutating.layer["two"][2].rho[0] = float("nan")
    with pytest.raises(NumericsError, match=r"`weight_kl of layer\.two\.2` is nan at step 3"):
        module.weight_divergences([], "train")


SEARCH = {
    "space": {"name": "chain", "args": {"width": 4, "depth": 1}},
    "data": {"limit": 192},
    "search": {"epochs": 3, "warmup_epochs": 1, "batch_size": 32, "lambdas": 2, "random": 0},
}


def searched(folder, monkeypatch, **args):
    """All divergences with what makes terms of them, and the terms with their factors, as a search calls for them."""
    divided, added = [], []
    real, total = elbo.divergence_terms, objective.total

    def divergence_terms(divergences, n_objects, weights, warmth):
        divided.append((divergences, n_objects, weights))
        return real(divergences, n_objects, weights, warmth)

    def sum_of(terms, factors=None, *, step=None):
        added.append((terms, dict(factors or {}), total(terms, factors, step=step)))
        return added[-1][-1]

    monkeypatch.setattr(bayesian.elbo, "divergence_terms", divergence_terms)
    monkeypatch.setattr(bayesian.objective, "total", sum_of)
    args = {"weights": "variational", **args}
    config = Config.from_dict({**SEARCH, "strategy": {"name": "dirichlet_darts", "args": args}})
    run_search(config, {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
    return divided, [row for row in added if "task" in row[0]]


@pytest.mark.parametrize(("scheme", "objects"), [("single_level", 192), ("bilevel", 96)])
def test_divergences_are_divided_by_the_objects_that_a_bound_is_of(scheme, objects, tmp_path, monkeypatch):
    """m: all objects of the one bound; of two levels, those of the half that each of them sees. Never a batch of 32."""
    divided, _ = searched(tmp_path, monkeypatch, scheme=scheme)
    names = {name for divergences, _, _ in divided for name in divergences}
    assert names == {"structure_kl", "weight_kl"} and {n for _, n, _ in divided} == {objects}


def test_lambda_weighs_all_divergences_where_weights_depend_on_it(tmp_path, monkeypatch):
    """One lambda a step, of its range; as it stands, not its logarithm or its place. Points pay for it once."""
    joint = {"weight_hypernet": "piecewise_linear", "lambda_range": [0.1, 3.0], "kl_weights": 0.5}
    divided, added = searched(tmp_path, monkeypatch, kl_warmup=0.0, **joint)
    prices = [weights["structure_kl"] for *_, weights in divided]
    assert all(weights["weight_kl"] == 0.5 * weights["structure_kl"] for *_, weights in divided)
    assert 0.1 <= min(prices) < 0.5 and 1.0 < max(prices) <= 3.0 and len(set(prices)) > 5
    terms, _, total = added[-1]
    kl = {name: value for divergences, _, _ in divided[-2:] for name, value in divergences.items()}
    assert len({weights["structure_kl"] for *_, weights in divided[-2:]}) == 1
    expected = terms["task"] + prices[-1] * (0.5 * kl["weight_kl"] + kl["structure_kl"]) / 192
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("passes", [0, 2])
def test_all_passes_share_the_divergence_of_the_weights(passes, tmp_path, monkeypatch):
    """The task loss is a mean over passes, one of which is the mixture's: KL(w) in full, KL(structure) in that part."""
    divided, added = searched(tmp_path, monkeypatch, one_hot_passes=passes, kl_warmup=0.0)
    terms, factors, total = added[-1]
    kl = {name: value for divergences, _, _ in divided[-2:] for name, value in divergences.items()}
    assert set(terms) == {"task", "weight_kl", "structure_kl"} and set(kl) == {"weight_kl", "structure_kl"}
    expected = terms["task"] + kl["weight_kl"] / 192 + kl["structure_kl"] / 192 / (1 + passes)
    torch.testing.assert_close(total, expected)
    assert factors["weight_kl"] == 1 and factors["structure_kl"] == 1 / (1 + passes)


def test_blocks_of_a_repeat_cannot_be_scaled():
    """One factor of the output at a depth is not the gates of the blocks up to it."""

    class Deep(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = Repeat(lambda i: nn.Sequential(conv(False), nn.ReLU()), (1, 3), label="depth")

        def forward(self, x):
            return self.layers(x)

    with pytest.raises(SpaceError, match=r"depth/block_1 \(it is there at several depths\)"):
        strategy(Deep(), dependence="scaled").module_options()
    assert strategy(Deep(), dependence="gated").module_options()["gates"]


def test_gated_divergences_are_the_mean_of_those_of_the_passes():
    """The weights pay for what is on in every pass, those of single architectures whole or not at all; the structure is
    in one of three passes."""
    grads = {}
    for passes in (0, 2):
        made = DirichletDARTS(weights="variational", dependence="gated", input_shape=(3, 8, 8), one_hot_passes=passes)
        torch.manual_seed(0)
        made._mutating = made.mutate_model(NasBench201Space(in_channels=3, width=4, cells_per_stage=1))
        module = bare(made)
        module.__dict__["_per_object"] = lambda divergences, part: divergences
        derived = made.structure.derive_at(torch.zeros(()))
        module.__dict__["single_architectures"] = lambda step, derived=derived: [derived] * 2
        with torch.no_grad():
            alone = module.weight_divergences([module.binding.weights_of(derived, torch.ones(()))], "all", single=False)
        kl = module.weight_divergences([made.structure.mean()], "all")["weight_kl"]
        rho = next(iter(module.gates)).rho
        logits = next(made.structure.parameters())
        grads[passes] = (kl.detach(), *torch.autograd.grad(kl, [rho, logits]))
    assert 0 < float(alone["weight_kl"]) != float(grads[0][0])
    torch.testing.assert_close(grads[2][0], (grads[0][0] + 2 * alone["weight_kl"]) / 3)
    torch.testing.assert_close(grads[2][2], grads[0][2] / 3)
    # One layer of the derived architecture, which is whole in two passes, and one that is not in it.
    on = module.gate_table(module.binding.weights_of(derived, torch.ones(())))
    each = divergences(list(module.gates)).detach()
    gates = (module.gate_table(made.structure.mean()).detach() + 2 * on) / 3
    assert set(on.tolist()) == {0.0, 1.0}
    torch.testing.assert_close(grads[2][0], (gates * each).sum())
