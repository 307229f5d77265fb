"""The sizes of a family at a price: the prices that give them, and a range of sizes that opens during the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from nni_bayes_nas.complexity.price import PriceHypernet

from .structure_loss import NormalizedCost, StructureLoss


@dataclass(frozen=True)
class SizeControl:
    """Keeps the sizes of a structure with hypernetwork "price" on their targets while its scores learn.

    At every knot u_k of the price, the size is c(u_k), with E[cost] normalized on the scale of the target, in the mean
    of the law and of the law sharpened towards the derived network.

    Attributes:
        costs: E[cost] of the structure.
        loss: Where c(u) is set.
        ramp: Share of the structure steps until the positions of lambda have spread over its whole range. In the
            warm-up they all stand where the options are equally probable: at an extreme price the law holds the dearest
            or the cheapest options alone, and those between would never be heard.
    """

    costs: NormalizedCost
    loss: StructureLoss
    ramp: float

    @property
    def _prices(self) -> PriceHypernet | None:
        logits = self.costs.structure.logits
        return logits if isinstance(logits, PriceHypernet) else None

    def solve(self, temperature: float) -> dict[str, Tensor]:
        """Set the prices at which sizes are on their targets, at this temperature of the sharpened law.

        Returns:
            "size_miss", `()`: the largest difference to a target, to be logged; nothing where there are no prices.
        """
        if (prices := self._prices) is None:
            return {}
        knots = torch.linspace(0, 1, len(prices.knots)).to(prices.reference)
        size, targets = self._size(temperature), self.loss.target(knots)
        prices.solve(size, targets)
        with torch.no_grad():
            return {"size_miss": (size(prices(knots)) - targets).abs().max()}

    def reduced(
        self, parameters: list[nn.Parameter], gradients: list[Tensor], temperature: float
    ) -> list[Tensor | None]:
        """The gradients of the structure with prices that follow the scores: none is left for the prices."""
        if (prices := self._prices) is None:
            return list(gradients)
        by_parameter = dict(zip(parameters, gradients, strict=True))
        scores = prices.reduced_gradient(
            self._size(temperature), by_parameter[prices.scores], by_parameter[prices.knots]
        )
        return [None if p is prices.knots else scores if p is prices.scores else by_parameter[p] for p in parameters]

    def _size(self, temperature: float) -> Callable[[Tensor], Tensor]:
        return lambda flat: self.loss.size(self.costs, flat, temperature)

    def spread(self, u: Tensor, progress: float) -> Tensor:
        """Positions of lambda as they stand at this share of the structure steps, any shape; all of them at the end."""
        if self._prices is None or progress >= self.ramp:
            return u
        return self._centre + (u - self._centre) * progress / self.ramp

    @cached_property
    def _centre(self) -> float:
        """The position whose target is the size at equal probabilities."""
        assert self._prices is not None
        with torch.no_grad():
            equal = torch.zeros_like(self._prices.scores)
            size = float(self.loss.size(self.costs, equal, 1.0))
        first, last = self.loss.target_range
        return min(1.0, max(0.0, (size - first) / (last - first)))
