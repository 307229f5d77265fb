"""Guards against the collapse of a differentiable search, for every strategy.

What they are against: in a supernet operations without weights learn faster than those with, and are chosen because the
rest has not learnt yet (Zela et al., 2020, arXiv 1909.09656; Chu et al., 2021, arXiv 2009.01027).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_bayes_nas.errors import ConfigError, SpaceError


@dataclass(frozen=True)
class Guards:
    """What is done to a supernet while it is searched.

    Attributes:
        auxiliary: Weight of an identity that is added on every edge whose operations keep the shape, in the search
            alone: the gain that a skip connection has as a path of gradients then goes to all operations alike.
        auxiliary_end: Its weight at the end, to which it falls linearly; None leaves it constant.
        normalize: Whether every operation that does not end in normalization is followed by one, without parameters, so
            that the mixing weights compare operations, not the scales of their outputs.
        without: Names of options that cannot be chosen: "none", which beside an auxiliary identity means a residual
            connection alone.
    """

    auxiliary: float = 0.0
    auxiliary_end: float | None = None
    normalize: bool = False
    without: tuple[str, ...] = ()

    def auxiliary_at(self, progress: float) -> float:
        """Weight of the identity at a share of the search, in [0, 1]."""
        end = self.auxiliary if self.auxiliary_end is None else self.auxiliary_end
        return self.auxiliary + (end - self.auxiliary) * progress

    def options(self, names: Sequence[Any], label: str) -> tuple[Any, ...]:
        """The options of a choice that can be chosen.

        Raises:
            SpaceError: There is none.
        """
        kept = tuple(name for name in names if str(name) not in self.without)
        if not kept:
            raise SpaceError(f"a choice must keep an option, but `without` takes all of `{label}`: {list(names)}.")
        return kept

    def check(self) -> None:
        """Raise ConfigError for weights and names that cannot be."""
        if not all(isinstance(name, str) and len(name) > 0 for name in self.without):
            raise ConfigError(f"without must be a list of names of options, got {list(self.without)}.")
        for name, value in (("auxiliary", self.auxiliary), ("auxiliary_end", self.auxiliary_end)):
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(
                    f"{name} is the weight of an identity and must be at least 0, got {value}; 1 is usual."
                )


def guards_of(auxiliary: float, auxiliary_end: float | None, normalize: bool, without: Sequence[str]) -> Guards:
    """Guards from the arguments of a strategy.

    Raises:
        ConfigError: A name in the place of a list of names.
    """
    if isinstance(without, str):
        raise ConfigError(f"without must be a list of names of options, got {without!r}; write [{without}].")
    return Guards(auxiliary, auxiliary_end, normalize, tuple(without))


class BatchNormalize(nn.BatchNorm2d):
    """Batch normalization of any number of channels, by the statistics of the batch, without parameters or memory."""

    def __init__(self) -> None:
        super().__init__(0, affine=False, track_running_stats=False)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected a batch of features or images, got {input.dim()} axes")


def normalized(operation: nn.Module) -> nn.Sequential:
    """An operation and normalization behind it."""
    return nn.Sequential(operation, BatchNormalize())


def has_normalization(operation: nn.Module) -> bool:
    """Whether the last layer of an operation is batch normalization."""
    leaves = [m for m in operation.modules() if not list(m.children())]
    return isinstance(leaves[-1], _BatchNorm)


__all__ = ["BatchNormalize", "Guards", "guards_of", "has_normalization", "normalized"]
