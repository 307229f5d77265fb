"""What our differentiable strategies share: from a Retiarii space to a supernet bound to one structure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from nni.nas.oneshot.pytorch.strategy import DARTS
from nni.nas.oneshot.pytorch.supermodule.operation import NATIVE_MIXED_OPERATIONS
from torch import nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.expected import CostModel
from nni_bayes_nas.complexity.latency import read_latency_table
from nni_bayes_nas.compression.lambda_weights import LambdaWeights
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.layers.memory_format import images_channels_last
from nni_bayes_nas.layers.replicas import Alone, Replica, Stacked
from nni_bayes_nas.lockstep import Member

from .bilevel import BilevelModule
from .compiled import check_compiler, compiled
from .costs import CostKind, NetworkCounts, cost_models, extreme_architecture
from .cuda_graphs import check_cuda_graphs, graphed
from .family import DerivedFamily
from .fused import Execution
from .guards import Guards
from .mixed_cell import MixedCell
from .mutation import check_relaxable, if_mutable, refuse_the_rest
from .option_checks import check_options
from .passes import object_shape
from .pruning import check_keep, left_of
from .relaxations import TEMPERATURE_SCHEDULES
from .replicas import SupernetTemplate
from .second_order import check_double_backward
from .size_control import SizeControl
from .step_options import StepOptions
from .structure import Structure
from .structure_loss import NormalizedCost, StructureLoss
from .supernet import Binding, MixedInput, MixedLayer, MixedOperationPolicy, MixedRepeat


class DifferentiableStrategy(DerivedFamily, DARTS):  # type: ignore[misc]
    """An NNI one-shot strategy whose mixing weights come from one structure distribution.

    Uses NNI's seams (`mutation_hooks`, `mutate_model`, `configure_oneshot_module`, data loaders, `list_models`).
    The evaluator's validation loader gives the batches of the structure step; if it is a dict with the keys
    "structure" and "validation", the validation metrics are taken on the latter alone.

    Attributes:
        module_class: The search module; a strategy that changes the steps names its own here.
        template: Through which supernets of searches side by side run.
        bayesian: Whether the structure has a prior.
    """

    bayesian: ClassVar[bool] = False

    module_class: ClassVar[type[BilevelModule]] = BilevelModule
    template: ClassVar[type[SupernetTemplate]] = SupernetTemplate

    def __init__(
        self,
        *,
        structure: dict[str, Any],
        loss: StructureLoss,
        step: StepOptions,
        cost: CostKind,
        latency_table: str | None,
        validation_points: tuple[float, ...],
        arc_learning_rate: float,
        arc_weight_decay: float,
        warmup_epochs: int,
        gradient_clip_val: float | None,
        seed: int,
        input_shape: Sequence[int] | None,
        mutation_hooks: list[Any] | None,
        guards: Guards | None = None,
    ) -> None:
        super().__init__(
            arc_learning_rate=arc_learning_rate,
            gradient_clip_val=gradient_clip_val,
            warmup_epochs=warmup_epochs,
            # A space may bring hooks for NNI's own supernet modules (the hub's cells of variable depth do), which NNI
            # tries before ours: MixedRepeat comes before them.
            mutation_hooks=[*(mutation_hooks or []), MixedRepeat.mutate],
        )
        check_options(structure, loss, step, cost=cost, latency_table=latency_table, bayesian=self.bayesian)
        fixed = "compile" if step.compile else "cuda_graphs" if step.cuda_graphs else None
        if fixed and guards is not None and guards.auxiliary_end not in (None, guards.auxiliary):
            raise ConfigError(
                f"what is compiled or recorded cannot change with every step, got auxiliary_end {guards.auxiliary_end} "
                f"and {fixed} true; leave one out."
            )
        if not all(callable(hook) for hook in mutation_hooks or []):
            raise ConfigError(
                f"mutation_hooks must be functions, got {mutation_hooks!r}; only Python code can give them, a "
                "configuration leaves them out."
            )
        if not arc_learning_rate > 0:
            raise ConfigError(f"arc_learning_rate must be positive, got {arc_learning_rate}; 0.01 is usual.")
        if not arc_weight_decay >= 0:
            raise ConfigError(f"arc_weight_decay must not be negative, got {arc_weight_decay}; 0 leaves it out.")
        self.guards = guards or Guards()
        self.guards.check()
        self.loss = loss
        self.step = step
        self.cost_kind: CostKind = cost
        # Read here, so that a bad file is refused before any time is spent.
        self.latency_table = None if latency_table is None else read_latency_table(latency_table)
        self.validation_points = validation_points
        self.arc_weight_decay = arc_weight_decay
        self.seed = seed
        self.input_shape = tuple(input_shape) if input_shape is not None else None
        self._structure_options = structure
        self._binding = Binding()
        self._costs: dict[CostKind, CostModel] = {}
        self._order_of_images: Any = None
        self._structure: Structure | None = None
        self.replica: Alone = Alone()

    # -- NNI's seams -----------------------------------------------------------------------------------------------

    def default_mutation_hooks(self) -> list[Any]:
        """Our mixed modules, NNI's operations with mutable arguments, and NNI's refusal of the rest."""
        hooks = [MixedLayer.mutate, MixedInput.mutate, MixedCell.mutate, MixedRepeat.mutate]
        hooks += [if_mutable(operation.mutate) for operation in NATIVE_MIXED_OPERATIONS]
        return [*hooks, refuse_the_rest]

    def run_hook(self, hook: Any, name: str, module: nn.Module, memo: dict[str, Any]) -> Any:
        """Hand the binding to the hooks."""
        return hook(module, name, memo, {"mixed_op_sampling": MixedOperationPolicy, "binding": self._binding})

    def mutate_model(self, model: Any) -> Any:
        """Turn the model space into a supernet, in place.

        Raises:
            SpaceError: If a choice cannot be relaxed; it names the choice.
        """
        check_relaxable(model)
        labels = set(model.simplify())
        if not labels:
            raise SpaceError("a search needs at least one choice, got a space without any; add a LayerChoice.")
        fused = self.step.execution == "auto" and (self.step.compile or self.step.cuda_graphs)
        execution: Execution = "fused" if fused else self.step.execution
        self._binding, self._costs = Binding(execution, self.guards, self.step.partial_channels), {}
        # DARTS.mutate_model would make architecture parameters of its own, which nothing here uses.
        supernet = super(DARTS, self).mutate_model(model)
        if self.step.execution != "plain":
            self._order_of_images = supernet.register_forward_pre_hook(images_channels_last)
        supernet.register_forward_hook(self._binding.heads.forget, always_call=True)
        if self.step.partial_channels > 1 and not any(getattr(m, "partial", False) for m in supernet.modules()):
            raise SpaceError(
                f"partial_channels needs operations on images that keep a number of channels divisible by it, got "
                f"{self.step.partial_channels} and no such choice; leave it out."
            )
        if unknown := sorted(set(self.guards.without) - self._binding.left_out):
            raise SpaceError(f"`without` must name options of the space, but no choice has {unknown}; leave them out.")
        covered = {label for unit in self._binding.units.values() for label in _sample_labels(unit)}
        if missing := sorted(labels - covered):
            raise SpaceError(
                f"every choice must belong to a module that can be relaxed, but {missing} do not; use LayerChoice, "
                "InputChoice, Cell, Repeat or NNI's mutable operations, or remove them."
            )
        per_object = {"lambda_per": self.step.lambda_per, "draw_per": self.step.draw_per}
        if not self._depends_on_lambda:
            del per_object["lambda_per"]
        for option in [name for name, value in per_object.items() if value == "object"]:
            if self._binding.single_lambda:
                raise SpaceError(
                    "operations with mutable arguments cannot carry weights for every object, but the space has "
                    f"{self._binding.single_lambda[0]}; set {option}='step'."
                )
        units = list(self._binding.units.values())
        check_keep(units, self.step.keep_options)
        options = {"prunes": bool(self.step.keep_options), **self._structure_options}
        self._structure = Structure(units, seed=self.seed, **options)
        return supernet

    def check_device(self, device: str) -> None:
        """Raise ConfigError if the search cannot run on a device, "cpu" or "cuda", compiled or recorded."""
        if self.step.compile:
            check_compiler(device)
        if self.step.cuda_graphs:
            check_cuda_graphs(device)

    def mutate_evaluator(self, evaluator: Any) -> Any:
        """Learn the shape of an object before the search module is built."""
        self.check_device(evaluator.trainer.strategy.root_device.type)
        if self.input_shape is None:
            loader = evaluator.train_dataloaders
            if loader is None and evaluator.datamodule is not None:
                loader = evaluator.datamodule.train_dataloader()
            self.input_shape = object_shape(loader)
        return super().mutate_evaluator(evaluator)

    def configure_oneshot_module(self, training_module: Any) -> BilevelModule:
        """The search module."""
        assert self.input_shape is not None
        self.measure(self._mutating, self.input_shape)
        self.check_order(self._mutating, self.input_shape)
        module = self.module_class(
            training_module,
            structure=self.structure,
            binding=self._binding,
            sizes=self.size_control,
            step=self.step,
            validation_points=self.validation_points,
            arc_weight_decay=self.arc_weight_decay,
            seed=self.seed,
            warmup_epochs=self.warmup_epochs,
            arc_learning_rate=self.arc_learning_rate,
            gradient_clip_val=self.gradient_clip_val,
            **self.module_options(),
        )
        module.replica = self.replica
        return module

    def module_options(self) -> dict[str, Any]:
        """Further arguments of the search module."""
        return {}

    def _initialize(self, model_space: Any, engine: Any) -> Any:
        self._mutating = model_space.model_space
        return super()._initialize(model_space, engine)

    def beside(self, member: Member, shared: dict[str, Any]) -> None:
        """Search side by side with other searches of the same space, from the next call on.

        Args:
            member: Which of them this one is.
            shared: A dict that the strategies of all have in common, empty at first.

        Raises:
            ConfigError: As `check_beside`.
        """
        self.check_beside()
        self.replica = Replica(member, shared.setdefault("stacked", Stacked(self.template)))

    def check_beside(self) -> None:
        """Raise ConfigError if the search cannot run side by side with others: gradients of order 2 cannot."""
        if self.step.order == 2:
            raise ConfigError(
                "searches side by side need order 1, got order 2; set search.replicas to 1, or order to 1."
            )
        for name in ("compile", "cuda_graphs"):
            if getattr(self.step, name):
                raise ConfigError(
                    f"searches side by side can be neither compiled nor recorded, got {name} true; "
                    "set search.replicas to 1, or leave it out."
                )
        if self.step.partial_channels > 1 or self.step.keep_options:
            raise ConfigError(
                "searches side by side see all channels and options, got partial_channels "
                f"{self.step.partial_channels} and keep_options {list(self.step.keep_options)}; set search.replicas to "
                "1, or leave them out."
            )

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.replica.attached(self._mutating, self._binding.for_mixture))
            stack.enter_context(self.fast_passes(self._mutating))
            super()._run()

    @contextlib.contextmanager
    def fast_passes(self, supernet: nn.Module) -> Iterator[None]:
        """Inside the block the passes of the mixture are compiled or recorded, if they are to be."""
        with contextlib.ExitStack() as stack:
            if self.step.compile:
                stack.enter_context(compiled(supernet, self._binding))
            if self.step.cuda_graphs:
                stack.enter_context(graphed(supernet, self._binding))
            yield

    def val_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        """The validation data, once per position of lambda."""
        loader = val_dataloader_fn()
        if isinstance(loader, dict) and set(loader) == {"structure", "validation"}:
            loader = loader["validation"]
        return loader if len(self.validation_points) == 1 else [loader] * len(self.validation_points)

    def train_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        """Batches for both steps: {"train", "val"}."""
        structure = val_dataloader_fn()
        if isinstance(structure, dict) and set(structure) == {"structure", "validation"}:
            structure = structure["structure"]
        return {"train": train_dataloader_fn(), "val": structure}

    @property
    def batches_per_step(self) -> int:
        """Batches that a step of the weights takes."""
        return 1

    @property
    def lambda_weights(self) -> LambdaWeights | None:
        """The supernet's weights as functions of lambda; None where they are not."""
        return None

    def settle(self, lam: float | None = None) -> None:
        """Give the supernet the weights at lambda; where they do not depend on it, nothing happens."""

    # -- results ---------------------------------------------------------------------------------------------------

    @property
    def structure(self) -> Structure:
        """The distribution over structures; available once the space is mutated."""
        if self._structure is None:
            raise RuntimeError("the structure exists only after the model space was mutated; run the strategy first.")
        return self._structure

    def units_at_the_end(self) -> list[law.Unit]:
        """What is chosen, with as many options as the search leaves."""
        keep = self.step.keep_options
        return [left_of(unit, keep[-1]) if keep else unit for unit in self.structure.units]

    @property
    def _depends_on_lambda(self) -> bool:
        return self._structure_options.get("axis") is not None

    @property
    def cost(self) -> CostModel:
        """Cost of every part of the space, of the kind that the strategy controls."""
        return self._costs[self.cost_kind]

    def cost_of(self, kind: CostKind) -> CostModel:
        """Cost of every part of the space, of either kind; available once it is measured."""
        return self._costs[kind]

    def measure(self, supernet: nn.Module, input_shape: Sequence[int]) -> dict[CostKind, CostModel]:
        """Cost of every part of the supernet; also finds the cheapest and the dearest architecture."""
        first = not self._costs
        self._binding.parts, parts = 1, self._binding.parts  # what an operation costs is that of the whole one
        try:
            self._costs = cost_models(supernet, self._binding, input_shape, self.latency_table)
        except RuntimeError:
            if self._order_of_images is None:
                raise
            # A network that takes images apart as they lie in memory, by `view` say, wants them as they come.
            self._order_of_images.remove()
            self._order_of_images = None
            self._binding.parts = parts
            return self.measure(supernet, input_shape)
        finally:
            self._binding.parts = parts
        self._counts = NetworkCounts(supernet, input_shape)
        units = list(self._binding.units.values())
        bounds = [extreme_architecture(self.cost, units, sign)[1] for sign in (-1.0, 1.0)]
        if not bounds[0] < bounds[1] and self.loss.complexity != "none":
            raise SpaceError(
                "complexity control needs architectures of different cost, but all cost "
                f"{bounds[0]:g} {self.cost_kind}; "
                "add operations of other sizes, or search with RegularizedDARTS and penalty=0."
            )
        self.cost_bounds = (bounds[0], bounds[1] if bounds[1] > bounds[0] else bounds[0] + 1.0)
        if first:  # later the prices are those of the search
            self.structure.set_costs(self.cost)
            self.size_control.solve(TEMPERATURE_SCHEDULES[self.step.temperature_schedule](self.loss.temperature, 0.0))
        return self._costs

    def check_order(self, supernet: nn.Module, input_shape: Sequence[int]) -> None:
        """Refuse operations without a double backward, where the structure step differentiates through them.

        Raises:
            SpaceError: Names operation and module.
        """
        if self.step.order == 2 and self.step.second_order == "exact":
            self._binding.weights = self.structure.mean(None)
            check_double_backward(supernet, torch.zeros(2, *input_shape))

    @property
    def size_control(self) -> SizeControl:
        """Cost on the scale from the cheapest to the dearest architecture, and what keeps it on its targets."""
        return SizeControl(NormalizedCost(self.structure, self.cost, self.cost_bounds), self.loss, self.step.ramp)


def _sample_labels(unit: Any) -> list[str]:
    if isinstance(unit, law.Node):
        return [f"{unit.cell}/{kind}_{unit.index}_{k}" for kind in ("op", "input") for k in range(unit.n_chosen)]
    return [unit.label]
