"""NNI's cell as a supernet in which every edge carries the weighted sum of its operations."""

from __future__ import annotations

import functools
from typing import Any

import torch
from nni.nas.nn.pytorch import Cell
from nni.nas.nn.pytorch.cell import preprocess_cell_inputs
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell
from nni.nas.space import model_context
from torch import Tensor, nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.combine import mix
from nni_bayes_nas.layers.narrow import Narrow, parted, rejoined

from .fused import FusedNodes
from .guards import has_normalization, normalized
from .stacked import StackedNodes
from .supernet import Binding, Mixed, can_be_partial, is_one, with_identity


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
        self._fused: tuple[Any, FusedNodes] | None = None
        self._narrow: Narrow | None = None
        self.stacked: StackedNodes | None = None
        self.nodes: list[law.Node] = []
        self.options = self._binding.options(self.op_names, label)
        if self._binding.guards.normalize:
            for operations in (edge for node in self.ops for edge in node):
                for name in self.options:
                    if not has_normalization(operations[name]):
                        operations[name] = normalized(operations[name])
        every = [operations[name] for node in self.ops for operations in node for name in self.options]
        self.partial = can_be_partial(every, self._binding.parts)
        for index in self.output_node_indices:
            if num_ops_per_node > index:
                raise SpaceError(
                    f"a node of a cell must have at least as many inputs as it keeps, but node {index} of `{label}` "
                    f"has {index} and keeps {num_ops_per_node}; use more predecessors or fewer operations per node."
                )
            node = law.Node(label, index, self.options, num_ops_per_node)
            self._binding.add(node)
            self.nodes.append(node)

    @classmethod
    def mutate(cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        """NNI's mutation hook; a cell without an operation factory is left to its LayerChoices and InputChoices."""
        cell = super().mutate(module, name, memo, mutate_kwargs)
        if cell is not None:
            cell.merge_op = module.merge_op
        return cell

    resample = Mixed.resample
    export = Mixed.export
    export_probs = Mixed.export_probs

    def edge_operations(self, node: law.Node, edge: int) -> dict[str, nn.Module]:
        """The candidate operations of an edge, by name."""
        return self._of_edge(self.ops, node, edge)

    def _of_edge(self, ops: Any, node: law.Node, edge: int) -> dict[str, nn.Module]:
        operations = ops[node.index - self.num_predecessors][edge]
        return {name: operations[name] for name in self.options}

    def _now(self) -> tuple[int, Any]:
        """Of how many parts of the channels the operations see the first, and these operations."""
        if not (self.partial and self._binding.parts > 1):
            return 1, self.ops
        if self._narrow is None:
            self._narrow = Narrow(self.ops, self._binding.parts)
        return self._binding.parts, self._narrow()

    def _fuses(self, states: list[Any]) -> bool:
        if self._binding.execution == "plain" or self._binding.kept is not None:
            return False
        if self.stacked is not None:
            return all(isinstance(state, Tensor) and state.dim() == 4 for state in states)
        return all(is_one(state) for state in states) and self._binding.fuses(states[0])

    def forward(self, *inputs: Any) -> Any:
        """Every node sums the weighted operations of all its incoming edges."""
        given = preprocess_cell_inputs(self.num_predecessors, *inputs)
        states = list(self.preprocessor(given))
        if self._fuses(states):
            if self.stacked is not None:
                merged = self.stacked(states, self._binding.weights, self._binding.auxiliary)
                return self.postprocessor(merged, given)
            fused = self._fused_nodes()
            stack = self._binding.stacks(states[0])
            states = fused(states, self._binding.weights, stack=stack, auxiliary=self._binding.auxiliary)
            return self.postprocessor(torch.cat(states[self.num_predecessors :], self.concat_dim), given)
        parts, ops = self._now()
        for node in self.nodes:
            node_of = self._kept_node if self._binding.kept is not None else self._mixed_node
            states.append(node_of(node, states, parts, ops))
        merged = torch.cat(states[self.num_predecessors :], self.concat_dim)
        return self.postprocessor(merged, given)

    def _fused_nodes(self) -> FusedNodes:
        parts, ops = self._now()
        form = parts, self._binding.pruned
        if self._fused is None or self._fused[0] != form:
            operations = functools.partial(self._of_edge, ops)
            self._fused = form, FusedNodes(self.nodes, operations, parts=parts, pruned=self._binding.pruned)
        return self._fused[1]

    def _kept_node(self, node: law.Node, states: list[Any], parts: int, ops: Any) -> Any:
        pairs, names = self._binding.kept[node.label], node.operations  # type: ignore[index]
        inputs = {edge: parted(states[edge], parts) if parts > 1 else (states[edge], None) for edge, _ in pairs}
        terms = [self._of_edge(ops, node, edge)[names[o]](inputs[edge][0]) for edge, o in pairs]
        total = functools.reduce(torch.add, terms)
        others = [rest for _, rest in inputs.values() if rest is not None]
        return rejoined(total, others, [total.new_ones(())] * len(others)) if parts > 1 else total

    def _mixed_node(self, node: law.Node, states: list[Any], parts: int, ops: Any) -> Any:
        by_edge = self._binding.weights[node.label].unbind(-2)
        pruned = self._binding.pruned.get(node.label, frozenset())
        inputs = [parted(state, parts) if parts > 1 else (state, None) for state in states[: node.index]]
        outputs, weights = [], []
        for edge, edge_weights in enumerate(by_edge):
            candidates = self._of_edge(ops, node, edge).values()
            for i, (weight, operation) in enumerate(zip(edge_weights.unbind(-1), candidates, strict=False)):
                if (edge, i) not in pruned:
                    outputs.append(operation(inputs[edge][0]))
                    weights.append(weight)
        mixed = mix(outputs, weights)
        for state, _ in inputs:
            mixed = with_identity(mixed, state, self._binding.auxiliary)
        if parts > 1:
            kept = [w[..., : len(node.operations)].sum(-1) for w in by_edge]
            return rejoined(mixed, [rest for _, rest in inputs if rest is not None], kept)
        return mixed

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


__all__ = ["MixedCell"]
