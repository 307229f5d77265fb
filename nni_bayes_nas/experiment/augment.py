"""Augmentation of batches of images: shifted crops, flips, cutout; one draw per object, all objects at once.

What is drawn comes from torch's global generator of the CPU, whatever the device of the images: a seed gives the same
images everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from nni_bayes_nas.config import RetrainConfig
from nni_bayes_nas.errors import ConfigError


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Pads every side with zeros (of standardized images: the mean) and crops the old size at a random place.

    The shift of an object is uniform over the (2 padding + 1)^2 places.

    Args:
        x: `(batch, channels, height, width)`.
        padding: Pixels.
    """
    n, channels, height, width = x.shape
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    shifts = torch.randint(2 * padding + 1, (2, n, 1)).to(x.device)
    rows = shifts[0] + torch.arange(height, device=x.device)
    columns = shifts[1] + torch.arange(width, device=x.device)
    objects = torch.arange(n, device=x.device)[:, None, None, None]
    planes = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[objects, planes, rows[:, None, :, None], columns[:, None, None, :]]


def random_flip(x: Tensor) -> Tensor:
    """Mirrors left and right with probability 1/2 per object.

    Args:
        x: `(batch, channels, height, width)`.
    """
    mirrored = torch.randint(2, (len(x), 1, 1, 1)).bool().to(x.device)
    return torch.where(mirrored, x.flip(-1), x)


def cutout(x: Tensor, size: int) -> Tensor:
    """Sets a square to zero (of standardized images: the mean); DeVries & Taylor (2017, arXiv 1708.04552).

    The center is uniform over the pixels of the image, so that the square may reach over its edge.

    Args:
        x: `(batch, channels, height, width)`.
        size: Side of the square, in pixels.
    """
    keep = []
    for axis in (2, 3):
        center = torch.randint(x.shape[axis], (len(x), 1)).to(x.device)
        place = torch.arange(x.shape[axis], device=x.device) - (center - size // 2)
        keep.append((place < 0) | (place >= size))
    inside = ~keep[0][:, None, :, None] & ~keep[1][:, None, None, :]
    return x.masked_fill(inside, 0.0)


def augmentation(settings: RetrainConfig) -> Callable[[Tensor], Tensor] | None:
    """What the settings ask for, in the order crop, flip, cutout; None if they ask for nothing."""
    steps: list[Callable[[Tensor], Tensor]] = []
    if settings.crop_padding:
        steps.append(lambda x: random_crop(x, settings.crop_padding))
    if settings.horizontal_flip:
        steps.append(random_flip)
    if settings.cutout:
        steps.append(lambda x: cutout(x, settings.cutout))
    if not steps:
        return None

    def augment(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return augment


def check_augmentation(settings: RetrainConfig, shape: Sequence[int]) -> None:
    """Refuses what cannot be done with objects of this shape.

    Raises:
        ConfigError: The objects are vectors, or smaller than the pixels that are asked for.
    """
    asked = [name for name in ("crop_padding", "horizontal_flip", "cutout") if getattr(settings, name)]
    if asked and len(shape) != 3:
        raise ConfigError(
            f"`retrain.{asked[0]}` is for images, but the objects of the data are of shape {tuple(shape)}; "
            "leave it out for vectors"
        )
    for name in ("crop_padding", "cutout"):
        pixels = getattr(settings, name)
        if pixels and pixels >= min(shape[1:]):
            raise ConfigError(
                f"`retrain.{name}` must be smaller than the images, got {pixels} for {shape[1]}x{shape[2]} pixels; "
                "an eighth of the side is usual for the padding, a half for cutout"
            )


class Augment(Callback):
    """Augments the training batches in place, on the device where they are."""

    def __init__(self, augment: Callable[[Tensor], Tensor]) -> None:
        self.augment = augment

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch was made by indexing the data set with a tensor, which copies: the data set is not touched."""
        batch[0].copy_(self.augment(batch[0]))
