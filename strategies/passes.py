"""Around the forward passes of a search step: what is logged, how often equal ones run, of what shape objects are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


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
