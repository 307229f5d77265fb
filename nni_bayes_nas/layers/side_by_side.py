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

from nni_bayes_nas.layers.memory_format import channels_last

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
    memo: dict[int, Any] = {}
    for where, name in slots(module):
        tensor = where[name]
        shape = (n * tensor.shape[0], *tensor.shape[1:]) if tensor.dim() else ()
        value = torch.empty(shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = value
    wide = copy.deepcopy(module, memo)
    for layer in wide.modules():
        if isinstance(layer, nn.Conv2d):
            for name in ("in_channels", "out_channels", "groups"):
                setattr(layer, name, n * getattr(layer, name))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features *= n
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
    for tensor, (where, name) in zip(tensors, into, strict=True):
        where[name] = tensor.flatten(0, 1) if tensor.dim() > 1 else tensor


def same_mode(module: nn.Module, like: nn.Module) -> None:
    """Set what decides how layers of equal structure run: training or evaluation, momentum."""
    for layer, other in zip(module.modules(), like.modules(), strict=True):
        layer.__dict__["training"] = other.training
        if isinstance(layer, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d):
            layer.momentum = other.momentum
