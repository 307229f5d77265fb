"""Steps of optimizers, counted where none are meant to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


class StepCounter:
    """Counts the steps of every optimizer in the process, by torch's global hook.

    Attributes:
        steps: So far.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._counts = True

    def __call__(self, *_: Any) -> None:
        """Called by torch after each step."""
        self.steps += self._counts

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block steps are not counted: those of a training that is asked for."""
        before, self._counts = self._counts, False
        try:
            yield
        finally:
            self._counts = before


@contextmanager
def count_optimizer_steps() -> Iterator[StepCounter]:
    """Count optimizer steps inside the block."""
    counter = StepCounter()
    handle = register_optimizer_step_post_hook(counter)
    try:
        yield counter
    finally:
        handle.remove()


__all__ = ["StepCounter", "count_optimizer_steps"]
