"""The walk over NNI's mutables: which part of a supernet is there under which choices, and what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from nni.mutable import MutableExpression
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.expected import CostTerm
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.variational import Variational

from .mixed_cell import MixedCell
from .supernet import Binding, MixedInput, MixedLayer, MixedRepeat

CostKind = Literal["params", "macs", "latency"]
CHOICES = (MixedLayer, MixedInput, MixedRepeat, MixedCell, MixedOperation)
_Gates = dict[str, frozenset[int]]
_MAX_COMBINATIONS = 4096


@dataclass(frozen=True)
class Candidate:
    """What a latency table has an entry for: a module whose presence, or size, is a matter of choice.

    Attributes:
        place: Label of the choice or of the cell; of an operation with mutable arguments, its name in the model.
        name: Name of the candidate; `block_3` for the third block of a repeat; `MutableConv2d(kernel=3)` for an
            operation with mutable arguments, with the values of all labels that it depends on.
        module: The candidate itself, in the supernet.
        arguments: The chosen arguments of an operation with mutable arguments.
    """

    place: str
    name: str
    module: nn.Module
    arguments: dict[str, Any] | None = None

    @property
    def needs_an_entry(self) -> bool:
        """Whether it costs time beside the choices inside it, which have entries of their own."""
        return self.arguments is not None or not isinstance(self.module, CHOICES)


def uniform_weights(units: Sequence[law.Unit]) -> dict[str, Tensor]:
    """Equal mixing weights for every unit, as a binding holds them."""
    weights = {}
    for unit in units:
        rows, width = unit.shape
        full = torch.full((rows, width), 1.0 / width)
        weights[unit.label] = full if isinstance(unit, law.Node) else full[0]
    return weights


@dataclass(frozen=True)
class Probe:
    """What one pass of one object through a supernet shows.

    Attributes:
        macs: Multiply-accumulates that each module performs itself, outside its children.
        inputs: Arguments of the first call of each module.
    """

    macs: dict[nn.Module, int]
    inputs: dict[nn.Module, tuple[Any, ...]]


def shape_key(inputs: tuple[Any, ...] | None) -> str | None:
    """Shape of one object of the first tensor among the inputs of a module, as `16x8x8`; None if there is none."""
    for value in inputs or ():
        if isinstance(value, Tensor):
            return "x".join(str(n) for n in value.shape[1:])
        if isinstance(value, (list, tuple)) and (key := shape_key(tuple(value))) is not None:
            return key
    return None


def probe_supernet(model: nn.Module, binding: Binding, input_shape: Sequence[int], batch_size: int = 1) -> Probe:
    """One pass of zeros through a supernet with equal mixing weights, which it leaves in the binding.

    Args:
        model: The supernet; its training modes and statistics are left as they are.
        binding: Its binding.
        input_shape: Shape of one object, without the batch axis.
        batch_size: Objects in the pass; multiply-accumulates are of all of them.
    """
    own: dict[nn.Module, int] = {}
    inputs: dict[nn.Module, tuple[Any, ...]] = {}
    stack: list[list[int]] = []
    counter = FlopCounterMode(display=False)

    def enter(module: nn.Module, args: Any) -> None:
        inputs.setdefault(module, args)
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
            model(torch.zeros(batch_size, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return Probe(own, inputs)


class CostWalk:
    """Adds up what every part of a supernet costs, with the choices under which the part is there.

    Attributes:
        terms: Parts whose presence is a matter of choice, by kind.
        constant: Cost of what is always there, by kind.
        kind: As in `CostModel`.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[law.Unit],
        macs: dict[nn.Module, int],
        latency: Callable[[Candidate], float] | None,
    ) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.index = {unit.label: i for i, unit in enumerate(units)}
        self.units = {unit.label: unit for unit in units}
        self.macs = macs
        self.latency = latency
        self.kind = "exact"
        self.terms: dict[CostKind, list[CostTerm]] = {"params": [], "macs": [], "latency": []}
        self.constant: dict[CostKind, float] = {"params": 0.0, "macs": 0.0, "latency": 0.0}
        self._seen: set[int] = set()
        # Of candidates that the module at hand is in; and of every parameter where it was met first.
        self._inside: tuple[tuple[str, str], ...] = ()
        self._first: dict[int, tuple[tuple[str, str], ...]] = {}
        self._sizes: dict[Any, int] = {}

    def visit(self, module: nn.Module, gates: _Gates) -> None:
        """Add a module, and what is inside it, that is there under these conditions: label -> options."""
        if isinstance(module, MixedOperation):
            self._mixed_operation(module, gates)
            return
        # A Gaussian weight is one weight of the network that is derived.
        left_out = "rho" if isinstance(module, Variational) else None
        parameters = [p for name, p in module._parameters.items() if p is not None and name != left_out]
        for p in parameters:
            first = self._first.setdefault(id(p), self._inside)
            if first != self._inside[: len(first)]:
                raise SpaceError(
                    "an option must have modules of its own, or it would be there, and cost, by another choice, but "
                    f"{first[-1][0]} has those of {self._inside[-1][0] if self._inside else 'what is always there'}; "
                    "give each its own."
                )
        own = [p for p in parameters if id(p) not in self._seen]
        self._seen.update(id(p) for p in own)
        self._add(gates, {"params": sum(p.numel() for p in own), "macs": self.macs.get(module, 0)})
        if isinstance(module, MixedLayer):
            for position, name in enumerate(module.options):
                candidate = Candidate(module.label, str(name), module[name])
                self._descend(candidate, gates, [{module.label: frozenset([position])}])
        elif isinstance(module, MixedRepeat):
            label = ",".join(module.depth_choice.simplify())
            if module.align is not None:
                # What follows is built to the depth that was chosen; in the supernet it is one for all depths.
                self.kind = "multilinear"
            for depth, block in enumerate(module.blocks, start=1):
                candidate = Candidate(label, f"block_{depth}", block)
                self._descend(candidate, gates, list(self._combinations(module.depth_choice, depth)))
        elif isinstance(module, MixedCell):
            for node in module.nodes:
                for edge in range(node.index):
                    for position, (name, operation) in enumerate(module.edge_operations(node, edge).items()):
                        option = edge * len(node.operations) + position
                        candidate = Candidate(node.cell, name, operation)
                        self._descend(candidate, gates, [{node.label: frozenset([option])}])
            for child in (module.preprocessor, module.postprocessor):
                if isinstance(child, nn.Module):
                    self.visit(child, gates)
        else:
            for child in module.children():
                self.visit(child, gates)

    def _descend(self, candidate: Candidate, gates: _Gates, alternatives: list[_Gates]) -> None:
        seen, outside = set(self._seen), self._inside
        self._inside = (*outside, (f"{candidate.place}/{candidate.name}", str(alternatives)))
        latency = self.latency(candidate) if self.latency is not None else 0.0
        for extra in alternatives:
            joined = _join(gates, extra)
            if joined is not None:
                self._seen = set(seen)
                self._add(joined, {"latency": latency})
                self.visit(candidate.module, joined)
        self._inside = outside

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
        arguments = {name: _Frozen(argument) for name, argument in module.mutable_arguments.items()}
        for values in _product(module.simplify()):
            joined = _join(gates, self._single(values))
            if joined is None:
                continue
            # MixedOperation.freeze of NNI v3.0 fails where there is no bias.
            chosen = {name: argument(values) for name, argument in arguments.items()}
            params = self._size(module, chosen)
            latency = 0.0
            if self.latency is not None:
                name = f"{module.bound_type.__name__}({','.join(f'{k}={v}' for k, v in values.items())})"
                latency = self.latency(Candidate(self.names[module], name, module, chosen))
            # Convolutions and products cost in proportion to their weights at a given output size.
            costs: dict[CostKind, float] = {
                "params": params,
                "macs": round(macs * params / dearest),
                "latency": latency,
            }
            self._add(joined, costs)

    def _size(self, module: MixedOperation, chosen: dict[str, Any]) -> int:
        """Parameters of an operation with the chosen arguments; equal ones are built once."""
        arguments = {**module.init_arguments, **chosen}
        key = (module.bound_type, repr(sorted(arguments.items())))
        if key not in self._sizes:
            with torch.device("meta"):
                self._sizes[key] = count_parameters(module.bound_type(**arguments))
        return self._sizes[key]

    def _add(self, gates: _Gates, costs: Mapping[CostKind, float]) -> None:
        for kind, cost in costs.items():
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


class _Frozen:
    """Values of an expression; NNI takes a millisecond for each, and most choices do not matter to it."""

    def __init__(self, expression: Any) -> None:
        self.expression = expression
        self.labels = list(expression.simplify())
        self.known: dict[tuple[Any, ...], Any] = {}

    def __call__(self, values: dict[str, Any]) -> Any:
        key = tuple(values[label] for label in self.labels)
        if key not in self.known:
            self.known[key] = self.expression.freeze(values)
        return self.known[key]


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
