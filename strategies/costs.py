"""Cost of every part of a supernet: the walk over NNI's mutables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from nni.mutable import MutableExpression
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.expected import CostModel, CostTerm
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.errors import SpaceError

from .supernet import Binding, MixedCell, MixedLayer, MixedRepeat

CostKind = Literal["params", "macs"]
_Gates = dict[str, frozenset[int]]
_MAX_COMBINATIONS = 4096


def uniform_weights(units: Sequence[law.Unit]) -> dict[str, Tensor]:
    """Equal mixing weights for every unit, as a binding holds them."""
    weights = {}
    for unit in units:
        rows, width = unit.shape
        full = torch.full((rows, width), 1.0 / width)
        weights[unit.label] = full if isinstance(unit, law.Node) else full[0]
    return weights


def cost_models(model: nn.Module, binding: Binding, input_shape: Sequence[int]) -> dict[CostKind, CostModel]:
    """Parameters and multiply-accumulates of every part of a supernet, measured on its real modules and shapes.

    Args:
        model: The supernet, as `mutate_model` left it.
        binding: Its binding; the weights are replaced during the measurement.
        input_shape: Shape of one object, without the batch axis.
    """
    units = list(binding.units.values())
    macs = _own_macs(model, binding, input_shape)
    walk = _Walk(units, macs)
    walk.visit(model, {})
    n_options = tuple(law.n_options(unit) for unit in units)
    return {
        "params": CostModel(tuple(walk.terms["params"]), walk.constant["params"], n_options, walk.kind),
        "macs": CostModel(tuple(walk.terms["macs"]), walk.constant["macs"], n_options, walk.kind),
    }


def extreme_architecture(cost: CostModel, units: Sequence[law.Unit], sign: float) -> tuple[dict[str, Any], float]:
    """The cheapest (sign -1) or dearest (sign +1) architecture and its cost, by best responses of single units.

    Exact where the cost is a sum over units; a local optimum where units multiply (nested choices).
    """
    samples = [law.derive(unit, torch.ones(unit.shape)) for unit in units]
    value = None
    for _ in range(20):
        for i, unit in enumerate(units):
            marginals = [law.one_hot(u, s).double() for u, s in zip(units, samples, strict=True)]
            marginals[i].requires_grad_(True)
            expected = cost.expected(marginals)
            if not expected.requires_grad:
                continue
            (gain,) = torch.autograd.grad(expected, marginals[i])
            samples[i] = law.best_response(unit, sign * gain)
        new = float(cost.expected([law.one_hot(u, s).double() for u, s in zip(units, samples, strict=True)]))
        if new == value:
            break
        value = new
    assert value is not None
    return {label: choice for sample in samples for label, choice in sample.items()}, value


def _own_macs(model: nn.Module, binding: Binding, input_shape: Sequence[int]) -> dict[nn.Module, int]:
    """Multiply-accumulates that each module performs itself, outside its children, for one object."""
    own: dict[nn.Module, int] = {}
    stack: list[list[int]] = []
    counter = FlopCounterMode(display=False)

    def enter(module: nn.Module, args: Any) -> None:
        stack.append([counter.get_total_flops(), 0])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        start, inside = stack.pop()
        total = counter.get_total_flops() - start
        own[module] = own.get(module, 0) + (total - inside) // 2
        if stack:
            stack[-1][1] += total

    handles = []
    for module in model.modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    training = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    binding.weights = {label: w.to(parameter) for label, w in uniform_weights(list(binding.units.values())).items()}
    model.eval()
    try:
        with torch.no_grad(), counter:
            model(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return own


class _Walk:
    def __init__(self, units: Sequence[law.Unit], macs: dict[nn.Module, int]) -> None:
        self.index = {unit.label: i for i, unit in enumerate(units)}
        self.units = {unit.label: unit for unit in units}
        self.macs = macs
        self.kind = "exact"
        self.terms: dict[str, list[CostTerm]] = {"params": [], "macs": []}
        self.constant: dict[str, float] = {"params": 0.0, "macs": 0.0}
        self._seen: set[int] = set()

    def visit(self, module: nn.Module, gates: _Gates) -> None:
        if isinstance(module, MixedOperation):
            self._mixed_operation(module, gates)
            return
        own = [p for p in module._parameters.values() if p is not None and id(p) not in self._seen]
        self._seen.update(id(p) for p in own)
        self._add(gates, sum(p.numel() for p in own), self.macs.get(module, 0))
        if isinstance(module, MixedLayer):
            for position, name in enumerate(module.names):
                self._descend(module[name], gates, [{module.label: frozenset([position])}])
        elif isinstance(module, MixedRepeat):
            for depth, block in enumerate(module.blocks, start=1):
                self._descend(block, gates, list(self._combinations(module.depth_choice, depth)))
        elif isinstance(module, MixedCell):
            for node in module.nodes:
                for edge in range(node.index):
                    for position, operation in enumerate(module.edge_operations(node, edge).values()):
                        option = edge * len(node.operations) + position
                        self._descend(operation, gates, [{node.label: frozenset([option])}])
            for child in (module.preprocessor, module.postprocessor):
                if isinstance(child, nn.Module):
                    self.visit(child, gates)
        else:
            for child in module.children():
                self.visit(child, gates)

    def _descend(self, module: nn.Module, gates: _Gates, alternatives: list[_Gates]) -> None:
        seen = set(self._seen)
        for extra in alternatives:
            joined = _join(gates, extra)
            if joined is not None:
                self._seen = set(seen)
                self.visit(module, joined)

    def _combinations(self, depth: Any, at_least: int) -> Iterator[_Gates]:
        specs = depth.simplify()
        if len(specs) == 1:
            ((label, spec),) = specs.items()
            deep = [i for i, v in enumerate(spec.values) if _evaluate(depth, {label: v}) >= at_least]
            yield {label: frozenset(deep)}
            return
        for values in _product(specs):
            if _evaluate(depth, values) >= at_least:
                yield self._single(values)

    def _single(self, values: dict[str, Any]) -> _Gates:
        gates = {}
        for label, value in values.items():
            unit = self.units[label]
            assert isinstance(unit, law.Choice)
            gates[label] = frozenset([unit.options.index(value)])
        return gates

    def _mixed_operation(self, module: MixedOperation, gates: _Gates) -> None:
        self.kind = "multilinear"
        dearest = max(count_parameters(module), 1)
        macs = sum(self.macs.get(m, 0) for m in module.modules())
        for values in _product(module.simplify()):
            joined = _join(gates, self._single(values))
            if joined is None:
                continue
            # MixedOperation.freeze of NNI v3.0 fails where there is no bias.
            chosen = {name: argument.freeze(values) for name, argument in module.mutable_arguments.items()}
            with torch.device("meta"):
                params = count_parameters(module.bound_type(**{**module.init_arguments, **chosen}))
            # Convolutions and products cost in proportion to their weights at a given output size.
            self._add(joined, params, round(macs * params / dearest))

    def _add(self, gates: _Gates, params: int, macs: int) -> None:
        for kind, cost in (("params", params), ("macs", macs)):
            if not cost:
                continue
            if gates:
                ordered = tuple(sorted((self.index[label], tuple(sorted(opts))) for label, opts in gates.items()))
                self.terms[kind].append(CostTerm(ordered, float(cost)))
            else:
                self.constant[kind] += cost


def _join(gates: _Gates, extra: _Gates) -> _Gates | None:
    """Both conditions; None if they exclude each other."""
    joined = dict(gates)
    for label, options in extra.items():
        joined[label] = joined.get(label, options) & options
        if not joined[label]:
            return None
    return joined


def _evaluate(expression: Any, values: dict[str, Any]) -> Any:
    return expression.freeze(values) if isinstance(expression, MutableExpression) else expression


def _product(specs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    total = 1
    for spec in specs.values():
        total *= len(spec.values)
    if total > _MAX_COMBINATIONS:
        raise SpaceError(
            f"one operation may depend on at most {_MAX_COMBINATIONS} combinations of choices to be costed, "
            f"got {total} for {sorted(specs)}; use fewer options."
        )
    for combination in itertools.product(*(spec.values for spec in specs.values())):
        yield dict(zip(specs, combination, strict=True))
