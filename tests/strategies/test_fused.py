"""The fused supernet against the plain one: the same outputs, gradients, second derivatives and statistics."""

import contextlib
import copy
import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nni.nas.hub import pytorch as hub
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace
from torch import nn

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import build_space
from nni_bayes_nas.layers.twice import DifferentiatedTwice
from nni_bayes_nas.registry import SEARCH_SPACES
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.operations import OPERATIONS
from nni_bayes_nas.strategies import RegularizedDARTS
from nni_bayes_nas.strategies.chains import recognize
from nni_bayes_nas.strategies.mixed_cell import MixedCell
from nni_bayes_nas.strategies.supernet import MixedLayer

# Small versions of our spaces; one of the registry that has none here is compared at its defaults.
SMALL = {
    "cell": {"width": 4, "n_nodes": 2},
    "chain": {"width": 4},
    "dense": {"width": 16, "dropout": 0.3},
    "nasbench201": {"width": 4, "cells_per_stage": 1},
}
OURS = [*SEARCH_SPACES, "cell, affine"]
# All that NNI's hub has, but for a class behind DARTS and its kin, another name, and what no strategy relaxes.
HUB = sorted({n for n in dir(hub) if isinstance(getattr(hub, n), type)} - {"NDS", "AutoFormer", "NasBench101"})
MODES = ("plain", "fused")
CLOSELY = [*OURS, "DARTS", "NasBench201"]


def built(name, example, shape=None):
    """A space of ours or of the hub, and the shape of an object."""
    if name in HUB:
        edge = example.SPACES[name][1]
        return example.fresh(name), shape or (3, edge, edge)
    shape = shape or ((3, 9, 9) if name == "nasbench201" else (1, 8, 8))
    name, *affine = name.split(", ")
    args = SMALL.get(name, {}) | ({"affine": True} if affine else {})
    data = SimpleNamespace(shape=shape, num_classes=10)
    return build_space(Config.from_dict({"space": {"name": name, "args": args}}), data, 0), shape


def supernet(space, shape, dtype=torch.float64, execution="auto"):
    torch.manual_seed(0)
    strategy = RegularizedDARTS(seed=0, input_shape=shape, execution=execution)
    return strategy.mutate_model(space).to(dtype), strategy._binding


def slow_but_for(names, chosen):
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.slow) for name in names]


def passed(net, binding, x, *, execution, per_object, stack=None, twice=False, block=contextlib.nullcontext):
    """Output, gradients of mixing weights and parameters, with `twice` those of a function of the gradients too."""
    binding.execution, binding.stack = execution, stack
    per_object = per_object and not binding.single_lambda
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for label, unit in binding.units.items():
        shape = unit.shape if hasattr(unit, "cell") else unit.shape[1:]
        raw = torch.rand((len(x),) * per_object + tuple(shape), generator=generator, dtype=torch.float64)
        weights[label] = raw.softmax(-1).to(x.dtype).requires_grad_(True)
    binding.weights = weights
    torch.manual_seed(2)  # dropout
    with block():
        output = net(x)
    output = output[0] if isinstance(output, (tuple, list)) else output
    leaves = [*weights.values(), *net.parameters()]
    gradients = torch.autograd.grad(output.square().sum() + output.sum(), leaves, create_graph=twice, allow_unused=True)
    result = [output, *gradients]
    if twice:
        scalar = sum((g * g.detach().cos()).sum() for g in gradients if g is not None)
        result += torch.autograd.grad(scalar, leaves, allow_unused=True)
    return [torch.zeros(()) if r is None else r.detach() for r in result]


def compare(net, binding, x, *, tolerance=1e-10, **how):
    fused_alone = {name: how.pop(name) for name in ("stack", "block") if name in how}
    other = copy.deepcopy(net.state_dict())
    plain = passed(net, binding, x, execution="plain", **how)
    statistics = copy.deepcopy(net.state_dict())
    moved = any(not torch.equal(statistics[name], other[name]) for name in other if "running" in name)
    net.load_state_dict(other)
    fused = passed(net, binding, x, execution="fused", **fused_alone, **how)
    for a, b in zip(plain, fused, strict=True):
        scale = 1 + max(float(a.abs().max()), float(b.abs().max()))
        assert float((a - b).abs().max()) <= tolerance * scale
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, statistics[name], atol=tolerance, rtol=tolerance)
    return moved


@pytest.mark.parametrize(
    ("name", "per_object", "stack"),
    [
        pytest.param(*case, marks=() if case[0] in CLOSELY or case[1:] == (True, False) else pytest.mark.slow)
        for case in itertools.product([*OURS, *HUB], (False, True), (False, True))
    ],
)
def test_fused_equals_plain(name, per_object, stack, example):
    space, shape = built(name, example)
    net, binding = supernet(space, shape)
    x = torch.randn(3, *shape, dtype=torch.float64)
    # NNI's AutoFormer alone has no running statistics.
    assert compare(net, binding, x, per_object=per_object, stack=stack) or name == "AutoformerSpace"
    net.eval()
    assert not compare(net, binding, x, per_object=per_object, stack=stack)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(OURS),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    batch=st.integers(2, 4),
    per_object=st.booleans(),
    stack=st.booleans(),
    training=st.booleans(),
)
def test_our_spaces_at_any_shape(name, channels, size, batch, per_object, stack, training, example):
    any_shape(name, example, (channels, *size), batch, training, per_object=per_object, stack=stack)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(HUB),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    batch=st.integers(2, 4),
    per_object=st.booleans(),
    stack=st.booleans(),
    training=st.booleans(),
)
def test_the_hub_at_any_shape(name, size, batch, per_object, stack, training, example):
    shape = {
        "AutoformerSpace": None,  # made for one size
        "NasBench201": (3, *(4 * (n // 4 + 1) for n in size)),  # its two ways to halve an image must agree
    }.get(name, (3, *size))
    any_shape(name, example, shape, batch, training, per_object=per_object, stack=stack)


def any_shape(name, example, shape, batch, training, **how):
    space, shape = built(name, example, shape)
    net, binding = supernet(space, shape)
    net.train(training)
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    compare(net, binding, x, **how)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("name", slow_but_for([*OURS, "DARTS", "NasBench201"], OURS))
def test_second_derivatives_are_equal(name, stack, example):
    """Those of torch's own layers, and those of the layers that the second order takes."""
    space, shape = built(name, example)
    net, binding = supernet(space, shape)
    x = torch.randn(2, *shape, dtype=torch.float64)
    for per_object, block in itertools.product((False, True), (contextlib.nullcontext, DifferentiatedTwice)):
        compare(net, binding, x, per_object=per_object, stack=stack, block=block, twice=True, tolerance=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("per_object", [False, True])
@pytest.mark.parametrize("name", slow_but_for([*OURS, *HUB], CLOSELY))
def test_single_precision_differs_by_rounding(name, per_object, training, example):
    """Fused is as near to double precision as plain is."""
    space, shape = built(name, example)
    net, binding = supernet(space, shape, torch.float32)
    net.train(training)
    start = copy.deepcopy(net.state_dict())

    def run(execution, dtype):
        net.to(dtype).load_state_dict(start)
        x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        return passed(net, binding, x, execution=execution, per_object=per_object)

    exact = run("plain", torch.float64)
    errors = {
        execution: [
            float((a - b).norm() / (1e-3 + b.norm())) for a, b in zip(run(execution, torch.float32), exact, strict=True)
        ]
        for execution in MODES
    }
    if training and name not in CLOSELY:
        # Statistics of few pixels: in either mode rounding pushes some over the kink of a ReLU, where gradients jump.
        errors = {execution: values[:1] for execution, values in errors.items()}
    assert 0 < max(errors["plain"]) < 1e-2
    assert max(errors["fused"]) <= 4 * max(errors["plain"])
    assert sum(errors["fused"]) <= 2 * sum(errors["plain"])


@pytest.mark.parametrize("name", slow_but_for([*OURS, *HUB], CLOSELY))
def test_a_checkpoint_goes_on_in_the_other_mode(name, example):
    """A step in one mode; from what it leaves behind, the next step's loss is the same in either."""
    shape = built(name, example)[1]
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3))
    nets = {execution: supernet(built(name, example)[0], shape, torch.float32, execution) for execution in MODES}
    for first, second in (MODES[::-1], MODES):
        net, binding = nets[first]
        output, *gradients = passed(net, binding, x, execution=first, per_object=True)
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients[len(binding.units) :], strict=True):
                parameter.sub_(gradient, alpha=1e-3)
        nets[second][0].load_state_dict(net.state_dict())
        stays, changes = (
            float(passed(*nets[mode], x, execution=mode, per_object=True)[0].square().mean())
            for mode in (first, second)
        )
        assert changes == pytest.approx(stays, rel=1e-5, abs=1e-5)
        assert stays != pytest.approx(float(output.square().mean()), rel=1e-4)


class _Odd(nn.Module):
    """An operation that is not known, in the middle of known ones."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return torch.tanh(self.scale * x)


CANDIDATES = {
    **{name: (lambda c, a, make=make: make(c, a)) for name, make in OPERATIONS.items()},
    "odd": lambda c, a: _Odd(c),
    "pool": lambda c, a: nn.AvgPool2d(3, 1, 1),
    "twice": lambda c, a: nn.Sequential(OPERATIONS["sep_conv_3x3"](c, a), OPERATIONS["conv_1x1"](c, a)),
    "relu after pool": lambda c, a: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.ReLU()),
    "biased": lambda c, a: nn.Conv2d(c, c, 3, padding=1),
    "normalized": lambda c, a: nn.BatchNorm2d(c, affine=a, momentum=0.3, eps=1e-3),
}


class _Toy(ModelSpace):
    def __init__(self, names, channels, n_nodes, affine, layer):
        super().__init__()
        candidates = {name: partial(self._make, name, channels, affine) for name in names}
        self.cell = Cell(candidates, num_nodes=n_nodes, num_ops_per_node=1, num_predecessors=2, label="cell")
        self.layer = LayerChoice({name: make(0, 0, 0) for name, make in candidates.items()}, label="layer")
        self.with_layer = layer

    @staticmethod
    def _make(name, channels, affine, node, slot, chosen):
        return CANDIDATES[name](channels, affine)

    def forward(self, x):
        return self.cell(x, self.layer(x) + self.layer(2 * x) if self.with_layer else x.flip(-1))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.sampled_from(sorted(CANDIDATES)), min_size=2, max_size=5, unique=True),
    channels=st.integers(1, 5),
    n_nodes=st.integers(1, 3),
    affine=st.booleans(),
    layer=st.booleans(),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    batch=st.integers(2, 4),
    per_object=st.booleans(),
    stack=st.booleans(),
    training=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_cell_of_any_shape(
    names, channels, n_nodes, affine, layer, size, batch, per_object, stack, training, channels_last
):
    net, binding = supernet(_Toy(names, channels, n_nodes, affine, layer), (channels, *size))
    net.train(training)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.affine):
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.uniform_(norm.bias, -1, 1)
    x = torch.randn(batch, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    compare(net, binding, x, per_object=per_object, stack=stack)


def test_equal_layers_of_other_statistics_are_told_apart_in_evaluation():
    net, binding = supernet(CellSpace(width=4, n_nodes=2), (1, 8, 8))
    for i, norm in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.fill_(0.1 * i)
        norm.running_var.fill_(1 + 0.1 * i)
    net.eval()
    for stack in (False, True):
        compare(net, binding, torch.randn(2, 1, 8, 8, dtype=torch.float64), per_object=False, stack=stack)


def test_layers_of_other_momentum_or_mode_are_not_run_as_one():
    net, binding = supernet(CellSpace(width=4, n_nodes=2), (1, 8, 8))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for i, norm in enumerate(norms):
        norm.momentum = 0.1 + 0.8 * i / len(norms)
        norm.training = i % 3 > 0
    compare(net, binding, torch.randn(2, 1, 8, 8, dtype=torch.float64), per_object=False, stack=True)


def test_who_listens_to_an_operation_hears_every_call():
    net, binding = supernet(CellSpace(width=4, n_cells=1, n_nodes=2), (1, 8, 8))
    heard = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: heard.append(name))
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    compare(net, binding, x, per_object=False)
    assert len(heard) == 2 * len(set(heard)) > 0


def test_nothing_is_held_after_a_pass(example):
    space, shape = built("nasbench201", example)
    net, binding = supernet(space, shape)
    seen = []
    mixed = [m for m in net.modules() if isinstance(m, MixedLayer)]
    mixed[-1].register_forward_hook(lambda *_: seen.append(len(binding.heads._of)))
    passed(net, binding, torch.randn(2, *shape, dtype=torch.float64), execution="fused", per_object=False)
    assert seen[-1] > 0 and not binding.heads._of


def test_shared_input_that_is_written_to_is_not_taken_for_the_old_one():
    class Writing(ModelSpace):
        def __init__(self):
            super().__init__()
            make = lambda: {"a": OPERATIONS["conv_1x1"](2, False), "b": OPERATIONS["conv_3x3"](2, False)}  # noqa: E731
            self.first, self.second = LayerChoice(make(), label="first"), LayerChoice(make(), label="second")

        def forward(self, x):
            x = x * 1.0
            y = self.first(x.detach())
            with torch.no_grad():
                x.neg_()
            return y + self.second(x)

    net, binding = supernet(Writing(), (2, 5, 5))
    compare(net, binding, torch.randn(2, 2, 5, 5, dtype=torch.float64), per_object=False)


def test_our_operations_are_known():
    unknown = [name for name, make in OPERATIONS.items() if recognize(make(4, True)) is None]
    assert unknown == []
    assert recognize(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1))) is None
    assert recognize(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))) is None
    assert recognize(nn.BatchNorm2d(2, momentum=None)) is None
    assert recognize(nn.Sequential(nn.GELU())) is None


@pytest.mark.parametrize("operations", [["conv_3x3"], ["conv_1x1", "conv_3x3"]])
def test_equal_operations_run_as_one_convolution(operations, monkeypatch):
    net, binding = supernet(CellSpace(width=4, n_cells=1, n_nodes=3, operations=operations), (1, 8, 8))
    cell = next(m for m in net.modules() if isinstance(m, MixedCell))
    inner = {id(m.weight) for m in cell.ops.modules() if isinstance(m, nn.Conv2d)}
    calls = []
    real = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, w, *a: calls.append(tuple(w.shape)) or real(x, w, *a))
    passed(net, binding, torch.randn(2, 1, 8, 8, dtype=torch.float64), execution="fused", per_object=False, stack=True)
    # Four states have outgoing edges: two inputs to three nodes, the first node to two, the second to one.
    stacked = [shape[0] // 4 for shape in calls if shape[1:] == (4, 3, 3)]
    n = len(operations)
    assert len(inner) == 9 * n and sorted(stacked) == [n, 2 * n, 3 * n, 3 * n]
