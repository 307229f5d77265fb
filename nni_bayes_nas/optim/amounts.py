"""Numbers and shares of parameters and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytorch_lightning as pl

from nni_bayes_nas.errors import ConfigError


def planned_steps(trainer: pl.Trainer) -> int | None:
    """Of the whole training; None where nobody knows: of a stream of data."""
    planned = trainer.estimated_stepping_batches
    return int(planned) if 0 < planned < float("inf") else None


def epochs_left(trainer: pl.Trainer, done: int, most: int | None = None) -> float:
    """Of the whole training, after so many steps, or at most so many steps of them; 0 where nobody knows."""
    left = (planned_steps(trainer) or done) - done
    left = left if most is None else min(left, most)
    return left * trainer.accumulate_grad_batches / max(1, trainer.num_training_batches)


def amount_of(name: str, value: float, total: int, what: str) -> int:
    """A number, or that of a share.

    Raises:
        ConfigError: More than there are; names what it is of.
    """
    n = round(value * total) if isinstance(value, float) else value
    if not 0 <= n <= total:
        raise ConfigError(f"{name} must be at most the {total} {what}, got {n}; lower it.")
    return n


def planned_amounts(
    active: int | float | Literal["auto"],
    kept: int | float | None,
    start: int | float,
    total: int | None,
    planned: int | None,
    least: int,
    exact: bool,
    nested: bool = True,
) -> tuple[int | None, int, int]:
    """Parameters that go on, those that are kept, and steps before the choice, of a selective optimization.

    Args:
        active: A number or a share of parameters; "auto": not known yet.
        kept: Likewise; None: all.
        start: A number or a share of steps.
        total: Parameters; None where nobody knows, and then the first two are None and 0.
        planned: Steps of the training; None where nobody knows.
        least: Steps at least.
        exact: Whether `total` is their number, or there are at most so many.
        nested: Whether what goes on must be kept; not where what is not kept goes at the end.

    Raises:
        ConfigError: A number that there is not.
    """
    if planned is None and isinstance(start, float):
        raise ConfigError(f"start must be a number of steps where none are planned, got the share {start}; 100 say.")
    at = int(start) if planned is None else amount_of("start", start, planned, "planned steps")
    if not least <= at < (at + 1 if planned is None else planned):
        most = "" if planned is None else f" to {planned - 1} of {planned} planned steps"
        raise ConfigError(f"start must be from {least}{most}, got {at}; 0.2 of the steps is usual.")
    if total is None:
        return None, 0, at
    n_active = None if active == "auto" else amount_of("active", active, total, "parameters")
    n_kept = total if kept is None else amount_of("kept", kept, total, "parameters")
    # A share and a number cannot be compared where there may be fewer.
    alike = exact or kept is None or isinstance(active, float) == isinstance(kept, float)
    if nested and n_active is not None and alike and n_kept < n_active:
        raise ConfigError(
            f"what goes on must be kept: active {n_active} of kept {n_kept} parameters; raise kept, or zero at the end."
        )
    return n_active, n_kept, at


def within(name: str, places: Sequence[str]) -> bool:
    """Whether a parameter, or the module that it is in, is named."""
    return any(name == place or name.startswith(f"{place}.") for place in places)
