"""Hypernetworks of the complexity parameter: outputs that are a function of the position u on its axis."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

HypernetKind = Literal["constant", "linear", "piecewise_linear", "mlp", "linear_literal"]

_KNOTS = {"constant": 1, "linear": 2, "linear_literal": 2}
_ROUNDING = 1e-6
_INITIAL_SLOPE = 1e-3


def hat_basis(u: Tensor, n_knots: int, *, extrapolate: bool = False) -> Tensor:
    """Values at u of the piecewise linear hat functions on `n_knots` evenly spaced knots.

    Args:
        u: Positions in [0, 1], any shape `(*batch,)`.
        n_knots: At least 1; one knot gives the constant function, two the affine ones.
        extrapolate: Whether the first and the last segment go on outside of [0, 1]; the values there still sum to
            one, but are no longer in [0, 1].

    Returns:
        `(*batch, n_knots)`, non-negative, summing to one, at most two of them not zero.

    Raises:
        ValueError: If a position lies outside [0, 1] and `extrapolate` is false.
    """
    if not extrapolate:
        _require_inside(u, (0.0, 1.0), 0.0)
        return _hats(u, n_knots)
    if n_knots == 1:
        return torch.ones_like(u).unsqueeze(-1)
    position = u.unsqueeze(-1) * (n_knots - 1)
    knots = torch.arange(n_knots, dtype=u.dtype, device=u.device)
    segment = position.detach().floor().clamp(0, n_knots - 2)
    along = position - segment
    return (knots == segment) * (1 - along) + (knots == segment + 1) * along


def _hats(u: Tensor, n_knots: int) -> Tensor:
    if n_knots == 1:
        return torch.ones_like(u).unsqueeze(-1)
    position = u.unsqueeze(-1) * (n_knots - 1)
    knots = torch.arange(n_knots, dtype=u.dtype, device=u.device)
    return (1 - (position - knots).abs()).clamp_min(0.0)


class Hypernet(nn.Module):
    """Map u to `n_outputs` numbers.

    - `constant`: b, whatever u is;
    - `linear`: (1 - t) b1 + t b2 with t = (u - low) / (high - low), the original family alpha = lambda b1 + b2 on
      the normalized axis;
    - `piecewise_linear`: sum_k phi_k(t) b_k with the hat functions phi_k on evenly spaced knots;
    - `mlp`: W2 h(t) / n + b with two hidden layers of n = `hidden` units, the second one residual. Weights are divided
      by the number of their inputs, so that a step of Adam moves the outputs as much as it moves knots;
    - `linear_literal`: u b1 + b2, exactly the original on its literal axis.

    Args:
        kind: One of these.
        n_outputs: Numbers at each u.
        n_knots: Of `piecewise_linear`.
        hidden: Units per hidden layer of `mlp`.
        domain: Positions of the ends of the axis, (0, 1) on the normalized one.
        seed: Of the initial weights of `mlp`.

    Attributes:
        knots: `(n_knots, n_outputs)`, the values at the knots, for `linear_literal` b1 and b2; not for `mlp`.
    """

    def __init__(
        self,
        kind: HypernetKind,
        n_outputs: int,
        *,
        n_knots: int = 5,
        hidden: int = 32,
        domain: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        super().__init__()
        kinds = ("constant", "linear", "piecewise_linear", "mlp", "linear_literal")
        if kind not in kinds:
            raise ValueError(f"kind must be one of {sorted(kinds)}, got {kind!r}.")
        if n_knots < 1 or hidden < 1:
            raise ValueError(f"n_knots and hidden must be at least 1, got {n_knots} and {hidden}.")
        if not domain[0] < domain[1]:
            raise ValueError(f"domain must be (low, high) with low < high, got {domain}.")
        self.kind = kind
        self.domain = domain
        if kind == "mlp":
            self._make_layers(n_outputs, hidden, torch.Generator().manual_seed(seed))
        else:
            self.knots = nn.Parameter(torch.zeros(_KNOTS.get(kind, n_knots), n_outputs))

    def _make_layers(self, n_outputs: int, hidden: int, generator: torch.Generator) -> None:
        # Every first unit is a step of its own place and width on the axis, t in [0, 1].
        slopes = 2 + 6 * torch.rand(hidden, generator=generator)
        self.slopes = nn.Parameter(slopes)
        self.shifts = nn.Parameter(-slopes * torch.linspace(0, 1, hidden))
        self.inner = nn.Parameter(torch.randn(hidden, hidden, generator=generator) * math.sqrt(hidden))
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.randn(n_outputs, hidden, generator=generator) * _INITIAL_SLOPE)
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    @property
    def reference(self) -> Tensor:
        """A tensor on the device and with the dtype of the outputs."""
        return self.bias if self.kind == "mlp" else self.knots

    def initialize(self, values: Tensor) -> None:
        """Give the outputs these values at every u; `mlp` keeps its small random slope, below 1e-2.

        Args:
            values: `(n_outputs,)`.
        """
        with torch.no_grad():
            if self.kind == "mlp":
                self.bias.copy_(values)
            elif self.kind == "linear_literal":
                self.knots[0].zero_()
                self.knots[1].copy_(values)
            else:
                self.knots.copy_(values.expand_as(self.knots))

    def forward(self, u: Tensor, *, extrapolate: bool = False) -> Tensor:
        """Outputs at u; `(*batch,)` -> `(*batch, n_outputs)`.

        Raises:
            ValueError: If a position lies outside the domain and `extrapolate` is false.
        """
        u = u.to(self.reference.dtype)
        low, high = self.domain
        if not extrapolate:
            _require_inside(u, self.domain, _ROUNDING)
        if self.kind == "linear_literal":
            return u.unsqueeze(-1) * self.knots[0] + self.knots[1]
        t = u if self.domain == (0.0, 1.0) else (u - low) / (high - low)
        t = t if extrapolate else t.clamp(0.0, 1.0)
        if self.kind == "mlp":
            return self._through_layers(t)
        n_knots = self.knots.shape[0]
        # The range has been looked at: on an accelerator every look waits for the device.
        return (hat_basis(t, n_knots, extrapolate=True) if extrapolate else _hats(t, n_knots)) @ self.knots

    def _through_layers(self, t: Tensor) -> Tensor:
        n = self.slopes.shape[0]
        first = torch.tanh(t.unsqueeze(-1) * self.slopes + self.shifts)
        second = first + torch.tanh(first @ self.inner.T / n + self.inner_bias)
        return second @ self.outer.T / n + self.bias


def _require_inside(u: Tensor, domain: tuple[float, float], slack: float) -> None:
    low, high = domain
    margin = slack * max(abs(low), abs(high))
    if bool(((u < low - margin) | (u > high + margin)).any()):
        raise ValueError(
            f"u must lie in [{low:g}, {high:g}], got {u.min().item():g} to {u.max().item():g}; "
            "nothing is trained there."
        )
