"""Gradients of depthwise convolution, and average pooling, on a CPU, in ways that oneDNN is fast at.

oneDNN's kernels for the backward pass are fast for filters of 3x3 without dilation and stride only. Here the gradient
of the input is a forward pass with the filters turned round, and that of the filters is taken 3x3 taps at a time: a
stride becomes zeros between the gradients, a dilation d a batch of d^2 images of every d-th pixel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nni_bayes_nas.precision import Autocast

_MANY_PIXELS = 8192


def input_gradient(gradient: Tensor, weight: Tensor, size: tuple[int, int], stride: int, dilation: int) -> Tensor:
    """Gradient of the input of a depthwise convolution that keeps the size at stride 1.

    Args:
        gradient: Of the output, `(batch, channels, ...)`.
        weight: `(channels, 1, k, k)`, k odd.
        size: Height and width of the input.
        stride: Of both directions.
        dilation: Of both directions.

    Returns:
        `(batch, channels, *size)`.
    """
    return _conv(_spread(gradient, size, stride), weight.flip(-2, -1), 1, dilation)


def filter_gradient(x: Tensor, gradient: Tensor, size: int, stride: int, dilation: int) -> Tensor:
    """Gradient of the filters of the same convolution.

    Args:
        x: Input, `(batch, channels, h, w)`.
        gradient: Of the output.
        size: Of the filters, odd.
        stride: Of both directions.
        dilation: Of both directions.

    Returns:
        `(channels, 1, size, size)`.
    """
    spread = _spread(gradient, (x.shape[-2], x.shape[-1]), stride)
    return _of_taps(_sampled(x, dilation), _sampled(spread, dilation), size)


def is_slow(x: Tensor, weight: Tensor, stride: int, dilation: int) -> bool:
    """Whether the backward pass of oneDNN is the slower one: dilated filters, and large ones on many pixels."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or Autocast.now("cpu").enabled:
        return False
    pixels = x.numel() // max(1, x.shape[1])
    return dilation > 1 or (stride == 1 and weight.shape[-1] > 3 and pixels >= _MANY_PIXELS)


def pools_slowly(x: Tensor) -> bool:
    """Whether torch's own average pooling is the slower one."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def average_pool2d(x: Tensor, size: int) -> Tensor:
    """`avg_pool2d` of an odd size at stride 1 that keeps the size of the image and counts no padding.

    A depthwise convolution with ones over the number of pixels in each window: torch's own pooling on a CPU takes five
    to ten times as long on images that are channels_last.

    Args:
        x: `(batch, channels, h, w)`.
        size: Of the window, odd.
    """
    ones = x.new_ones(1, 1, size, size)
    count = _conv(x.new_ones(1, 1, *x.shape[-2:]), ones, 1, 1)
    return _conv(x, ones.expand(x.shape[1], 1, size, size), 1, 1) / count


def _conv(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] - 1) // 2
    return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])


def _spread(gradient: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The gradient at every pixel of the input: zero where the stride has left it out."""
    if stride == 1:
        return gradient
    last = gradient.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    shape = *gradient.shape[:2], *size
    result = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout).zero_()
    result[..., ::stride, ::stride] = gradient
    return result


def _sampled(x: Tensor, step: int) -> Tensor:
    """Every `step`-th pixel in both directions, from all beginnings: `(step^2 batch, channels, h / step, w / step)`."""
    if step == 1:
        return x
    x = F.pad(x, (0, -x.shape[-1] % step, 0, -x.shape[-2] % step))
    parts = [x[..., i::step, j::step] for i in range(step) for j in range(step)]
    return torch.cat(parts)


def _of_taps(x: Tensor, gradient: Tensor, size: int) -> Tensor:
    """Gradient of filters of `size` x `size` taps, `(channels, 1, size, size)`, taken in windows of 3x3."""
    if size <= 3:
        return _of_window(x, gradient, size, size // 2)
    padded = F.pad(x, (size // 2,) * 4)
    height, width = x.shape[-2:]
    rows = []
    for i, new_rows in _windows(size):
        row = []
        for j, new_columns in _windows(size):
            window = padded[..., i : i + height + 2, j : j + width + 2]
            row.append(_of_window(window, gradient, 3, 0)[..., new_rows:, new_columns:])
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)


def _windows(size: int) -> list[tuple[int, int]]:
    """Where windows of 3 taps begin that cover `size` of them, and how many of its taps the one before it has too."""
    starts = [*range(0, size - 3, 3), size - 3]
    return [(start, max(0, before + 3 - start)) for before, start in zip([-3, *starts], starts, strict=False)]


def _of_window(x: Tensor, gradient: Tensor, size: int, padding: int) -> Tensor:
    weight = x.new_empty(x.shape[1], 1, size, size)
    gradients: tuple[Any, Tensor, Any] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], [padding, padding], [1, 1], False, [0, 0], x.shape[1], [False, True, False]
    )
    return gradients[1]
