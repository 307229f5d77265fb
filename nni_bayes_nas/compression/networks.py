"""Networks that the literature compresses, by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nni_bayes_nas.errors import ConfigError


class Stored(nn.Module):
    """Objects as the data set stores them: takes the standardization back.

    Pixels that are always zero are zero then, and the weights behind them say nothing: they can go.

    Args:
        mean: What was subtracted, broadcast against a batch.
        sd: What was divided by.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, mean: Tensor, sd: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("sd", sd.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        return x * self.sd + self.mean


def mlp(shape: Sequence[int], num_classes: int, *, hidden: Sequence[int] = (300, 100)) -> nn.Sequential:
    """Fully connected layers with ReLU; (300, 100) is LeNet-300-100 (LeCun et al., 1998).

    Args:
        shape: Of one object.
        num_classes: Outputs.
        hidden: Units of the hidden layers.

    Raises:
        ConfigError: A layer without units.
    """
    _check_sizes("hidden", hidden)
    sizes = [int(torch.Size(shape).numel()), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def cnn(
    shape: Sequence[int], num_classes: int, *, channels: Sequence[int] = (32, 64), hidden: int = 128
) -> nn.Sequential:
    """Convolutions of 3x3 with batch normalization, ReLU and pooling to half the size; two linear layers.

    Args:
        shape: Of one image, (channels, height, width).
        num_classes: Outputs.
        channels: Of the convolutions.
        hidden: Units before the outputs.

    Raises:
        ConfigError: Objects that are no images, or too small for so many poolings; a layer without units.
    """
    _check_sizes("channels", [*channels, hidden])
    if len(shape) != 3 or min(shape[1:]) < 2 ** len(channels):
        raise ConfigError(
            f"a cnn of {len(channels)} poolings needs images of at least {2 ** len(channels)} pixels, got objects of "
            f"shape {tuple(shape)}; use fewer channels, or mlp."
        )
    layers: list[nn.Module] = []
    before, (height, width) = shape[0], shape[1:]
    for after in channels:
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        before, height, width = after, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(before * height * width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*layers)


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    if any(size < 1 for size in sizes):
        raise ConfigError(f"{name} must be at least 1 each, got {list(sizes)}; they are numbers of units or channels.")
