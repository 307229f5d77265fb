"""Convolution of images whose derivatives are convolutions, however often they are taken.

The inner product of a gradient g with the convolution of x and filters w is linear in each of the three, and its
derivative for any one of them is a convolution of the other two: `output(x, w)`, `of_input(g, w)`, `of_filters(x, g)`.
The derivatives of each of these are the other two again. torch's own double backward convolves group by group, with
gradients in the part of the filters, as large as the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.layers import depthwise

_Pair: TypeAlias = tuple[int, int]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | _Pair = 1,
    padding: int | _Pair = 0,
    dilation: int | _Pair = 1,
    groups: int = 1,
) -> Tensor:
    """What torch's `conv2d` computes; second derivatives cost no more than as many convolutions.

    Args:
        x: `(batch, channels, h, w)`.
        weight: `(filters, channels / groups, k, l)`.
        bias: `(filters,)`.
        stride: Of both directions, or of each.
        padding: Zeros on either side.
        dilation: Distance of the taps of a filter.
        groups: Of channels with filters of their own.
    """
    how = _Geometry(_pair(stride), _pair(padding), _pair(dilation), groups, _size(x), _size(weight))
    result = _output(x, weight, how)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def depthwise_conv2d(x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """`conv2d` with one filter per channel and as much padding as keeps the size at stride 1.

    Its gradients are taken in the ways of `layers.depthwise`.

    Args:
        x: `(batch, channels, h, w)`.
        weight: `(channels, 1, k, k)`, k odd.
        stride: Of both directions.
        dilation: Of both directions.
    """
    padding = dilation * (weight.shape[-1] - 1) // 2
    pairs = _pair(stride), _pair(padding), _pair(dilation)
    return _output(x, weight, _Geometry(*pairs, x.shape[1], _size(x), _size(weight), by_taps=True))


def pointwise_conv2d(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """`conv2d` with filters of one pixel as a product of matrices, `(groups, filters, channels) (.., channels, h w)`.

    cuDNN turns images around in memory, before and after a convolution, where it has several groups.

    Args:
        x: `(batch, channels, h, w)`.
        weight: `(filters, channels / groups, 1, 1)`.
        groups: Of channels with filters of their own.
    """
    filters, channels = weight.shape[0] // groups, weight.shape[1]
    by_group = x.reshape(len(x), groups, channels, -1)
    result = torch.matmul(weight.reshape(groups, filters, channels), by_group)
    return result.reshape(len(x), groups * filters, *x.shape[2:])


def is_plain_convolution(layer: nn.Module) -> bool:
    """Whether a convolution convolves with its weights as they are, and not with something made of them."""
    return isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is nn.Conv2d._conv_forward


@dataclass(frozen=True)
class _Geometry:
    """What a convolution is beside its input, of size `size`, and its filters, of size `kernel`."""

    stride: _Pair
    padding: _Pair
    dilation: _Pair
    groups: int
    size: _Pair
    kernel: _Pair
    by_taps: bool = False  # gradients as in `layers.depthwise`


def _output(x: Tensor, weight: Tensor, how: _Geometry) -> Tensor:
    return _bilinear(_OUTPUT, x, weight, how)


def _of_input(gradient: Tensor, weight: Tensor, how: _Geometry) -> Tensor:
    return _bilinear(_OF_INPUT, gradient, weight, how)


def _of_filters(x: Tensor, gradient: Tensor, how: _Geometry) -> Tensor:
    return _bilinear(_OF_FILTERS, x, gradient, how)


def _convolved(x: Tensor, weight: Tensor, how: _Geometry) -> Tensor:
    return F.conv2d(x, weight, None, how.stride, how.padding, how.dilation, how.groups)


def _input_gradient(gradient: Tensor, weight: Tensor, how: _Geometry) -> Tensor:
    if how.by_taps:
        return depthwise.input_gradient(gradient, weight, how.size, how.stride[0], how.dilation[0])
    reached = [
        (m - 1) * stride - 2 * padding + dilation * (k - 1) + 1
        for m, stride, padding, dilation, k in zip(
            _size(gradient), how.stride, how.padding, how.dilation, how.kernel, strict=True
        )
    ]
    # Pixels at the end that no step of the stride has reached.
    rest = [n - m for n, m in zip(how.size, reached, strict=True)]
    return F.conv_transpose2d(gradient, weight, None, how.stride, how.padding, rest, how.groups, how.dilation)


def _filter_gradient(x: Tensor, gradient: Tensor, how: _Geometry) -> Tensor:
    if how.by_taps:
        return depthwise.filter_gradient(x, gradient, how.kernel[0], how.stride[0], how.dilation[0])
    weight = x.new_empty(gradient.shape[1], x.shape[1] // how.groups, *how.kernel)
    geometry = how.stride, how.padding, how.dilation, False, (0, 0), how.groups
    gradients: tuple[Any, Tensor, Any] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *geometry, (False, True, False)
    )
    return gradients[1]


@dataclass(frozen=True)
class _Operation:
    """A bilinear function of a and b; the derivatives of <d, value(a, b)>: of d and b for a, of d and a for b."""

    value: Callable[[Tensor, Tensor, _Geometry], Tensor]
    for_a: Callable[[Tensor, Tensor, _Geometry], Tensor]
    for_b: Callable[[Tensor, Tensor, _Geometry], Tensor]


_OUTPUT = _Operation(_convolved, _of_input, lambda d, x, how: _of_filters(x, d, how))
_OF_INPUT = _Operation(_input_gradient, _output, _of_filters)
_OF_FILTERS = _Operation(
    _filter_gradient, lambda d, gradient, how: _of_input(gradient, d, how), lambda d, x, how: _output(x, d, how)
)


def _bilinear(operation: _Operation, a: Tensor, b: Tensor, how: _Geometry) -> Tensor:
    with torch.no_grad():
        value = operation.value(a, b, how)
    if not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
        return value
    for_b = _Second.apply(b, (a, value.shape), operation, how) if b.requires_grad else None
    result: Tensor = _First.apply(a, b, for_b, [value], operation, how)
    return result


class _First(torch.autograd.Function):
    """The value. Its gradient becomes that of a, and goes on to the node that makes it that of b."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        for_b: Tensor | None,
        value: tuple[Tensor],
        operation: _Operation,
        how: _Geometry,
    ) -> Tensor:
        # a is saved for the check that nobody has written to it: `_Second` uses it as it is.
        ctx.save_for_backward(a, b)
        ctx.operation, ctx.how = operation, how
        return value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _, b = ctx.saved_tensors
        needs_a, _, needs_b, *_ = ctx.needs_input_grad
        for_a = ctx.operation.for_a(gradients[0], b, ctx.how) if needs_a else None
        return for_a, None, gradients[0] if needs_b else None, None, None, None


class _Second(torch.autograd.Function):
    """Nothing, shaped like the value; its gradient becomes that of b.

    A node of its own: where nobody asks for the gradient of b, autograd passes it by. a is no tensor argument here,
    since the way to it leads through `_First`.
    """

    @staticmethod
    def forward(ctx: Any, b: Tensor, of: tuple[Tensor, torch.Size], operation: _Operation, how: _Geometry) -> Tensor:
        ctx.a, shape = of
        ctx.operation, ctx.how = operation, how
        return b.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.operation.for_b(gradients[0], ctx.a, ctx.how), None, None, None


def _pair(n: int | _Pair) -> _Pair:
    return (n, n) if isinstance(n, int) else (n[0], n[-1])


def _size(x: Tensor) -> _Pair:
    return x.shape[-2], x.shape[-1]
