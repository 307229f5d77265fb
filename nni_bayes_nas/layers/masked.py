"""Weights that are left out of a layer, and layers whose weights are plain parameters again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


class Mask(nn.Module):
    """A parametrization: a weight times a mask of zeros and ones.

    Args:
        mask: Of the weight's shape.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """What stays of the weight."""
        return weight * self.mask


def mask_of(layer: nn.Module) -> Tensor | None:
    """The mask of a layer's `weight`; None where nothing is left out."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    every: Any = layer.parametrizations
    return next((part.mask for part in every["weight"] if isinstance(part, Mask)), None)


def make_plain(layer: nn.Module) -> None:
    """What a parametrized `weight` is becomes a plain parameter, in place."""
    if parametrize.is_parametrized(layer, "weight"):
        # A copy shares the class that torch makes for a parametrized module, and takes the property out of it.
        kind: Any = type(layer)
        layer.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
        parametrize.remove_parametrizations(layer, "weight")
