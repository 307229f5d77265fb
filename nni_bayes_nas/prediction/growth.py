"""Networks that grow by subnetworks as long as a bound on the error falls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
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

    def units(self, seen: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The units of its layers, and its logits, of what it sees: see `Grown.seen`."""
        h, found = seen[0], list[Tensor]()
        for k, layer in enumerate(self.layers):
            h = layer(torch.cat([h, seen[k]], 1) if 0 < k < len(seen) - 1 else h).relu()
            found.append(h)
        return found, self.out(h)


class _Last(nn.Module):
    """The sum with one subnetwork more; objects are what it sees, side by side: what is there is not computed again."""

    def __init__(self, one: Subnetwork, sizes: Sequence[int]) -> None:
        super().__init__()
        self.one, self.sizes = one, list(sizes)

    def forward(self, z: Tensor) -> Tensor:
        """Logits."""
        seen = torch.split(z, self.sizes, 1)
        logits: Tensor = seen[-1] + self.one.units(seen)[1]
        return logits


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
        return self.seen(x)[-1]

    def seen(self, x: Tensor) -> list[Tensor]:
        """What another subnetwork sees: the features, the units of every layer of those that are there, their logits.

        A list of `(n, ...)`; a subnetwork sees what there was when it was made.
        """
        x = x[:, self.order]
        layers, total = list[Tensor](), x.new_zeros(len(x), self.n_outputs)
        for one in self.parts:
            units, logits = one.units([x, *layers, total])
            both = itertools.zip_longest(layers, units)
            layers = [torch.cat([h for h in pair if h is not None], 1) for pair in both]
            total = total + logits
        return [x, *layers, total]


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
        least, depth, paid = math.inf, 1, 0.0

        def price(one: Subnetwork) -> Tensor:
            return (penalty * math.sqrt(one.depth) + floor) * one.out.weight.abs().sum()

        while True:
            best: Subnetwork | None = None
            with torch.no_grad():
                seen = grown.seen(x)
                paid = sum(float(price(one)) for one in grown.parts)
            for deep in (depth, depth + 1) if len(grown.subnetworks) else (1, 2):
                candidate = grown.next(deep)
                if parameters(grown) + parameters(candidate) > budget:
                    continue
                value = paid + _trained(candidate, seen, y, how, seed, price)
                if value < least:
                    best, least = candidate, value
            if best is None:
                break
            grown.subnetworks.append(best)
            depth = best.depth
    if not len(grown.subnetworks):
        raise ConfigError(
            f"no subnetwork of {sizes[1]} units and {sizes[0]} features has {budget} parameters; raise it."
        )
    return grown


def _trained(
    one: Subnetwork,
    seen: Sequence[Tensor],
    y: Tensor,
    how: Training,
    seed: int,
    price: Callable[[Subnetwork], Tensor],
) -> float:
    """Train another subnetwork; the loss of the sum with it on all training objects, and its price."""
    module, z = _Last(one, [part.shape[1] for part in seen]), torch.cat(list(seen), 1)
    fit(module, z, y, how, seed, lambda: price(one))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(z), y)) + float(price(one))
