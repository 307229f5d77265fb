"""Networks on all data: trained, the best one chosen by validation, and its one look at the test objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.fused import FUSED
from nni_bayes_nas.prediction.many import Training, batches_of, require_finite, side_by_side
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.tasks import TaskData

# Shares of the rate at which dense networks are tried: that of sparse ones is high for them.
RATES = (1.0, 0.3, 0.1)


@dataclass(frozen=True)
class WholeData:
    """A whole data set; x is `(n, features)`, standardized, y are classes from 0.

    Attributes:
        parts: Training and validation objects.
        x_test: Objects that nothing is chosen by.
        y_test: Their classes.
        n_classes: Of the data set.
    """

    parts: TaskData
    x_test: Tensor
    y_test: Tensor
    n_classes: int

    @property
    def n_features(self) -> int:
        """Numbers of an object."""
        return int(self.parts.x.shape[1])


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        module: It; objects `(n, features)` in, logits out.
        connections: Weights, without biases.
        parameters: All of them.
        val_loss: Mean cross-entropy of the validation objects in nats.
        val_accuracy: Theirs.
        seconds: Of the training; of several side by side a part of it.
        net: Where it is of this form.
    """

    module: nn.Module
    connections: int
    parameters: int
    val_loss: float
    val_accuracy: float
    seconds: float
    net: SparseArchitecture | None = None

    def row(self, data: WholeData) -> dict[str, Any]:
        """What is reported; looks at the test objects."""
        loss, accuracy = scores(self.module, data.x_test, data.y_test)
        kept = ("connections", "parameters", "val_loss", "val_accuracy", "seconds")
        return {**{name: getattr(self, name) for name in kept}, "test_loss": loss, "test_accuracy": accuracy}


def seeds_of(seed: int, n: int) -> list[int]:
    """Seeds of so many tries; those of neighbouring seeds have none in common."""
    return [1009 * seed + i for i in range(n)]


def train_nets(nets: Sequence[SparseArchitecture], data: WholeData, how: Training, seed: int) -> list[Trained]:
    """`train_together` with seeds of their own."""
    return train_together(nets, seeds_of(seed, len(nets)), data, how)


def train_together(
    nets: Sequence[SparseArchitecture], seeds: Sequence[int], data: WholeData, how: Training
) -> list[Trained]:
    """Train sparse networks, those of equal depth side by side; the order of the objects is that of the first seed.

    Args:
        nets: Networks.
        seeds: Of their initial weights.
        data: All of it; its test objects are not looked at.
        how: See `Training`.

    Raises:
        NumericsError: A loss is not finite.
    """
    found: dict[int, Trained] = {}
    started = time.perf_counter()
    for places, many in side_by_side(nets, seeds, data.parts.x, data.parts.y, how):
        seconds = (time.perf_counter() - started) / len(places)
        for k, i in enumerate(places):
            found[i] = measured(many.network(k), data, nets[i].n_connections, seconds, nets[i])
        started = time.perf_counter()
    return [found[i] for i in range(len(nets))]


def train_module(module: nn.Module, data: WholeData, how: Training, seed: int) -> Trained:
    """Train any network as `train_together` trains sparse ones; weights of linear layers are its connections.

    Raises:
        NumericsError: The loss is not finite.
    """
    started = time.perf_counter()
    fit(module, data.parts.x, data.parts.y, how, seed)
    return measured(module, data, connections(module), time.perf_counter() - started)


def fit(module: nn.Module, x: Tensor, y: Tensor, how: Training, seed: int, penalty: Any = None) -> float:
    """Train the parameters of a module that want gradients; the loss of the last step in nats.

    Args:
        module: Logits of objects.
        x: Objects.
        y: Classes.
        how: See `Training`; biases have no decay.
        seed: Of the order of the objects.
        penalty: Called without arguments at every step for what is added to the loss.

    Raises:
        NumericsError: The loss is not finite.
    """
    learned = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.dim() > 1], "weight_decay": how.weight_decay},
        {"params": [p for p in learned if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], how.learning_rate, fused=FUSED)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    value = 0.0
    for step, batch in enumerate(batches_of(len(x), how, seed)):
        loss = F.cross_entropy(module(x[batch]), y[batch])
        if penalty is not None:
            loss = loss + penalty()
        require_finite(loss, "a network", step)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        value = float(loss.detach())
    return value


@torch.no_grad()
def scores(module: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy."""
    logits = module(x)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(-1) == y).double().mean())


def connections(module: nn.Module) -> int:
    """Weights of its layers, without biases."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def parameters(module: nn.Module) -> int:
    """Weights and biases."""
    return sum(p.numel() for p in module.parameters())


def best(tried: Sequence[Trained]) -> Trained:
    """That of the least validation loss."""
    return min(tried, key=lambda one: one.val_loss)


def measured(
    module: nn.Module, data: WholeData, n: int, seconds: float, net: SparseArchitecture | None = None
) -> Trained:
    """A network as it is; `Trained` says what the arguments are."""
    module.eval()
    loss, accuracy = scores(module, data.parts.x_val, data.parts.y_val)
    return Trained(module, n, parameters(module), loss, accuracy, round(seconds, 3), net)
