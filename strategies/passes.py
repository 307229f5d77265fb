"""Around the forward passes of a search step: what is logged, how often equal ones run, of what shape objects are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .supernet import Binding


@contextlib.contextmanager
def muted(module: Any) -> Iterator[None]:
    """The evaluator's own logging is for the weight step: the structure step would mix into its averages."""
    saved = module.__dict__.get("log")
    module.log = lambda *args, **kwargs: None
    try:
        yield
    finally:
        if saved is None:
            del module.log
        else:
            module.log = saved


@contextlib.contextmanager
def mixture_through(run: Callable[..., Any], net: Any, binding: Binding) -> Iterator[None]:
    """Inside the block a supernet trains as a mixture through `run(weights, *inputs)`, and is itself everywhere else.

    Passes come in two forms, each for one kind of gradient: where the mixing weights need one, those of the network's
    own are not computed, which a backward pass that is fixed beforehand would otherwise do for nothing; where they do
    not, the network's are. A joint binding has one form, for both.
    """
    plain = type(net).forward
    parameters = [p for p in net.parameters() if p.requires_grad]

    def forward(*args: Any, **kwargs: Any) -> Any:
        weights = binding.weights
        if binding.kept is not None or kwargs or not (net.training and torch.is_grad_enabled()):
            return plain(net, *args, **kwargs)
        alone = not binding.joint and any(w.requires_grad for w in weights.values())
        with _frozen(parameters if alone else []):
            return run(weights, *args)

    net.forward = forward
    try:
        yield
    finally:
        del net.forward


@contextlib.contextmanager
def _frozen(parameters: list[Tensor]) -> Iterator[None]:
    """Without gradients for the parameters of what is computed inside."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def counted(architectures: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The distinct ones of some architectures, and how often each occurs."""
    distinct = [choices for i, choices in enumerate(architectures) if choices not in architectures[:i]]
    return [(choices, architectures.count(choices)) for choices in distinct]


def n_objects(batch: Any) -> int:
    """Objects of a batch, whose first part are the inputs."""
    x = batch[0] if isinstance(batch, (list, tuple)) else batch
    return int(x.shape[0])


def object_shape(loader: Any) -> tuple[int, ...]:
    """Shape of one object of a data loader."""
    dataset = getattr(loader, "dataset", None)
    first = dataset[0] if dataset is not None else next(iter(loader))
    x = first[0] if isinstance(first, (list, tuple)) else first
    return tuple(x.shape if dataset is not None else x.shape[1:])
