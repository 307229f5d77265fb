"""How images lie in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch


def is_batched(x: Tensor) -> bool:
    """Whether a tensor stands for those of several networks: `torch.vmap` is running."""
    return _functorch.is_batchedtensor(x)


def channels_last(x: Tensor) -> Tensor:
    """The same `(batch, channels, h, w)` with the channels of a pixel side by side in memory, on a CPU.

    Convolutions, pooling and normalization keep that order, and pooling is faster in it. On a GPU it depends on the
    precision, and nothing is changed.
    """
    # Under vmap the order in memory is that of all networks together, which nothing here can see.
    if x.device.type != "cpu" or is_batched(x):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def images_channels_last(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images with the channels of a pixel side by side on a CPU, where convolutions are faster; a forward pre-hook."""
    return tuple(channels_last(x) if isinstance(x, Tensor) and x.dim() == 4 else x for x in args)
