"""The axis of the complexity parameter lambda, and how a step draws from it."""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nni_bayes_nas.coercion import coerce
from nni_bayes_nas.errors import ConfigError

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Axis(ABC):
    """A range of lambda and the positions u in it that a hypernetwork sees.

    Attributes:
        low: Lowest lambda: the largest networks.
        high: Highest lambda: the smallest networks.
    """

    low: float
    high: float

    @property
    @abstractmethod
    def domain(self) -> tuple[float, float]:
        """Positions of the lowest and of the highest lambda."""

    @abstractmethod
    def to_u(self, lam: float, *, extrapolate: bool = False) -> float:
        """Position of lambda on the axis.

        Raises:
            ConfigError: Outside [low, high], where nothing was trained, unless `extrapolate`.
        """

    @abstractmethod
    def to_lambda(self, u: Tensor) -> Tensor:
        """The value of lambda at positions u; any shape."""

    def grid(self, n: int) -> list[float]:
        """`n` values from low to high, both ends included, spaced as they are drawn."""
        if n == 1:
            return [float(self.low)]
        inner = self.to_lambda(self.positions(torch.linspace(0, 1, n, dtype=torch.float64)[1:-1]))
        return [float(self.low), *inner.tolist(), float(self.high)]

    @abstractmethod
    def positions(self, fractions: Tensor) -> Tensor:
        """Positions at fractions in [0, 1] of the range, as it is drawn; any shape."""

    @abstractmethod
    def fractions(self, u: Tensor) -> Tensor:
        """Fractions of the range at positions u; any shape."""

    def drawn(self, draws: Tensor) -> Tensor:
        """Positions for draws in [0, 1], over all that is trained; any shape."""
        return self.positions(draws)

    def positions_per_object(self, n: int, generator: torch.Generator) -> Tensor:
        """Positions for the objects of a mini-batch (`per_object`); `(n,)`."""
        return self.drawn(per_object(n, generator))

    def positions_per_step(self, n: int, generator: torch.Generator) -> Tensor:
        """Positions for `n` passes of one step (`per_step`); `(n,)`."""
        return self.drawn(per_step(n, generator))


@dataclass(frozen=True)
class LambdaAxis(Axis):
    """Logarithmic axis: u = (log lambda - log low) / (log high - log low), u in [0, 1], unless it bends.

    Attributes:
        bends: (lambda, u) from low to high, between which u is linear in log lambda; empty for the straight axis.

    Raises:
        ConfigError: Unless 0 < low < high, both finite.
    """

    bends: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and 0 < self.low < self.high):
            raise ConfigError(
                f"lambda_range must be (low, high) with 0 < low < high, got ({self.low}, {self.high}); "
                "large lambda means small networks, e.g. (0.001, 1.0)."
            )

    @property
    def domain(self) -> tuple[float, float]:
        """Positions of the lowest and of the highest lambda."""
        return (self.bends[0][1], self.bends[-1][1]) if self.bends else (0.0, 1.0)

    @property
    def _points(self) -> tuple[list[float], list[float]]:
        points = self.bends or ((self.low, 0.0), (self.high, 1.0))
        return [math.log(lam) for lam, _ in points], [u for _, u in points]

    def to_u(self, lam: float, *, extrapolate: bool = False) -> float:
        """Position of lambda on the axis.

        Outside [low, high] nothing was trained, so it is refused unless `extrapolate`; the first or the last segment
        then goes on.
        """
        lam = coerce(lam, float, "lambda")
        if not lam > 0:
            raise ConfigError(
                f"lambda must be positive on the logarithmic axis, got {lam:g}; the literal axis may begin at 0."
            )
        logs, us = self._points
        i = min(max(1, bisect.bisect_left(logs, math.log(lam))), len(logs) - 1)
        u = us[i - 1] + (us[i] - us[i - 1]) * (math.log(lam) - logs[i - 1]) / (logs[i] - logs[i - 1])
        if self.low * (1 - _TOLERANCE) <= lam <= self.high * (1 + _TOLERANCE):
            return min(us[-1], max(us[0], u))
        if not extrapolate:
            raise _outside(lam, self.low, self.high)
        return u

    def to_lambda(self, u: Tensor) -> Tensor:
        """The value of lambda at positions u, or at the nearest ones that have one; any shape."""
        if not self.bends:
            return self.low * (self.high / self.low) ** u
        logs, us = (torch.tensor(values, dtype=u.dtype, device=u.device) for values in self._points)
        u = u.clamp(us[0], us[-1])
        i = torch.searchsorted(us, u).clamp(1, len(us) - 1)
        along = (u - us[i - 1]) / (us[i] - us[i - 1]).clamp_min(_TOLERANCE)
        return (logs[i - 1] + along * (logs[i] - logs[i - 1])).exp().clamp(self.low, self.high)

    def positions(self, fractions: Tensor) -> Tensor:
        """Positions at fractions in [0, 1] of those of the range; any shape."""
        first, last = self.domain
        return first + (last - first) * fractions

    def fractions(self, u: Tensor) -> Tensor:
        """Fractions of the positions of the range at positions u; any shape."""
        first, last = self.domain
        return (u - first) / max(last - first, _TOLERANCE)

    def drawn(self, draws: Tensor) -> Tensor:
        """Positions for draws in [0, 1]: all of them are trained, whatever part of them the range of lambda has."""
        return draws

    def bent(self, points: Sequence[tuple[float, float]]) -> LambdaAxis:
        """The same range of lambda, its positions those of a table of (lambda, u), both growing.

        Below the table's first lambda and above its last one the position stays.
        """
        table = LambdaAxis(points[0][0], points[-1][0], tuple(points))
        ends = [(lam, table.to_u(min(max(lam, table.low), table.high))) for lam in (self.low, self.high)]
        between = [(lam, u) for lam, u in points if self.low < lam < self.high]
        return LambdaAxis(self.low, self.high, (ends[0], *between, ends[1]))


@dataclass(frozen=True)
class LiteralAxis(Axis):
    """The original axis: the position of lambda is lambda itself, any real number, so that alpha = lambda b1 + b2.

    It is drawn log-uniformly from [low, high] where both are positive and not `uniform`, uniformly otherwise.

    Raises:
        ConfigError: Unless low < high, both finite.
    """

    uniform: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(
                f"lambda_range must be (low, high) with low < high, both finite, got ({self.low}, {self.high}); "
                "e.g. (0.0001, 0.1)."
            )

    @property
    def domain(self) -> tuple[float, float]:
        """Positions of the lowest and of the highest lambda."""
        return self.low, self.high

    def to_u(self, lam: float, *, extrapolate: bool = False) -> float:
        """Position of lambda: lambda. Outside [low, high] it is refused unless `extrapolate`."""
        lam = coerce(lam, float, "lambda")
        slack = _TOLERANCE * max(abs(self.low), abs(self.high))
        if self.low - slack <= lam <= self.high + slack:
            return min(self.high, max(self.low, lam))
        if not extrapolate:
            raise _outside(lam, self.low, self.high)
        return lam

    def to_lambda(self, u: Tensor) -> Tensor:
        """The value of lambda at positions u; any shape."""
        return u

    def positions(self, fractions: Tensor) -> Tensor:
        """Positions at fractions in [0, 1] of the range, as it is drawn; any shape."""
        if self.low > 0 and not self.uniform:
            return (self.low * (self.high / self.low) ** fractions).clamp(self.low, self.high)
        return (self.low + (self.high - self.low) * fractions).clamp(self.low, self.high)

    def fractions(self, u: Tensor) -> Tensor:
        """Fractions of the range at positions u, as it is drawn; any shape."""
        if self.low > 0 and not self.uniform:
            return (u / self.low).log() / math.log(self.high / self.low)
        return (u - self.low) / (self.high - self.low)


def _outside(lam: float, low: float, high: float) -> ConfigError:
    return ConfigError(
        f"lambda must lie in the trained range [{low:g}, {high:g}], got {lam:g}; train with a wider lambda_range (of a "
        "search, architectures alone go beyond it: its export with extrapolate=True)."
    )


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """`n` positions in [0, 1), one uniform draw in each of n equal cells, in random order; `(n,)`."""
    cells = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return cells[torch.randperm(n, generator=generator)]


def per_object(n: int, generator: torch.Generator) -> Tensor:
    """Positions for the objects of a mini-batch: one of 32 at each end of the axis, the rest stratified; `(n,)`.

    The ends are read off like the positions between, which alone would never be drawn there.
    """
    ends = 0 if n < 3 else math.ceil(n / 32)
    inner = n - 2 * ends
    u = torch.cat([torch.zeros(ends), torch.ones(ends), stratified(inner, generator)])
    return u[torch.randperm(n, generator=generator)]


def per_step(n: int, generator: torch.Generator) -> Tensor:
    """Positions for `n` passes of one step: stratified, stretched by 5 % and clipped so that the ends occur; `(n,)`."""
    return (stratified(n, generator) * 1.1 - 0.05).clamp(0.0, 1.0)
