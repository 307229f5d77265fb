"""In what precision torch computes: autocast of this thread as a value, to be left for a while and taken up again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Autocast:
    """Whether operations on a kind of device are cast to low precision, and to which.

    Attributes:
        device: "cpu" or "cuda".
        enabled: Whether they are.
        dtype: To what they are.
    """

    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: str) -> Autocast:
        """That of this thread."""
        if hasattr(torch, "get_autocast_dtype"):  # from torch 2.4 on it is asked by device
            return cls(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        if device == "cpu":
            return cls(device, torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype())
        return cls(device, torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype())

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        """The same inside the block.

        Casts of weights are not kept: a block of a search may begin after weights were moved in place.
        """
        if self == Autocast.now(self.device):
            yield
            return
        with torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False):
            yield

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Full precision inside the block."""
        with Autocast(self.device, False, self.dtype).set():
            yield


def in_full(x: Tensor) -> Tensor:
    """Numbers of 16 bits in single precision; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
