"""The passes of a search step through `torch.compile`: all of a step but single architectures has one shape."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError

from .passes import mixture_through
from .supernet import Binding


@contextlib.contextmanager
def compiled(net: Any, binding: Binding, backend: str = "inductor") -> Iterator[None]:
    """Inside the block a supernet runs compiled where it trains as a mixture, and as it is everywhere else.

    There are two compiled forms, each for one kind of gradient: where the mixing weights need one, those of the
    network's own are not computed, which a compiled backward pass would otherwise do for nothing; where they do not,
    the network's are.

    Args:
        net: The supernet.
        binding: Its own.
        backend: Of `torch.compile`.
    """
    plain = type(net).forward

    def mixed(weights: dict[str, Tensor], *args: Tensor) -> Any:
        binding.weights = weights
        return plain(net, *args)

    fast = torch.compile(mixed, backend=backend, dynamic=False)

    def run(weights: dict[str, Tensor], *args: Tensor) -> Any:
        with warnings.catch_warnings():
            # torch looks there when it traces mixing weights, which come from the structure's parameters.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            return fast(weights, *args)

    try:
        with mixture_through(run, net, binding):
            yield
    finally:
        # What is compiled belongs to this supernet: torch keeps eight forms of a function, and no more.
        torch.compiler.reset()


@functools.cache
def check_compiler(device: str) -> None:
    """Raise ConfigError where torch cannot compile for a device, "cpu" or "cuda"; takes seconds."""
    try:
        torch.compile(_one_more)(torch.zeros(4, device=device))
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"compile needs what torch.compile needs, but here it fails: {said}\n"
            "install a C++ compiler (on a GPU, triton), or leave compile out"
        ) from error


def _one_more(x: Tensor) -> Tensor:
    return (x + 1).relu()


__all__ = ["check_compiler", "compiled"]
