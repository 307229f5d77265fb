"""Several supernets as one against each by itself: the same outputs, gradients and statistics."""

import copy
from functools import partial

import pytest
import torch
from nni.nas.hub.pytorch import DARTS, NasBench201
from nni.nas.nn.pytorch import Cell, ModelSpace
from torch import nn

from nni_bayes_nas.layers.replicas import Stacked
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.chain import ChainSpace
from nni_bayes_nas.search_spaces.dense import DenseSpace
from nni_bayes_nas.search_spaces.nasbench201 import NasBench201Space
from nni_bayes_nas.strategies import RegularizedDARTS
from nni_bayes_nas.strategies.mixed_cell import MixedCell
from nni_bayes_nas.strategies.replicas import SupernetTemplate


class _OneCell(ModelSpace):
    """A cell of known operations whose nodes are not images, or are put together along another axis."""

    def __init__(self, concat_dim):
        super().__init__()
        operations = {"identity": lambda *_: nn.Identity(), "relu": lambda *_: nn.ReLU()}
        self.cell = Cell(operations, num_nodes=2, num_ops_per_node=1, concat_dim=concat_dim, label="cell")
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.cell(self.scale * x)


SPACES = {
    "cell": (partial(CellSpace, width=4, n_nodes=2), (1, 8, 8)),
    "cell, affine": (partial(CellSpace, width=4, n_nodes=2, affine=True, n_cells=3, in_channels=3), (3, 9, 9)),
    "nasbench201": (partial(NasBench201Space, in_channels=3, width=4, cells_per_stage=1), (3, 9, 9)),
    "chain": (partial(ChainSpace), (1, 8, 8)),
    "one cell, rows put together": (partial(_OneCell, 2), (2, 4, 4)),
    "one cell of vectors": (partial(_OneCell, 1), (6,)),
    "dense": (partial(DenseSpace, in_features=6), (6,)),
    "NNI's DARTS": (partial(DARTS, width=4, num_cells=3, dataset="cifar"), (3, 16, 16)),
    "NNI's NAS-Bench-201": (partial(NasBench201, 4, 1, 10), (3, 8, 8)),
}


def supernets(make, shape, n, **options):
    found = []
    for seed in range(n):
        torch.manual_seed(seed)
        strategy = RegularizedDARTS(seed=seed, input_shape=shape, **options)
        net = strategy.mutate_model(make()).double()
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.affine):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -1, 1)
        found.append((net, strategy._binding))
    return found


def set_weights(nets, n_objects):
    for seed, (_, binding) in enumerate(nets):
        generator = torch.Generator().manual_seed(seed)
        for label, unit in binding.units.items():
            shape = unit.shape if hasattr(unit, "cell") else unit.shape[1:]
            shape = (*([n_objects] if n_objects else []), *shape)
            raw = torch.rand(shape, generator=generator, dtype=torch.float64)
            binding.weights[label] = raw.softmax(-1).requires_grad_(True)


def results(nets, outputs):
    found = []
    for (net, binding), output in zip(nets, outputs, strict=True):
        output = output[0] if isinstance(output, (tuple, list)) else output
        leaves = [*binding.weights.values(), *net.parameters()]
        loss = output.square().sum() + output.sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        found.append([output, *[torch.zeros(()) if g is None else g for g in gradients]])
    return found


@pytest.mark.parametrize("per_object", [False, True])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "NNI's DARTS" else name for name in SPACES]
)
def test_stacked_supernets_equal_single_ones(name, per_object):
    make, shape = SPACES[name]
    nets = supernets(make, shape, 3)
    singles = copy.deepcopy(nets)
    x = torch.randn(3, 4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for training in (True, False):
        for net, _ in nets + singles:
            net.train(training)
        set_weights(nets, 4 if per_object else 0)
        set_weights(singles, 4 if per_object else 0)
        alone = results(singles, [net(part) for (net, _), part in zip(singles, x, strict=True)])
        stacked = Stacked(SupernetTemplate)
        together = results(nets, stacked([(net, b.weights, (part,)) for (net, b), part in zip(nets, x, strict=True)]))
        for one, other in zip(alone, together, strict=True):
            for a, b in zip(one, other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
        for (net, _), (single, _) in zip(nets, singles, strict=True):
            torch.testing.assert_close(net.state_dict(), single.state_dict(), atol=1e-10, rtol=1e-10)
    cells = [m for m in next(iter(stacked._templates.values())).net.modules() if isinstance(m, MixedCell)]
    stacked_cells = [cell.stacked is not None for cell in cells]
    if name == "NNI's DARTS":  # its reduction cells have an operation that is not known
        assert any(stacked_cells) and not all(stacked_cells)
    else:  # other axes than channels are left as they are
        assert all(found != (name == "one cell, rows put together") for found in stacked_cells)
