"""The search step: structure on one half of the data, weights on the other (first order bilevel)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from nni.nas.oneshot.pytorch.differentiable import DartsLightningModule
from torch import Tensor, nn

from nni_bayes_nas.bayes import law, objective
from nni_bayes_nas.complexity import axis as lambda_axis
from nni_bayes_nas.complexity.expected import CostModel
from nni_bayes_nas.errors import NumericsError, SpaceError

from .structure import SoftmaxStructure
from .supernet import Binding

_MONOTONICITY_POINTS = 65


@dataclass(frozen=True)
class StructureLoss:
    """What is added to the task loss of the structure step.

    Attributes:
        complexity: "none"; "penalty": lambda * E[cost]; "target": (E[cost] - c(u))^2 with c falling linearly in u.
            E[cost] is normalized to [0, 1] between the cheapest and the dearest architecture.
        complexity_weight: Factor of the complexity term.
        target_range: c(0) and c(1).
        temperature: At which the law is sharpened by the end of the search; it falls linearly from 1. The complexity
            term is the mean of that under the law and that under the sharpened one, which sees the derived networks.
        monotonicity: Factor of sum_i max(0, E[cost](u_{i+1}) - E[cost](u_i)) over a grid of lambda: sizes that grow
            with lambda are punished while searching, so that nothing has to be sorted afterwards.
        penalty: lambda of a structure without an axis.
        l1: Factor of sum |alpha|.
    """

    complexity: Literal["none", "penalty", "target"] = "none"
    complexity_weight: float = 1.0
    target_range: tuple[float, float] = (0.95, 0.05)
    temperature: float = 1.0
    monotonicity: float = 0.0
    penalty: float = 0.0
    l1: float = 0.0


class BilevelModule(DartsLightningModule):  # type: ignore[misc]
    """First order bilevel search (Liu, Simonyan & Yang, 2019, Eq. 7 with xi = 0) whose structure may depend on lambda.

    Derives from NNI's `DartsLightningModule` (nni/nas/oneshot/pytorch/differentiable.py, v3.0) and replaces where
    the mixing weights come from, the loss of the structure step, validation, and what makes a resumed search equal
    to an undisturbed one: every random number is a function of seed and step.

    Args:
        training_module: The evaluator's Lightning module.
        structure: The distribution over structures.
        binding: What the mixed modules read.
        cost: Cost of every part of the space.
        cost_bounds: Cost of the cheapest and of the dearest architecture.
        loss: What is added to the task loss.
        lambda_per: "object": every object of a mini-batch has its own lambda; "step": all share one, and a step
            averages `lambdas_per_step` passes.
        lambdas_per_step: Passes of a step for "step".
        validation_u: Positions at which the validation metrics are taken; one data loader each.
        arc_weight_decay: L2 decay of the structure parameters (Adam).
        seed: Of every draw.
        warmup_epochs: Epochs in which only the weights learn.
        arc_learning_rate: Of Adam on the structure parameters.
        gradient_clip_val: Norm to which the gradient of the weights is clipped.
    """

    def __init__(
        self,
        training_module: Any,
        *,
        structure: SoftmaxStructure,
        binding: Binding,
        cost: CostModel,
        cost_bounds: tuple[float, float],
        loss: StructureLoss,
        lambda_per: Literal["object", "step"],
        lambdas_per_step: int,
        validation_u: tuple[float, ...],
        arc_weight_decay: float,
        seed: int,
        warmup_epochs: int,
        arc_learning_rate: float,
        gradient_clip_val: float | None,
    ) -> None:
        super().__init__(
            training_module,
            arc_learning_rate=arc_learning_rate,
            gradient_clip_val=gradient_clip_val,
            warmup_epochs=warmup_epochs,
        )
        self.structure = structure
        self.binding = binding
        self.cost = cost
        self.cost_bounds = cost_bounds
        self.structure_loss = loss
        self.lambda_per = lambda_per
        self.lambdas_per_step = lambdas_per_step
        self.validation_u = validation_u
        self.arc_weight_decay = arc_weight_decay
        self.seed = seed

    # -- structure -------------------------------------------------------------------------------------------------

    def arch_parameters(self) -> list[nn.Parameter]:
        """Parameters of the structure, in a fixed order (NNI's own order differs from process to process)."""
        return list(self.structure.parameters())

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the betas of DARTS."""
        return torch.optim.Adam(
            self.arch_parameters(), self.arc_learning_rate, betas=(0.5, 0.999), weight_decay=self.arc_weight_decay
        )

    def normalized_cost(self, u: Tensor, temperature: float = 1.0) -> Tensor:
        """E[cost] at u under the (sharpened) law, 0 for the cheapest architecture, 1 for the dearest; `(*batch,)`."""
        low, high = self.cost_bounds
        return (self.structure.expected_cost(self.cost, u, temperature) - low) / (high - low)

    @property
    def temperature(self) -> float:
        """Temperature of the sharpened law in this epoch."""
        last = max(1, int(self.trainer.max_epochs or 1) - 1 - self.warmup_epochs)
        progress = min(1.0, max(0, int(self.trainer.current_epoch) - self.warmup_epochs) / last)
        return float(1.0 + (self.structure_loss.temperature - 1.0) * progress)

    def monotonicity_term(self) -> Tensor:
        """Sum over a grid of lambda of the steps by which the normalized expected cost grows."""
        grid = torch.linspace(0, 1, _MONOTONICITY_POINTS, device=self.structure.logits.knots.device)
        return self.normalized_cost(grid, self.temperature).diff().clamp_min(0).sum()

    def complexity_term(self, u: Tensor) -> Tensor:
        """The complexity term of the structure step, averaged over the positions u and the two laws."""
        loss = self.structure_loss
        costs = [self.normalized_cost(u, t) for t in dict.fromkeys((1.0, self.temperature))]
        if loss.complexity == "target":
            first, last = loss.target_range
            target = first + (last - first) * u
            return torch.stack([((cost - target) ** 2).mean() for cost in costs]).mean()
        price = loss.penalty if self.structure.axis is None else self.structure.axis.to_lambda(u)
        return torch.stack([(price * cost).mean() for cost in costs]).mean()

    def export(self) -> dict[str, Any]:
        """The derived architecture at the low end of lambda (the largest one)."""
        return self.structure.export(None)

    def export_probs(self) -> dict[str, Any]:
        """Mean mixing weights at the low end of lambda, by label and option."""
        return named_weights(self.structure, self.structure.mean(None))

    def resample(self) -> dict[str, Any]:
        """Fill the binding with the mean at the low end of lambda; a step draws its own."""
        self.binding.weights = self.structure.mean(None)
        return {}

    # -- steps -----------------------------------------------------------------------------------------------------

    def positions(self, n_objects: int, step: int, phase: int) -> list[Tensor]:
        """Positions u for the passes of a step: one `(n_objects,)` tensor, or `lambdas_per_step` scalars."""
        device = self.structure.logits.knots.device
        if self.structure.axis is None:
            return [torch.zeros((), device=device)]
        generator = torch.Generator().manual_seed(((self.seed * 2 + phase) * 1_000_003 + step) % (2**63))
        if self.lambda_per == "object":
            return [lambda_axis.per_object(n_objects, generator).to(device)]
        return list(lambda_axis.per_step(self.lambdas_per_step, generator).to(device).unbind())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One structure step on the "val" batch (after the warm-up), then one weight step on the "train" batch."""
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        if self.trainer.current_epoch >= self.warmup_epochs:
            optimizer = self.architecture_optimizers()
            optimizer.zero_grad()
            terms = self.structure_terms(batch["val"], batch_idx, step)
            total = objective.total(terms, self.term_weights(), step=step)
            # Only the structure learns here: the weights' gradients would be thrown away.
            knots = self.arch_parameters()
            for parameter, gradient in zip(knots, torch.autograd.grad(total, knots), strict=True):
                objective.check_finite("gradient of the structure", gradient, step=step)
                parameter.grad = gradient
            optimizer.step()
            logged = {f"structure_{name}": value.detach() for name, value in terms.items()}
            self.log_dict({**logged, "structure_loss": total.detach()}, on_step=False, on_epoch=True)
        with torch.no_grad():
            draws = [self.structure.draw(u) for u in self.positions(_size(batch["train"]), step, 1)]
        loss = self.task_loss(batch["train"], batch_idx, draws)
        objective.check_finite("train_loss", loss, step=step)
        self.advance_optimization(loss, batch_idx, self.gradient_clip_val)
        self.advance_lr_schedulers(batch_idx)

    def term_weights(self) -> dict[str, float]:
        """Factors of the named terms of the structure step."""
        loss = self.structure_loss
        return {"complexity": loss.complexity_weight, "monotonicity": loss.monotonicity, "l1": loss.l1}

    def structure_terms(self, batch: Any, batch_idx: int, step: int) -> dict[str, Tensor]:
        """Named terms of the structure step."""
        positions = self.positions(_size(batch), step, 0)
        with self._muted():
            terms = {"task": self.task_loss(batch, batch_idx, [self.structure.draw(u) for u in positions])}
        if self.structure_loss.complexity != "none":
            terms["complexity"] = torch.stack([self.complexity_term(u) for u in positions]).mean()
            if self.structure_loss.monotonicity and self.structure.axis is not None:
                terms["monotonicity"] = self.monotonicity_term()
        if self.structure_loss.l1:
            terms["l1"] = torch.stack([self.structure.logits(u).abs().sum(-1).mean() for u in positions]).mean()
        return terms

    def task_loss(self, batch: Any, batch_idx: int, draws: list[dict[str, Tensor]]) -> Tensor:
        """Mean of the evaluator's training loss over passes with the given mixing weights."""
        losses = []
        for draw in draws:
            self.binding.weights = draw
            result = self.training_module.training_step(batch, batch_idx)
            losses.append(result["loss"] if isinstance(result, dict) else result)
        return torch.stack(losses).mean()

    @contextlib.contextmanager
    def _muted(self) -> Iterator[None]:
        """The evaluator's own logging is for the weight step: the structure step would mix into its averages."""
        inner = self.training_module
        saved = inner.__dict__.get("log")
        inner.log = lambda *args, **kwargs: None
        try:
            yield
        finally:
            if saved is None:
                del inner.log
            else:
                inner.log = saved

    # -- epochs ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse a space without a choice."""
        if not self.structure.units:
            raise SpaceError("a search needs at least one choice, got a space without any; add a LayerChoice.")
        super().on_fit_start()

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, so that a resumed search draws what an undisturbed one draws."""
        torch.manual_seed((self.seed * 1_000_003 + self.trainer.current_epoch) % (2**63))
        self.training_module.on_train_epoch_start()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The evaluator's validation at one position of lambda per data loader, with the mean mixing weights."""
        u = self.structure.logits.knots.new_tensor(self.validation_u[dataloader_idx])
        self.binding.weights = self.structure.draw(u)
        with batch_statistics(self.training_module):
            return self.training_module.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log entropy, expected cost at both ends of lambda, and the evaluator's metrics averaged over positions."""
        with torch.no_grad():
            ends = self.structure.logits.knots.new_tensor([0.0, 1.0])
            costs = self.structure.expected_cost(self.cost, ends)
            entropies = [self.structure.entropy(lam) for lam in self.end_lambdas()]
            terms = {
                "entropy": torch.stack(entropies).mean(),
                "expected_cost_min_lambda": costs[0],
                "expected_cost_max_lambda": costs[1],
            }
        for name, value in terms.items():
            if not bool(torch.isfinite(value)):
                raise NumericsError(
                    f"every term must be finite, but `{name}` is {value.item()} in epoch {self.current_epoch}."
                )
        # One loader per position makes Lightning log `val_acc/dataloader_idx_0`, ..., but NNI's evaluators and
        # checkpoint callbacks look `val_acc` up.
        by_name: dict[str, list[Tensor]] = {}
        for name, value in self.trainer.callback_metrics.items():
            if "/dataloader_idx_" in name:
                by_name.setdefault(name.split("/dataloader_idx_")[0], []).append(value)
        self.log_dict({**terms, **{name: torch.stack(values).mean() for name, values in by_name.items()}})

    def named_weights(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean mixing weights at the positions of the validation: u -> label -> option -> weight."""
        with torch.no_grad():
            return {
                ("mean" if self.structure.axis is None else str(u)): named_weights(
                    self.structure, self.structure.draw(self.structure.logits.knots.new_tensor(u))
                )
                for u in self.validation_u
            }

    def end_lambdas(self) -> list[float | None]:
        """The ends of the range of lambda, or [None]."""
        axis = self.structure.axis
        return [None] if axis is None else [axis.low, axis.high]


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalization use the statistics of the batch without changing its running ones.

    The running statistics of a supernet average over all lambda and fit none.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training]
    momenta = [m.momentum for m in norms]
    counts = [m.num_batches_tracked for m in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.training, norm.momentum, norm.num_batches_tracked = False, momentum, count


def named_weights(structure: SoftmaxStructure, weights: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mixing weights as label -> option -> weight; the edges of a node are labelled `cell/node_edge`."""
    result: dict[str, dict[str, float]] = {}
    for unit in structure.units:
        values = weights[unit.label].detach().cpu()
        if isinstance(unit, law.Node):
            options = [*unit.operations, "none"]
            for edge in range(unit.index):
                result[f"{unit.cell}/{unit.index}_{edge}"] = dict(zip(options, values[edge].tolist(), strict=True))
        else:
            result[unit.label] = {str(o): p for o, p in zip(unit.options, values.tolist(), strict=True)}
    return result


def _size(batch: Any) -> int:
    x = batch[0] if isinstance(batch, (list, tuple)) else batch
    return int(x.shape[0])
