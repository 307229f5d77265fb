"""A chain of independent choices: the smallest space that has every kind of NNI's layer choices."""

from __future__ import annotations

from typing import Any

import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import Tensor, nn

from nni_bayes_nas.errors import SpaceError


class ChainSpace(ModelSpace):  # type: ignore[misc]
    """Stem, `depth` layers of one choice each (identity, 1x1 or 3x3 convolution), global pooling, classifier.

    Args:
        in_channels: Channels of the data.
        num_classes: Classes of the data.
        width: Channels of every layer.
        depth: Layers.
    """

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise SpaceError(f"{name} must be at least 1, got {value}.")
        self.stem = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(LayerChoice(_candidates(width), label=f"layer{i}") for i in range(depth))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> logits `(batch, num_classes)`."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier(torch.relu(x).mean((-2, -1)))
        return logits


def _candidates(width: int) -> dict[str, nn.Module]:
    def convolution(kernel: int) -> nn.Module:
        layers: list[Any] = [nn.ReLU(), nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)]
        return nn.Sequential(*layers, nn.BatchNorm2d(width))

    return {"identity": nn.Identity(), "conv_1x1": convolution(1), "conv_3x3": convolution(3)}
