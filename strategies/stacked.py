"""Several supernets of one shape as one: their cells run `fused` on wide layers, inside `torch.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.layers.side_by_side import (
    SameMode,
    Slot,
    concatenated,
    joined,
    parted,
    physically,
    place,
    slots,
    widened,
)

from .chains import is_zero, recognize
from .fused import FusedNodes

Operations = Callable[[law.Node, int], Mapping[str, nn.Module]]


class StackedNodes:
    """The nodes of one cell in n supernets; to be called inside `torch.vmap` over them.

    Args:
        nodes: Of the cell.
        operations: (node, edge) -> the candidates of the edge, in one of the supernets.

    Attributes:
        recognized: Whether all candidates are known, without which nothing here works: a layer that is not known might
            not work on channels one by one.
        slots: Where the parameters and buffers of the candidates are kept.
        tensors: Those of all supernets, `(n, ...)` each, in the order of the slots; to be set before a call.
    """

    def __init__(self, nodes: Sequence[law.Node], operations: Operations) -> None:
        self.nodes = tuple(nodes)
        self._edges = [(node, edge, list(operations(node, edge))) for node in nodes for edge in range(node.index)]
        every = [m for node, edge, _ in self._edges for m in operations(node, edge).values()]
        self.recognized = all(is_zero(m) or recognize(m) is not None for m in every)
        self._narrow = nn.ModuleList(every)
        self.slots: list[Slot] = slots(self._narrow)
        self.tensors: Sequence[Tensor] = ()
        self._wide: dict[int, tuple[list[Slot], SameMode, FusedNodes]] = {}

    def __call__(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor], auxiliary: float = 0.0) -> Tensor:
        """Inputs of the cell and mixing weights by label of the node -> the states of the nodes, concatenated.

        Args:
            inputs: `(batch, channels, h, w)` each.
            weights: As a `Binding` has them.
            auxiliary: See `FusedNodes`.
        """
        labels = [node.label for node in self.nodes]

        def run(n: int, tensors: list[Tensor]) -> list[Tensor]:
            states, mixing = tensors[: len(inputs)], tensors[len(inputs) :]
            places, follow, fused = self._widened(n)
            follow()
            place(self.tensors, places)
            by_label = {label: _by_part(w) for label, w in zip(labels, mixing, strict=True)}
            result = fused([joined(x) for x in states], by_label, stack=False, auxiliary=auxiliary)
            return [parted(concatenated(result[len(inputs) :], n), n)]

        (result,) = physically(run, [*inputs, *(weights[label] for label in labels)])
        return result

    def _widened(self, n: int) -> tuple[list[Slot], SameMode, FusedNodes]:
        if n not in self._wide:
            wide = nn.ModuleList(widened(m, n) for m in self._narrow)
            modules = iter(wide)
            made = {(node, edge): {name: next(modules) for name in names} for node, edge, names in self._edges}
            fused = FusedNodes(self.nodes, lambda node, edge: made[node, edge])
            self._wide[n] = slots(wide), SameMode(wide, self._narrow), fused
        return self._wide[n]


def _by_part(weights: Tensor) -> Tensor:
    """`(n, edges, operations)` -> `(1, n, edges, operations)`, `(n, batch, ...)` -> `(batch, n, ...)`."""
    return weights.unsqueeze(0) if weights.dim() == 3 else weights.transpose(0, 1)


__all__ = ["StackedNodes"]
