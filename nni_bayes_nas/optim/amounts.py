"""Numbers and shares of parameters and steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl

from nni_bayes_nas.errors import ConfigError


def planned_steps(trainer: pl.Trainer) -> int | None:
    """Of the whole training; None where nobody knows: of a stream of data."""
    planned = trainer.estimated_stepping_batches
    return int(planned) if 0 < planned < float("inf") else None


def amount_of(name: str, value: float, total: int, what: str) -> int:
    """A number, or that of a share.

    Raises:
        ConfigError: More than there are; names what it is of.
    """
    n = round(value * total) if isinstance(value, float) else value
    if not 0 <= n <= total:
        raise ConfigError(f"{name} must be at most the {total} {what}, got {n}.")
    return n


def within(name: str, places: Sequence[str]) -> bool:
    """Whether a parameter, or the module that it is in, is named."""
    return any(name == place or name.startswith(f"{place}.") for place in places)
