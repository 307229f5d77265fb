"""Mixed modules: NNI's mutables turned into a supernet whose mixing weights come from one place.

NNI's own differentiable modules (nni/nas/oneshot/pytorch/supermodule/differentiable.py, v3.0) each hold their
architecture parameters and take their own softmax. Here every module looks its weights up in a `Binding`, which
a step fills once: modules that share a label share the draw, and weights may have a leading batch axis.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, Repeat
from nni.nas.nn.pytorch.base import MutableModule
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation, MixedOperationSamplingPolicy
from torch import Tensor, nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.combine import mix
from nni_bayes_nas.layers.memory_format import is_batched
from nni_bayes_nas.layers.narrow import Narrow, can_be_narrow, parted, rejoined

from .expressions import ExpressionTable
from .fused import Execution, FusedLayer, SharedHeads
from .guards import Guards, has_normalization, normalized


class Binding:
    """What the mixed modules of one supernet share: the units of its structure and the current mixing weights.

    Attributes:
        units: In the order in which the modules were met; a shared label occurs once.
        weights: By unit label; `(options,)` or `(batch, options)`, for a node `(edges, operations)` or
            `(batch, edges, operations)`; a further column, for "none", is not looked at.
        kept: While one architecture runs: by unit label the (row, option) pairs that it keeps. Nothing else is
            evaluated then. None while the weights mix.
        joint: Whether the network's parameters learn in the same passes as the structure.
        n_passes: Passes with mixing weights of their own of which the running loss is the mean.
        single_lambda: Names of modules that cannot carry weights with a batch axis.
        execution: "plain": operation by operation; "fused" and "auto": see `fused`.
        stack: Whether what is fused runs equal operations as one; None: where a call costs more than its work, on GPUs.
        heads: What the mixed layers of a pass share.
        guards: Against collapse.
        auxiliary: Weight, in the next pass with mixing weights, of the identity that `guards` may add to every edge.
        kind: Equal for supernets that one can stand for: they differ in their tensors alone.
        left_out: Options that the guards have kept out of choices.
        parts: Of so many equal parts of the channels the operations see the first; 1: they see all.
        pruned: By unit label the (row, option) pairs that are not evaluated any more.
    """

    def __init__(self, execution: Execution = "auto", guards: Guards | None = None, parts: int = 1) -> None:
        self.execution: Execution = execution
        self.guards = guards or Guards()
        self.auxiliary = self.guards.auxiliary
        self.parts = parts
        self.pruned: dict[str, frozenset[tuple[int, int]]] = {}
        self.kind: Hashable = (execution, self.guards, parts)
        self.left_out: set[str] = set()
        self.stack: bool | None = None
        self.heads = SharedHeads()
        self.units: dict[str, law.Unit] = {}
        self.weights: dict[str, Tensor] = {}
        self.kept: dict[str, list[tuple[int, int]]] | None = None
        self.single_lambda: list[str] = []
        self.joint = False
        self.n_passes = 1

    @contextlib.contextmanager
    def only(self, choices: Mapping[str, Any], like: Tensor) -> Iterator[None]:
        """Run one architecture inside the block, an NNI sample, at its own cost instead of the supernet's.

        Args:
            choices: The sample.
            like: Gives device and dtype of the weights for modules that know no shortcut.
        """
        before = self.weights
        self.weights = self.weights_of(choices, like)
        rows = {k: w if w.dim() == 2 else w.unsqueeze(0) for k, w in self.weights.items()}
        self.kept = {k: [(i, j) for i, j in w.nonzero().tolist()] for k, w in rows.items()}
        try:
            yield
        finally:
            self.weights, self.kept = before, None

    def weights_of(self, choices: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
        """Mixing weights, 0 or 1, of one architecture, an NNI sample, as `weights` are; of the type of a tensor."""
        one_hot = {label: law.one_hot(unit, dict(choices)).to(like) for label, unit in self.units.items()}
        return {k: w if isinstance(self.units[k], law.Node) else w[0] for k, w in one_hot.items()}

    def fuses(self, x: Tensor) -> bool:
        """Whether operations on a tensor run fused; alone on a GPU, neither recorded nor compiled, plain is faster."""
        return self.execution == "fused" or (self.execution == "auto" and x.device.type == "cpu")

    def stacks(self, x: Tensor) -> bool:
        """Whether equal operations on a tensor run as one."""
        return x.device.type != "cpu" if self.stack is None else self.stack

    def for_mixture(self) -> tuple[Hashable, dict[str, Tensor]] | None:
        """What supernets that run as one have in common, and the mixing weights of the next pass.

        None where one architecture runs.
        """
        return None if self.kept is not None else ((self.n_passes, self.auxiliary, self.kind), self.weights)

    def options(self, names: Sequence[Any], label: str) -> tuple[Any, ...]:
        """The options of a choice that the guards leave; what they take is noted."""
        kept = self.guards.options(names, label)
        self.left_out.update(str(name) for name in names if name not in kept)
        return kept

    def add(self, unit: law.Unit) -> None:
        """Register a unit; the same label must always mean the same choice."""
        known = self.units.setdefault(unit.label, unit)
        if known != unit:
            raise SpaceError(
                f"one label must mean one choice, but `{unit.label}` stands for {known} and for {unit}; "
                "give the two choices different labels."
            )


class Mixed(BaseSuperNetModule):  # type: ignore[misc]
    """NNI's supernet interface; sampling and export belong to the structure distribution, not to the modules."""

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the step draws for all modules at once."""
        return {}

    def export(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the structure distribution exports."""
        return {}

    def export_probs(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the structure distribution exports."""
        return {}


class MixedLayer(LayerChoice, Mixed):  # type: ignore[misc]
    """LayerChoice whose output is the weighted sum of its candidates'."""

    def __init__(self, candidates: Any, label: str, binding: Binding) -> None:
        super().__init__(candidates, label=label)
        self._binding = binding
        self._fused: tuple[Any, FusedLayer] | None = None
        self._narrow: Narrow | None = None
        self.options = binding.options(self.names, label)
        if binding.guards.normalize:
            for name in self.options:
                if not has_normalization(self[name]):
                    self[name] = normalized(self[name])
        self.partial = can_be_partial([self[name] for name in self.options], binding.parts)
        binding.add(law.Choice(label, self.options))

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook."""
        if type(module) is LayerChoice:
            choice: Any = module
            return cls(choice.candidates, choice.label, mutate_kwargs["binding"])
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Weighted sum of the candidates' outputs."""
        part = self.partial and self._binding.parts > 1
        if not part or len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].dim() != 4:
            return self._of([self[name] for name in self.options], 1, *args, **kwargs)
        if self._narrow is None:
            self._narrow = Narrow(nn.ModuleList(self[name] for name in self.options), self._binding.parts)
        # Layers on one tensor share its parts, and so what their candidates compute first.
        known = self._binding.heads.of(args[0])
        if "first part" not in known:
            known["first part"], known["others"] = parted(args[0], self._binding.parts)
        x, rest = known["first part"], known["others"]
        result = self._of(self._narrow(), self._binding.parts, x)
        return rejoined(result, [rest], [self._passing(x)])

    def _passing(self, x: Tensor) -> Tensor:
        """Weight of the channels that pass the operations by: that of all of them but "none"."""
        none = law.column_of_none(self._binding.units[self.label])
        if self._binding.kept is not None:
            return x.new_full((), float(self._binding.kept[self.label][0][1] != none))
        weights = self._binding.weights[self.label]
        return weights.sum(-1) if none is None else weights.sum(-1) - weights[..., none]

    def _of(self, candidates: Any, parts: int, *args: Any, **kwargs: Any) -> Any:
        if self._binding.kept is not None:
            return candidates[self._binding.kept[self.label][0][1]](*args, **kwargs)
        weights, pruned = self._binding.weights[self.label], self._binding.pruned.get(self.label, frozenset())
        live = [i for i in range(len(self.options)) if (0, i) not in pruned]
        if len(args) == 1 and not kwargs and is_one(args[0]) and self._binding.fuses(args[0]):
            if self._fused is None or self._fused[0] != (parts, live):
                self._fused = (parts, live), FusedLayer({i: candidates[i] for i in live})
            if self._fused[1].recognized:
                stack = self._binding.stacks(args[0])
                result = self._fused[1](args[0], weights, self._binding.heads, stack=stack)
                return with_identity(result, args[0], self._binding.auxiliary)
        by_option = weights.unbind(-1)
        outputs = [candidates[i](*args, **kwargs) for i in live]
        result = mix(outputs, [by_option[i] for i in live])
        return with_identity(result, args[0], self._binding.auxiliary) if args else result


def can_be_partial(candidates: Sequence[nn.Module], parts: int) -> bool:
    """Whether all candidates can work on a part of the channels, and one of them says that there are any.

    Not where choices are within: those are for themselves.
    """
    every = [m for candidate in candidates for m in candidate.modules()]
    if parts == 1 or any(isinstance(m, MutableModule) and m.simplify() for m in every):
        return False
    return any(isinstance(m, nn.Conv2d) for m in every) and all(can_be_narrow(c, parts) for c in candidates)


def with_identity(result: Any, x: Any, auxiliary: float) -> Any:
    """A sum of operations, and their input with the weight of the auxiliary identity, where it has their shape."""
    if auxiliary and isinstance(x, Tensor) and isinstance(result, Tensor) and x.shape == result.shape:
        return result + auxiliary * x
    return result


def is_one(x: Any) -> bool:
    """Whether it is the tensor of one supernet."""
    return isinstance(x, Tensor) and (torch.compiler.is_compiling() or not is_batched(x))


class MixedInput(InputChoice, Mixed):  # type: ignore[misc]
    """InputChoice whose output is the sum (or mean) of its inputs, weighted by their probability to be kept."""

    def __init__(self, n_candidates: int, n_chosen: int, reduction: str, label: str, binding: Binding) -> None:
        super().__init__(n_candidates, n_chosen=n_chosen, reduction=reduction, label=label)
        self._binding = binding
        binding.add(law.Subset(label, tuple(range(n_candidates)), n_chosen))

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook."""
        if type(module) is not InputChoice:
            return None
        if module.reduction not in ("sum", "mean"):
            raise SpaceError(
                f"an InputChoice must reduce by sum or mean to be relaxed, but `{name}` by {module.reduction!r}."
            )
        if module.n_chosen is None:
            raise SpaceError(
                f"an InputChoice must say how many inputs it keeps, but `{name}` has n_chosen=None; give n_chosen."
            )
        choice: Any = module
        return cls(choice.n_candidates, choice.n_chosen, choice.reduction, choice.label, mutate_kwargs["binding"])

    def forward(self, candidate_inputs: list[Tensor]) -> Any:
        """Sum of the inputs, weighted by the probability that each is kept."""
        kept = self._binding.weights[self.label]
        if self.reduction == "mean":
            kept = kept / self.n_chosen
        return mix(candidate_inputs, kept.unbind(-1))


class MixedRepeat(Repeat, Mixed):  # type: ignore[misc]
    """Repeat whose output is the weighted sum of the outputs at its possible depths.

    `align` gives the first of the outputs of the first block the shape that those of the others have: a stage of NNI's
    hub (nni/nas/hub/pytorch/nasnet.py, `NDSStage`) passes on the output of the cell before it.
    """

    def __init__(self, blocks: list[nn.Module], depth: Any, binding: Binding, align: nn.Module | None = None) -> None:
        super().__init__(blocks, depth)
        self._depths = ExpressionTable(depth)
        self.align = align
        self._binding = binding
        for label, spec in depth.simplify().items():
            binding.add(law.Choice(label, tuple(spec.values)))

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook."""
        alignment = getattr(module, "first_cell_transformation_factory", None)
        if not (type(module) is Repeat or (isinstance(module, Repeat) and alignment is not None)):
            return None
        repeat: Any = module
        if isinstance(repeat.depth_choice, int):
            return None
        align = alignment() if alignment is not None else None
        return cls(list(repeat.blocks), repeat.depth_choice, mutate_kwargs["binding"], align)

    def forward(self, x: Tensor) -> Any:
        """Weighted sum of the outputs at every possible depth."""
        by_depth = self._depths.probabilities(self._binding.weights)
        if self._binding.kept is not None:
            return self._one_depth(x, next(d for d, w in by_depth.items() if float(w) > 0), len(by_depth) > 1)
        outputs: list[Any] = []
        kept = []
        if 0 in by_depth:
            outputs.append(x)
            kept.append(by_depth[0])
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth in by_depth:
                if depth == 1 and len(by_depth) > 1 and self.align is not None:
                    outputs.append([self.align(x[0]), *x[1:]])
                else:
                    outputs.append(x)
                kept.append(by_depth[depth])
        return mix(outputs, kept)

    def _one_depth(self, x: Any, depth: int, varies: bool) -> Any:
        for block in list(self.blocks)[:depth]:
            x = block(x)
        return [self.align(x[0]), *x[1:]] if depth == 1 and varies and self.align is not None else x


class MixedOperationPolicy(MixedOperationSamplingPolicy):  # type: ignore[misc]
    """Hands the mixing weights to NNI's operations with mutable arguments (kernel size, channels, ...)."""

    def __init__(self, operation: MixedOperation, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> None:
        self._binding: Binding = mutate_kwargs["binding"]
        self._values = {name: ExpressionTable(argument) for name, argument in operation.mutable_arguments.items()}
        for label, spec in operation.simplify().items():
            self._binding.add(law.Choice(label, tuple(spec.values)))
        self._binding.single_lambda.append(f"{type(operation).__name__}({', '.join(operation.simplify())})")

    def resample(self, operation: MixedOperation, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the step draws for all modules at once."""
        return {}

    def export(self, operation: MixedOperation, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the structure distribution exports."""
        return {}

    def export_probs(self, operation: MixedOperation, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing: the structure distribution exports."""
        return {}

    def forward_argument(self, operation: MixedOperation, name: str) -> Any:
        """The distribution of an argument, value -> weight."""
        if name not in operation.mutable_arguments:
            return operation.init_arguments[name]
        return self._values[name].probabilities(self._binding.weights)


__all__ = [
    "Binding",
    "Mixed",
    "MixedInput",
    "MixedLayer",
    "MixedOperationPolicy",
    "MixedRepeat",
    "can_be_partial",
    "is_one",
    "with_identity",
]
