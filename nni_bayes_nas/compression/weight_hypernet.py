"""Weights as a function of the complexity parameter: what a network has for every lambda, from one training."""

from __future__ import annotations

import bisect
import inspect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_bayes_nas.coercion import require
from nni_bayes_nas.errors import ConfigError

Kind = Literal["constant", "linear", "piecewise_linear", "low_rank", "mlp"]
KINDS: tuple[Kind, ...] = ("constant", "linear", "piecewise_linear", "low_rank", "mlp")
_SMALL = 1e-2
_OPTIONS = {"piecewise_linear": ("knots", "shared_knots"), "low_rank": ("rank", "hidden"), "mlp": ("rank", "hidden")}


class WeightHypernet(nn.Module):
    """Maps a position t in [0, 1] to tensors of given shapes.

    - `constant`: b, whatever t is;
    - `linear`: (1 - t) b_0 + t b_1, two end networks;
    - `piecewise_linear`: b + sum_k phi_k(t) d_k with the hat functions phi_k on knots. The part b that all knots share
      learns at every step, the differences d_k only where they are active: with an optimizer that leaves out parameters
      without a gradient, as torch's do, a knot keeps its own momentum until it is active again; without `shared_knots`
      b stays what it was, and every knot learns by itself;
    - `low_rank`: of every matrix (a filter bank counts as one, a row per filter) b + sum_i (h U_i)(h V_i)^T of rank
      `rank`, with h = ReLU(w t + c) / sqrt(hidden) of `hidden` units; of a vector b + h U / sqrt(hidden). h and every
      h U_i are of norm 1 or so, whatever the sizes: a step of the factors moves a matrix about as much as a step of b;
    - `mlp`: b + sum_k a_k(t) d_k, where a is a network of one hidden layer of `hidden` tanh units with `rank` outputs.

    Args:
        initial: Values at first, for every t; of `low_rank` and `mlp` nearly.
        kind: One of these.
        knots: Of `piecewise_linear`: how many, evenly spaced, or their places from 0 to 1.
        rank: Of `low_rank` and `mlp`.
        hidden: Units of the hidden layer.
        seed: Of the initial weights of `low_rank` and `mlp`.
        shared_knots: Of `piecewise_linear`: whether b learns.

    Attributes:
        alone: Of `piecewise_linear`: whether it is b, the differences left out for now.

    Raises:
        ConfigError: An unknown kind, or a size that makes no function of t.
    """

    def __init__(
        self,
        initial: Sequence[Tensor],
        kind: Kind,
        *,
        knots: int | Sequence[float] = 5,
        rank: int = 4,
        hidden: int = 32,
        seed: int = 0,
        shared_knots: bool = True,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        for name, size, usual in (("rank", rank, 4), ("hidden", hidden, 32)):
            require(size >= 1, name, "must be at least 1", size, f"{usual} is the default")
        self.kind = kind
        self.alone = False
        self.shapes = [tuple(x.shape) for x in initial]
        self.sizes = [x.numel() for x in initial]
        self.knots = _places(knots) if kind == "piecewise_linear" else [0.0, 1.0]
        self.rank = rank
        flat = torch.cat([x.detach().flatten() for x in initial])
        generator = torch.Generator().manual_seed(seed)
        if kind != "linear":
            self.shared = nn.Parameter(flat.clone(), requires_grad=shared_knots or kind != "piecewise_linear")
        if kind == "linear":
            self.vectors = nn.ParameterList([nn.Parameter(flat.clone()) for _ in range(2)])
        elif kind == "piecewise_linear":
            self.vectors = nn.ParameterList([nn.Parameter(torch.zeros_like(flat)) for _ in self.knots])
        elif kind != "constant":
            # Every hidden unit acts from a place of its own on.
            self.slopes = nn.Parameter(flat.new_full((hidden,), 2.0))
            self.shifts = nn.Parameter(torch.linspace(1, -2, hidden).to(flat))
        if kind == "mlp":
            drawn = torch.randn(rank, hidden, generator=generator).to(flat)
            self.outer = nn.Parameter(drawn / math.sqrt(hidden))
            self.differences = nn.Parameter(_SMALL * flat.std(correction=0) * _like(flat, rank, generator))
        if kind == "low_rank":
            self._make_factors(flat, hidden, generator)

    def _make_factors(self, flat: Tensor, hidden: int, generator: torch.Generator) -> None:
        self.left, self.right = nn.ParameterDict(), nn.ParameterList()
        for i, (part, shape) in enumerate(zip(torch.split(flat, self.sizes), self.shapes, strict=True)):
            # A vector has one factor, which starts at zero; the right ones of matrices are small at first.
            matrix, scale = len(shape) > 1, 0.0
            if matrix:
                drawn = torch.randn(self.rank, hidden, shape[0], generator=generator).to(flat)
                self.left[str(i)] = nn.Parameter(drawn / math.sqrt(shape[0]))
                scale = _SMALL * float(part.std(correction=0)) * math.sqrt(shape[0])
            columns = len(part) // shape[0] if matrix else len(part)
            drawn = torch.randn(self.rank if matrix else 1, hidden, columns, generator=generator).to(flat)
            self.right.append(nn.Parameter(drawn * scale))

    def forward(self, t: float) -> list[Tensor]:
        """The tensors at t, a view of one vector each but for `low_rank`.

        Raises:
            ConfigError: t lies outside [0, 1].
        """
        if not 0.0 <= t <= 1.0:
            raise ConfigError(f"t must lie in [0, 1], got {t:g}; nothing is trained there.")
        if self.kind == "constant":
            return self._split(self.shared)
        if self.kind == "linear":
            return self._split(torch.lerp(self.vectors[0], self.vectors[1], t))
        if self.kind == "piecewise_linear":
            return self._split(self._between(t))
        if self.kind == "mlp":
            coefficients = self.outer @ torch.tanh(self.slopes * t + self.shifts)
            return self._split(self.shared + coefficients @ self.differences)
        return self._products(t)

    def _between(self, t: float) -> Tensor:
        first = min(bisect.bisect_right(self.knots, t), len(self.knots) - 1) - 1
        low, high = self.knots[first], self.knots[first + 1]
        along = (t - low) / (high - low)
        value: Tensor = self.shared
        if self.alone:
            return value
        # A knot whose coefficient is zero gets no gradient, not one of zero.
        for i, coefficient in ((first, 1 - along), (first + 1, along)):
            if coefficient > 0:
                value = torch.add(value, self.vectors[i], alpha=coefficient)
        return value

    def _products(self, t: float) -> list[Tensor]:
        width = math.sqrt(len(self.shifts))
        h = torch.relu(self.slopes * t + self.shifts) / width
        found = []
        for i, (base, right) in enumerate(zip(self._split(self.shared), self.right, strict=True)):
            columns = h @ right  # (rank, n)
            product = (h @ self.left[str(i)]).T @ columns if str(i) in self.left else columns / width
            found.append(base + product.reshape(base.shape))
        return found

    def _split(self, flat: Tensor) -> list[Tensor]:
        return [part.reshape(shape) for part, shape in zip(torch.split(flat, self.sizes), self.shapes, strict=True)]


def _like(flat: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, len(flat), generator=generator).to(flat)


def _places(knots: int | Sequence[float]) -> list[float]:
    if isinstance(knots, int):
        if knots < 2:
            raise ConfigError(f"knots must be at least 2, got {knots}; 5 is the default.")
        return [i / (knots - 1) for i in range(knots)]
    places = [float(knot) for knot in knots]
    rising = all(a < b for a, b in itertools.pairwise(places))
    if len(places) < 2 or not rising or (places[0], places[-1]) != (0.0, 1.0):
        raise ConfigError(f"knots must rise from 0 to 1, got {places}; or give their number.")
    return places


def options_of(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options of `WeightHypernet` that a kind has."""
    return {name: value for name, value in options.items() if name in _OPTIONS.get(kind, ())}


def unused_option(kinds: Iterable[str], options: Mapping[str, Any]) -> str | None:
    """The first option that none of the kinds has and that is not what it is by default."""
    usual = inspect.signature(WeightHypernet).parameters
    taken = {name for kind in kinds for name in _OPTIONS.get(kind, ())}
    return next((name for name, value in options.items() if name not in taken and value != usual[name].default), None)
