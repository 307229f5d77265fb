"""Attacks on classifiers of images: what a network is worth when its inputs are chosen against it.

Images are in the units of the network's inputs; epsilon is the largest change of a pixel (L-infinity), in the units of
the stored data, so that `scale` says how many units of the input one of these is, `(channels, 1, 1)`. Attacked images
stay between `low` and `high`, the range of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.errors import ConfigError

_ABOVE_ANY_LOSS = 1e9


@dataclass(frozen=True)
class Box:
    """What an attacked image may be.

    Attributes:
        low: Smallest value of a pixel, broadcast against images.
        high: Largest value.
        scale: Units of the input that a unit of epsilon is, broadcast against images.
    """

    low: Tensor
    high: Tensor
    scale: Tensor

    def on(self, x: Tensor) -> Box:
        """The same on the device and in the precision of x."""
        return Box(self.low.to(x), self.high.to(x), self.scale.to(x))

    def around(self, x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the pixels within epsilon of x."""
        reach = epsilon * self.scale
        return torch.maximum(x - reach, self.low), torch.minimum(x + reach, self.high)


def check_epsilon(epsilon: float) -> None:
    """Raise ConfigError for an epsilon below 0."""
    if not 0 <= epsilon < float("inf"):
        raise ConfigError(f"epsilon is the largest change of a pixel and must be at least 0, got {epsilon}.")


def _gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = F.cross_entropy(network(x), y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


def fgsm(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, box: Box) -> Tensor:
    """One step along the sign of the gradient (Goodfellow, Shlens & Szegedy, 2015, arXiv 1412.6572)."""
    check_epsilon(epsilon)
    box = box.on(x)
    low, high = box.around(x, epsilon)
    stepped = x + epsilon * box.scale * _gradient(network, x, y).sign()
    return torch.minimum(torch.maximum(stepped, low), high)


def pgd(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    box: Box,
    *,
    steps: int = 20,
    restarts: int = 3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected steps along the sign of the gradient (Madry et al., 2018, arXiv 1706.06083), the worst of all seen.

    The first start is the image itself, and its first step that of `fgsm`, so that it is at least as strong; the others
    are random. Kept is, for every image, the strongest point of all restarts and steps: a misclassified one rather than
    one that is not, and of these the one with the largest loss.

    Args:
        network: In evaluation mode.
        x: Images, `(batch, ...)`.
        y: Classes.
        epsilon: Of the attack.
        box: What images may be.
        steps: Of each restart, of 2.5 epsilon / steps each, the first one of epsilon.
        restarts: Starts.
        generator: Of the random starts, on the CPU.
    """
    check_epsilon(epsilon)
    box = box.on(x)
    low, high = box.around(x, epsilon)
    size = min(1.0, 2.5 / steps) * epsilon * box.scale
    worst, best = x.clone(), _strengths(network, x, y)
    for restart in range(restarts):
        at = x
        if restart:
            at = low + (high - low) * torch.rand(x.shape, generator=generator).to(x)
        for step in range(steps):
            length = epsilon * box.scale if restart == 0 and step == 0 else size
            at = torch.minimum(torch.maximum(at + length * _gradient(network, at, y).sign(), low), high)
            strengths = _strengths(network, at, y)
            larger = strengths > best
            worst[larger], best[larger] = at[larger], strengths[larger]
    return worst


def square(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    box: Box,
    *,
    queries: int = 200,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random squares, kept where they are stronger, as in `pgd` (Andriushchenko et al., 2020, arXiv 1912.00049).

    It sees outputs alone. Where it is stronger than `pgd`, gradients are masked, and `pgd` says nothing.

    Args:
        network: In evaluation mode.
        x: Images, `(batch, channels, h, w)`.
        y: Classes.
        epsilon: Of the attack.
        box: What images may be.
        queries: Proposals for every image.
        generator: Of the squares, on the CPU.
    """
    check_epsilon(epsilon)
    box = box.on(x)
    n, channels, height, width = x.shape
    low, high = box.around(x, epsilon)

    def signs(shape: tuple[int, ...]) -> Tensor:
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(x)

    def moved(by: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x + epsilon * box.scale * by, low), high)

    change = signs((n, channels, 1, width)).expand(n, channels, height, width).clone()
    worst = moved(change)
    strengths = _strengths(network, worst, y)
    clean = _strengths(network, x, y)
    better = clean > strengths
    worst[better], strengths[better] = x[better], clean[better]
    for query in range(queries):
        side = max(1, round((0.1 * (1 - query / queries)) ** 0.5 * min(height, width)))
        proposal = change.clone()
        for i in range(n):
            top = int(torch.randint(0, height - side + 1, (), generator=generator))
            left = int(torch.randint(0, width - side + 1, (), generator=generator))
            proposal[i, :, top : top + side, left : left + side] = signs((channels, 1, 1))
        tried = moved(proposal)
        now = _strengths(network, tried, y)
        larger = now > strengths
        worst[larger], change[larger], strengths[larger] = tried[larger], proposal[larger], now[larger]
    return worst


def noise(x: Tensor, sigma: float, box: Box, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian noise with this standard deviation, in the units of epsilon, cut off at the range of the data."""
    check_epsilon(sigma)
    box = box.on(x)
    drawn = x + sigma * box.scale * torch.randn(x.shape, generator=generator).to(x)
    return torch.minimum(torch.maximum(drawn, box.low), box.high)


@torch.no_grad()
def _strengths(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    # The largest loss of an image that is still classified right says nothing of accuracy: every mistake is above it.
    logits = network(x)
    losses = F.cross_entropy(logits, y, reduction="none").double()
    strengths: Tensor = losses + _ABOVE_ANY_LOSS * (logits.argmax(-1) != y)
    return strengths


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> float:
    """Share of the objects that are classified right, in evaluation mode."""
    mode = network.training
    network.eval()
    try:
        right = [
            (network(a).argmax(-1) == b).sum()
            for a, b in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        ]
    finally:
        network.train(mode)
    return float(torch.stack(right).sum()) / len(y)
