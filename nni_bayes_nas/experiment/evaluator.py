"""The training that search and retraining share: a Lightning module per task, a trainer, a row of metrics an epoch."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import MulticlassPrecision
from torchmetrics.functional.classification import multiclass_accuracy

from nni_bayes_nas.bayes import objective
from nni_bayes_nas.compression.lambda_weights import LambdaWeights
from nni_bayes_nas.config import Precision
from nni_bayes_nas.experiment.callbacks import CHECKPOINT, Checkpoints, Stages
from nni_bayes_nas.experiment.selection import SelectiveSearch
from nni_bayes_nas.experiment.stopwatch import Stopwatch
from nni_bayes_nas.layers.replicas import Alone, backward_of
from nni_bayes_nas.layers.variational import variational_layers
from nni_bayes_nas.optim.langevin import PreconditionedSGLD
from nni_bayes_nas.precision import Autocast, in_full


class SupervisedModule(LightningModule):  # type: ignore[misc]
    """A network, its loss, and what is measured: SGD with Nesterov momentum, or Adam; cosine schedule over all steps.

    Unlike NNI's own `ClassificationModule` (nni/nas/evaluator/pytorch/lightning.py) it never reports to NNI: a trial
    sends exactly one final result, which the trial command sends.

    Terms that are means over objects are averaged over batches; terms that are not (precision, R^2) are accumulated
    over the epoch and logged with its last batch. Several validation loaders must be equally long: they follow each
    other, so that batch 0 begins the next one.

    Args:
        learning_rate: At the first step.
        momentum: Of Nesterov.
        weight_decay: L2 decay of the network's weights.
        optimizer: "sgd", "adam", or "psgld": preconditioned SGLD, whose iterates are draws of the weights' posterior.
        rho_learning_rate: Of the logarithms of the standard deviations of Gaussian weights, which have a long way to go
            with Adam, and do not move with SGD; None: as the others.
        auxiliary_weight: Factor of the loss of the network's attribute `auxiliary_logits`, where that is not None
            after a forward pass in training (Szegedy et al., 2015, arXiv 1409.4842).
        n_objects: Of the training set; for "psgld".
        noise_seed: Of its noise.
    """

    metrics: nn.ModuleDict

    def __init__(
        self,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        optimizer: Literal["sgd", "adam", "psgld"] = "sgd",
        rho_learning_rate: float | None = None,
        auxiliary_weight: float = 0.0,
        n_objects: int = 1,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.rho_learning_rate = learning_rate if rho_learning_rate is None else rho_learning_rate
        self.auxiliary_weight = auxiliary_weight
        self.n_objects, self.noise_seed = n_objects, noise_seed
        self.replica: Alone = Alone()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook."""
        self.replica.together(backward_of, (loss, args, kwargs))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Lightning's hook. A search clips before the hooks of a step: what it holds must have no gradient by then."""
        for callback in self.trainer.callbacks:
            if isinstance(callback, SelectiveSearch):
                callback.before_clipping(self.trainer, self, getattr(optimizer, "optimizer", optimizer))
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What is minimized: a mean over objects, in nats."""
        raise NotImplementedError

    def means(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Terms of an evaluation that are means over objects."""
        raise NotImplementedError

    def collect(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets as the epoch's metrics take them."""
        return outputs, y

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that are no weights of a network, which the weight decay leaves alone."""
        return []

    def gaussian_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What Gaussian weights are of, which have a prior in the place of a decay: means, and logarithms of sds."""
        layers = list(variational_layers(self).values())
        means, rhos = [layer.weight for layer in layers], [layer.rho for layer in layers]
        for hyper in (m for m in self.modules() if isinstance(m, LambdaWeights)):
            means += hyper.means.parameters()
            rhos += [] if hyper.rhos is None else hyper.rhos.parameters()
        return [p for p in means if p.requires_grad], [p for p in rhos if p.requires_grad]

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs."""
        outputs: Tensor = self.model(x)
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean loss, with that of the auxiliary head; the logged one is without.

        Under autocast the network computes in low precision, the loss in full one.
        """
        x, y = batch
        outputs = self(x)
        with Autocast.now(self.device.type).left():
            return self._training_loss(in_full(outputs), y)

    def _training_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss = self.loss(outputs, y)
        objective.check_finite("train_loss", loss, step=self.trainer.global_step)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(y))
        auxiliary = getattr(self.model, "auxiliary_logits", None) if self.auxiliary_weight else None
        if auxiliary is None:
            return loss
        extra = self.loss(in_full(auxiliary), y)
        objective.check_finite("auxiliary_loss", extra, step=self.trainer.global_step)
        return loss + self.auxiliary_weight * extra

    def _evaluate(self, batch: Any, batch_idx: int, stage: str) -> None:
        x, y = batch
        with Autocast.now(self.device.type).left():
            outputs = self(x)
        for name, value in self.means(outputs, y).items():
            objective.check_finite(f"{stage}_{name}", value, step=self.trainer.global_step)
            self.log(f"{stage}_{name}", value, batch_size=len(y))
        metrics: Any = self.metrics[stage]
        if batch_idx == 0:
            metrics.reset()
        metrics.update(*self.collect(outputs, y))
        if batch_idx == self._batches(stage) - 1:
            for name, value in metrics.compute().items():
                self.log(f"{stage}_{name}", value, batch_size=1)

    def _batches(self, stage: str) -> int:
        trainer = self.trainer
        if stage == "test":
            lengths = trainer.num_test_batches
        else:
            lengths = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return int(lengths[0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Terms on the validation data."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Terms on the test data."""
        self._evaluate(batch, batch_idx, "test")

    def configure_optimizers(self) -> Any:
        """The optimizer, and a cosine schedule to zero, stepped per batch."""
        means, rhos = self.gaussian_parameters()
        apart = self.undecayed()
        spared = {id(p) for p in (*apart, *means, *rhos)}
        groups: list[Any] = [{"params": [p for p in self.parameters() if p.requires_grad and id(p) not in spared]}]
        for parameters, rate in ((apart + means, self.learning_rate), (rhos, self.rho_learning_rate)):
            if parameters:
                groups.append({"params": parameters, "weight_decay": 0.0, "lr": rate})
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, self.learning_rate, weight_decay=self.weight_decay)
        elif self.optimizer == "psgld":
            optimizer = PreconditionedSGLD(
                groups,
                self.learning_rate,
                n_objects=self.n_objects,
                weight_decay=self.weight_decay,
                seed=self.noise_seed,
            )
        else:
            optimizer = torch.optim.SGD(
                groups,
                self.learning_rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.momentum > 0,
            )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, max(1, int(self.trainer.estimated_stepping_batches))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ClassificationModule(SupervisedModule):
    """Cross-entropy; accuracy, and precision averaged over the classes (`torchmetrics.MulticlassPrecision`, macro).

    Args:
        num_classes: Outputs of the network.
        label_smoothing: Share of the target that is spread evenly over the classes, in training only
            (Szegedy et al., 2016, arXiv 1512.00567).
        options: As `SupervisedModule`.
    """

    def __init__(self, *, num_classes: int, label_smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.metrics = nn.ModuleDict(
            {
                stage: MetricCollection({"precision": MulticlassPrecision(num_classes, average="macro")})
                for stage in ("val", "test")
            }
        )

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy with the smoothed labels."""
        return nn.functional.cross_entropy(outputs, y, label_smoothing=self.label_smoothing)

    def means(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy with the labels themselves, and accuracy."""
        accuracy = multiclass_accuracy(outputs, y, self.num_classes, average="micro")
        return {"loss": nn.functional.cross_entropy(outputs, y), "accuracy": accuracy}


class RegressionModule(SupervisedModule):
    """Gaussian likelihood p(y | x) = N(f(x), s^2) with one learned s; R^2 and root mean squared error.

    In units of the targets' standard deviation s^2 = least_sd^2 + exp(2 log_sd); log_sd is learned with the weights.

    The network predicts standardized targets z = (y - mean) / target_sd, and that is what batches hold. Loss and
    `nll` are -log p of y itself, in nats in the units of y: those of z plus log target_sd. `rmse` is in the units of y.

    Args:
        target_sd: Of the training targets.
        options: As `SupervisedModule`.
    """

    # Of the targets' standard deviation: where the network interpolates, the likelihood has no maximum in s.
    least_sd: ClassVar[float] = 1e-3

    def __init__(self, *, target_sd: float, **options: Any) -> None:
        super().__init__(**options)
        self.target_sd = target_sd
        self.log_sd = nn.Parameter(torch.zeros(()))
        self.metrics = nn.ModuleDict(
            {
                stage: MetricCollection({"r2": R2Score(), "rmse": MeanSquaredError(squared=False)})
                for stage in ("val", "test")
            }
        )

    def undecayed(self) -> list[nn.Parameter]:
        """The logarithm of s: decay would pull s towards 1."""
        return [self.log_sd]

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean negative log-likelihood of y, `outputs` `(batch, 1)`, standardized targets `(batch,)`."""
        variance = torch.exp(2 * self.log_sd) + self.least_sd**2
        squares = (y - outputs.squeeze(-1)) ** 2 / variance
        return 0.5 * (squares.mean() + torch.log(2 * math.pi * variance)) + math.log(self.target_sd)

    def means(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Negative log-likelihood."""
        return {"nll": self.loss(outputs, y)}

    def collect(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Deviations from the training mean in the units of y: neither term depends on the mean."""
        return self.target_sd * outputs.squeeze(-1), self.target_sd * y


def trainer(
    directory: Path,
    epochs: int,
    device: str,
    callbacks: list[Callback],
    *,
    precision: Precision = "32-true",
    clip: float | None = None,
    clip_by: str = "norm",
    watch: Stopwatch | None = None,
) -> Any:
    """A Lightning trainer without logger or progress bar that checkpoints every epoch into `directory`.

    `watch` notes the seconds of training, validation and checkpoints.
    """
    quiet_lightning()
    watch = watch or Stopwatch()
    return Trainer(
        accelerator="gpu" if device == "gpu" else "cpu",
        devices=1,
        max_epochs=epochs,
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
        gradient_clip_val=clip,
        gradient_clip_algorithm=None if clip is None else clip_by,
        callbacks=[Stages(watch), *callbacks, Checkpoints(directory, watch)],
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
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
