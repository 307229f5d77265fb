"""Sparse networks as modules: as many weights as connections, and no more."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from nni_bayes_nas.prediction.sparse_architecture import Edge, SparseArchitecture

FUNCTIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
"""By the name of an activation."""


class SparseLinear(nn.Module):
    """y = W x + b where W has entries at the given places alone: the others are not there.

    Args:
        n_inputs: Columns of W.
        n_outputs: Rows of W.
        edges: (column, row) of every entry.

    Attributes:
        weight: The entries, sorted by (row, column).
        bias: `(n_outputs,)`.
    """

    places: Tensor

    def __init__(self, n_inputs: int, n_outputs: int, edges: tuple[Edge, ...]) -> None:
        super().__init__()
        self.n_inputs, self.n_outputs = n_inputs, n_outputs
        order = sorted((row, column) for column, row in edges)
        self.register_buffer("places", torch.tensor(order, dtype=torch.long).reshape(-1, 2).T.contiguous())
        self.weight = nn.Parameter(torch.empty(len(order)))
        self.bias = nn.Parameter(torch.empty(n_outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +- `bound_of` the sources of the unit; biases are zero."""
        bound = bound_of(torch.bincount(self.places[0], minlength=self.n_outputs))
        with torch.no_grad():
            self.weight.copy_((2 * torch.rand(len(self.weight)) - 1) * bound[self.places[0]])
            self.bias.zero_()

    def matrix(self) -> Tensor:
        """W, `(n_outputs, n_inputs)`, sparse."""
        size = (self.n_outputs, self.n_inputs)
        return torch.sparse_coo_tensor(self.places, self.weight, size, is_coalesced=True, check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, n_inputs)` to `(n, n_outputs)`."""
        product: Tensor = torch.sparse.mm(self.matrix(), x.T)
        return product.T + self.bias

    def extra_repr(self) -> str:
        """What is printed."""
        return f"{self.n_inputs}, {self.n_outputs}, {len(self.weight)} connections"


def build(net: SparseArchitecture, seed: int) -> nn.Sequential:
    """The network, with new weights; objects of any shape with `n_inputs` numbers come in, logits come out."""
    layers: list[nn.Module] = [nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer, edges in enumerate(net.edges):
            layers.append(SparseLinear(net.sizes[layer], net.sizes[layer + 1], edges))
            if layer < len(net.activations):
                layers.append(FUNCTIONS[net.activations[layer]]())
    return nn.Sequential(*layers)


def with_matrices(net: SparseArchitecture) -> nn.Sequential:
    """Layers of torch with all entries, of the widths and activations of a network, as one would write it by hand."""
    layers: list[nn.Module] = [nn.Flatten()]
    for layer, (n, m) in enumerate(pairwise(net.sizes)):
        layers.append(nn.Linear(n, m))
        if layer < len(net.activations):
            layers.append(FUNCTIONS[net.activations[layer]]())
    return nn.Sequential(*layers)


def dense(n_inputs: int, n_outputs: int, widths: tuple[int, ...], activation: str = "relu") -> SparseArchitecture:
    """The network with all connections."""
    sizes = (n_inputs, *widths, n_outputs)
    return SparseArchitecture(n_inputs, n_outputs, widths, (activation,) * len(widths), all_edges(sizes))


def all_edges(sizes: tuple[int, ...]) -> tuple[tuple[Edge, ...], ...]:
    """Of layers of these sizes."""
    return tuple(tuple((a, b) for a in range(n) for b in range(m)) for n, m in pairwise(sizes))


def bound_of(n_sources: Tensor) -> Tensor:
    """Of uniform initial weights: a unit's sum has a variance of one for inputs of one, whatever its sources."""
    return (3 / n_sources.clamp_min(1)).sqrt()
