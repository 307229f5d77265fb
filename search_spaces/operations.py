"""Candidate operations of the cell space, same shape in and out; drop-path and the auxiliary head of retraining."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Drops whole objects: b x / (1 - p) with b ~ Bernoulli(1 - p), one draw per object; its expectation is x.

    Larsson, Maire & Shakhnarovich (ICLR 2017, arXiv 1605.07648); Zoph et al. (CVPR 2018) per path of a cell.

    Args:
        x: `(batch, ...)`.
        probability: p, in [0, 1).
    """
    if probability == 0:
        return x
    kept = torch.rand(x.shape[:1] + (1,) * (x.dim() - 1), device=x.device) >= probability
    return x * (kept / (1 - probability)).to(x.dtype)


class DropPath(nn.Module):
    """`drop_path` in training, nothing in evaluation; without parameters.

    Args:
        final: Probability at the end of training.

    Attributes:
        probability: At present; `final` until a schedule sets it.
    """

    def __init__(self, final: float) -> None:
        super().__init__()
        self.final = final
        self.probability = final

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return drop_path(x, self.probability) if self.training else x


def auxiliary_head(channels: int, num_classes: int) -> nn.Module:
    """A classifier for an intermediate cell (Szegedy et al., 2015, arXiv 1409.4842), for images of any size.

    Pools to 2x2 pixels, then 128 and 768 features as in DARTS (Liu, Simonyan & Yang, 2019).
    """
    return nn.Sequential(
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(channels, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, num_classes),
    )


def image_stem(in_channels: int, width: int, strides: tuple[int, ...]) -> nn.Module:
    """3x3 convolutions with these strides, each with batch normalization, ReLU between them; the first ones narrower.

    The widths are `width` for the last, half of it for the one before, and at least a quarter for those before that.
    """
    widths = [max(1, width // 2 ** min(2, len(strides) - 1 - i)) for i in range(len(strides))]
    layers: list[nn.Module] = []
    for i, (out, stride) in enumerate(zip(widths, strides, strict=True)):
        layers += [nn.ReLU()] if i else []
        layers += [nn.Conv2d(in_channels, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out)]
        in_channels = out
    return nn.Sequential(*layers)
