"""Candidate operations of the cell space: same shape in and out."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def conv(channels: int, kernel: int, *, affine: bool) -> nn.Module:
    """ReLU, full convolution, batch normalization."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


def separable_conv(channels: int, kernel: int, *, dilation: int = 1, affine: bool) -> nn.Module:
    """ReLU, depthwise and pointwise convolution, batch normalization (Howard et al., 2017, arXiv 1704.04861)."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


def pool(channels: int, kind: str, *, affine: bool) -> nn.Module:
    """3x3 pooling with stride 1, and batch normalization."""
    if kind == "max":
        pooling: nn.Module = nn.MaxPool2d(3, 1, 1)
    else:
        pooling = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return nn.Sequential(pooling, nn.BatchNorm2d(channels, affine=affine))


OPERATIONS: dict[str, Callable[[int, bool], nn.Module]] = {
    "skip_connect": lambda c, a: nn.Identity(),
    "max_pool_3x3": lambda c, a: pool(c, "max", affine=a),
    "avg_pool_3x3": lambda c, a: pool(c, "avg", affine=a),
    "sep_conv_3x3": lambda c, a: separable_conv(c, 3, affine=a),
    "sep_conv_5x5": lambda c, a: separable_conv(c, 5, affine=a),
    "dil_conv_3x3": lambda c, a: separable_conv(c, 3, dilation=2, affine=a),
    "conv_1x1": lambda c, a: conv(c, 1, affine=a),
    "conv_3x3": lambda c, a: conv(c, 3, affine=a),
}
"""Name -> (channels, affine) -> module. "none" needs no entry: a supernet cell has it on every edge."""
