"""The search step: structure on one half of the data, weights on the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from nni.nas.oneshot.pytorch.differentiable import DartsLightningModule
from torch import Tensor, nn

from nni_bayes_nas.bayes import objective
from nni_bayes_nas.complexity.axis import stratified
from nni_bayes_nas.complexity.price_range import GRID_POINTS, PriceRange
from nni_bayes_nas.layers.replicas import Alone, backward_of, gradients_of
from nni_bayes_nas.precision import Autocast

from .passes import counted, muted, n_objects
from .pruning import stages_over
from .relaxations import TEMPERATURE_SCHEDULES
from .second_order import hypergradient, step_settings
from .size_control import SizeControl, reduce_all, solve_all
from .step_options import StepOptions
from .structure import Structure
from .supernet import Binding
from .validation import SearchValidation

_Draws = list[dict[str, Tensor]]
# An automatic range of lambda is looked for until this share of the structure steps is over. During its second half, at
# a price during as many last steps, the loss is taken on a grid: every few steps, or as often as a short search allows.
_EXPLORATION = 0.5
_OBSERVED_EVERY = 4
_OBSERVATIONS = 8


class BilevelModule(SearchValidation, DartsLightningModule):  # type: ignore[misc]
    """Bilevel search (Liu, Simonyan & Yang, 2019, Eq. 7) whose structure may depend on lambda.

    Derives from NNI's `DartsLightningModule` (nni/nas/oneshot/pytorch/differentiable.py, v3.0) and replaces where
    the mixing weights come from, the loss of the structure step, validation, and what makes a resumed search equal
    to an undisturbed one: every random number is a function of seed and step.

    Args:
        training_module: The evaluator's Lightning module.
        structure: The distribution over structures.
        binding: What the mixed modules read.
        sizes: Cost of the structure, what is added to the task loss, and prices.
        step: How a step is put together.
        validation_points: Fractions of the range of lambda that are validated; one data loader each.
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
        structure: Structure,
        binding: Binding,
        sizes: SizeControl,
        step: StepOptions,
        validation_points: tuple[float, ...],
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
        self.sizes = sizes
        self.costs = sizes.costs
        self.structure_loss = sizes.loss
        self.step_options = step
        self.validation_points = validation_points
        self.arc_weight_decay = arc_weight_decay
        self.seed = seed
        self.current_step = 0
        self._stage = 0
        self.price_range = PriceRange()
        self.replica: Alone = Alone()

    # -- structure -------------------------------------------------------------------------------------------------

    def arch_parameters(self) -> list[nn.Parameter]:
        """Parameters of the structure, in a fixed order (NNI's own order differs from process to process)."""
        return list(self.structure.parameters())

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the betas of DARTS."""
        return torch.optim.Adam(
            self.arch_parameters(), self.arc_learning_rate, betas=(0.5, 0.999), weight_decay=self.arc_weight_decay
        )

    @property
    def structure_steps(self) -> tuple[int, int]:
        """How many structure steps are over, negative in the warm-up, and how many there are, less one."""
        first = self.warmup_epochs * self.steps_per_epoch
        last = int(self.trainer.max_epochs or 1) * self.steps_per_epoch - 1
        return self.current_step - first, last - first

    @property
    def progress(self) -> float:
        """Share of the structure steps that are over; 0 in the warm-up, 1 in the last step."""
        done, last = self.structure_steps
        return min(1.0, max(0, done) / max(1, last))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; 1 in Lightning's sanity check, when they are not counted yet."""
        batches = self.trainer.num_training_batches
        return int(batches) if batches < float("inf") else 1

    @property
    def final_temperature(self) -> float:
        """Temperature of the mixing weights in the last epoch."""
        return self.step_options.mixing_temperature

    def temperature(self, last: float) -> float:
        """A temperature that falls from 1 to `last` with the progress."""
        return TEMPERATURE_SCHEDULES[self.step_options.temperature_schedule](last, self.progress)

    def export(self) -> dict[str, Any]:
        """The derived architecture at the low end of lambda (the largest one)."""
        return self.structure.export(None)

    def export_probs(self) -> dict[str, Any]:
        """Mean mixing weights at the low end of lambda, by label and option."""
        return self.structure.named_probs(self.structure.position(None))

    def resample(self) -> dict[str, Any]:
        """Fill the binding with the mean at the low end of lambda; a step draws its own."""
        self.binding.weights = self.structure.mean(None)
        return {}

    # -- steps -----------------------------------------------------------------------------------------------------

    def _generator(self, step: int, phase: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * 8 + phase) * 1_000_003 + step) % (2**63))

    def positions(self, n_objects: int, step: int, phase: int) -> list[Tensor]:
        """Positions u for the passes of a step: one `(n_objects,)` tensor, or `lambdas_per_step` scalars."""
        reference, axis = self.structure.reference, self.structure.axis
        if axis is None:
            # Equal positions, for draws of their own.
            size = (n_objects,) if self.step_options.draw_per == "object" else ()
            return [torch.zeros(size, device=reference.device)]
        generator = self._generator(step, phase)
        if self.step_options.lambda_per == "object":
            return [self.spread(axis.positions_per_object(n_objects, generator))]
        return list(self.spread(axis.positions_per_step(self.step_options.lambdas_per_step, generator)).unbind())

    def spread(self, u: Tensor) -> Tensor:
        """Positions of lambda, `(n,)`, drawn together as far as the search has not yet spread them."""
        return self.sizes.spread(u, self.progress).to(self.structure.reference)

    def draws(self, positions: list[Tensor], step: int, phase: int) -> _Draws:
        """Mixing weights at the positions of a step; the same step and phase give the same noise."""
        generator = self._generator(step, phase + 2)
        temperature = self.temperature(self.step_options.mixing_temperature)
        return [self.structure.draw(u, temperature, generator) for u in positions]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One structure step on the "val" batch (after the warm-up), then one weight step on the "train" batch.

        The trainer's low precision, if it has one, is that of the passes through the supernet.
        """
        self._autocast = Autocast.now(self.device.type)
        with self._autocast.left():
            self._step(batch, batch_idx)

    def _step(self, batch: Any, batch_idx: int) -> None:
        step = self._begin_step(batch_idx)
        if self.trainer.current_epoch >= self.warmup_epochs:
            self._structure_step(batch, batch_idx, step)
        with torch.no_grad():
            draws = self.draws(self.positions(n_objects(batch["train"]), step, 1), step, 1)
        loss = self.weight_loss(batch["train"], batch_idx, draws, step)
        terms = self.weight_divergences(draws, "train")
        loss = objective.total({"train_loss": loss, **terms}, step=step)
        self.log_dict({f"weights_{k}": v.detach() for k, v in terms.items()}, on_step=False, on_epoch=True)
        self.advance_optimization(loss, batch_idx, self.gradient_clip_val)
        self.advance_lr_schedulers(batch_idx)

    def _begin_step(self, batch_idx: int) -> int:
        self.current_step = self.trainer.current_epoch * self.steps_per_epoch + batch_idx
        self.binding.auxiliary = self.binding.guards.auxiliary_at(self.progress)
        if keep := self.step_options.keep_options:
            self.structure.prune(keep, stages_over(self.progress, len(keep)))
            if self._stage != int(self.structure.stage):
                self._stage, self.binding.pruned = int(self.structure.stage), self.structure.pruned_pairs()
        return self.current_step

    def _structure_step(self, batch: Any, batch_idx: int, step: int) -> None:
        optimizer = self.architecture_optimizers()
        optimizer.zero_grad()
        positions = self.positions(n_objects(batch["val"]), step, 0)
        knots = self.arch_parameters()

        def validation() -> Tensor:
            return self.task_loss(batch["val"], batch_idx, self.draws(positions, step, 0))

        def training() -> Tensor:
            # The weight step of this step will see the same positions and the same noise.
            inner = self.positions(n_objects(batch["train"]), step, 1)
            return self.task_loss(batch["train"], batch_idx, self.draws(inner, step, 1))

        with muted(self.training_module):
            if self.step_options.order == 2:
                task, gradients = self._second_order(validation, training, knots)
            else:
                task = validation()
                gradients = self.replica.together(gradients_of, (task, knots))
        temperature = self.temperature(self.structure_loss.temperature)
        terms = self.structure_loss.terms(self.costs, positions, temperature, exploring=self.exploring)
        terms |= self.divergences(positions, "val")
        total = objective.total({"task": task.detach(), **terms}, self.structure_loss.factors(), step=step)
        if terms:
            added = torch.autograd.grad(total, knots, allow_unused=True, materialize_grads=True)
            gradients = [g + a for g, a in zip(gradients, added, strict=True)]
        # Only the structure learns here: the weights' gradients would be thrown away.
        kind = self.sizes.kind, temperature
        reduced = self.replica.together(reduce_all, (self.sizes, knots, gradients, temperature), kind)
        for parameter, gradient in zip(knots, reduced, strict=True):
            if gradient is not None:
                objective.check_finite("gradient of the structure", gradient, step=step)
            parameter.grad = gradient
        optimizer.step()
        missed = self.replica.together(solve_all, (self.sizes, temperature), kind)
        self._look_for_range(batch["val"], batch_idx, step)
        logged = {f"structure_{name}": value.detach() for name, value in {"task": task, **terms, **missed}.items()}
        self.log_dict({**logged, "structure_loss": total.detach()}, on_step=False, on_epoch=True)

    def divergences(self, positions: list[Tensor], part: str) -> dict[str, Tensor]:
        """What a Bayesian structure adds to the loss, by name; see `BayesianModule`."""
        return {}

    def divergence_of(self, choices: Mapping[str, Any]) -> float:
        """What a bound takes for an architecture, per object, beside its loss; see `BayesianModule`."""
        return 0.0

    def weight_divergences(self, draws: _Draws, part: str) -> dict[str, Tensor]:
        """What Bayesian weights add to the loss, by name; see `BayesianModule`."""
        return {}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook."""
        self.replica.together(backward_of, (loss, args, kwargs))

    def _second_order(self, validation: Any, training: Any, knots: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
        optimizer = next(o for o in self.optimizers() if not getattr(o, "is_arch_optimizer", False))
        weights = [p for p in self.training_module.parameters() if p.requires_grad]
        settings = step_settings(optimizer, weights)
        return hypergradient(
            validation,
            training,
            weights,
            knots,
            method=self.step_options.second_order,
            module=self.training_module,
            **settings,
        )

    @property
    def exploring(self) -> bool:
        """Whether sizes still follow the target, since the range of lambda is looked for."""
        return self.structure.observed and not self.structure.per_node and self.progress < _EXPLORATION

    @torch.no_grad()
    def _look_for_range(self, batch: Any, batch_idx: int, step: int) -> None:
        """Observe loss and cost on a grid of positions; say what lambda means from all observations so far."""
        if not self._observing:
            return
        priced = self.structure.per_node
        grid = torch.linspace(0, 1, GRID_POINTS).to(self.structure.reference)
        with muted(self.training_module):
            losses = torch.stack([self.task_loss(batch, batch_idx, self.draws([u], step, 0)) for u in grid])
        temperature = self.temperature(self.step_options.mixing_temperature) if priced else 1.0
        self.price_range.observe(self.costs.expected(grid, temperature), losses)
        # The slopes are prices: what stands before E[cost] in the loss.
        weight = self.structure_loss.complexity_weight
        found = [(slope / weight, u) for slope, u in self.price_range.points(grid) or []]
        self.structure.set_axis(found if priced or not found else [(found[0][0], 0.0), (found[-1][0], 1.0)])

    @property
    def _observing(self) -> bool:
        """In the second half of the exploration; at a price, where nothing is explored, in the last quarter.

        There not before the positions have spread over the whole range.
        """
        priced = self.structure.per_node
        if not (self.exploring or (self.structure.observed and priced)):
            return False
        done, last = self.structure_steps
        length = last * _EXPLORATION / 2
        begin = math.ceil(max(last - length, last * self.step_options.ramp) if priced else length)
        return done >= begin and (done - begin) % max(1, min(_OBSERVED_EVERY, int(length) // _OBSERVATIONS)) == 0

    def task_loss(self, batch: Any, batch_idx: int, draws: _Draws) -> Tensor:
        """Mean of the evaluator's training loss over passes with the given mixing weights."""
        losses = []
        self.binding.n_passes = len(draws)
        for draw in draws:
            self.binding.weights = draw
            losses.append(self._pass(batch, batch_idx))
        return torch.stack(losses).mean()

    @contextlib.contextmanager
    def weights_at(self, position: Tensor) -> Iterator[None]:
        """Inside the block the supernet has the weights of a position of lambda, `()`; here the same everywhere."""
        yield

    def weight_loss(self, batch: Any, batch_idx: int, draws: _Draws, step: int) -> Tensor:
        """Mean of the evaluator's training loss over the mixtures and over single architectures."""
        mixed = self.task_loss(batch, batch_idx, draws)
        single = self.replica.in_turn(lambda: self._single_losses(batch, batch_idx, step))
        return torch.stack([mixed, *single]).sum() / (1 + self.step_options.one_hot_passes)

    def _single_losses(self, batch: Any, batch_idx: int, step: int) -> list[Tensor]:
        """Losses of single architectures; that of one that is drawn n times is counted n times."""
        losses: list[Tensor] = []
        # Equal architectures have equal losses: one pass, counted as often.
        for choices, count in counted(self.single_architectures(step)):
            # Logged is the mixture's loss: that of single architectures has another scale.
            with self.binding.only(choices, self.structure.reference), muted(self.training_module):
                losses.append(count * self._pass(batch, batch_idx))
        return losses

    def single_architectures(self, step: int) -> list[dict[str, Any]]:
        """Those of the passes of a step; the same whenever they are asked for."""
        generator = self._generator(step, 4)
        # In the warm-up all options must learn; then what will be derived.
        warmed_up = self.trainer.current_epoch >= self.warmup_epochs
        at = self.structure.derive_at if warmed_up else lambda u: self.structure.sample_at(u, 1.0, generator)
        return [at(u) for u in self.one_hot_positions(generator)]

    def one_hot_positions(self, generator: torch.Generator) -> list[Tensor]:
        """Positions of the passes of single architectures: the large end, the others stratified over the range."""
        n, reference, axis = self.step_options.one_hot_passes, self.structure.reference, self.structure.axis
        if axis is None:
            return [reference.new_zeros(())] * n
        # The largest network never moves: the others are parts of what it trains. A single pass goes anywhere.
        large = torch.zeros(min(1, n // 2))
        others = self.spread(axis.drawn(stratified(n - len(large), generator)))
        return list(torch.cat([axis.drawn(large).to(reference), others]).unbind())

    def _pass(self, batch: Any, batch_idx: int) -> Tensor:
        with self._autocast.set():
            result = self.training_module.training_step(batch, batch_idx)
        loss: Tensor = result["loss"] if isinstance(result, dict) else result
        return loss

    # -- epochs ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        """Seed the epoch at its first batch, so that a resumed search draws what an undisturbed one draws.

        When the epoch starts is too early: a data loader draws from the same generator when its iteration starts, which
        Lightning does before that in a training that resumes, and after it in an undisturbed one.
        """
        if batch_idx == 0:
            torch.manual_seed((self.seed * 1_000_003 + self.trainer.current_epoch) % (2**63))
        return super().on_train_batch_start(batch, batch_idx)
