"""Watches a search for signs of collapse, and ends it, with a reason, if it is to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.collapse import largest_eigenvalue, parameter_free_share, reason
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.experiment.record import read_json, read_rows, write_json
from nni_bayes_nas.layers.normalization import batch_statistics, recalibrated
from nni_bayes_nas.layers.twice import DifferentiatedTwice

FILE = "stopped.json"
_OBJECTS = 64


class CollapseWatch(Callback):
    """After every epoch in which the structure learned: logs `parameter_free` and `curvature`.

    Args:
        directory: Of the trial, whose `metrics.jsonl` holds the epochs before, those of a killed attempt too.
        strategy: Which searches; its costs are known once the search has begun.
        stop: Whether to end the search where there is a reason.
        seed: Of the power iteration.
    """

    def __init__(self, directory: Path, strategy: Any, stop: bool, seed: int) -> None:
        self.directory, self.strategy, self.stop, self.seed = directory, strategy, stop, seed
        self._batch: Any = None
        self._curved = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A search that was ended, and is read again, stays ended; what a killed attempt wrote too early goes."""
        found = stopped(self.directory)
        if found is not None and found["epoch"] <= trainer.current_epoch:
            trainer.should_stop = True
        elif found is not None:
            (self.directory / FILE).unlink()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the first batch of the structure step."""
        if batch_idx == 0:
            self._batch = [part[:_OBJECTS] for part in batch["val"]]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, log, and end the search if there is a reason."""
        search: Any = pl_module
        if trainer.current_epoch < search.warmup_epochs:
            return
        found = {"parameter_free": self.parameter_free(search), "curvature": self.curvature(search)}
        terms = {name: value for name, value in found.items() if value is not None}
        search.log_dict(terms)
        entropy = float(trainer.callback_metrics["entropy"])
        why = reason([*self._before(trainer.current_epoch, search.warmup_epochs), {**terms, "entropy": entropy}])
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if why is not None and self.stop and not last:
            write_json(self.directory / FILE, {"epoch": trainer.current_epoch + 1, "why": why})
            trainer.should_stop = True

    def _before(self, epoch: int, warmup: int) -> list[dict[str, float]]:
        rows = read_rows(self.directory / "metrics.jsonl")
        kept = [row["terms"] for row in rows if "terms" in row and warmup <= row["epoch"] < epoch]
        return [terms for terms in kept if {"parameter_free", "curvature"} & terms.keys()]

    def parameter_free(self, search: Any) -> float | None:
        """Expected share of parameter-free operations at the low end of lambda; None where no choice has both kinds."""
        structure = search.structure
        with torch.no_grad():
            probs = structure.probs(structure.position(None))
            marginals = [law.marginals(unit, p) for unit, p in zip(structure.units, probs, strict=True)]
            share = parameter_free_share(self.strategy.cost_of("params"), marginals)
            return None if share is None else float(share)

    def curvature(self, search: Any) -> float | None:
        """Largest eigenvalue of the Hessian of the validation loss in the structure; None where it has none."""
        if not self._curved:
            return None
        knots, module = search.arch_parameters(), search.training_module
        x, y = self._batch
        before, low = search.binding.weights, search.structure.position(None)
        try:
            with (
                recalibrated(module, module, []),
                batch_statistics(module),
                search.weights_at(low),
                torch.enable_grad(),
                DifferentiatedTwice(),
            ):
                search.binding.weights = search.structure.mean(None)
                loss = module.loss(module(x), y)
                gradients = torch.autograd.grad(
                    loss, knots, create_graph=True, allow_unused=True, materialize_grads=True
                )
                value = largest_eigenvalue(gradients, knots, torch.Generator().manual_seed(self.seed))
                return value if math.isfinite(value) else None
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, SpaceError):  # an operation without a double backward: the other signs are left
            self._curved = False
            return None
        finally:
            search.binding.weights = before


def stopped(directory: Path) -> dict[str, Any] | None:
    """How many epochs a search took that was ended, and the reason; None for one that was not."""
    found = read_json(directory / FILE)
    return found if isinstance(found, dict) else None
