"""Networks of one shape side by side: the channels of n networks as one image, their layers as one grouped layer.

Inside `torch.vmap` over n networks an image is `(batch, channels, h, w)` to the code that runs. Its n copies lie in
memory as `(batch, n channels, h, w)`, network by network, with the channels of a pixel side by side, which is what
convolutions, pooling and normalization on a CPU are fast at. `physically` lets a function see the images so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nni_bayes_nas.layers.convolution import is_plain_convolution
from nni_bayes_nas.layers.memory_format import channels_last, is_batched

# Of a module: its dictionary of parameters or of buffers, and a name there.
Slot = tuple[dict[str, Any], str]
Physical = Callable[[int, list[Tensor]], list[Tensor]]


def physically(function: Physical, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Call a function with the tensors of all networks at once, below `torch.vmap`; can be differentiated.

    Args:
        function: Called with the number n of networks and the tensors, the networks as their first axis; gives tensors
            with the networks as their first axis.
        tensors: Inside `torch.vmap`; one that is the same for all networks is expanded.
    """
    return list(_Physically.apply(function, *tensors))


class _Physically(torch.autograd.Function):
    """Nothing but the door to `vmap`: what the function does is recorded operation by operation."""

    @staticmethod
    def forward(function: Physical, *tensors: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("physically() works inside torch.vmap only.")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Physical, *tensors: Tensor) -> Any:
        n = info.batch_size
        first = [
            x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
            for dim, x in zip(in_dims[1:], tensors, strict=True)
        ]
        results = function(n, first)
        return tuple(results), (0,) * len(results)


def joined(x: Tensor) -> Tensor:
    """`(n, batch, channels, h, w)` -> `(batch, n channels, h, w)`, in the order in memory that is fast."""
    return channels_last(x.transpose(0, 1).flatten(1, 2))


def parted(x: Tensor, n: int) -> Tensor:
    """The inverse of `joined`, without copying."""
    return _split(x, 1, n).transpose(0, 1)


def _split(x: Tensor, axis: int, n: int) -> Tensor:
    result: Tensor = x.unflatten(axis, (n, -1))  # type: ignore[no-untyped-call]
    return result


def concatenated(parts: Sequence[Tensor], n: int) -> Tensor:
    """`(batch, n c_i, h, w)` each -> `(batch, n sum c_i, h, w)`: the channels of each network together."""
    pixels = [_split(x.permute(0, 2, 3, 1), -1, n) for x in parts]
    return torch.cat(pixels, -1).flatten(-2).permute(0, 3, 1, 2)


def widened(module: nn.Module, n: int) -> nn.Module:
    """A copy without storage whose convolutions and normalizations are those of n modules side by side.

    Its parameters and buffers are to be put in their place by `place`; other layers must work on channels one by one.
    """
    return resized(module, lambda channels: n * channels, grouped=True)


def resized(module: nn.Module, size: Callable[[int], int], *, grouped: bool = False) -> nn.Module:
    """A copy without storage of convolutions and normalizations with other numbers of channels.

    Args:
        module: Its other layers must work on channels one by one.
        size: Of the channels, by those that there are.
        grouped: Whether filters stay as they are, and their number and that of their groups change; else a filter sees
            other numbers of channels too, unless it sees but one group.
    """
    memo: dict[int, Any] = {}
    for layer in module.modules():
        crossed = isinstance(layer, nn.Conv2d) and layer.groups == 1 and not grouped
        for where in (layer._parameters, layer._buffers):
            for tensor in (t for t in where.values() if t is not None):
                shape = [size(n) if axis == 0 or (axis == 1 and crossed) else n for axis, n in enumerate(tensor.shape)]
                memo[id(tensor)] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    # A layer that is one of a template runs by a `WideLayer`, which the copy is for.
    memo.update((id(layer.forward), None) for layer in module.modules() if "forward" in layer.__dict__)
    wide = copy.deepcopy(module, memo)
    for layer in wide.modules():
        layer.__dict__.pop("forward", None)
        if isinstance(layer, nn.Conv2d):
            layer.in_channels, layer.out_channels = size(layer.in_channels), size(layer.out_channels)
            layer.groups = size(layer.groups) if grouped or layer.groups > 1 else 1
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = size(layer.num_features)
    return wide


def slots(module: nn.Module) -> list[Slot]:
    """Where parameters and buffers of a module are kept, in a fixed order."""
    return [
        (tensors, name)
        for layer in module.modules()
        for tensors in (layer._parameters, layer._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]


def place(tensors: Sequence[Tensor], into: Sequence[Slot]) -> None:
    """Put the tensors of n modules, `(n, ...)` each, into the slots of a widened one."""
    place_as([tensor.flatten(0, 1) if tensor.dim() > 1 else tensor for tensor in tensors], into)


def place_as(tensors: Sequence[Tensor], into: Sequence[Slot]) -> None:
    """Put tensors into slots, as they are."""
    for tensor, (where, name) in zip(tensors, into, strict=True):
        where[name] = tensor


class SameMode:
    """Sets what decides how layers of equal structure run: training or evaluation, momentum.

    Args:
        module: Whose layers are set.
        like: Whose modes they take over; neither gets other layers later.
    """

    def __init__(self, module: nn.Module, like: nn.Module) -> None:
        pairs = list(zip(module.modules(), like.modules(), strict=True))
        self._modes = [(layer.__dict__, other.__dict__) for layer, other in pairs]
        self._momenta = [(a, b) for a, b in pairs if isinstance(a, nn.BatchNorm2d) and isinstance(b, nn.BatchNorm2d)]

    def __call__(self) -> None:
        """Do so now."""
        for ours, theirs in self._modes:
            ours["training"] = theirs["training"]
        for layer, other in self._momenta:
            layer.momentum = other.momentum


class WideLayer:
    """The forward pass of one layer of several networks, inside `torch.vmap` over them, as one wide layer.

    torch's own ways with such layers copy images into another order in memory, and back.

    Args:
        layer: Of one of the networks; `fits` it.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._slots = slots(layer)
        self._wide: dict[int, tuple[nn.Module, list[Slot], SameMode]] = {}

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer works on the channels of an image one by one, or in groups as a convolution."""
        forward = type(layer).forward
        if isinstance(layer, nn.BatchNorm2d):
            return forward is _BatchNorm.forward and layer.track_running_stats and layer.momentum is not None
        if isinstance(layer, nn.Conv2d):
            return forward is nn.Conv2d.forward and is_plain_convolution(layer)
        if isinstance(layer, nn.MaxPool2d):
            return forward is nn.MaxPool2d.forward and not layer.return_indices
        return forward in (nn.AvgPool2d.forward, nn.AdaptiveAvgPool2d.forward)

    def __call__(self, x: Tensor) -> Tensor:
        """`(batch, channels, h, w)` -> the output of the layer."""
        if x.dim() != 4:
            result: Tensor = type(self._layer).forward(self._layer, x)
            return result

        def run(n: int, tensors: list[Tensor]) -> list[Tensor]:
            images, *own = tensors
            wide, places, follow = self._widened(n)
            follow()
            place(own, places)
            return [parted(wide(joined(images)), n)]

        return physically(run, [x, *(where[name] for where, name in self._slots)])[0]

    def _widened(self, n: int) -> tuple[nn.Module, list[Slot], SameMode]:
        if n not in self._wide:
            wide = widened(self._layer, n)
            self._wide[n] = wide, slots(wide), SameMode(wide, self._layer)
        return self._wide[n]


def adaptive_max_pool2d(x: Tensor, size: int) -> Tensor:
    """As torch's, inside `torch.vmap` over networks for the images of all at once."""
    if not (is_batched(x) and x.dim() == 4):
        return F.adaptive_max_pool2d(x, size)
    return physically(lambda n, images: [parted(F.adaptive_max_pool2d(joined(images[0]), size), n)], [x])[0]
