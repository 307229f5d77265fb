"""A space of one's own: any NNI model space of categorical choices will do."""

import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from torch import Tensor, nn


def block(width: int, kernel: int) -> nn.Module:
    """Convolution that keeps the size, batch normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


class TwoPathSpace(ModelSpace):
    """Two layers of one choice each, and a choice which of the three states the classifier sees.

    Args:
        in_channels: Of the data; filled in if the configuration does not say.
        num_classes: Of the data; filled in if the configuration does not say.
        width: Channels.
    """

    def __init__(self, *, in_channels: int = 1, num_classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.first, self.second = (
            LayerChoice(
                {"identity": nn.Identity(), "conv_1x1": block(width, 1), "conv_3x3": block(width, 3)}, label=label
            )
            for label in ("first", "second")
        )
        self.seen = InputChoice(n_candidates=3, n_chosen=1, label="seen")
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> logits `(batch, num_classes)`."""
        stem = self.stem(x)
        first = self.first(stem)
        state: Tensor = self.seen([stem, first, self.second(first)])
        logits: Tensor = self.classifier(torch.relu(state).amax((-2, -1)))
        return logits
