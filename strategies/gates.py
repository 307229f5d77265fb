"""Under which choices the Gaussian layers of a supernet are there, and what their scale does to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.layers.factors import factors
from nni_bayes_nas.layers.variational import Variational

from .cost_walk import Candidate, CostWalk


class GateWalk(CostWalk):
    """Under which choices each Gaussian layer of a supernet is there.

    Attributes:
        gates: Layer -> label -> flat positions of the options, one dict for every way in which it is there; an empty
            dict for what is always there.
        factors: Label -> flat position of an option -> its `own_factors`, where there are any.
        unclear: What options have none, each with the reason.
    """

    def __init__(self, supernet: nn.Module, units: Sequence[law.Unit]) -> None:
        super().__init__(supernet, units, {}, None)
        self.gates: dict[Variational, list[dict[str, frozenset[int]]]] = {}
        self.factors: dict[str, dict[int, int]] = {}
        self.unclear: list[str] = []
        self.visit(supernet, {})

    def _descend(self, candidate: Candidate, gates: Any, alternatives: list[Any]) -> None:
        number, reason = own_factors(candidate.module)
        if number and any(sum(map(len, extra.values())) != 1 for extra in alternatives):
            # Its gate is a sum over depths, and of what is deeper its own besides; a factor of one output is neither.
            reason = "it is there at several depths"
        if reason is not None:
            self.unclear.append(f"{candidate.place}/{candidate.name} ({reason})")
        for extra in alternatives if number else ():
            for label, options in extra.items():
                known = self.factors.setdefault(label, {})
                known.update({option: max(number, known.get(option, 0)) for option in options})
        super()._descend(candidate, gates, alternatives)

    def visit(self, module: nn.Module, gates: Any) -> None:
        """See `CostWalk.visit`."""
        if isinstance(module, Variational):
            self.gates.setdefault(module, []).append(dict(gates))
        super().visit(module, gates)


class GateTable:
    """How much of each Gaussian layer is there, from mixing weights: sums and products of all layers together.

    Args:
        units: By label.
        layers: Ways of every layer, see `GateWalk.gates`.
    """

    def __init__(self, units: Mapping[str, law.Unit], layers: Iterable[Sequence[Mapping[str, frozenset[int]]]]) -> None:
        self._units = units
        known: dict[tuple[str, frozenset[int]], int] = {}
        ways = [
            (i, [known.setdefault(part, len(known)) for part in way.items()])
            for i, each in enumerate(layers)
            for way in each
        ]
        self._n_layers = ways[-1][0] + 1
        # A factor of a way; the last one is 1, for ways of fewer choices than others have.
        longest = max(1, *(len(parts) for _, parts in ways))
        self._factors = torch.tensor([parts + [len(known)] * (longest - len(parts)) for _, parts in ways])
        self._layer = torch.tensor([i for i, _ in ways])
        by_label: dict[str, list[frozenset[int]]] = {}
        for label, options in known:
            by_label.setdefault(label, []).append(options)
        self._order = torch.tensor(
            [known[label, options] for label, all_options in by_label.items() for options in all_options],
            dtype=torch.long,
        )
        self._members = {
            label: torch.tensor([[i in options for i in range(law.n_options(units[label]))] for options in all_options])
            for label, all_options in by_label.items()
        }

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Over the ways of a layer the sum, over the choices of a way the product, of what its options weigh.

        Args:
            weights: By label, averaged over objects here.

        Returns:
            `(layers,)`, from 0 to the number of ways.
        """
        like = next(iter(weights.values()))
        found = like.new_ones(len(self._order) + 1)
        if self._members:
            sums = [members.to(like) @ self._mean(label, weights[label]) for label, members in self._members.items()]
            found = found.index_copy(0, self._order.to(like.device), torch.cat(sums))
        gates = found[self._factors.to(like.device)].prod(-1)
        return like.new_zeros(self._n_layers).index_add(0, self._layer.to(like.device), gates)

    def _mean(self, label: str, w: Tensor) -> Tensor:
        unit = self._units[label]
        if isinstance(unit, law.Node):
            w = w[..., : len(unit.operations)].flatten(-2)
        return w.reshape(-1, w.shape[-1]).mean(0)


def own_factors(operation: nn.Module) -> tuple[int, str | None]:
    """How many factors gamma the output of an operation has, if each of its Gaussian layers has weights gamma v.

    Returns:
        The number, and because of what there is none, if there is none; see `layers.factors`.
    """
    return factors(operation, lambda module: isinstance(module, Variational))


def as_weights_lie(unit: law.Unit, values: Mapping[int, int]) -> Tensor:
    """Numbers of the options of a unit, as its mixing weights lie, 0 without one; a node has a column for "none"."""
    flat = torch.tensor([values.get(i, 0) for i in range(law.n_options(unit))])
    if not isinstance(unit, law.Node):
        return flat
    return torch.nn.functional.pad(flat.reshape(-1, len(unit.operations)), (0, 1))


__all__ = ["GateTable", "GateWalk", "as_weights_lie", "own_factors"]
