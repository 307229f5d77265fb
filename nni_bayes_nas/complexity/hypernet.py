"""Hypernetworks of the complexity parameter: outputs that are a function of u in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

HypernetKind = Literal["constant", "linear", "piecewise_linear"]


def hat_basis(u: Tensor, n_knots: int) -> Tensor:
    """Values at u of the piecewise linear hat functions on `n_knots` evenly spaced knots.

    Args:
        u: Positions in [0, 1], any shape `(*batch,)`.
        n_knots: At least 1; one knot gives the constant function, two the affine ones.

    Returns:
        `(*batch, n_knots)`, non-negative, summing to one, at most two of them not zero.

    Raises:
        ValueError: If a position lies outside [0, 1].
    """
    if bool(((u < 0) | (u > 1)).any()):
        raise ValueError(
            f"u must lie in [0, 1], got {u.min().item():g} to {u.max().item():g}; nothing is trained there."
        )
    if n_knots == 1:
        return torch.ones_like(u).unsqueeze(-1)
    position = u.unsqueeze(-1) * (n_knots - 1)
    knots = torch.arange(n_knots, dtype=u.dtype, device=u.device)
    return (1 - (position - knots).abs()).clamp_min(0.0)


class Hypernet(nn.Module):
    """Map u to `n_outputs` numbers: sum_k phi_k(u) b_k with the hat functions phi_k.

    `constant` has one knot (no lambda), `linear` two (the family alpha = lambda b1 + b2 of the seed, on the
    normalized axis), `piecewise_linear` as many as asked for.

    Attributes:
        knots: Values at the knots, `(n_knots, n_outputs)`.
    """

    def __init__(self, kind: HypernetKind, n_outputs: int, *, n_knots: int = 5) -> None:
        super().__init__()
        counts = {"constant": 1, "linear": 2, "piecewise_linear": n_knots}
        if kind not in counts:
            raise ValueError(f"kind must be one of {sorted(counts)}, got {kind!r}.")
        if counts[kind] < 1:
            raise ValueError(f"n_knots must be at least 1, got {n_knots}.")
        self.kind = kind
        self.knots = nn.Parameter(torch.zeros(counts[kind], n_outputs))

    def forward(self, u: Tensor) -> Tensor:
        """Outputs at u; `(*batch,)` -> `(*batch, n_outputs)`."""
        return hat_basis(u.to(self.knots.dtype), self.knots.shape[0]) @ self.knots
