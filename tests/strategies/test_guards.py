"""Guards against collapse: what they add to a supernet, in every way in which it runs."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.layers.replicas import Stacked
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.dense import DenseSpace
from nni_bayes_nas.search_spaces.nasbench201 import NasBench201Space
from nni_bayes_nas.strategies import DirichletDARTS, HyperDARTS, RegularizedDARTS
from nni_bayes_nas.strategies.guards import BatchNormalize, Guards, has_normalization
from nni_bayes_nas.strategies.mixed_cell import MixedCell
from nni_bayes_nas.strategies.replicas import SupernetTemplate
from nni_bayes_nas.strategies.supernet import MixedLayer

STRATEGIES = [HyperDARTS, RegularizedDARTS, DirichletDARTS]
SPACES = {
    "cell": (partial(CellSpace, width=4, n_nodes=2), (1, 8, 8)),
    "nasbench201": (partial(NasBench201Space, in_channels=3, width=4, cells_per_stage=1), (3, 8, 8)),
}


def supernet(space="cell", strategy=RegularizedDARTS, **options):
    make, shape = SPACES[space]
    torch.manual_seed(0)
    made = strategy(input_shape=shape, **options)
    net = made.mutate_model(make()).double()
    generator = torch.Generator().manual_seed(1)
    for label, unit in made._binding.units.items():
        size = unit.shape if hasattr(unit, "cell") else unit.shape[1:]
        made._binding.weights[label] = torch.rand(size, generator=generator, dtype=torch.float64).softmax(-1)
    return net, made


def images(space, n=4):
    return torch.randn(n, *SPACES[space][1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_fused_and_stacked_equal_plain(space, normalize):
    options = {"auxiliary": 0.7, "normalize": normalize}
    outputs, x = [], images(space)
    for execution in ("plain", "fused"):
        net, _ = supernet(space, execution=execution, **options)
        outputs.append(net(x))
    pair = [supernet(space, **options) for _ in range(2)]
    stacked = Stacked(SupernetTemplate)([(net, made._binding.weights, (x,)) for net, made in pair])
    for other in (outputs[1], *stacked):
        torch.testing.assert_close(other, outputs[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("space", SPACES)
def test_the_auxiliary_identity_is_one_on_every_edge_of_the_mixture_alone(space):
    """A supernet whose skip connections weigh .7 more is one with an auxiliary identity of .7."""
    x = images(space)
    net, made = supernet(space, execution="plain", auxiliary=0.7)
    guarded = net(x)
    made._binding.auxiliary = 0.0
    assert not torch.allclose(net(x), guarded)
    for label, unit in made._binding.units.items():
        names = unit.operations if hasattr(unit, "cell") else unit.options
        skip = [i for i, name in enumerate(names) if "skip" in str(name)]
        weights = made._binding.weights[label].clone()
        weights[..., skip[0]] += 0.7
        made._binding.weights[label] = weights
    torch.testing.assert_close(net(x), guarded, atol=1e-10, rtol=1e-10)
    choices = made.structure.export()
    with made._binding.only(choices, x):
        alone = net(x)
        made._binding.auxiliary = 5.0
        assert torch.equal(net(x), alone)


def test_the_identity_stays_or_falls():
    assert [Guards(auxiliary=1.0).auxiliary_at(p) for p in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    assert [Guards(auxiliary=1.0, auxiliary_end=0.0).auxiliary_at(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("space", SPACES)
def test_every_operation_ends_in_normalization(space):
    plain, _ = supernet(space)
    net, _ = supernet(space, normalize=True)
    for model, expected in ((plain, False), (net, True)):
        found = []
        for module in model.modules():
            if isinstance(module, MixedLayer):
                found += [module[name] for name in module.options]
            elif isinstance(module, MixedCell):
                found += [
                    op
                    for node in module.nodes
                    for e in range(node.index)
                    for op in module.edge_operations(node, e).values()
                ]
        assert found and all(map(has_normalization, found)) == expected
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 5), (4, 7, 2, 2)])
def test_normalization_of_any_number_of_channels(shape):
    x = torch.randn(shape, dtype=torch.float64)
    layer = BatchNormalize()
    for mode in (True, False):
        result = layer.train(mode)(x)
        axes = [i for i in range(x.dim()) if i != 1]
        torch.testing.assert_close(result.mean(axes), torch.zeros(shape[1], dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(
            result.var(axes, unbiased=False), torch.ones(shape[1], dtype=torch.float64), atol=1e-3, rtol=0
        )
    assert not list(layer.parameters()) and not list(layer.buffers())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_options_that_are_left_out_are_never_chosen(strategy):
    net, made = supernet("nasbench201", strategy, without=["none"])
    layers = [m for m in net.modules() if isinstance(m, MixedLayer)]
    assert all("none" not in layer.options and "none" in layer.names for layer in layers)
    drawn = made.structure.random_samples(50, generator=torch.Generator().manual_seed(0))
    assert "none" not in {choice for one in drawn for choice in one.values()}
    space = NasBench201Space(in_channels=3, width=4, cells_per_stage=1)
    assert space.check_contains(made.structure.export()) is None
    made.measure(net.float(), (3, 8, 8))
    full = RegularizedDARTS(input_shape=(3, 8, 8))
    other = full.mutate_model(NasBench201Space(in_channels=3, width=4, cells_per_stage=1))
    full.measure(other, (3, 8, 8))
    choices = made.structure.export()
    assert made.exact_cost("params", choices) == full.exact_cost("params", choices)


def test_operations_of_cells_that_are_left_out():
    net, made = supernet("cell", without=["skip_connect"])
    (first, *_) = [m for m in net.modules() if isinstance(m, MixedCell)]
    assert "skip_connect" in first.op_names and "skip_connect" not in first.nodes[0].operations
    x = images("cell")
    assert net(x).shape == (4, 10)
    frozen = CellSpace(width=4, n_nodes=2).freeze(made.structure.export())
    assert isinstance(frozen, nn.Module)


def test_a_choice_keeps_an_option():
    names = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
    with pytest.raises(SpaceError, match="must keep an option, but `without` takes all of"):
        supernet("nasbench201", without=names)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("options", [{"auxiliary": -1.0}, {"auxiliary": 1.0, "auxiliary_end": float("nan")}])
def test_weights_that_cannot_be_are_refused(strategy, options):
    with pytest.raises(ConfigError, match="weight of an identity and must be at least 0"):
        strategy(**options)


def test_guards_survive_copies():
    net, made = supernet("cell", auxiliary=0.5)
    copied = copy.deepcopy(net)
    x = images("cell")
    torch.testing.assert_close(copied(x), net(x))
    assert made._binding.auxiliary == 0.5


def test_side_by_side_the_identity_anneals():
    pair = [supernet("cell", auxiliary=1.0, auxiliary_end=0.0) for _ in range(2)]
    x, stacked = images("cell"), Stacked(SupernetTemplate)
    for weight in (1.0, 0.25, 0.0):
        for _, made in pair:
            made._binding.auxiliary = weight
        alone = pair[0][0](x)
        for output in stacked([(net, made._binding.weights, (x,)) for net, made in pair]):
            torch.testing.assert_close(output, alone, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("other", [{"auxiliary": 1.0}, {"normalize": True}, {"execution": "plain"}])
def test_supernets_that_differ_do_not_run_as_one(other):
    (a, first), (b, second) = supernet("cell"), supernet("cell", **other)
    assert first._binding.for_mixture()[0] != second._binding.for_mixture()[0]
    x, stacked = images("cell"), Stacked(SupernetTemplate)
    for net, made in ((a, first), (b, second), (a, first)):
        outputs = stacked([(n, made._binding.weights, (x,)) for n in (net, copy.deepcopy(net))])
        torch.testing.assert_close(outputs[0], net(x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_options_that_no_choice_has_are_refused(strategy):
    with pytest.raises(SpaceError, match=r"must name options of the space, but no choice has \['nonne'\]"):
        supernet("nasbench201", strategy, without=["none", "nonne"])


def test_vectors_can_be_normalized():
    made = RegularizedDARTS(input_shape=(6,), normalize=True)
    net = made.mutate_model(DenseSpace(in_features=6))
    made.measure(net, (6,))
    made._binding.weights = made.structure.mean(None)
    assert bool(torch.isfinite(net(torch.randn(5, 6))).all())
