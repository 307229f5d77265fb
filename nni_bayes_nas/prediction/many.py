"""Many small networks trained at once, each as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.fused import FUSED
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.sparse_net import SparseLinear, bound_of, build


@dataclass(frozen=True)
class Training:
    """How networks are trained: Adam with a cosine schedule to zero, on mini-batches that all networks share.

    Args:
        steps: Of the optimizer.
        batch_size: Objects of a step; where there are fewer, all.
        learning_rate: At the first step.
        weight_decay: L2, of the weights and not of the biases.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 0.02
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} of a training must be positive, got {getattr(self, name)}; raise it.")


def batches_of(n: int, how: Training, seed: int) -> Iterator[Tensor]:
    """The objects of every step: all in a new order, without the rest that is less than a batch, and again."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(how.steps):
        if len(order) < min(how.batch_size, n):
            order = torch.randperm(n, generator=generator)
        batch, order = order[: how.batch_size], order[how.batch_size :]
        yield batch


def require_finite(losses: Tensor, of: str, step: int) -> None:
    """Refuse a loss, or of several the first one, that is not finite.

    Raises:
        NumericsError: Names what it is of, with its number where there are several.
    """
    if not bool(losses.isfinite().all()):
        which = f"{of} {int((~losses.isfinite()).nonzero()[0])}" if losses.dim() else of
        raise NumericsError(
            f"the loss of {which} is not finite in step {step}; lower the learning rate, or look for values far out in "
            "the data."
        )


def by_depth(nets: Sequence[SparseArchitecture]) -> list[list[int]]:
    """Places of those that can be trained side by side."""
    return [
        [i for i, net in enumerate(nets) if len(net.widths) == n] for n in sorted({len(net.widths) for net in nets})
    ]


class Many:
    """Networks of one number of inputs and outputs, side by side in padded tensors.

    Args:
        nets: Of one depth too; widths may differ.
        seeds: Of the initial weights, one for each.

    Attributes:
        weights: Of every layer `(networks, targets, sources)`, zero where there is no connection.

    Raises:
        ConfigError: Networks of other inputs, outputs or depths; more or fewer seeds.
    """

    def __init__(self, nets: Sequence[SparseArchitecture], seeds: Sequence[int]) -> None:
        if len({(net.n_inputs, net.n_outputs, len(net.widths)) for net in nets}) != 1:
            raise ConfigError("networks side by side must have equal inputs, outputs and depths; group them.")
        if len(seeds) != len(nets):
            raise ConfigError(f"every network needs a seed of its own, got {len(seeds)} for {len(nets)}; give as many.")
        self.nets = list(nets)
        sizes = [max(net.sizes[layer] for net in nets) for layer in range(len(nets[0].sizes))]
        self.masks: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for layer in range(len(sizes) - 1):
            mask = torch.zeros(len(nets), sizes[layer + 1], sizes[layer])
            for k, net in enumerate(nets):
                a, b = torch.tensor(net.edges[layer]).T
                mask[k, b, a] = 1.0
            raw = torch.zeros_like(mask)
            for k, (net, generator) in enumerate(zip(nets, generators, strict=True)):
                b, a = net.sizes[layer + 1], net.sizes[layer]
                raw[k, :b, :a] = 2 * torch.rand(b, a, generator=generator) - 1
            weight = raw * bound_of(mask.sum(-1, keepdim=True)) * mask
            self.masks.append(mask)
            self.weights.append(weight.requires_grad_(True))
            self.biases.append(torch.zeros(len(nets), sizes[layer + 1]).requires_grad_(True))
        self._relu = [
            torch.tensor([net.activations[layer] == "relu" for net in nets]).reshape(-1, 1, 1)
            for layer in range(len(nets[0].widths))
        ]

    def logits(self, x: Tensor) -> Tensor:
        """`(objects, inputs)`, or objects of `(groups, objects, inputs)`, to `(networks, objects, outputs)`.

        Of several groups the first networks see the first, as many the second, and so on.
        """
        return self._outputs(x).transpose(1, 2)

    def _outputs(self, x: Tensor) -> Tensor:
        """`(networks, outputs, objects)`: with objects last, what is small is not the innermost, which takes longer."""
        n, h = len(self.nets), x.transpose(-1, -2).contiguous()
        h = h.repeat_interleave(n // len(x), 0) if x.dim() == 3 else h.expand(n, -1, -1)
        for layer, (weight, mask, bias) in enumerate(zip(self.weights, self.masks, self.biases, strict=True)):
            h = torch.baddbmm(bias.unsqueeze(2), weight * mask, h)
            if layer < len(self._relu):
                h = torch.where(self._relu[layer], h.relu(), h.tanh())
        return h

    def train(self, x: Tensor, y: Tensor, how: Training, seed: int) -> None:
        """Train all of them.

        Args:
            x: Objects; of several groups, as `logits` has them, as many in each.
            y: Their classes, `x.shape[:-1]`.
            how: See `Training`.
            seed: Of the order of the objects.

        Raises:
            NumericsError: A loss is not finite.
        """
        groups: list[dict[str, Any]] = [{"params": self.biases}]
        groups.append({"params": self.weights, "weight_decay": how.weight_decay})
        optimizer = torch.optim.Adam(groups, how.learning_rate, fused=FUSED)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
        for step, batch in enumerate(batches_of(x.shape[-2], how, seed)):
            losses = self.losses(x.index_select(-2, batch), y.index_select(-1, batch))
            require_finite(losses, "network", step)
            optimizer.zero_grad()
            torch.autograd.backward(losses.sum())
            optimizer.step()
            schedule.step()

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of every network, in nats; of groups as `logits` has them."""
        return self._losses(self._outputs(x), y)

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        labels = y.reshape(-1, y.shape[-1])
        labels = labels.repeat_interleave(len(self.nets) // len(labels), 0)
        return F.cross_entropy(outputs, labels, reduction="none").mean(1)

    @torch.no_grad()
    def scores(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of every network."""
        outputs = self._outputs(x)
        return self._losses(outputs, y), (outputs.argmax(1) == y).double().mean(1)

    @torch.no_grad()
    def network(self, k: int) -> nn.Sequential:
        """One of them by itself, see `build`, with its weights of now."""
        net = build(self.nets[k], 0)
        layers = [module for module in net if isinstance(module, SparseLinear)]
        for layer, weight, bias in zip(layers, self.weights, self.biases, strict=True):
            layer.weight.copy_(weight[k][layer.places[0], layer.places[1]])
            layer.bias.copy_(bias[k][: layer.n_outputs])
        return net

    def sensitivities(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """|weight x gradient| of every connection on these objects (Lee, Ajanthan & Torr, 2019), as `weights`."""
        gradients = torch.autograd.grad(self.losses(x, y).sum(), self.weights)
        return [(w * g).detach().abs() for w, g in zip(self.weights, gradients, strict=True)]


def side_by_side(
    nets: Sequence[SparseArchitecture], seeds: Sequence[int], x: Tensor, y: Tensor, how: Training
) -> Iterator[tuple[list[int], Many]]:
    """Networks trained with all others of their depth, and their places; the order of the objects is of the first seed.

    Args:
        nets: Networks.
        seeds: Of their initial weights.
        x: Objects.
        y: Their classes.
        how: See `Training`.

    Raises:
        NumericsError: A loss is not finite.
    """
    for places in by_depth(nets):
        many = Many([nets[i] for i in places], [seeds[i] for i in places])
        many.train(x, y, how, seeds[0])
        yield places, many
