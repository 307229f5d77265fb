"""Several searches of one space at once: each is an ordinary search, and their supernets run as one.

The searches are members of a `Lockstep`. Where one would run its supernet, all meet, and `torch.vmap` runs the stacked
supernets, whose convolutions are grouped ones then (`stacked`). The graph is shared, so that gradients are taken at a
meeting too, one pass for all. Everything else, from the draws to the optimizers, each does as if it were alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nni_bayes_nas.layers.side_by_side import Slot, joined, parted, same_mode, slots
from nni_bayes_nas.lockstep import Member, Together, one_by_one

from .stacked import StackedNodes
from .supernet import Binding, MixedCell

T = TypeVar("T")


class Stacked:
    """The supernets of a meeting, as one; shared by its `Replica`s."""

    def __init__(self) -> None:
        self._template: _Template | None = None
        self._slots: dict[int, tuple[nn.Module, list[Slot]]] = {}

    def __call__(self, requests: list[tuple[Any, Binding, tuple[Any, ...]]]) -> list[Any]:
        """(supernet, its binding, arguments) of each replica -> its output.

        A lone one runs as it is.
        """
        if len(requests) == 1:
            net, _, args = requests[0]
            return [type(net).forward(net, *args)]
        nets, bindings = [net for net, _, _ in requests], [binding for _, binding, _ in requests]
        if self._template is None:
            self._template = _Template(nets[0], bindings[0])
        of_nets = [self._slots_of(net) for net in nets]
        own = [torch.stack([where[name] for where, name in places]) for places in zip(*of_nets, strict=True)]
        mixing = {label: torch.stack([b.weights[label] for b in bindings]) for label in bindings[0].weights}
        given = [_images(torch.stack(column)) for column in zip(*(a for _, _, a in requests), strict=True)]
        outputs = self._template.run(nets[0], own, mixing, given)
        if nets[0].training:
            _write_back(of_nets, own)
        return list(zip(*outputs, strict=True)) if isinstance(outputs, tuple) else list(outputs.unbind())

    def _slots_of(self, net: nn.Module) -> list[Slot]:
        if id(net) not in self._slots:
            # With the net, whose id is nobody else's so long.
            self._slots[id(net)] = net, slots(net)
        return self._slots[id(net)][1]


class _Template:
    """A copy of one of the supernets, through which all of them run."""

    def __init__(self, net: Any, binding: Binding) -> None:
        with _as_it_is(net, binding):
            self.net = copy.deepcopy(net)
        self.binding: Binding = next(m._binding for m in self.net.modules() if hasattr(m, "_binding"))
        places = slots(self.net)
        index = {(id(where), name): i for i, (where, name) in enumerate(places)}
        self._cells: list[tuple[StackedNodes, list[int]]] = []
        for cell in [m for m in self.net.modules() if isinstance(m, MixedCell)]:
            nodes = StackedNodes(cell.nodes, cell.edge_operations)
            if nodes.recognized and cell.concat_dim == 1 and self.binding.execution != "plain":
                cell.stacked = nodes
                self._cells.append((nodes, [index[id(where), name] for where, name in nodes.slots]))
        inside = {i for _, taken in self._cells for i in taken}
        self._rest = [(i, where, name) for i, (where, name) in enumerate(places) if i not in inside]

    def run(self, like: Any, own: list[Tensor], mixing: dict[str, Tensor], args: list[Tensor]) -> Any:
        """The outputs, with a first axis for the supernets.

        Args:
            like: One of them, whose mode all have.
            own: Parameters and buffers of all, in the order of `slots`.
            mixing: Mixing weights.
            args: Of the forward pass.
        """
        same_mode(self.net, like)
        for nodes, taken in self._cells:
            nodes.tensors = [own[i] for i in taken]

        def one(rest: list[Tensor], mixing: dict[str, Tensor], args: list[Tensor]) -> Any:
            for (_, where, name), tensor in zip(self._rest, rest, strict=True):
                where[name] = tensor
            self.binding.weights = mixing
            return self.net(*args)

        with warnings.catch_warnings():
            # An operation that torch knows no batched form of is run for one net after the other.
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            return torch.vmap(one, randomness="different")([own[i] for i, _, _ in self._rest], mixing, args)


@contextmanager
def _as_it_is(net: Any, binding: Binding) -> Iterator[None]:
    """Without the forward pass that `Replica.attached` gave it, and without what belongs to one pass."""
    forward = net.__dict__.pop("forward", None)
    weights, binding.weights = binding.weights, {}
    try:
        yield
    finally:
        binding.weights = weights
        if forward is not None:
            net.forward = forward


@torch.no_grad()
def _write_back(of_nets: list[list[Slot]], own: list[Tensor]) -> None:
    """Give every net its running statistics."""
    for places, tensor in zip(zip(*of_nets, strict=True), own, strict=True):
        if not isinstance(places[0][0][places[0][1]], nn.Parameter):
            torch._foreach_copy_([where[name] for where, name in places], list(tensor.unbind()))


class Alone:
    """A search that has no others beside it: what is done together, it does by itself."""

    def together(self, how: Together, what: Any, key: Hashable = None) -> Any:
        """`how([what])[0]`."""
        return how([what])[0]

    def in_turn(self, function: Callable[[], T]) -> T:
        """`function()`."""
        return function()

    @contextmanager
    def attached(self, net: Any, binding: Binding) -> Iterator[None]:
        """Inside the block the supernet runs as it is."""
        yield


class Replica(Alone):
    """One search among others.

    Args:
        member: Of the meeting.
        stacked: Of all replicas of the meeting, the same object.
    """

    def __init__(self, member: Member, stacked: Stacked) -> None:
        self._member = member
        self._stacked = stacked

    def together(self, how: Together, what: Any, key: Hashable = None) -> Any:
        """See `Member.together`."""
        return self._member.together(how, what, key)

    def in_turn(self, function: Callable[[], T]) -> T:
        """`function()`, with all threads of torch, after those of the searches before it; every search must come."""
        result: T = self._member.together(one_by_one, (self._member, function))
        return result

    @contextmanager
    def attached(self, net: Any, binding: Binding) -> Iterator[None]:
        """Inside the block the supernet runs together with the others; single architectures run alone."""
        plain = type(net).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if binding.kept is not None or kwargs or not all(isinstance(a, Tensor) for a in args):
                return plain(net, *args, **kwargs)
            key = net.training, *((a.shape, a.dtype) for a in args), *(w.shape for w in binding.weights.values())
            return self._member.together(self._stacked, (net, binding, args), key)

        net.forward = forward
        try:
            yield
        finally:
            del net.forward


def backward_of(requests: list[tuple[Tensor, Any, Any]]) -> list[None]:
    """As `loss.backward(*args, **kwargs)` of each; the arguments are those of the first."""
    _, args, kwargs = requests[0]
    torch.autograd.backward([loss for loss, _, _ in requests], *args, **kwargs)
    return [None] * len(requests)


def gradients_of(requests: list[tuple[Tensor, Sequence[Tensor]]]) -> list[list[Tensor]]:
    """Gradient of each output for its own inputs; zeros for those without a part in it."""
    outputs = [output for output, _ in requests]
    inputs = [x for _, own in requests for x in own]
    flat = iter(torch.autograd.grad(outputs, inputs, allow_unused=True, materialize_grads=True))
    return [[next(flat) for _ in own] for _, own in requests]


def _images(x: Tensor) -> Tensor:
    """Images of all nets in the order in memory that is fast; anything else as it is."""
    return parted(joined(x), len(x)) if x.dim() == 5 else x


__all__ = ["Alone", "Replica", "Stacked", "backward_of", "gradients_of"]
