"""The compiled passes of a search step against those that are not."""

import itertools

import pytest
import torch
from nni.nas.hub.pytorch import NasBench201

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.strategies import HyperDARTS, RegularizedDARTS
from nni_bayes_nas.strategies.compiled import check_compiler, compiled

# What torch.compile traces and differentiates, without minutes of generating code.
TRACED = "aot_eager"
SPACES = {
    "cell": (lambda: CellSpace(width=4, n_cells=1, n_nodes=2), (1, 8, 8)),
    "NNI's NAS-Bench-201": (lambda: NasBench201(4, 1, 10), (3, 8, 8)),
}


def supernet(space, execution):
    make, shape = SPACES[space]
    torch.manual_seed(0)
    strategy = RegularizedDARTS(execution=execution, input_shape=shape)
    net = strategy.mutate_model(make()).double().train()
    return net, strategy._binding, torch.randn(6, *shape, dtype=torch.float64)


def mixing(binding, n_objects, *, learn):
    generator, weights = torch.Generator().manual_seed(1), {}
    for label, unit in binding.units.items():
        shape = unit.shape if hasattr(unit, "cell") else unit.shape[1:]
        raw = torch.rand(*n_objects, *shape, generator=generator, dtype=torch.float64)
        weights[label] = raw.softmax(-1).requires_grad_(learn)
    return weights


CASES = list(itertools.product(SPACES, ("plain", "fused"), ((), (6,))))
QUICK = ("cell", "fused", (6,))


@pytest.mark.parametrize(
    ("space", "execution", "n_objects"),
    [QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case != QUICK)],
)
def test_outputs_gradients_and_statistics_are_equal(space, execution, n_objects):
    found = []
    for enter in (False, True):
        net, binding, x = supernet(space, execution)
        results = []

        def steps(net=net, binding=binding, x=x, results=results):
            for learn in (True, False, True):
                binding.weights = weights = mixing(binding, n_objects, learn=learn)
                output = net(x)
                wanted = list(weights.values() if learn else net.parameters())
                gradients = torch.autograd.grad(output.square().sum(), wanted, materialize_grads=True)
                results.extend([output.detach(), *gradients])

        if enter:
            with compiled(net, binding, TRACED):
                steps()
            assert "forward" not in net.__dict__ and all(p.requires_grad for p in net.parameters())
        else:
            steps()
        found.append([*results, *(b.clone() for b in net.buffers())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_only_steps_of_the_mixture_are_compiled():
    net, binding, x = supernet("cell", "fused")
    binding.weights = mixing(binding, (), learn=False)
    traced, calls = type(net).forward, []

    def forward(self, x):
        # A Python number in a list: what is traced once runs without it.
        if not torch.compiler.is_compiling():
            calls.append(1)
        return traced(self, x)

    type(net).forward = forward
    try:
        with compiled(net, binding, TRACED):
            net(x), net(x)
            assert calls == []
            with torch.no_grad():
                net(x)
            net.eval()(x)
            choices = {label: ours_choice(unit) for label, unit in net.simplify().items()}
            with binding.only(choices, x):
                net.train()(x)
            assert len(calls) == 3
    finally:
        type(net).forward = traced


def ours_choice(unit):
    return unit.values[:1] if hasattr(unit, "n_chosen") and unit.n_chosen else unit.values[0]


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    for strategy in (HyperDARTS, RegularizedDARTS):
        with pytest.raises(ConfigError, match="compile needs order 1, got order 2"):
            strategy(compile=True, order=2)
        with pytest.raises(ConfigError, match=r"compiled.*search\.replicas"):
            strategy(compile=True).check_beside()


def test_without_a_compiler_nothing_begins(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", broken)
    check_compiler.cache_clear()
    with pytest.raises(ConfigError, match=r"fails: RuntimeError: no C\+\+ compiler was found\s+install"):
        RegularizedDARTS(compile=True, input_shape=(1, 8, 8)).check_device("cpu")
    RegularizedDARTS(input_shape=(1, 8, 8)).check_device("cpu")
    check_compiler.cache_clear()


@pytest.mark.slow
def test_a_compiled_search_finds_what_another_finds(tmp_path):
    found = {}
    for compile_ in (True, False):
        folder = tmp_path / str(compile_)
        folder.mkdir()
        settings = Config.from_dict(
            {
                "space": {"name": "cell", "args": {"width": 2, "n_cells": 1, "n_nodes": 1}},
                "data": {"limit": 160, "val_limit": 60},
                "search": {"epochs": 2, "warmup_epochs": 1, "batch_size": 40, "lambdas": 2, "random": 0},
                "strategy": {"args": {"compile": compile_}},
            }
        )
        found[compile_] = run_search(settings, {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
    ours, theirs = (found[compile_]["search"]["terms"] for compile_ in (True, False))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3) and ours != theirs
