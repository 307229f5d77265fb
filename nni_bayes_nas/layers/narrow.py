"""Layers on the first part of their channels: copies without storage of their own that see slices of the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.layers.combine import mix
from nni_bayes_nas.layers.convolution import is_plain_convolution
from nni_bayes_nas.layers.memory_format import channels_last
from nni_bayes_nas.layers.side_by_side import place_as, resized, slots

_LISTENERS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_NUMBERS = (bool, int, float, type(None))
_SIZES = ("in_channels", "out_channels", "groups", "num_features")


class Narrow:
    """A module whose convolutions and normalizations work on the first channels alone.

    Running statistics of these move with a pass, parameters get their gradients, as slices of those of the whole; who
    listens to a layer of the whole, or sets a number or a mode there, reaches that of the narrow one.

    Args:
        module: `can_be_narrow`.
        parts: Of equal size, of whose channels the first is meant.
    """

    def __init__(self, module: nn.Module, parts: int) -> None:
        self._slots = slots(module)
        self._narrow = resized(module, lambda n: n // parts)
        self._places = slots(self._narrow)
        self._shapes = [where[name].shape for where, name in self._places]
        self._numbers: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = []
        for layer, whole in zip(self._narrow.modules(), module.modules(), strict=True):
            ours, theirs = layer.__dict__, whole.__dict__
            ours.update({name: value for name, value in theirs.items() if name.endswith(_LISTENERS)})
            numbers = [n for n, value in theirs.items() if isinstance(value, _NUMBERS) and n not in _SIZES]
            self._numbers.append((ours, theirs, numbers))

    def __call__(self) -> Any:
        """The narrow module, with what the whole one holds now; use it before the next call."""
        for ours, theirs, names in self._numbers:
            for name in names:
                ours[name] = theirs[name]
        whole = [where[name] for where, name in self._slots]
        place_as([_first(x, shape) for x, shape in zip(whole, self._shapes, strict=True)], self._places)
        return self._narrow


def can_be_narrow(operation: nn.Module, parts: int) -> bool:
    """Whether an operation gives as many channels as it gets, all of its layers in so many parts or channel by channel.

    Layers without parameters are taken to work on channels one by one.
    """
    widths: list[int] = []
    for layer in operation.modules():
        if isinstance(layer, nn.Conv2d) and is_plain_convolution(layer):
            if layer.groups > 1 and layer.groups % parts:
                return False
            widths += [layer.in_channels, layer.out_channels]
        elif isinstance(layer, nn.BatchNorm2d):
            widths += [layer.num_features] * 2 if layer.num_features else []  # of any number, the guards'
        elif any(p is not None for p in (*layer._parameters.values(), *layer._buffers.values())):
            return False
    return all(n % parts == 0 for n in widths) and (not widths or widths[0] == widths[-1])


def parted(x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The first of some equal parts of the channels, `(batch, channels, h, w)`, and the others."""
    size = x.shape[1] // parts
    return channels_last(x[:, :size]), x[:, size:]


def rejoined(mixed: Tensor, others: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Channels that were operated on, behind the weighted sum of those that were not.

    Behind, so that others come first in the next node: all channels take turns, as by the shuffle of Xu et al. (2020,
    arXiv 1907.05737). Where operations have a stride, the others are pooled to their size, as there.

    Args:
        mixed: `(batch, channels / parts, h, w)`.
        others: Of every input, `(batch, the other channels, ...)`.
        weights: Of every input, `()` or `(batch,)`.
    """
    size = mixed.shape[-2:]
    fitted = [x if x.shape[-2:] == size else F.adaptive_max_pool2d(x, size) for x in others]
    rest: Tensor = mix(fitted, weights)
    return torch.cat([rest.to(mixed.dtype), mixed], 1)


def _first(tensor: Tensor, shape: torch.Size) -> Tensor:
    for axis, n in enumerate(shape):
        if n != tensor.shape[axis]:
            tensor = tensor.narrow(axis, 0, n)
    return tensor
