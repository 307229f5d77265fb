"""Mixed modules: NNI's mutables turned into a supernet whose mixing weights come from one place.

NNI's own differentiable modules (nni/nas/oneshot/pytorch/supermodule/differentiable.py, v3.0) each hold their
architecture parameters and take their own softmax. Here every module looks its weights up in a `Binding`, which
a step fills once: modules that share a label share the draw, and weights may have a leading batch axis.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, Repeat
from nni.nas.nn.pytorch.cell import preprocess_cell_inputs
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation, MixedOperationSamplingPolicy
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell
from nni.nas.space import model_context
from torch import Tensor, nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.combine import mix
from nni_bayes_nas.layers.memory_format import is_batched

from .expressions import ExpressionTable
from .fused import Execution, FusedLayer, FusedNodes, SharedHeads
from .stacked import StackedNodes


class Binding:
    """What the mixed modules of one supernet share: the units of its structure and the current mixing weights.

    Attributes:
        units: In the order in which the modules were met; a shared label occurs once.
        weights: By unit label; `(options,)` or `(batch, options)`, for a node `(edges, operations)` or
            `(batch, edges, operations)`; a further column, for "none", is not looked at.
        kept: While one architecture runs: by unit label the (row, option) pairs that it keeps. Nothing else is
            evaluated then. None while the weights mix.
        n_passes: Passes with mixing weights of their own of which the running loss is the mean.
        single_lambda: Names of modules that cannot carry weights with a batch axis.
        execution: "plain": operation by operation; "fused" and "auto": see `fused`.
        stack: Whether a fused cell runs equal operations as one; None: where a call costs more than its work, on GPUs.
        heads: What the mixed layers of a pass share.
    """

    def __init__(self, execution: Execution = "auto") -> None:
        self.execution: Execution = execution
        self.stack: bool | None = None
        self.heads = SharedHeads()
        self.units: dict[str, law.Unit] = {}
        self.weights: dict[str, Tensor] = {}
        self.kept: dict[str, list[tuple[int, int]]] | None = None
        self.single_lambda: list[str] = []
        self.n_passes = 1

    @contextlib.contextmanager
    def only(self, choices: Mapping[str, Any], like: Tensor) -> Iterator[None]:
        """Run one architecture inside the block, an NNI sample, at its own cost instead of the supernet's.

        Args:
            choices: The sample.
            like: Gives device and dtype of the weights for modules that know no shortcut.
        """
        before = self.weights
        one_hot = {label: law.one_hot(unit, dict(choices)) for label, unit in self.units.items()}
        self.weights = {k: (w if isinstance(self.units[k], law.Node) else w[0]).to(like) for k, w in one_hot.items()}
        self.kept = {k: [(i, j) for i, j in w.nonzero().tolist()] for k, w in one_hot.items()}
        try:
            yield
        finally:
            self.weights, self.kept = before, None

    def for_mixture(self) -> tuple[int, dict[str, Tensor]] | None:
        """Passes of the loss and the mixing weights of the next one; None where one architecture runs."""
        return None if self.kept is not None else (self.n_passes, self.weights)

    def add(self, unit: law.Unit) -> None:
        """Register a unit; the same label must always mean the same choice."""
        known = self.units.setdefault(unit.label, unit)
        if known != unit:
            raise SpaceError(
                f"one label must mean one choice, but `{unit.label}` stands for {known} and for {unit}; "
                "give the two choices different labels."
            )


class _Mixed(BaseSuperNetModule):  # type: ignore[misc]
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


class MixedLayer(LayerChoice, _Mixed):  # type: ignore[misc]
    """LayerChoice whose output is the weighted sum of its candidates'."""

    def __init__(self, candidates: Any, label: str, binding: Binding) -> None:
        super().__init__(candidates, label=label)
        self._binding = binding
        self._fused: FusedLayer | None = None
        binding.add(law.Choice(label, tuple(self.names)))

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook."""
        if type(module) is LayerChoice:
            choice: Any = module
            return cls(choice.candidates, choice.label, mutate_kwargs["binding"])
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Weighted sum of the candidates' outputs."""
        if self._binding.kept is not None:
            return self[self.names[self._binding.kept[self.label][0][1]]](*args, **kwargs)
        weights = self._binding.weights[self.label]
        if self._binding.execution != "plain" and len(args) == 1 and not kwargs and _is_one(args[0]):
            if self._fused is None:
                self._fused = FusedLayer([self[name] for name in self.names])
            if self._fused.recognized:
                return self._fused(args[0], weights, self._binding.heads)
        return mix([self[name](*args, **kwargs) for name in self.names], weights.unbind(-1))


def _is_one(x: Any) -> bool:
    """Whether it is the tensor of one supernet."""
    return isinstance(x, Tensor) and (torch.compiler.is_compiling() or not is_batched(x))


class MixedInput(InputChoice, _Mixed):  # type: ignore[misc]
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


class MixedRepeat(Repeat, _Mixed):  # type: ignore[misc]
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


class MixedCell(PathSamplingCell):  # type: ignore[misc]
    """Cell in which every edge carries the weighted sum of its operations ("none" carries nothing)."""

    merge_op: str

    def __init__(
        self,
        op_factory: Any,
        num_nodes: int,
        num_ops_per_node: int,
        num_predecessors: int,
        preprocessor: Any,
        postprocessor: Any,
        concat_dim: int,
        memo: dict[str, Any],
        mutate_kwargs: dict[str, Any],
        label: str,
    ) -> None:
        super().__init__(
            op_factory,
            num_nodes,
            num_ops_per_node,
            num_predecessors,
            preprocessor,
            postprocessor,
            concat_dim,
            memo,
            mutate_kwargs,
            label,
        )
        self._binding: Binding = mutate_kwargs["binding"]
        self._op_factory = op_factory
        self._fused: FusedNodes | None = None
        self.stacked: StackedNodes | None = None
        self.nodes: list[law.Node] = []
        for index in self.output_node_indices:
            if num_ops_per_node > index:
                raise SpaceError(
                    f"a node of a cell must have at least as many inputs as it keeps, but node {index} of `{label}` "
                    f"has {index} and keeps {num_ops_per_node}; use more predecessors or fewer operations per node."
                )
            node = law.Node(label, index, tuple(self.op_names), num_ops_per_node)
            self._binding.add(node)
            self.nodes.append(node)

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook; a cell without an operation factory is left to its LayerChoices and InputChoices."""
        cell = super().mutate(module, name, memo, mutate_kwargs)
        if cell is not None:
            cell.merge_op = module.merge_op
        return cell

    resample = _Mixed.resample
    export = _Mixed.export
    export_probs = _Mixed.export_probs

    def edge_operations(self, node: law.Node, edge: int) -> dict[str, nn.Module]:
        """The candidate operations of an edge, by name."""
        operations: dict[str, nn.Module] = dict(self.ops[node.index - self.num_predecessors][edge].items())
        return operations

    def _fuses(self, states: list[Any]) -> bool:
        if self._binding.execution == "plain" or self._binding.kept is not None:
            return False
        if self.stacked is not None:
            return all(isinstance(state, Tensor) and state.dim() == 4 for state in states)
        return all(_is_one(state) for state in states)

    def forward(self, *inputs: Any) -> Any:
        """Every node sums the weighted operations of all its incoming edges."""
        given = preprocess_cell_inputs(self.num_predecessors, *inputs)
        states = list(self.preprocessor(given))
        if self._fuses(states):
            if self.stacked is not None:
                return self.postprocessor(self.stacked(states, self._binding.weights), given)
            if self._fused is None:
                self._fused = FusedNodes(self.nodes, self.edge_operations)
            stack = self._binding.stack
            stack = states[0].device.type != "cpu" if stack is None else stack
            states = self._fused(states, self._binding.weights, stack=stack)
            return self.postprocessor(torch.cat(states[self.num_predecessors :], self.concat_dim), given)
        for node in self.nodes:
            if self._binding.kept is not None:
                pairs = self._binding.kept[node.label]
                names = node.operations
                terms = [self.edge_operations(node, edge)[names[o]](states[edge]) for edge, o in pairs]
                states.append(functools.reduce(torch.add, terms))
                continue
            by_edge = self._binding.weights[node.label].unbind(-2)
            outputs, weights = [], []
            for edge, edge_weights in enumerate(by_edge):
                per_operation = edge_weights.unbind(-1)
                for weight, operation in zip(per_operation, self.edge_operations(node, edge).values(), strict=False):
                    outputs.append(operation(states[edge]))
                    weights.append(weight)
            states.append(mix(outputs, weights))
        merged = torch.cat(states[self.num_predecessors :], self.concat_dim)
        return self.postprocessor(merged, given)

    def freeze(self, sample: dict[str, Any]) -> Cell:
        """The cell of an architecture, with the operations trained in this supernet (the same modules)."""
        if self.merge_op != "all":
            raise SpaceError(
                f"the trained weights of cell `{self.label}` fit merge_op='all' only, not {self.merge_op!r}; "
                "freeze a fresh instance of the space instead."
            )
        with model_context(sample):
            cell = Cell(
                self._op_factory,
                self.num_nodes,
                self.num_ops_per_node,
                self.num_predecessors,
                self.merge_op,
                self.preprocessor,
                self.postprocessor,
                self.concat_dim,
                label=self.label,
            )
        for position, node in enumerate(self.nodes):
            for slot in range(node.n_chosen):
                edge = sample[f"{node.cell}/input_{node.index}_{slot}"][0]
                operation = sample[f"{node.cell}/op_{node.index}_{slot}"]
                cell.ops[position][slot] = self.edge_operations(node, edge)[operation]
        return cell


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
    "MixedCell",
    "MixedInput",
    "MixedLayer",
    "MixedOperationPolicy",
    "MixedRepeat",
]
