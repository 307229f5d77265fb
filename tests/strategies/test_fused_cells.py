"""Operations of every kind in fused cells and layers, against plain ones."""

import itertools
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace
from plain_and_fused import built, compare, passed, supernet
from torch import nn

from nni_bayes_nas.layers import gaussian_output
from nni_bayes_nas.layers.variational import to_variational, weight_noise
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.operations import OPERATIONS
from nni_bayes_nas.strategies import chains, fused
from nni_bayes_nas.strategies.chains import recognize
from nni_bayes_nas.strategies.guards import BatchNormalize
from nni_bayes_nas.strategies.mixed_cell import MixedCell
from nni_bayes_nas.strategies.supernet import MixedLayer


class _Odd(nn.Module):
    """An operation that is not known, in the middle of known ones."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return torch.tanh(self.scale * x)


class _Standardized(nn.Conv2d):
    """A convolution with something else than its weights."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


CANDIDATES = {
    **{name: (lambda c, a, make=make: make(c, a)) for name, make in OPERATIONS.items()},
    "odd": lambda c, a: _Odd(c),
    "pool": lambda c, a: nn.AvgPool2d(3, 1, 1),
    "twice": lambda c, a: nn.Sequential(OPERATIONS["sep_conv_3x3"](c, a), OPERATIONS["conv_1x1"](c, a)),
    "relu after pool": lambda c, a: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.ReLU()),
    "relu in place after pool": lambda c, a: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.ReLU(inplace=True)),
    "standardized": lambda c, a: _Standardized(c, c, 3, padding=1),
    "standardized by channel": lambda c, a: _Standardized(c, c, 3, padding=1, groups=c, bias=False),
    "inner pool": lambda c, a: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
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


ANY_CELL = dict(
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


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(**ANY_CELL)
def test_any_cell_of_any_shape(**how):
    any_cell(**how)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(**ANY_CELL)
def test_any_cell_in_the_ways_of_large_images_in_single_precision(**how):
    """The depthwise convolutions and poolings of ours, which double precision and few pixels leave to torch."""
    with (
        mock.patch.object(chains, "is_slow", lambda *_: True),
        mock.patch.object(chains, "pools_slowly", lambda _: True),
    ):
        any_cell(**how)


def any_cell(names, channels, n_nodes, affine, layer, size, batch, per_object, stack, training, channels_last):
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
    assert recognize(nn.Sequential(nn.AvgPool2d(2), nn.ReLU(inplace=True))) is None
    assert recognize(_Standardized(2, 2, 1)) is None and recognize(nn.Conv2d(2, 2, 1)) is not None
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


@pytest.mark.parametrize("estimator", ["local", "flipout"])
@pytest.mark.parametrize("name", ["cell", "nasbench201"])
def test_gaussian_weights(name, estimator, example, monkeypatch):
    """The same noise in both modes, whose draws come in another order: all of it one."""
    monkeypatch.setattr(gaussian_output, "gaussian_like", torch.ones_like)
    monkeypatch.setattr(gaussian_output, "_signs", lambda x, _: x.new_ones(()))
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    space, shape = built(name, example)
    net, binding = supernet(space, shape)
    to_variational(net, rho=-1.0, estimator=estimator)
    x = torch.randn(3, *shape, dtype=torch.float64)
    for per_object, stack in itertools.product((False, True), (False, True)):
        compare(net, binding, x, per_object=per_object, stack=stack)
    before = passed(net, binding, x, execution="fused", per_object=False)[0]
    with weight_noise(net, False):
        compare(net, binding, x, per_object=False, stack=True)
        assert not torch.equal(before, passed(net, binding, x, execution="fused", per_object=False)[0])


def test_mixing_weights_keep_single_precision_where_images_have_16_bits():
    """As factors of a normalization without statistics, whose images are in bfloat16."""
    factors = torch.tensor([0.3, 0.7], requires_grad=True)
    x = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    fused._normalized(x, [BatchNormalize()], factors).float().pow(3).sum().backward()
    assert not torch.equal(factors.grad, factors.grad.bfloat16().float())
