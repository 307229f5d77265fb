"""Searches on a part of the channels, and searches that give options up."""

import math

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from plain_and_fused import built, compare, passed
from torch import nn
from torch.distributions import Dirichlet, kl_divergence

from nni_bayes_nas.bayes import dirichlet, law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.deriving import by_perturbation
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.search_spaces.nasbench201 import NasBench201Space
from nni_bayes_nas.strategies import DirichletDARTS
from nni_bayes_nas.strategies.pruning import NEVER, given_up, stages_over
from nni_bayes_nas.strategies.relaxations import divergence, log_draw, log_probabilities
from nni_bayes_nas.strategies.structure import Structure

SPACES = ["cell", "nasbench201", pytest.param("DARTS", marks=pytest.mark.slow), "NasBench201"]


def supernet(name, example, **options):
    torch.manual_seed(0)
    space, shape = built(name, example)
    made = DirichletDARTS(input_shape=shape, **options)
    return made, made.mutate_model(space).double(), shape


# -- a part of the channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auxiliary", [0.0, 1.0])
@pytest.mark.parametrize("name", SPACES)
def test_fused_equals_plain_on_a_part_of_the_channels(name, auxiliary, example):
    made, net, shape = supernet(name, example, partial_channels=2, auxiliary=auxiliary)
    assert any(getattr(m, "partial", False) for m in net.modules())
    x = torch.randn(3, *shape, dtype=torch.float64)
    for per_object in (False, True):
        assert compare(net, made._binding, x, per_object=per_object)
    part = passed(net, made._binding, x, execution="fused", per_object=False)
    made._binding.parts = 1
    whole = passed(net, made._binding, x, execution="fused", per_object=False)
    assert part[0].shape == whole[0].shape and not torch.equal(part[0], whole[0])


def test_one_architecture_is_the_mixture_of_its_own_weights(example):
    """The others of the channels pass by an edge that is kept, and none that is not."""
    made, net, shape = supernet("cell", example, partial_channels=2)
    binding, choices = made._binding, made.structure.export()
    x = torch.randn(3, *shape, dtype=torch.float64)
    with binding.only(choices, x):
        alone = net(x)
        binding.kept = None
        mixed = net(x)
    torch.testing.assert_close(alone, mixed)


def test_an_edge_that_is_none_passes_nothing_by(example):
    """As mixture and alone, in cells and in layers."""
    made, net, shape = supernet("cell", example, partial_channels=2)
    x = torch.randn(3, *shape, dtype=torch.float64)
    made._binding.weights = {label: torch.zeros_like(w) for label, w in made.structure.mean().items()}
    for w in made._binding.weights.values():
        w[..., -1] = 1.0  # "none"
    cell = next(m for m in net.modules() if getattr(m, "partial", False))
    outputs = []
    cell.register_forward_hook(lambda m, args, output: outputs.append(output))
    for execution in ("plain", "fused"):
        made._binding.execution = execution
        net(x)
    assert len(outputs) == 2 and not any(merged.any() for _, merged in outputs)

    made, net, shape = supernet("nasbench201", example, partial_channels=2)
    none = dict.fromkeys(made._binding.units, "none")
    layer = next(m for m in net.modules() if getattr(m, "partial", False))
    found = []
    layer.register_forward_hook(lambda m, args, output: found.append(output))
    with made._binding.only(none, x):
        net(torch.randn(3, *shape, dtype=torch.float64))
    made._binding.weights = {u.label: law.one_hot(u, none)[0].double() for u in made.structure.units}
    net(torch.randn(3, *shape, dtype=torch.float64))
    assert len(found) >= 2 and not any(output.any() for output in found)


def test_choices_within_choices_are_for_themselves():
    class Nested(ModelSpace):
        def __init__(self):
            super().__init__()
            inner = LayerChoice([nn.Conv2d(4, 4, k, padding=k // 2) for k in (1, 3)], label="inner")
            self.outer = LayerChoice([nn.Sequential(inner, nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1)], label="outer")

        def forward(self, x):
            return self.outer(x).mean((2, 3))

    made = DirichletDARTS(partial_channels=2, draw_per="step")
    net = made.mutate_model(Nested())
    assert {m.label: m.partial for m in net.modules() if hasattr(m, "partial")} == {"inner": True, "outer": False}
    x, outputs = torch.randn(2, 4, 5, 5), []
    for first in (True, False):
        made._binding.weights = {label: torch.tensor([float(first), float(not first)]) for label in ("inner", "outer")}
        made._binding.weights["outer"] = torch.tensor([1.0, 0.0])
        output = net(x)
        output.sum().backward()
        outputs.append(output)
    assert not torch.equal(*outputs)


def test_costs_are_those_of_whole_operations(example):
    whole, net, shape = supernet("nasbench201", example)
    part, other, _ = supernet("nasbench201", example, partial_channels=2)
    for kind, model in whole.measure(net.float(), shape).items():
        assert part.measure(other.float(), shape)[kind] == model
    assert part._binding.parts == 2


def test_spaces_without_such_choices_are_refused(example):
    with pytest.raises(SpaceError, match="partial_channels needs operations on images"):
        supernet("dense", example, partial_channels=2)
    with pytest.raises(SpaceError, match="divisible by it, got 3"):
        supernet("nasbench201", example, partial_channels=3)


# -- fewer options -----------------------------------------------------------------------------------------------------


def test_what_is_given_up():
    choice, node = law.Choice("c", ("a", "b", "d")), law.Node("cell", 2, ("a", "b"), 1)
    assert given_up(choice, torch.tensor([[[0.2, 0.5, 0.3]]]), 2).tolist() == [[True, False, False]]
    # One option is probable at one end of lambda, one at the other.
    both = torch.tensor([[[0.1, 0.6, 0.3]], [[0.7, 0.1, 0.2]]])
    assert given_up(choice, both, 2).tolist() == [[False, False, True]]
    # "none" stands last, and stays.
    rows = torch.tensor([[[0.5, 0.1, 0.4], [0.1, 0.2, 0.7]]])
    assert given_up(node, rows, 1).tolist() == [[False, True, False], [True, False, False]]
    assert not given_up(law.Subset("s", (0, 1, 2), 1), torch.rand(1, 1, 3), 1).any()
    assert [stages_over(p, 2) for p in (0.0, 0.3, 0.34, 0.67, 1.0)] == [0, 0, 1, 2, 2]


MASK = torch.tensor([[False, True, False, False]])


def test_draws_of_what_is_left_are_those_of_its_own_posterior():
    """Shares of some components of Dir(a) are Dir(a of these); mean and variance within four standard errors."""
    raw = torch.tensor([[0.3, 2.0, -0.5, 1.2]], dtype=torch.float64)
    left = Dirichlet(dirichlet.concentration(raw)[0, ~MASK[0]])
    many = raw.expand(20_000, 1, 4)
    logs = log_draw(many, many, None, "dirichlet", torch.Generator().manual_seed(0), MASK)
    drawn = logs.softmax(-1)
    assert not drawn[:, 0, 1].any()
    kept, n = drawn[:, 0, ~MASK[0]], len(drawn)
    assert bool(((kept.mean(0) - left.mean).abs() < 4 * (left.variance / n).sqrt()).all())
    torch.testing.assert_close(kept.var(0), left.variance, rtol=0.06, atol=0.0)
    mean = log_probabilities(raw, "dirichlet", MASK).exp()
    torch.testing.assert_close(mean[0, ~MASK[0]], left.mean)
    assert float(mean[0, 1]) == 0 and float(log_probabilities(raw, "dirichlet", MASK)[0, 1]) == NEVER


@pytest.mark.parametrize("relaxation", ["dirichlet", "logistic_normal", "gumbel", "softmax"])
def test_divergences_are_those_of_what_is_left(relaxation):
    torch.manual_seed(0)
    raw = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    rho = torch.randn(1, 4, dtype=torch.float64) if relaxation == "logistic_normal" else None
    prior = torch.tensor([[1.0, 0.3, 2.0, 0.7]], dtype=torch.float64)
    ours = divergence(raw, rho, relaxation, prior, MASK)
    kept = ~MASK[0]
    alone = divergence(raw[:, kept], None if rho is None else rho[:, kept], relaxation, prior[:, kept])
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)
    if relaxation == "dirichlet":
        a, b = dirichlet.concentration(raw)[0, kept], prior[0, kept]
        torch.testing.assert_close(ours[0], kl_divergence(Dirichlet(a), Dirichlet(b)), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(ours.sum(), raw)
    assert bool(torch.isfinite(gradient).all()) and not gradient[0, 1].any() and gradient[0, kept].all()


@pytest.mark.parametrize("relaxation", ["dirichlet", "logistic_normal", "gumbel", "softmax"])
def test_a_structure_gives_options_up(relaxation):
    units = [law.Choice("c", ("a", "b", "d")), law.Node("cell", 2, ("a", "b", "d"), 1)]
    structure = Structure(units, relaxation=relaxation, prunes=True, seed=3)
    before = structure.probs(torch.zeros(()))
    structure.prune((2, 1), 1)
    assert int(structure.stage) == 1
    pairs = structure.pruned_pairs()
    assert pairs["c"] == {(0, int(before[0].argmin()))} and {row for row, _ in pairs["cell/2"]} == {0, 1}
    structure.prune((2, 1), 2)
    structure.prune((2, 1), 2)
    assert structure.export()["c"] == units[0].options[int(before[0].argmax())]
    posterior = ArchitecturePosterior(units, structure.probs(torch.zeros(())))
    assert sum(torch.tensor([w.log_prob for w in posterior.by_probability()]).exp()) == pytest.approx(1.0)
    weights = structure.draw(torch.zeros(5), 0.5, torch.Generator().manual_seed(0))
    for label, pruned in structure.pruned_pairs().items():
        rows = weights[label] if weights[label].dim() == 3 else weights[label].unsqueeze(-2)
        assert all(not rows[..., i, j].any() for i, j in pruned) and bool(torch.isfinite(rows).all())
    fresh = Structure(units, relaxation=relaxation, prunes=True, seed=5)
    fresh.load_state_dict(structure.state_dict())
    assert fresh.pruned_pairs() == structure.pruned_pairs()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", SPACES)
def test_options_that_are_given_up_are_not_run(name, parts, example):
    auxiliary = float(parts > 1)
    made, net, shape = supernet(name, example, keep_options=(1,), partial_channels=parts, auxiliary=auxiliary)
    x = torch.randn(3, *shape, dtype=torch.float64)
    binding = made._binding

    def convolutions(execution):
        made._binding.weights, calls = made.structure.mean(), []
        real = torch.nn.functional.conv2d
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "conv2d", lambda *a, **k: calls.append(1) or real(*a, **k))
            binding.execution = execution
            net(x)
        return len(calls)

    before = {execution: convolutions(execution) for execution in ("plain", "fused")}
    made.structure.prune((1,), 1)
    binding.pruned = made.structure.pruned_pairs()
    assert all(convolutions(execution) < count for execution, count in before.items())
    compare(net, binding, x, per_object=True)


@pytest.mark.parametrize("family", ["dirichlet", pytest.param("logistic_normal", marks=pytest.mark.slow)])
def test_a_search_that_does_both(tmp_path, family):
    args = {"family": family, "partial_channels": 2, "keep_options": [3, 2], "arc_learning_rate": 0.5}
    config = Config.from_dict(
        {
            "space": {"name": "nasbench201", "args": {"width": 4, "cells_per_stage": 1}},
            "data": {"limit": 160},
            "strategy": {"name": "dirichlet_darts", "args": args},
            "search": {"epochs": 3, "warmup_epochs": 0, "batch_size": 32, "lambdas": 2, "random": 0},
        }
    )
    result = run_search(config, {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)
    q = ArchitecturePosterior.from_dict(result["posterior"])
    assert all(int((p > 0).sum()) == 2 for p in q.probs)
    assert len(q.top_k(65)) == 64
    assert sum(math.exp(one.log_prob) for one in q.top_k(64)) == pytest.approx(1.0)


def test_what_hurts_most_is_not_what_was_given_up():
    unit, node = law.Choice("c", ("a", "b", "d")), law.Node("cell", 2, ("a", "b"), 1)
    weights = {"c": torch.tensor([0.0, 0.6, 0.4]), "cell/2": torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])}
    gone = {"c": frozenset({(0, 0)}), "cell/2": frozenset({(0, 0), (1, 0)})}
    # Everything that is left is harmful: without it the loss is smaller.
    found = by_perturbation([unit, node], weights, lambda w: float(sum(x.sum() for x in w.values())), gone)
    assert found["c"] in ("b", "d") and found["cell/op_2_0"] == "b"


def test_samples_are_of_what_is_left():
    def config(samples):
        return Config.from_dict(
            {
                "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
                "data": {"limit": 100},
                "strategy": {"name": "dirichlet_darts", "args": {"keep_options": [2]}},
                "search": {"samples": samples},
            }
        )

    validate(config(3))
    with pytest.raises(ConfigError, match="of which there are 3 at the end of the search, got 4"):
        validate(config(4))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"partial_channels": 0}, "partial_channels must be at least 1, got 0"),
        ({"partial_channels": 2, "weights": "variational"}, "partial_channels needs weights that are points"),
        ({"keep_options": (2, 2)}, r"keep_options must fall from stage to stage and be at least 1, got \[2, 2\]"),
        ({"keep_options": (0,)}, "at least 1, got"),
        ({"keep_options": (2,), "cuda_graphs": True}, "passes with keep_options can be neither compiled nor recorded"),
    ],
)
def test_options_that_cannot_be(options, match):
    with pytest.raises(ConfigError, match=match):
        DirichletDARTS(**options)


def test_options_that_leave_everything():
    with pytest.raises(SpaceError, match="fewer options than the 5 of the largest choice, got \\[5\\]"):
        DirichletDARTS(keep_options=(5,)).mutate_model(NasBench201Space(width=4, cells_per_stage=1))


def test_searches_side_by_side_do_neither():
    for options in ({"partial_channels": 2}, {"keep_options": (2,)}):
        with pytest.raises(ConfigError, match="searches side by side see all channels and options"):
            DirichletDARTS(**options).check_beside()


def test_nothing_is_registered_twice(example):
    """Narrow copies have no parameters of their own."""
    made, net, shape = supernet("cell", example, partial_channels=2)
    names = list(net.state_dict())
    passed(net, made._binding, torch.randn(2, *shape, dtype=torch.float64), execution="plain", per_object=False)
    assert list(net.state_dict()) == names
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == sum(
        "weight" in n and net.state_dict()[n].dim() == 4 for n in names
    )
