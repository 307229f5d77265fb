"""The training that a search and a retraining share: one Lightning module, one trainer, one row of metrics an epoch."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from nni_bayes_nas.bayes import objective
from nni_bayes_nas.experiment.record import read_rows, write_rows

CHECKPOINT = "last.ckpt"
METRICS = "metrics.jsonl"


class ClassificationModule(LightningModule):  # type: ignore[misc]
    """Cross-entropy, SGD with Nesterov momentum, cosine schedule over all steps.

    Unlike NNI's own `ClassificationModule` (nni/nas/evaluator/pytorch/lightning.py) it never reports to NNI: a trial
    sends exactly one final result, which the trial command sends.
    """

    def __init__(self, *, num_classes: int, learning_rate: float, momentum: float, weight_decay: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean cross-entropy, in nats."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        objective.check_finite("train_loss", loss, step=self.trainer.global_step)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def _evaluate(self, batch: Any, stage: str) -> None:
        x, y = batch
        logits = self(x)
        accuracy = multiclass_accuracy(logits, y, self.num_classes, average="micro")
        loss = nn.functional.cross_entropy(logits, y)
        objective.check_finite(f"{stage}_loss", loss, step=self.trainer.global_step)
        self.log(f"{stage}_loss", loss, batch_size=len(y))
        self.log(f"{stage}_accuracy", accuracy, batch_size=len(y))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and accuracy on the validation data."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and accuracy on the test data."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        """SGD and a cosine schedule to zero, stepped per batch."""
        optimizer = torch.optim.SGD(
            [p for p in self.parameters() if p.requires_grad],
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, max(1, int(self.trainer.estimated_stepping_batches))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EpochLog(Callback):
    """Writes a row of metrics after every epoch and reports it; drops rows that a resumed run repeats.

    Args:
        directory: Of the trial; `metrics.jsonl` lies there.
        stage: "search" or "retrain".
        rows: What else to write per epoch: called with the outer module and the terms.
        report: Called with the terms.
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        report: Callable[[dict[str, Any]], None],
        rows: Callable[[Any], list[dict[str, Any]]] | None = None,
    ) -> None:
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
        terms = mean_over_loaders({k: float(v) for k, v in trainer.callback_metrics.items()})
        step = (trainer.current_epoch + 1) * int(trainer.num_training_batches)
        rows = [{**self.head, "epoch": trainer.current_epoch, "step": step, "terms": terms}]
        if self.rows is not None:
            rows += [{**self.head, "epoch": trainer.current_epoch, **row} for row in self.rows(pl_module)]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self.report({"epoch": trainer.current_epoch, **terms})


class SeedEpochs(Callback):
    """Seeds torch at every epoch, so that a resumed training draws what an undisturbed one draws (dropout)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed by (seed, epoch)."""
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


def trainer(directory: Path, epochs: int, device: str, callbacks: list[Callback], *, clip: float | None = None) -> Any:
    """A Lightning trainer without logger or progress bar that checkpoints every epoch into `directory`."""
    quiet_lightning()
    checkpoint = ModelCheckpoint(
        dirpath=directory,
        filename="last",
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        save_top_k=1,
        enable_version_counter=False,
    )
    return Trainer(
        accelerator="gpu" if device == "gpu" else "cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
        gradient_clip_val=clip,
        callbacks=[*callbacks, checkpoint],
    )


def resume_arguments(directory: Path) -> dict[str, Any]:
    """Arguments of `Trainer.fit` that go on from the checkpoint in `directory`, if there is one."""
    path = directory / CHECKPOINT
    if not path.exists():
        return {}
    safe = {"weights_only": True} if "weights_only" in inspect.signature(pl.Trainer.fit).parameters else {}
    return {"ckpt_path": str(path), **safe}


def pick_device(wanted: str) -> str:
    """ "gpu" or "cpu"; "auto" takes a GPU if torch sees one."""
    if wanted == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return wanted


def quiet_lightning() -> None:
    """Lightning's start-up lines say nothing about the search; its warnings about workers do not apply to tensors."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*try to wrap PyTorch DataLoader with nni.trace.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
