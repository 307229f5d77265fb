"""Networks whose weights are products of two thin matrices."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nni_bayes_nas.errors import ConfigError


@dataclass(frozen=True)
class Factors:
    """The sizes of a low-rank network.

    Attributes:
        features: That it sees, the first ones of an order.
        rank: Of the first weight matrix.
        hidden: Units.
    """

    features: int
    rank: int
    hidden: int

    def connections(self, n_outputs: int) -> int:
        """rank (features + hidden) + hidden outputs."""
        return self.rank * (self.features + self.hidden) + self.hidden * n_outputs

    def parameters(self, n_outputs: int) -> int:
        """Its connections, and a bias of every hidden unit and output."""
        return self.connections(n_outputs) + self.hidden + n_outputs


class LowRank(nn.Module):
    """f(x) = W_2 relu(U V x), U `(hidden, rank)` and V `(rank, features)` (Denil et al., 2013, arXiv 1306.0543).

    Both factors are learned; there, one of them is a dictionary.

    Args:
        order: Of the features, the most telling one first.
        sizes: See there.
        n_outputs: Classes.
        seed: Of the initial weights.
    """

    order: Tensor

    def __init__(self, order: Tensor, sizes: Factors, n_outputs: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("order", order[: sizes.features].clone())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.v = nn.Linear(sizes.features, sizes.rank, bias=False)
            self.u = nn.Linear(sizes.rank, sizes.hidden)
            self.out = nn.Linear(sizes.hidden, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of objects `(n, features)`."""
        logits: Tensor = self.out(self.u(self.v(x[:, self.order])).relu())
        return logits


def sizes_within(
    n_features: int, n_outputs: int, budget: int, n: int, generator: random.Random, used: float = 0.97
) -> list[Factors]:
    """Up to n different sizes within a budget of parameters, at random among those that make use of it.

    Args:
        n_features: Of the data.
        n_outputs: Classes.
        budget: Parameters at most, biases among them.
        n: How many.
        generator: Of the choice.
        used: Share of the most that any size within the budget has; of fewer than n such sizes the largest n.

    Raises:
        ConfigError: No network has so few.
    """
    fits = []
    for rank in range(1, 33):
        for hidden in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
            left = budget - Factors(0, 0, hidden).parameters(n_outputs)
            features = min(n_features, left // rank - hidden)
            if features >= rank and hidden >= rank:
                fits.append(Factors(features, rank, hidden))
    if not fits:
        raise ConfigError(f"no network of low rank has {budget} parameters or fewer and {n_outputs} outputs; raise it.")
    fits.sort(key=lambda one: one.parameters(n_outputs), reverse=True)
    near = [one for one in fits if one.parameters(n_outputs) >= used * fits[0].parameters(n_outputs)]
    near = near if len(near) >= n else fits[:n]
    return generator.sample(near, min(n, len(near)))
