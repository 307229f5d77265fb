"""Weights most of which are zero, kept as what they are not and where."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LARGEST_GAP = 255


class Packed(nn.Module):
    """A parametrization: a weight from its entries, each of which lies a number of places behind the one before.

    Places between are zero. A gap is an 8-bit number; where it would be larger, an entry that is zero lies in between.

    Args:
        shape: Of the weight.
        gaps: From each entry to the next, `(entries,)`, uint8; the first one counts from the place before the first.
    """

    gaps: Tensor
    sizes: Tensor

    def __init__(self, shape: torch.Size, gaps: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("gaps", gaps)
        # Entries and gaps fit many shapes: the state dict says which it was.
        self.register_buffer("sizes", torch.tensor(shape, device=gaps.device))

    def places(self) -> Tensor:
        """Of the entries in the flattened weight; `(entries,)`."""
        return self.gaps.long().cumsum(0) - 1

    def forward(self, entries: Tensor) -> Tensor:
        """The weight, from the entries that are stored."""
        flat = entries.new_zeros(self.shape.numel())
        return flat.scatter(0, self.places(), entries).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The entries of a weight, `(entries,)`."""
        return weight.flatten()[self.places()]


def gaps_of(present: Tensor) -> Tensor:
    """The gaps that lead to all places where a boolean tensor says that there is something; uint8."""
    places = present.flatten().nonzero().flatten()
    gaps = torch.diff(places, prepend=places.new_tensor([-1]))
    # Steps of 255 first, then what is left of every gap.
    steps = (gaps - 1) // _LARGEST_GAP
    last = (steps + 1).cumsum(0) - 1
    found = torch.full((int((steps + 1).sum()),), _LARGEST_GAP, dtype=torch.uint8, device=present.device)
    found[last] = (gaps - steps * _LARGEST_GAP).to(torch.uint8)
    return found
