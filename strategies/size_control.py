"""The sizes of a family at a price: the prices that give them, and a range of sizes that opens during the search."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from nni_bayes_nas.complexity.price import PriceHypernet, reduced_gradient, solve_prices

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
        """Set the prices at which sizes are on their targets; see `solve_all`."""
        return solve_all([(self, temperature)])[0]

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """Equal for controls that find their prices by the same equation, targets aside."""
        prices = self._prices
        return None if prices is None else len(prices.knots), self.loss.target_scale, self.costs.bounds

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


def solve_all(requests: Sequence[tuple[SizeControl, float]]) -> list[dict[str, Tensor]]:
    """Set the prices of structures of one kind, each at a temperature of the sharpened law, the same for all.

    Returns:
        For each "size_miss", `()`: the largest difference to a target, to be logged; nothing where there are no prices.
    """
    controls, (first, temperature) = [control for control, _ in requests], requests[0]
    prices = [control._prices for control in controls if control._prices is not None]
    if not prices:
        return [{} for _ in controls]
    size = first._size(temperature)
    with torch.no_grad():
        scores, costs, knots = _stacked(prices)
        grid = torch.linspace(0, 1, knots.shape[-1]).to(knots)
        targets = torch.stack([control.loss.target(grid) for control in controls])
        found = solve_prices(scores, costs, knots, size, targets)
        missed = (size(scores.unsqueeze(-2) - found.unsqueeze(-1) * costs) - targets).abs().amax(-1)
        for own, values in zip(prices, found, strict=True):
            own.knots.copy_(values)
    return [{"size_miss": miss} for miss in missed]


def reduce_all(
    requests: Sequence[tuple[SizeControl, list[nn.Parameter], list[Tensor], float]],
) -> list[list[Tensor | None]]:
    """`SizeControl.reduced` of structures of one kind; the temperature is the same for all."""
    prices = [control._prices for control, *_ in requests if control._prices is not None]
    if not prices:
        return [list(gradients) for _, _, gradients, _ in requests]
    by_parameter = [dict(zip(parameters, gradients, strict=True)) for _, parameters, gradients, _ in requests]
    of_scores = torch.stack([g[own.scores] for g, own in zip(by_parameter, prices, strict=True)])
    of_prices = torch.stack([g[own.knots] for g, own in zip(by_parameter, prices, strict=True)])
    control, *_, temperature = requests[0]
    reduced = reduced_gradient(*_stacked(prices), control._size(temperature), of_scores, of_prices)
    return [
        [None if p is own.knots else scores if p is own.scores else gradients[p] for p in parameters]
        for scores, own, gradients, (_, parameters, *_) in zip(reduced, prices, by_parameter, requests, strict=True)
    ]


def _stacked(prices: Sequence[PriceHypernet]) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, costs (of the first: of one space), prices."""
    return (
        torch.stack([p.scores.detach() for p in prices]),
        prices[0].costs,
        torch.stack([p.knots.detach() for p in prices]),
    )
