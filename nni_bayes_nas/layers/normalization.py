"""Batch normalization of networks that share weights: statistics of the batch, or of the network that runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def batch_norms(module: nn.Module) -> list[Any]:
    """All batch normalization layers of a module."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalization use the statistics of the batch without changing its running ones.

    The running statistics of a supernet average over all lambda and fit none.
    """
    norms = [norm for norm in batch_norms(module) if not norm.training]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.training, norm.momentum, norm.num_batches_tracked = False, momentum, count


@contextlib.contextmanager
def recalibrated(module: nn.Module, forward: Callable[[Tensor], Any], inputs: Iterable[Tensor]) -> Iterator[None]:
    """Evaluation mode, with running statistics of what `forward` computes; everything is put back at the end.

    Weights that several networks share were never trained with the statistics of one of them. Here the running
    statistics become the means, over the batches, of those of each batch (Yu & Huang, 2019, arXiv 1903.05134, section
    3.2). Parameters are left alone. Layers that keep no running statistics go on with those of the batch.

    Args:
        module: Holds the layers.
        forward: Runs the network of interest, which may use a part of the module.
        inputs: Batches, `(batch, ...)`.
    """
    norms = batch_norms(module)
    buffers = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    modes = {m: m.training for m in module.modules()}
    try:
        module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        with torch.no_grad():
            for x in inputs:
                forward(x)
        module.eval()
        yield
    finally:
        for norm, momentum, saved in zip(norms, momenta, buffers, strict=True):
            norm.momentum = momentum
            for name, buffer in norm.named_buffers():
                buffer.copy_(saved[name])
        for m, mode in modes.items():
            m.training = mode
