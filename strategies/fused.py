"""The nodes of a supernet cell at less cost than operation by operation, with the same result.

Over all edges that leave one state of a cell, what they have in common is computed once: the ReLU and the poolings at
the beginning of their operations, and normalizations that have no parameters of their own. Equal operations may run as
one grouped convolution and one batch normalization; so may convolutions that differ in the size of their filters, the
smaller ones with a rim of zeros. Where an operation ends in batch normalization, its mixing weight
is a factor of the scale and shift of that, so that no product with the weight is ever written to memory; all other
terms of a node are added up in one pass (`nni_bayes_nas.layers.combine`).

Operations are recognized by the layers of which they consist: chains of convolution, batch normalization, ReLU and
pooling. What is not, or carries a hook, is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.bayes import law, normal
from nni_bayes_nas.layers.combine import combine
from nni_bayes_nas.layers.convolution import pointwise_conv2d
from nni_bayes_nas.layers.gaussian_output import noisy_output
from nni_bayes_nas.layers.memory_format import is_batched
from nni_bayes_nas.layers.narrow import parted, rejoined
from nni_bayes_nas.layers.variational import Variational
from nni_bayes_nas.precision import in_full

from .chains import Chain, hooked, is_zero, recognize, run_layer

Execution = Literal["auto", "plain", "fused"]


class _Sum:
    """The terms of a node as they come in."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._terms = 0
        self._items: list[Tensor] = []
        self._weights: list[Tensor] = []

    def add(self, term: Tensor) -> None:
        """A term that carries its weight already."""
        if self._total is None:
            self._total = term
        elif self._terms == 1:
            self._total = self._total + term
        else:  # the total is nobody else's
            self._total.add_(term)
        self._terms += 1

    def add_weighted(self, item: Tensor, weight: Tensor) -> None:
        """An item and its weight, `()`, `(batch,)`, or as `combine` has those of parts."""
        self._items.append(item)
        self._weights.append(weight)

    def add_identity(self, x: Tensor, weight: float, like: Tensor) -> None:
        """x with a weight, if it has the shape of the terms; `like` is the weight of one of these."""
        term = self._items[0] if self._total is None else self._total
        if term.shape == x.shape:
            self.add_weighted(x, torch.full_like(like, weight))

    def result(self) -> Tensor:
        """The sum."""
        if not self._items:
            assert self._total is not None
            return self._total
        weighted = combine(self._items, torch.stack(self._weights, -1))
        return weighted if self._total is None else weighted.add_(self._total)


@dataclass(frozen=True)
class _Term:
    """One operation on one edge: to which node it leads, and where its mixing weight stands."""

    target: int
    operation: int
    module: nn.Module
    chain: Chain | None


class FusedNodes:
    """The nodes of one cell.

    Args:
        nodes: Of the cell, in order; their index counts the states before them, the inputs of the cell included.
        operations: (node, edge) -> the candidates of the edge, in the order of `node.operations`.
        parts: Of so many equal parts of the channels the candidates see the first.
        pruned: By label of the node, (edge, operation) pairs that are left out.
    """

    def __init__(
        self,
        nodes: Sequence[law.Node],
        operations: Callable[[law.Node, int], Mapping[str, nn.Module]],
        *,
        parts: int = 1,
        pruned: Mapping[str, frozenset[tuple[int, int]]] | None = None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.n_inputs = self.nodes[0].index
        self._parts = parts
        pruned = pruned or {}
        by_source: list[list[_Term]] = [[] for _ in range(self.nodes[-1].index)]
        for target, node in enumerate(self.nodes):
            terms = [
                (edge, _Term(target, i, module, recognize(module)))
                for edge in range(node.index)
                for i, module in enumerate(operations(node, edge).values())
                if (edge, i) not in pruned.get(node.label, ())
            ]
            kept = _without_zeros([term for _, term in terms])
            for edge, term in terms:
                if term in kept:
                    by_source[edge].append(term)
        self._groups = [list(_grouped(terms)) for terms in by_source]

    def __call__(
        self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor], *, stack: bool, auxiliary: float = 0.0
    ) -> list[Tensor]:
        """Inputs of the cell and mixing weights by label of the node -> all states, inputs included.

        Args:
            inputs: `(batch, channels, h, w)` each.
            weights: As a `Binding` has them.
            stack: Whether equal operations run as one grouped convolution.
            auxiliary: Weight of an identity on every edge whose operations keep the shape; see `Guards`.
        """
        states = list(inputs)
        sums = [_Sum() for _ in self.nodes]
        # Taken apart at once: a gradient of its own for every single weight costs more than the sum of all of them.
        by_node = [[row.unbind(-1) for row in weights[node.label].unbind(-2)] for node in self.nodes]
        seen: list[Tensor] = []
        others: list[Tensor] = []

        def state(i: int) -> Tensor:
            if auxiliary:
                for x, by_edge in zip(seen, by_node[i], strict=False):
                    sums[i].add_identity(x, auxiliary, by_edge[0])
            if self._parts == 1:
                return sums[i].result()
            node = self.nodes[i]
            kept = weights[node.label][..., : len(node.operations)].sum(-1)
            return rejoined(sums[i].result(), others[: node.index], list(kept.unbind(-1)))

        for source, groups in enumerate(self._groups):
            if source >= self.n_inputs:
                states.append(state(source - self.n_inputs))
            x = states[source]
            if self._parts > 1:
                x, rest = parted(x, self._parts)
                others.append(rest)
            seen.append(x)
            heads: dict[Hashable, Tensor] = {}
            for group in groups:
                factors = [by_node[t.target][source][t.operation] for t in group]
                _run(group, x, heads, factors, sums, stack)
        return [*states, state(len(sums) - 1)]


class SharedHeads:
    """What the operations on one tensor have in common, for modules that do not know of one another.

    It holds on to the tensors of a pass: `forget` them at its end.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[int, int], tuple[Tensor, dict[Hashable, Tensor]]] = {}

    def of(self, x: Tensor) -> dict[Hashable, Tensor]:
        """What is known of a tensor, to be added to."""
        if torch.compiler.is_compiling():  # which finds what is computed twice by itself
            return {}
        # A tensor that is written to has another version; while it is held, nothing else has its id.
        return self._of.setdefault((id(x), x._version), (x, {}))[1]

    def forget(self, *_: Any) -> None:
        """Let go of everything; a forward hook."""
        self._of.clear()


class FusedLayer:
    """The candidates of one LayerChoice, by their position, on one tensor."""

    def __init__(self, operations: Mapping[int, nn.Module]) -> None:
        terms = [_Term(0, i, operation, recognize(operation)) for i, operation in operations.items()]
        self.recognized = any(term.chain is not None for term in terms)
        self._groups = list(_grouped(_without_zeros(terms)))

    def __call__(self, x: Tensor, weights: Tensor, shared: SharedHeads, *, stack: bool) -> Tensor:
        """`(batch, ...)` and weights, `(options,)` or `(batch, options)` -> the weighted sum; see `FusedNodes`."""
        sums = [_Sum()]
        heads = shared.of(x)
        factors = weights.unbind(-1)
        for group in self._groups:
            _run(group, x, heads, [factors[t.operation] for t in group], sums, stack)
        return sums[0].result()


def _without_zeros(terms: list[_Term]) -> list[_Term]:
    """The terms of a node without those that add nothing; all of them where nothing else is left."""
    return [term for term in terms if not is_zero(term.module)] or terms


def _grouped(terms: Iterable[_Term]) -> Iterator[list[_Term]]:
    groups: dict[Hashable, list[_Term]] = {}
    for i, term in enumerate(terms):
        groups.setdefault(("alone", i) if term.chain is None else term.chain.kind, []).append(term)
    yield from groups.values()


def _run(
    group: list[_Term],
    state: Tensor,
    heads: dict[Hashable, Tensor],
    factors: list[Tensor],
    sums: list[_Sum],
    stack: bool,
) -> None:
    """Add the terms of equal operations on one state to the sums of their nodes."""
    if group[0].chain is None or hooked(m for t in group if t.chain is not None for m in t.chain.modules):
        for term, factor in zip(group, factors, strict=True):
            sums[term.target].add_weighted(term.module(state), factor)
        return
    chains = [term.chain for term in group if term.chain is not None]
    targets = [sums[term.target] for term in group]
    first = chains[0]
    key = first.head_signature
    if key not in heads:
        heads[key] = state if first.head is None else run_layer(first.head, state)
    x = heads[key]
    if not first.body:
        _without_body(x, chains, factors, targets)
        return
    alike = len({tuple((m.training, getattr(m, "noisy", None)) for m in chain.modules) for chain in chains}) == 1
    size = len(chains) if stack and alike and _same_momenta(chains) else 1
    for at in range(0, len(chains), size):
        part = slice(at, at + size)
        _add(_through(x, chains[part]), [c.norm for c in chains[part]], factors[part], targets[part])


def _without_body(x: Tensor, chains: list[Chain], factors: list[Tensor], targets: list[_Sum]) -> None:
    norms: list[Any] = [chain.norm for chain in chains]
    if norms[0] is not None and (norms[0].affine or not all(map(_by_batch, norms))):
        for norm, factor, target in zip(norms, factors, targets, strict=True):
            _add(x, [norm], [factor], [target])
        return
    if norms[0] is not None:
        x = _normalized_for_all(x, norms)
    for factor, target in zip(factors, targets, strict=True):
        target.add_weighted(x, factor)


def _normalized_for_all(x: Tensor, norms: list[Any]) -> Tensor:
    """x normalized once; the running statistics of all layers move as if each had seen it."""
    if norms[0].running_mean is None:
        return F.batch_norm(x, None, None, training=True, eps=norms[0].eps)
    mean, variance = torch.zeros_like(norms[0].running_mean), torch.ones_like(norms[0].running_var)
    result = F.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=norms[0].eps)
    _move_statistics(norms, [mean] * len(norms), [variance] * len(norms))
    return result


@torch.no_grad()
def _move_statistics(norms: Sequence[Any], means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
    """Running statistics move towards those of a batch, all in a few calls."""
    if is_batched(means[0]):  # torch.vmap knows no operations on lists
        for norm, mean, variance in zip(norms, means, variances, strict=True):
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance, norm.momentum)
            norm.num_batches_tracked.add_(1)
        return
    by_momentum: dict[float, list[int]] = {}
    for i, norm in enumerate(norms):
        by_momentum.setdefault(norm.momentum, []).append(i)
    for momentum, which in by_momentum.items():
        running = [t for i in which for t in (norms[i].running_mean, norms[i].running_var)]
        torch._foreach_lerp_(running, [t for i in which for t in (means[i], variances[i])], momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)


def _through(x: Tensor, chains: list[Chain]) -> Tensor:
    """The bodies of equal chains on one input: `(batch, chains x channels, h, w)`, chain by chain."""
    n = len(chains)
    shared = n > 1  # whether x is still the one input of all chains
    for layers in zip(*(chain.body for chain in chains), strict=True):
        first = layers[0]
        if n == 1:
            x = run_layer(first, x)
        elif isinstance(first, nn.Conv2d):
            if shared and first.groups > 1:
                x, shared = x.repeat(1, n, 1, 1), False
            groups = first.groups if shared else n * first.groups
            x = _convolved(x, layers, groups)
            shared = False
        elif isinstance(first, nn.BatchNorm2d):
            if shared:
                x, shared = x.repeat(1, n, 1, 1), False
            x = _normalized(x, layers, None)
        else:
            x = first(x)
    return x.repeat(1, n, 1, 1) if shared else x


def _convolved(x: Tensor, layers: Sequence[Any], groups: int) -> Tensor:
    """Equal convolutions side by side: on one input, or on as many as there are layers."""
    first = max(layers, key=lambda m: m.kernel_size[0])
    bias = _joined([m.bias for m in layers])

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # As a product every object has the filters for itself, which must be no more than its images.
        few = len(x) * weight.numel() <= x.numel()
        if x.is_cuda and few and groups == len(layers) and bias is None and _is_pointwise(first):
            return pointwise_conv2d(x, weight, groups)
        return F.conv2d(x, weight, bias, first.stride, first.padding, first.dilation, groups)

    def side_by_side(tensors: list[Tensor]) -> Tensor:
        result: Tensor = _joined([_widened(t, first.kernel_size) for t in tensors])
        return result

    means = side_by_side([m.weight for m in layers])
    if isinstance(first, Variational) and first.is_noisy:
        sd = side_by_side([normal.sd(m.rho) for m in layers])
        return noisy_output(x, apply, means, sd, bias, first.estimator)
    return apply(x, means, bias)


def _add(x: Tensor, norms: Sequence[Any], factors: list[Tensor], targets: list[_Sum]) -> None:
    """Normalize what equal operations gave, and add it to the sums, weighted."""
    # Not where every object has a weight of its own.
    folded = norms[0] is not None and (factors[0].dim() == 0 or (factors[0].dim() == 2 and len(factors[0]) == 1))
    if norms[0] is not None:
        x = _normalized(x, norms, torch.stack(factors) if folded else None)
    for piece, factor, target in zip(x.chunk(len(norms), 1), factors, targets, strict=True):
        if folded:
            target.add(piece)
        else:
            target.add_weighted(piece, factor)


def _normalized(x: Tensor, norms: Sequence[Any], factors: Tensor | None) -> Tensor:
    """Batch normalization of `(batch, norms x channels, h, w)`, its scale and shift times factors of equal parts."""
    first, n = norms[0], len(norms)
    weight, bias = _joined([m.weight for m in norms]), _joined([m.bias for m in norms])
    if factors is not None:
        # Of statistics there may be none; those of a batch in low precision are in single precision too.
        factors = factors.to(in_full(x) if first.running_mean is None else first.running_mean).flatten()
        by_channel = factors.repeat_interleave(x.shape[1] // len(factors))
        weight = by_channel if weight is None else weight * by_channel
        bias = torch.zeros_like(weight) if bias is None else bias * by_channel
    mean, variance, momentum = first.running_mean, first.running_var, first.momentum or 0.0
    moves = first.training and mean is not None
    if n > 1 and moves:  # what this batch has, to be shared out below
        size = n * first.num_features
        mean, variance, momentum = mean.new_zeros(size), variance.new_ones(size), 1.0
    elif n > 1 and mean is not None:
        mean, variance = _joined([m.running_mean for m in norms]), _joined([m.running_var for m in norms])
    result = F.batch_norm(x, mean, variance, weight, bias, _by_batch(first), momentum, first.eps)
    if moves and n > 1:
        _move_statistics(norms, mean.chunk(n), variance.chunk(n))
    elif moves:
        with torch.no_grad():
            first.num_batches_tracked.add_(1)
    return result


def _widened(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """Filters of a size; smaller square ones with a rim of zeros."""
    rim = (size[-1] - weight.shape[-1]) // 2
    return F.pad(weight, (rim,) * 4) if rim else weight


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))


def _by_batch(norm: Any) -> bool:
    """Whether a layer normalizes by the statistics of the batch."""
    return norm.training or norm.running_mean is None


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(parts)


def _same_momenta(chains: Sequence[Chain]) -> bool:
    momenta = {tuple(m.momentum for m in c.modules if isinstance(m, nn.BatchNorm2d)) for c in chains}
    return len(momenta) == 1


__all__ = ["Execution", "FusedLayer", "FusedNodes", "SharedHeads"]
