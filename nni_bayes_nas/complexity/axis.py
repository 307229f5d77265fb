"""The axis of the complexity parameter lambda, and how a step draws from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError


@dataclass(frozen=True)
class LambdaAxis:
    """Normalized logarithmic axis u = (log lambda - log low) / (log high - log low), u in [0, 1].

    Raises:
        ConfigError: Unless 0 < low < high, both finite.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and 0 < self.low < self.high):
            raise ConfigError(
                f"lambda_range must be (low, high) with 0 < low < high, got ({self.low}, {self.high}); "
                "large lambda means small networks, e.g. (0.001, 1.0)."
            )

    def to_u(self, lam: float) -> float:
        """Position of lambda on the axis; outside [low, high] nothing was trained, so it is refused."""
        if not self.low * (1 - 1e-9) <= lam <= self.high * (1 + 1e-9):
            raise ConfigError(
                f"lambda must lie in the trained range [{self.low:g}, {self.high:g}], got {lam:g}; "
                "search again with a wider lambda_range."
            )
        return min(1.0, max(0.0, math.log(lam / self.low) / math.log(self.high / self.low)))

    def to_lambda(self, u: Tensor) -> Tensor:
        """The value of lambda at positions u in [0, 1]; any shape."""
        return self.low * (self.high / self.low) ** u

    def grid(self, n: int) -> list[float]:
        """`n` values from low to high, both ends included, evenly spaced in u."""
        if n == 1:
            return [self.low]
        return [float(self.low * (self.high / self.low) ** (i / (n - 1))) for i in range(n)]


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """`n` positions in [0, 1), one uniform draw in each of n equal cells, in random order; `(n,)`."""
    cells = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return cells[torch.randperm(n, generator=generator)]


def per_object(n: int, generator: torch.Generator) -> Tensor:
    """Positions for the objects of a mini-batch: an eighth at each end of the axis, the rest stratified; `(n,)`.

    The ends are the most used networks and the least often drawn ones, hence their share.
    """
    ends = n // 8
    inner = n - 2 * ends
    u = torch.cat([torch.zeros(ends), torch.ones(ends), stratified(inner, generator)])
    return u[torch.randperm(n, generator=generator)]


def per_step(n: int, generator: torch.Generator) -> Tensor:
    """Positions for `n` passes of one step: stratified, stretched by 5 % and clipped so that the ends occur; `(n,)`."""
    return (stratified(n, generator) * 1.1 - 0.05).clamp(0.0, 1.0)
