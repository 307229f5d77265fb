"""Batch normalization of networks that share weights: statistics of the batch, or of the network that runs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def batch_norms(module: nn.Module) -> list[Any]:
    """All batch normalization layers of a module."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _settings(norm: Any) -> dict[str, Any]:
    """Where a layer looks its momentum up in a pass: NNI's `MixedBatchNorm2d` never reads the attribute."""
    settings: dict[str, Any] = getattr(norm, "init_arguments", norm.__dict__)
    return settings


def _mean_over_passes() -> Callable[[nn.Module, Any], None]:
    """A hook before each pass of one layer that makes its running statistics the means over its passes."""
    passes = itertools.count(1)

    def set_momentum(norm: nn.Module, args: Any) -> None:
        # Not None, which means the same to torch: NNI's layer takes numbers only.
        _settings(norm)["momentum"] = 1.0 / next(passes)

    return set_momentum


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalization use the statistics of the batch without changing its running ones.

    The running statistics of a supernet average over all lambda and fit none.
    """
    norms = [norm for norm in batch_norms(module) if not norm.training]
    momenta = [_settings(norm)["momentum"] for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.training, _settings(norm)["momentum"] = True, 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.training, _settings(norm)["momentum"], norm.num_batches_tracked = False, momentum, count


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
    momenta = [_settings(norm)["momentum"] for norm in norms]
    modes = {m: m.training for m in module.modules()}
    try:
        module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.training = True
        with torch.no_grad(), contextlib.ExitStack() as hooks:
            for norm in norms:
                hooks.enter_context(norm.register_forward_pre_hook(_mean_over_passes()))
            for x in inputs:
                forward(x)
        module.eval()
        yield
    finally:
        for norm, momentum, saved in zip(norms, momenta, buffers, strict=True):
            _settings(norm)["momentum"] = momentum
            for name, buffer in norm.named_buffers():
                buffer.copy_(saved[name])
        for m, mode in modes.items():
            m.training = mode


def recalibrate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Running statistics of a network, from now on the means over some batches of those of each batch; in place.

    Args:
        network: Its mode stays.
        inputs: Batches, `(batch, ...)`; without any, nothing changes.
    """
    norms, batches = batch_norms(network), list(inputs)
    if not norms or not batches:
        return
    with recalibrated(network, network, batches):
        found = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    for norm, buffers in zip(norms, found, strict=True):
        for name, buffer in norm.named_buffers():
            buffer.copy_(buffers[name])
