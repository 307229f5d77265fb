"""Networks of one shape that train at once: each in a training of its own, their passes as one.

The trainings are members of a `Lockstep`. Where one would run its network, all meet, and `torch.vmap` runs the stacked
networks. The graph is shared, so that gradients are taken at a meeting too, one pass for all. Everything else, from the
random numbers to the optimizers, each does as if it were alone; but for noise inside a network, dropout say, which is
drawn for all at once.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.side_by_side import Slot, WideLayer, joined, parted, slots
from nni_bayes_nas.lockstep import Member, Together, one_by_one

T = TypeVar("T")
Extra = Mapping[str, Tensor]


class Template:
    """A copy of one of the networks, through which all of them run.

    Args:
        net: One of the networks.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = self.copied(net)
        for layer in filter(WideLayer.fits, self.net.modules()):
            wide: Any = WideLayer(layer)
            layer.forward = wide
        self.places = slots(self.net)
        self.placed_by_itself: set[int] = set()

    @staticmethod
    def kind(net: Any) -> Hashable:
        """Equal for networks for which one template stands."""
        return None

    def copied(self, net: nn.Module) -> nn.Module:
        """A network of its own."""
        forward = net.__dict__.pop("forward", None)
        try:
            return copy.deepcopy(net)
        finally:
            if forward is not None:
                net.forward = forward

    def follow(self, like: nn.Module) -> None:
        """Take over the modes of a network, and the numbers that it has been told: the progress of a training, say."""
        for layer, other in zip(self.net.modules(), like.modules(), strict=True):
            layer.__dict__.update({k: v for k, v in other.__dict__.items() if type(v) in (bool, int, float)})

    def receive(self, extra: Extra) -> None:
        """What the forward pass looks at besides its arguments, inside `torch.vmap`."""

    def run(self, like: nn.Module, own: list[Tensor], extra: Extra, args: list[Tensor]) -> Any:
        """The outputs, with a first axis for the networks.

        Args:
            like: One of them, whose mode all have.
            own: Parameters and buffers of all, in the order of `slots`.
            extra: For `receive`.
            args: Of the forward pass.
        """
        self.follow(like)
        rest = [i for i in range(len(own)) if i not in self.placed_by_itself]

        def one(tensors: list[Tensor], extra: Extra, args: list[Tensor]) -> Any:
            for i, tensor in zip(rest, tensors, strict=True):
                where, name = self.places[i]
                where[name] = tensor
            self.receive(extra)
            return self.net(*args)

        with warnings.catch_warnings():
            # An operation that torch knows no batched form of is run for one net after the other.
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            return torch.vmap(one, randomness="different")([own[i] for i in rest], dict(extra), args)


class Stacked:
    """The networks of a meeting, as one; shared by its `Replica`s.

    Args:
        template: Of the networks; there is one for each kind of them.
    """

    def __init__(self, template: type[Template] = Template) -> None:
        self._make = template
        self._templates: dict[Hashable, Template] = {}
        self._slots: dict[int, tuple[nn.Module, list[Slot]]] = {}

    def __call__(self, requests: list[tuple[Any, Extra, tuple[Any, ...]]]) -> list[Any]:
        """(network, what it looks at besides its arguments, arguments) of each replica -> its output.

        A lone one runs as it is.
        """
        if len(requests) == 1:
            net, _, args = requests[0]
            return [type(net).forward(net, *args)]
        nets, extras = [net for net, _, _ in requests], [extra for _, extra, _ in requests]
        kind = self._make.kind(nets[0])
        if kind not in self._templates:
            self._templates[kind] = self._make(nets[0])
        of_nets = [self._slots_of(net) for net in nets]
        own = [torch.stack([where[name] for where, name in places]) for places in zip(*of_nets, strict=True)]
        extra = {name: torch.stack([e[name] for e in extras]) for name in extras[0]}
        given = [_images(torch.stack(column)) for column in zip(*(a for _, _, a in requests), strict=True)]
        outputs = self._templates[kind].run(nets[0], own, extra, given)
        if nets[0].training:
            _write_back(of_nets, own)
        return list(zip(*outputs, strict=True)) if isinstance(outputs, tuple) else list(outputs.unbind())

    def _slots_of(self, net: nn.Module) -> list[Slot]:
        if id(net) not in self._slots:
            # With the net, whose id is nobody else's so long.
            self._slots[id(net)] = net, slots(net)
        return self._slots[id(net)][1]


def check_stackable(
    net: nn.Module,
    shape: Sequence[int],
    option: str,
    template: type[Template] = Template,
    extra: Extra | None = None,
) -> None:
    """Run two copies of a network as one, in training.

    Args:
        net: The network, or a space, whose first architecture runs.
        shape: Of one object.
        option: Named in the error.
        template: As of `Stacked`.
        extra: What the pass looks at besides its arguments.

    Raises:
        SpaceError: torch cannot batch one of its operations.
    """
    nets = [copy.deepcopy(net).train() for _ in range(2)]
    try:
        Stacked(template)([(one, extra or {}, (torch.zeros(4, *shape),)) for one in nets])
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SpaceError(
            f"networks side by side must consist of operations that torch.vmap can run, but it fails: {said}\n"
            f"leave {option} out"
        ) from error


@torch.no_grad()
def _write_back(of_nets: list[list[Slot]], own: list[Tensor]) -> None:
    """Give every net its running statistics."""
    buffers = [i for i, (where, name) in enumerate(of_nets[0]) if not isinstance(where[name], nn.Parameter)]
    ours = [one for i in buffers for one in own[i].unbind()]
    theirs = [where[name] for i in buffers for where, name in (places[i] for places in of_nets)]
    if theirs:
        torch._foreach_copy_(theirs, ours)


def _images(x: Tensor) -> Tensor:
    """Images of all nets in the order in memory that is fast; anything else as it is."""
    return parted(joined(x), len(x)) if x.dim() == 5 else x


class Alone:
    """A training that has no others beside it: what is done together, it does by itself."""

    def together(self, how: Together, what: Any, key: Hashable = None) -> Any:
        """`how([what])[0]`."""
        return how([what])[0]

    def in_turn(self, function: Callable[[], T]) -> T:
        """`function()`."""
        return function()

    @contextmanager
    def attached(self, net: Any, extra: Callable[[], tuple[Hashable, Extra] | None]) -> Iterator[None]:
        """Inside the block the network runs as it is."""
        yield


class Replica(Alone):
    """One training among others.

    Args:
        member: Of the meeting.
        stacked: Of all replicas of the meeting, the same object.
    """

    def __init__(self, member: Member, stacked: Stacked) -> None:
        self._member = member
        self._stacked = stacked
        self._passes = 0

    def together(self, how: Together, what: Any, key: Hashable = None) -> Any:
        """See `Member.together`."""
        if how in (backward_of, gradients_of):
            self._passes = 0
        return self._member.together(how, what, key)

    def in_turn(self, function: Callable[[], T]) -> T:
        """`function()`, with all threads of torch, after those of the others before it; every replica must come."""
        result: T = self._member.together(one_by_one, (self._member, function))
        return result

    @contextmanager
    def attached(self, net: Any, extra: Callable[[], tuple[Hashable, Extra] | None]) -> Iterator[None]:
        """Inside the block the network runs together with the others.

        Passes of networks that are a step apart do not share a graph, which is differentiated once: the same pass of
        as many, for gradients of the same things.

        Args:
            net: The network.
            extra: Of its next forward pass: how many there are until gradients are taken, and what it looks at besides
                its arguments; None where it is to run alone.
        """
        plain = type(net).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = extra()
            if given is None or kwargs or not all(isinstance(a, Tensor) for a in args):
                return plain(net, *args, **kwargs)
            n_passes, tensors = given
            shapes = *((a.shape, a.dtype) for a in args), *((t.shape, t.requires_grad) for t in tensors.values())
            key = net.training, self._passes, n_passes, *shapes
            if torch.is_grad_enabled():
                self._passes += 1
            return self._member.together(self._stacked, (net, tensors, args), key)

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
