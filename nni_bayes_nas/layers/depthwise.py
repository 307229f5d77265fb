"""Depthwise convolution and average pooling on a CPU, in ways that oneDNN is fast at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_MANY_PIXELS = 8192


def depthwise_conv2d(x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """What `conv2d` computes with one filter per channel and as much padding as keeps the size at stride 1.

    oneDNN's kernels for the backward pass are fast for filters of 3x3 without dilation and stride only. Here the
    gradient of x is a forward pass with the filters turned round, and that of the filters is taken 3x3 taps at a time:
    a stride becomes zeros between the gradients, a dilation d a batch of d^2 images of every d-th pixel. Can be
    differentiated as often as `conv2d`.

    Args:
        x: `(batch, channels, h, w)`.
        weight: `(channels, 1, k, k)`, k odd.
        stride: Of both directions.
        dilation: Of both directions.
    """
    result: Tensor = _Depthwise.apply(x, weight, _OfWeight.apply(weight, (x, stride, dilation)), stride, dilation)
    return result


def is_slow(x: Tensor, weight: Tensor, stride: int, dilation: int) -> bool:
    """Whether the backward pass of oneDNN is the slower one: dilated filters, and large ones on many pixels."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    pixels = x.numel() // max(1, x.shape[1])
    return dilation > 1 or (stride == 1 and weight.shape[-1] > 3 and pixels >= _MANY_PIXELS)


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


class _Depthwise(torch.autograd.Function):
    """The convolution, whose filters get their gradient through `of_weight`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, of_weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        return _conv(x, weight, stride, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = depthwise_conv2d(_spread(gradients[0], x, ctx.stride), weight.flip(-2, -1), dilation=ctx.dilation)
        return of_x, None, gradients[0], None, None


class _OfWeight(torch.autograd.Function):
    """Nothing, shaped like the output of the convolution; its gradient becomes that of the filters.

    A node of its own: where nobody asks for the gradient of the filters, autograd passes it by. x is no tensor argument
    here, since the way to it leads through `_Depthwise`.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, of: tuple[Tensor, int, int]) -> Tensor:
        ctx.of, ctx.size = of, weight.shape[-1]
        x, stride, _ = of
        height, width = ((n - 1) // stride + 1 for n in x.shape[-2:])
        return weight.new_zeros(()).expand(*x.shape[:2], height, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, stride, dilation = ctx.of
        gradient = _spread(gradients[0], x, stride)
        return _of_taps(_sampled(x, dilation), _sampled(gradient, dilation), ctx.size), None


def _spread(gradient: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient at every pixel of x: zero where the stride has left it out."""
    if stride == 1:
        return gradient
    result = torch.zeros_like(x)
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
