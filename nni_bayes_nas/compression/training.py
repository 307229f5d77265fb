"""Training of a network whose weights are a function of lambda, with Lightning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.bayes import elbo, objective
from nni_bayes_nas.coercion import require
from nni_bayes_nas.compression.hyper_variational import HyperVariational
from nni_bayes_nas.compression.pruning import prunable
from nni_bayes_nas.fused import FUSED
from nni_bayes_nas.layers.finite import check_layers
from nni_bayes_nas.layers.normalization import batch_statistics
from nni_bayes_nas.layers.variational import collect_kl, variational_layers, weight_noise

Optimizer = Literal["adam", "sgd"]
Schedule = Literal["falling", "constant"]
_LEFT_AT_THE_END = 1e-3
_BLOCK = 64


class HyperVariationalModule(pl.LightningModule):
    """Classification: minimizes the mean over lambda of E_q[-log p(y | x, w)] + warmth * complexity / m, per object.

    Every step draws `lambdas_per_step` values of lambda, stratified over the range in blocks of some 64 draws, and
    evaluates the hypernetwork once for each of them. Rates are constant for the first half of the steps and then, of
    the schedule "falling", go linearly to nearly zero: standard deviations have several nats to go before weights can
    be left out.

    Validation logs accuracy and loss of the network of the means at both ends and in the middle of the range.

    Args:
        model: The network.
        n_objects: m, of the training set.
        learning_rate: Of means and points.
        rho_learning_rate: Of the logarithms of the standard deviations.
        lambdas_per_step: Values of lambda for a mini-batch; of a model of one lambda there is one.
        divide_batch: Whether every lambda sees a part of the mini-batch of its own, instead of all of it.
        warmup: Share of the steps until the divergence counts in full.
        shared_until: Share of the steps in which a piecewise linear hypernetwork learns what its knots share alone;
            without `shared_knots` there are none.
        optimizer: "adam", or "sgd" with momentum .9.
        schedule: "falling", or "constant" rates.
        seed: Of the values of lambda.

    Raises:
        ConfigError: Options that cannot be.
    """

    def __init__(
        self,
        model: HyperVariational,
        *,
        n_objects: int,
        learning_rate: float = 2e-3,
        rho_learning_rate: float = 5e-3,
        lambdas_per_step: int = 1,
        divide_batch: bool = False,
        warmup: float = 0.2,
        shared_until: float = 0.1,
        optimizer: Optimizer = "adam",
        schedule: Schedule = "falling",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(n_objects >= 1, "n_objects", "must be the size of the training set", n_objects, "pass len(dataset)")
        for name, rate in (("learning_rate", learning_rate), ("rho_learning_rate", rho_learning_rate)):
            require(rate > 0, name, "must be positive", rate, "0.002 is usual")
        require(lambdas_per_step >= 1, "lambdas_per_step", "must be at least 1", lambdas_per_step, "1 is the default")
        for name, share in (("warmup", warmup), ("shared_until", shared_until)):
            require(0 <= share <= 1, name, "must lie in [0, 1], a share of the steps", share, "0.2 is usual")
        for name, value, known in (
            ("optimizer", optimizer, ("adam", "sgd")),
            ("schedule", schedule, ("falling", "constant")),
        ):
            require(value in known, name, f"must be one of {', '.join(known)}", value, f"{known[0]} is the default")
        self.model = model.train()
        self.n_objects = n_objects
        self.rates = learning_rate, rho_learning_rate
        self.lambdas_per_step = lambdas_per_step if model.axis is not None else 1
        self.divide_batch = divide_batch
        self.warmup, self.shared_until = warmup, shared_until
        self.optimizer, self.schedule = optimizer, schedule
        self.seed = seed
        self.seconds = self._began = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean over some lambda; NaN names its term or the layer, and the step."""
        step = self.trainer.global_step
        progress = step / max(1, int(self.trainer.estimated_stepping_batches))
        means = self.terms(batch, step, progress)
        total = objective.total(means, {"complexity": elbo.warmth(progress, self.warmup)}, step=step)
        for name, value in means.items():
            self.log(f"train_{name}", value.detach(), on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return total

    def terms(self, batch: Any, step: int, progress: float) -> dict[str, Tensor]:
        """The loss and the complexity per object, means over the lambda of a step.

        Args:
            batch: Inputs and classes.
            step: Number of the step.
            progress: Share of the steps that are over.

        Raises:
            NumericsError: A complexity or a loss that is not finite; names the layer and lambda.
        """
        x, y = batch
        self.model.hyper.share(progress < self.shared_until)
        # Of a last batch that has fewer objects than lambdas some have none.
        lams = self.lambdas_at(step)[: len(y) if self.divide_batch else None]
        parts = [(x, y)] * len(lams)
        if self.divide_batch:
            parts = list(zip(torch.tensor_split(x, len(lams)), torch.tensor_split(y, len(lams)), strict=True))
        terms: dict[str, list[Tensor]] = {"loss": [], "complexity": []}
        for lam, (inputs, targets) in zip(lams, parts, strict=True):
            found = self.model.at(lam)
            terms["loss"].append(F.cross_entropy(found(inputs), targets))
            terms["complexity"].append(elbo.divergence_terms({"kl": found.complexity()}, self.n_objects)["kl"])
        means = {name: torch.stack(values).mean() for name, values in terms.items()}
        if not bool(torch.isfinite(means["complexity"])):
            self._name_the_layer(lams, step)
        if not bool(torch.isfinite(means["loss"])):
            for lam, (inputs, _) in zip(lams, parts, strict=True):
                check_layers(self.model.network, self.model.at(lam), inputs, at=f" at lambda {lam:g}", step=step)
        return means

    def on_train_end(self) -> None:
        """A last step that failed is seen here: no loss comes after it."""
        step = self.trainer.global_step
        with torch.no_grad():
            for lam in self._grid():
                for name, value in self.model.at(lam).values.items():
                    objective.check_finite(f"{name} at lambda {lam:g}", value, step=step)
        # Knots between these.
        for name, value in self.model.hyper.named_parameters():
            objective.check_finite(f"{name} of the hypernetwork", value, step=step)

    def lambdas_at(self, step: int) -> list[float]:
        """Those of a step, by seed and step alone, so that a run that goes on draws the same."""
        steps = max(1, _BLOCK // self.lambdas_per_step)
        block, at = divmod(step, steps)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + block)
        drawn = self.model.draw(steps * self.lambdas_per_step, generator)
        return drawn[at::steps]

    def on_train_epoch_start(self) -> None:
        """The clock of the training."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Of all attempts together; validation is in it."""
        self.seconds += time.perf_counter() - self._began

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seconds."""
        checkpoint["training_seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Those of the attempts before."""
        self.seconds = checkpoint.get("training_seconds", 0.0)

    def on_validation_epoch_start(self) -> None:
        """The networks of the means, at some lambda."""
        with torch.no_grad():
            self._looked_at = {f"{lam:.3g}": self.model.at(lam) for lam in self._grid()}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy and loss at some lambda."""
        x, y = batch
        # Running statistics are those of all lambda.
        with weight_noise(self.model.network, False), batch_statistics(self.model.network):
            for name, found in self._looked_at.items():
                outputs = found(x)
                self.log(f"val_loss/{name}", F.cross_entropy(outputs, y), batch_size=len(y))
                hit = torchmetrics.functional.accuracy(outputs, y, task="multiclass", num_classes=outputs.shape[-1])
                self.log(f"val_accuracy/{name}", hit, batch_size=len(y))

    def configure_optimizers(self) -> Any:
        """Adam, or SGD; constant rates, or constant for half of the steps, then a straight line to a thousandth."""
        made = self.made_optimizer()
        if self.schedule == "constant":
            return made
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            made, lambda step: min(1.0, 2 * (1 - step / steps) + _LEFT_AT_THE_END)
        )
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def made_optimizer(self) -> torch.optim.Optimizer:
        """Of means and points, and of standard deviations, at the rates of the beginning."""
        nets = [net for net in (self.model.hyper.means, self.model.hyper.rhos) if net is not None]
        groups = [(rate, list(net.parameters())) for rate, net in zip(self.rates, nets, strict=False)]
        return optimizer_of(self.optimizer, groups)

    def _grid(self) -> list[float]:
        return [self.model.draw(1, torch.Generator())[0]] if self.model.axis is None else self.model.axis.grid(3)

    def _name_the_layer(self, lams: list[float], step: int) -> None:
        for lam in lams:
            for name, value in self.model.at(lam).divergences().items():
                objective.check_finite(f"divergence of {name} at lambda {lam:g}", value, step=step)


def optimizer_of(name: Optimizer, groups: Sequence[tuple[float, list[nn.Parameter]]]) -> torch.optim.Optimizer:
    """ "adam", or "sgd" with momentum .9, of groups of parameters with rates of their own."""
    made = [{"params": parameters, "lr": rate} for rate, parameters in groups]
    return torch.optim.SGD(made, momentum=0.9) if name == "sgd" else torch.optim.Adam(made, fused=FUSED)


def finetune(
    network: nn.Module,
    loader: Any,
    epochs: int,
    learning_rate: float,
    *,
    lam: float = 1.0,
    n_objects: int | None = None,
    rho_learning_rate: float | None = None,
    optimizer: Optimizer = "adam",
    gradient_clip: float | None = None,
    clip_by: Literal["norm", "value"] = "norm",
) -> None:
    """Train a network of its own further, in place, its rate falling linearly to zero.

    A plain network, pruned or not, minimizes its loss; one with Gaussian layers E_q[-log p] + lam KL / m, per object.

    Args:
        network: As `materialize`, `mean_network` or `prune` leave it; it stays on its device, and in its mode: it is
            trained in training mode, whichever that is.
        loader: Batches of inputs and classes.
        epochs: Of the loader.
        learning_rate: At the first step.
        lam: Lambda, of Gaussian layers; of the prior "scaled", whose layers know theirs, 1.
        n_objects: m; the size of the loader's data set if None.
        rho_learning_rate: Of the logarithms of standard deviations, at the first step; None: `learning_rate`.
        optimizer: "adam", or "sgd" with momentum .9.
        gradient_clip: Largest norm of the gradient, or, `clip_by` "value", of an entry; None: none.
        clip_by: "norm" or "value".

    Raises:
        ConfigError: Numbers that cannot be, or a network whose weights are functions of lambda.
        NumericsError: A term that is not finite; it names the layer.
    """
    prunable(network)  # refuses weights that are functions of lambda: the divergence here is that of layers
    require(epochs >= 0, "epochs", "must not be negative", epochs, "3 are usual")
    rho_rate = learning_rate if rho_learning_rate is None else rho_learning_rate
    for name, rate in (("learning_rate", learning_rate), ("rho_learning_rate", rho_rate)):
        require(rate > 0, name, "must be positive", rate, "0.001 is usual")
    require(0 <= lam < float("inf"), "lam", "must be at least 0 and finite", lam, "1 gives the evidence bound")
    m = len(loader.dataset) if n_objects is None else n_objects
    require(m >= 1, "n_objects", "must be the size of the training set", m, "pass len(dataset)")
    device, mode = next(network.parameters()).device, network.training
    network.train()  # Lightning leaves the mode alone: noise and statistics of the batch would be off
    module = _Finetuning(network, (learning_rate, rho_rate), optimizer, lam, m)
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        max_epochs=epochs,
        gradient_clip_val=gradient_clip,
        gradient_clip_algorithm=None if gradient_clip is None else clip_by,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, loader)
    finally:
        network.to(device).train(mode)  # Lightning has moved it back


class _Finetuning(pl.LightningModule):
    def __init__(
        self, network: nn.Module, rates: tuple[float, float], optimizer: Optimizer, lam: float, n_objects: int
    ) -> None:
        super().__init__()
        self.network, self.rates, self.optimizer, self.lam = network, rates, optimizer, lam
        self.n_objects = n_objects

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        terms = {"loss": F.cross_entropy(self.network(x), y)}
        if divergences := collect_kl(self.network):
            total = torch.stack(list(divergences.values())).sum()
            terms |= elbo.divergence_terms({"complexity": total}, self.n_objects, {"complexity": self.lam})
            if not bool(torch.isfinite(terms["complexity"])):
                for name, value in divergences.items():
                    objective.check_finite(f"divergence of {name}", value, step=self.trainer.global_step)
        if not bool(torch.isfinite(terms["loss"])):
            check_layers(self.network, self.network, x, step=self.trainer.global_step)
        return objective.total(terms, step=self.trainer.global_step)

    def on_train_end(self) -> None:
        for name, value in self.network.named_parameters():
            objective.check_finite(name, value, step=self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        rhos = [layer.rho for layer in variational_layers(self.network).values()]
        own = {id(rho) for rho in rhos}
        groups = [(self.rates[0], [p for p in self.network.parameters() if id(p) not in own]), (self.rates[1], rhos)]
        optimizer = optimizer_of(self.optimizer, [(rate, parameters) for rate, parameters in groups if parameters])
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
