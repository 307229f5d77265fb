"""Networks that grow by subnetworks as long as a bound on the error falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.training import fit, parameters


class Subnetwork(nn.Module):
    """Hidden layers of one width; each sees the one below, of itself and of earlier subnetworks.

    Args:
        n_features: That the first layer sees.
        width: Units of every layer.
        below: For every layer but the first, units of earlier subnetworks in the layer below.
        n_outputs: Classes.
    """

    def __init__(self, n_features: int, width: int, below: Sequence[int], n_outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n_features, width)])
        self.layers.extend(nn.Linear(width + n, width) for n in below)
        self.out = nn.Linear(width, n_outputs)

    @property
    def depth(self) -> int:
        """Hidden layers."""
        return len(self.layers)


class Grown(nn.Module):
    """A sum of subnetworks, sum_j w_j h_j(x) (Cortes et al., 2017, AdaNet, arXiv 1607.01097).

    Args:
        order: Of the features, the most telling one first.
        n_features: How many of them are seen.
        width: Units of a layer of a subnetwork.
        n_outputs: Classes.
    """

    order: Tensor

    def __init__(self, order: Tensor, n_features: int, width: int, n_outputs: int) -> None:
        super().__init__()
        self.register_buffer("order", order[:n_features].clone())
        self.width, self.n_outputs = width, n_outputs
        self.subnetworks = nn.ModuleList()

    @property
    def parts(self) -> list[Subnetwork]:
        """The subnetworks, the first one first."""
        return cast(list[Subnetwork], list(self.subnetworks))

    def next(self, depth: int) -> Subnetwork:
        """A new one of a depth; it is not part of the sum yet."""
        below = [sum(self.width for one in self.parts if one.depth > k) for k in range(depth - 1)]
        return Subnetwork(len(self.order), self.width, below, self.n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of objects `(n, features)`."""
        x = x[:, self.order]
        hidden: list[list[Tensor]] = []  # by layer, of the subnetworks so far
        logits = x.new_zeros(len(x), self.n_outputs)
        for one in self.parts:
            h = x
            # A subnetwork sees what there was when it was made.
            earlier = [list(each) for each in hidden]
            for k, layer in enumerate(one.layers):
                inputs = [h, *earlier[k - 1]] if 0 < k <= len(earlier) else [h]
                h = layer(torch.cat(inputs, 1)).relu()
                if k == len(hidden):
                    hidden.append([])
                hidden[k].append(h)
            logits = logits + one.out(h)
        return logits


def grow(
    x: Tensor,
    y: Tensor,
    order: Tensor,
    sizes: tuple[int, int],
    n_outputs: int,
    budget: int,
    how: Training,
    seed: int,
    *,
    penalty: float = 1e-3,
    floor: float = 1e-4,
) -> Grown:
    """Add the better of a subnetwork as deep as the last one and one a layer deeper, while the objective falls.

    The objective is the mean cross-entropy plus sum_j (penalty sqrt(depth_j) + floor) |w_j|_1, where the root stands
    for the Rademacher complexity of the subnetworks of a depth. What is there already stays as it is.

    Args:
        x: Training objects.
        y: Their classes.
        order: Of the features.
        sizes: Features seen, and width of the layers.
        n_outputs: Classes.
        budget: Parameters at most, biases among them.
        how: Of the training of every candidate.
        seed: Of everything that is drawn.
        penalty: See above.
        floor: See above.

    Raises:
        ConfigError: Not even one subnetwork fits.
        NumericsError: A loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = Grown(order, *sizes, n_outputs)
        least, depth = math.inf, 1
        while True:
            best: Subnetwork | None = None
            for deep in (depth, depth + 1) if len(grown.subnetworks) else (1, 2):
                candidate = grown.next(deep)
                if parameters(grown) + parameters(candidate) > budget:
                    continue
                grown.subnetworks.append(candidate)
                value = _train_last(grown, x, y, how, seed, (penalty, floor))
                if value < least:
                    best, least = candidate, value
                del grown.subnetworks[-1]
            if best is None:
                break
            grown.subnetworks.append(best)
            depth = best.depth
    if not len(grown.subnetworks):
        raise ConfigError(
            f"no subnetwork of {sizes[1]} units and {sizes[0]} features has {budget} parameters; raise it."
        )
    return grown.requires_grad_(True)


def _train_last(grown: Grown, x: Tensor, y: Tensor, how: Training, seed: int, prices: tuple[float, float]) -> float:
    """Train the last subnetwork; the objective on all training objects."""

    def price(one: Subnetwork) -> Tensor:
        return (prices[0] * math.sqrt(one.depth) + prices[1]) * one.out.weight.abs().sum()

    last = grown.parts[-1]
    grown.requires_grad_(False)
    last.requires_grad_(True)
    fit(grown, x, y, how, seed, lambda: price(last))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(grown(x), y)
        return float(loss) + sum(float(price(one)) for one in grown.parts)
