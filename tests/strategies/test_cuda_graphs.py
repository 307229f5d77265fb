"""Recorded passes of a search step against those that are not."""

import contextlib

import pytest
import torch
from torch import nn

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.strategies import DirichletDARTS, HyperDARTS, RegularizedDARTS
from nni_bayes_nas.strategies.cuda_graphs import graphed, recorded

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
STRATEGIES = {
    "regularized_darts": RegularizedDARTS,
    "dirichlet_darts": DirichletDARTS,
}


def supernet(strategy, device, **space):
    torch.manual_seed(0)
    made = STRATEGIES[strategy](input_shape=(1, 8, 8))
    net = made.mutate_model(CellSpace(width=4, n_cells=1, n_nodes=2, **space)).double().to(device).train()
    return net, made._binding


def mixing(binding, n_objects, device, *, learn, seed=1):
    generator, weights = torch.Generator().manual_seed(seed), {}
    for label, unit in binding.units.items():
        shape = unit.shape if hasattr(unit, "cell") else unit.shape[1:]
        raw = torch.rand(*n_objects, *shape, generator=generator, dtype=torch.float64)
        weights[label] = raw.softmax(-1).to(device).requires_grad_(learn)
    return weights


def recorder(device, found):
    """Records on a GPU; on a CPU, which has no graphs, it runs what it would have recorded, once before."""

    def record(module, samples, pool):
        found.append(len(samples))
        if device == "cuda":
            return recorded(module, samples, pool)
        for sample in samples:
            module(*sample)
        return [module] * len(samples)

    return record


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n_objects", [(), (6,)])
def test_outputs_gradients_and_statistics_are_equal(device, strategy, n_objects):
    found, records = [], []
    x = torch.randn(6, 6, 1, 8, 8, dtype=torch.float64).to(device)
    for enter in (False, True):
        net, binding = supernet(strategy, device)
        results = []

        def steps(net=net, binding=binding, results=results):
            for i, learn in enumerate((True, False, True, False, False, True)):
                binding.weights = weights = mixing(binding, n_objects, device, learn=learn, seed=i)
                net.zero_grad(set_to_none=i != 4)  # the last two steps add to what is there
                output = net(x[i])
                output.square().sum().backward()
                leaves = [*weights.values()]
                # The passes of the structure alone leave the network without gradients.
                leaves += net.parameters() if binding.joint or not learn else []
                results.extend([output.detach().clone(), *(p.grad.clone() for p in leaves if p.grad is not None)])

        if enter:
            with graphed(net, binding, recorder(device, records)):
                steps()
            assert "forward" not in net.__dict__ and all(p.requires_grad for p in net.parameters())
        else:
            steps()
        found.append([*results, *(b.clone() for b in net.buffers())])
    assert records == [1, 1] and len(found[0]) > 100
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_passes_of_one_loss_have_graphs_of_their_own(device):
    found, records = [], []
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64).to(device)
    for enter in (False, True):
        net, binding = supernet("regularized_darts", device)
        binding.n_passes = 3

        def steps(net=net, binding=binding):
            for step in range(3):
                losses = []
                for i in range(3):
                    binding.weights = mixing(binding, (), device, learn=False, seed=3 * step + i)
                    losses.append(net(x).square().sum())
                torch.stack(losses).mean().backward()
            return [p.grad.clone() for p in net.parameters() if p.grad is not None]

        if enter:
            with graphed(net, binding, recorder(device, records)):
                found.append(steps())
        else:
            found.append(steps())
    assert records == [3] and len(found[0]) > 10
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_what_has_changed_is_recorded_anew(device):
    net, binding = supernet("regularized_darts", device, drop_path=0.0)
    net.late = nn.Dropout(0.0)
    records = []
    binding.weights = mixing(binding, (), device, learn=False)
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, device=device)
    with graphed(net, binding, recorder(device, records)):
        net(x).sum().backward()
        net(x).sum().backward()
        assert len(records) == 1
        net(x[:4]).sum().backward()  # a smaller batch is not worth a graph of its own
        assert len(records) == 1
        net.late.p = 0.5
        net(x).sum().backward()
        assert len(records) == 2
        for p in net.parameters():
            p.data = p.data.clone()
        net(x).sum().backward()
        assert len(records) == 3


@pytest.mark.parametrize("device", DEVICES)
def test_what_does_not_train_as_a_mixture_is_not_recorded(device):
    net, binding = supernet("regularized_darts", device)
    records = []
    binding.weights = mixing(binding, (), device, learn=False)
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64, device=device)
    sample = {label: unit.values[:1] if getattr(unit, "n_chosen", 0) else unit.values[0] for label, unit in _units(net)}
    with graphed(net, binding, recorder(device, records)):
        with torch.no_grad():
            net(x)
        net.eval()(x)
        net.train()
        with binding.only(sample, x):
            net(x)
    assert records == []


def _units(net):
    return net.simplify().items()


def test_recording_leaves_noise_and_statistics_alone():
    net, binding = supernet("regularized_darts", "cpu")
    binding.weights = mixing(binding, (), "cpu", learn=False)
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    torch.manual_seed(3)
    expected, before = torch.rand(3), [b.clone() for b in net.buffers()]
    torch.manual_seed(3)

    def record(module, samples, pool):
        module(*samples[0]), torch.rand(7)
        return [lambda *arguments: arguments[0]]

    with graphed(net, binding, record):
        net(x)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_a_failure_of_recording_says_what_to_do():
    net, binding = supernet("regularized_darts", "cpu")
    binding.weights = mixing(binding, (), "cpu", learn=False)

    def record(module, samples, pool):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    with (
        graphed(net, binding, record),
        pytest.raises(SpaceError, match=r"not permitted when stream.*leave cuda_graphs"),
    ):
        net(torch.randn(6, 1, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("strategy", [RegularizedDARTS, HyperDARTS])
def test_what_cannot_be_recorded_is_refused(strategy):
    with pytest.raises(ConfigError, match="cuda_graphs needs order 1, got order 2"):
        strategy(cuda_graphs=True, order=2)
    with pytest.raises(ConfigError, match="compile true and cuda_graphs true"):
        strategy(cuda_graphs=True, compile=True)
    with pytest.raises(ConfigError, match=r"nor recorded.*search\.replicas"):
        strategy(cuda_graphs=True).check_beside()
    with pytest.raises(ConfigError, match=r"auxiliary_end 0\.0 and cuda_graphs true"):
        strategy(cuda_graphs=True, auxiliary=1.0, auxiliary_end=0.0)
    with pytest.raises(ConfigError, match="cuda_graphs needs a GPU of NVIDIA, but the search runs on 'cpu'"):
        strategy(cuda_graphs=True).check_device("cpu")


def test_noise_in_the_weights_cannot_be_recorded():
    with pytest.raises(ConfigError, match="cuda_graphs needs weights that are points"):
        DirichletDARTS(cuda_graphs=True, weights="variational")


@NEEDS_GPU
@pytest.mark.parametrize("strategy", ["regularized_darts", "hyper_darts", "dirichlet_darts"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_recorded_search_finds_what_another_finds(tmp_path, strategy, precision):
    found = {}
    for graphs in (True, False):
        folder = tmp_path / str(graphs)
        folder.mkdir()
        settings = Config.from_dict(
            {
                "experiment": {"device": "gpu"},
                "space": {"name": "cell", "args": {"width": 4, "n_cells": 1, "n_nodes": 2}},
                "data": {"limit": 320, "val_limit": 100},
                "search": {"epochs": 3, "warmup_epochs": 1, "batch_size": 40, "random": 0, "precision": precision},
                "strategy": {"name": strategy, "args": {"cuda_graphs": graphs}},
            }
        )
        found[graphs] = run_search(settings, {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
    ours, theirs = (found[graphs]["search"]["terms"] for graphs in (True, False))
    # Kernels that add up in another order each time, and bfloat16, grow apart from step to step.
    assert ours == pytest.approx(theirs, rel=2e-2, abs=2e-2)


@NEEDS_GPU
@pytest.mark.parametrize("name", ["NasBench201", "DARTS"])
def test_recorded_passes_are_those_of_plain_execution_on_spaces_of_the_hub(name, example):
    """Recorded, fused and stacked against operation by operation: outputs, gradients and statistics of two steps."""
    x = torch.randn(2, 4, 3, *[example.SPACES[name][1]] * 2, dtype=torch.float64).cuda()
    found = []
    for execution in ("plain", "fused"):
        torch.manual_seed(0)
        made = RegularizedDARTS(execution=execution)
        net = made.mutate_model(example.fresh(name)).double().cuda().train()
        results = []
        with graphed(net, made._binding) if execution == "fused" else contextlib.nullcontext():
            for i in range(2):
                weights = made._binding.weights = mixing(made._binding, (), "cuda", learn=False, seed=i)
                net.zero_grad()
                output = net(x[i])
                output = output[0] if isinstance(output, (tuple, list)) else output
                output.square().sum().backward()
                results += [output.detach().clone(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
                assert all(not w.requires_grad for w in weights.values())
        found.append([*results, *(b.clone() for b in net.buffers())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
