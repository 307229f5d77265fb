"""What is written down while a network trains: metrics, seconds, checkpoints; seeds that a resumed one repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from nni_bayes_nas.experiment.record import read_rows, write_rows
from nni_bayes_nas.experiment.stopwatch import Stopwatch

CHECKPOINT = "last.ckpt"
METRICS = "metrics.jsonl"


class EpochLog(Callback):
    """Writes a row of metrics after every epoch and reports it; drops rows that a resumed run repeats.

    Args:
        directory: Of the trial; `metrics.jsonl` lies there.
        stage: "search" or "retrain".
        rows: What else to write per epoch: called with the outer module and the terms.
        report: Called with the terms.
        watch: Notes the seconds that this takes, as "reporting".
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        report: Callable[[dict[str, Any]], None],
        rows: Callable[[Any], list[dict[str, Any]]] | None = None,
        watch: Stopwatch | None = None,
    ) -> None:
        self.watch = watch or Stopwatch()
        self.path = directory / METRICS
        self.head = {"stage": stage, "trial": directory.name}
        self.report = report
        self.rows = rows

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs that are over."""
        if self.path.exists():
            kept = [row for row in read_rows(self.path) if row["epoch"] < trainer.current_epoch]
            write_rows(self.path, kept)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and report."""
        with self.watch.stage("reporting"):
            self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        terms = mean_over_loaders({k: float(v) for k, v in trainer.callback_metrics.items()})
        step = (trainer.current_epoch + 1) * int(trainer.num_training_batches)
        rows = [{**self.head, "epoch": trainer.current_epoch, "step": step, "terms": terms}]
        if self.rows is not None:
            rows += [{**self.head, "epoch": trainer.current_epoch, **row} for row in self.rows(pl_module)]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.report({"epoch": trainer.current_epoch, **terms})


class Stages(Callback):
    """Notes the seconds of "training", the optimizer steps and the loop around them, and of "validation" inside."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All is set up."""
        self.watch.begin("training")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last epoch is over."""
        self.watch.end()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In an epoch, or on its own."""
        self.watch.begin("validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All batches are seen."""
        self.watch.end()


class Checkpoints(ModelCheckpoint):
    """Lightning's checkpoint of every epoch, `last.ckpt`; notes the seconds that it takes, as "checkpoints"."""

    def __init__(self, directory: Path, watch: Stopwatch) -> None:
        super().__init__(
            dirpath=directory,
            filename="last",
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            save_top_k=1,
            enable_version_counter=False,
        )
        self.watch = watch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save."""
        with self.watch.stage("checkpoints"):
            super().on_train_epoch_end(trainer, pl_module)


class SeedEpochs(Callback):
    """Seeds torch at every epoch, so that a resumed training draws what an undisturbed one draws (dropout)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed by (seed, epoch) at the first batch.

        Not at the start of the epoch: a data loader draws from the same generator when its iteration starts, which
        Lightning does before that in a training that resumes, and after it in an undisturbed one.
        """
        if batch_idx == 0:
            torch.manual_seed(self.seed * 1_000_003 + trainer.current_epoch)


def last_terms(directory: Path) -> dict[str, float]:
    """The terms of the last epoch that was written in `directory`; empty if there is none."""
    terms = [row["terms"] for row in read_rows(directory / METRICS) if "terms" in row]
    return dict(terms[-1]) if terms else {}


def mean_over_loaders(metrics: dict[str, float]) -> dict[str, float]:
    """Add to `name/dataloader_idx_i` their mean under `name`."""
    groups: dict[str, list[float]] = {}
    for name, value in metrics.items():
        groups.setdefault(name.split("/dataloader_idx_")[0], []).append(value)
    means = {name: sum(values) / len(values) for name, values in groups.items()}
    return {**{k.replace("/dataloader_idx_", "_lambda"): v for k, v in metrics.items()}, **means}
