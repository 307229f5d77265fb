"""Supernets in both modes, for the tests that compare them."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from nni.nas.hub import pytorch as hub

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import build_space
from nni_bayes_nas.registry import SEARCH_SPACES
from nni_bayes_nas.strategies import RegularizedDARTS

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


def passed(
    net, binding, x, *, execution, per_object, stack=None, twice=False, block=contextlib.nullcontext, as_they_come=True
):
    """Output, gradients of mixing weights and parameters, with `twice` those of a function of the gradients too."""
    binding.execution, binding.stack = execution, stack
    per_object = per_object and not binding.single_lambda
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for label, unit in binding.units.items():
        shape = unit.shape if hasattr(unit, "cell") else unit.shape[1:]
        raw = torch.rand((len(x),) * per_object + tuple(shape), generator=generator, dtype=torch.float64)
        weights[label] = raw.softmax(-1).to(x).requires_grad_(True)
    binding.weights = weights
    torch.manual_seed(2)  # dropout
    # Plain is what a user has who leaves all this out: images as they come.
    hooks = dict(net._forward_pre_hooks)
    if execution == "plain" and as_they_come:
        net._forward_pre_hooks.clear()
    with block():
        output = net(x)
    net._forward_pre_hooks.update(hooks)
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
