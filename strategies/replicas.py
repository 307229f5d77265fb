"""The template of supernets that search side by side; see `nni_bayes_nas.layers.replicas`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor, nn

from nni_bayes_nas.layers.replicas import Template
from nni_bayes_nas.layers.side_by_side import SameMode

from .mixed_cell import MixedCell
from .stacked import StackedNodes
from .supernet import Binding


class SupernetTemplate(Template):
    """A copy of one of several supernets, through which all of them run as mixtures.

    Args:
        net: One of them.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self._binding = binding_of(self.net)
        self._modes: dict[int, tuple[nn.Module, SameMode]] = {}
        index = {(id(where), name): i for i, (where, name) in enumerate(self.places)}
        self._cells: list[tuple[StackedNodes, list[int]]] = []
        for cell in [m for m in self.net.modules() if isinstance(m, MixedCell)]:
            nodes = StackedNodes(cell.nodes, cell.edge_operations)
            if nodes.recognized and cell.concat_dim == 1 and self._binding.execution != "plain":
                cell.stacked = nodes
                self._cells.append((nodes, [index[id(where), name] for where, name in nodes.slots]))
        self.placed_by_itself = {i for _, taken in self._cells for i in taken}

    def copied(self, net: nn.Module) -> nn.Module:
        """Without what belongs to one pass."""
        binding = binding_of(net)
        weights, binding.weights = binding.weights, {}
        try:
            return super().copied(net)
        finally:
            binding.weights = weights

    @staticmethod
    def kind(net: nn.Module) -> Hashable:
        """See `Binding.kind`."""
        return binding_of(net).kind

    def follow(self, like: nn.Module) -> None:
        """Modes alone: a supernet has thousands of layers."""
        if id(like) not in self._modes:
            # With the net, whose id is nobody else's so long.
            self._modes[id(like)] = like, SameMode(self.net, like)
        self._modes[id(like)][1]()

    def receive(self, extra: Mapping[str, Tensor]) -> None:
        """Mixing weights."""
        self._binding.weights = dict(extra)

    def run(self, like: nn.Module, own: list[Tensor], extra: Mapping[str, Tensor], args: list[Tensor]) -> Any:
        """See `Template.run`; the cells are given the tensors of all supernets at once."""
        self._binding.auxiliary = binding_of(like).auxiliary
        for nodes, taken in self._cells:
            nodes.tensors = [own[i] for i in taken]
        return super().run(like, own, extra, args)


def binding_of(net: nn.Module) -> Binding:
    """What the mixed modules of a supernet share."""
    binding: Any = next(m._binding for m in net.modules() if hasattr(m, "_binding"))
    found: Binding = binding
    return found


__all__ = ["SupernetTemplate"]
