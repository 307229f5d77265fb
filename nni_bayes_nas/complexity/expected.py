"""Expected cost of an architecture: a sum of products of independent probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CostTerm:
    """A part of the supernet that costs `cost` when all its gates are open.

    A gate is (unit, options): the part is there if the unit takes one of these options, numbered as in the
    flattened marginals of the unit. Gates of one term belong to different units.
    """

    gates: tuple[tuple[int, tuple[int, ...]], ...]
    cost: float


@dataclass(frozen=True)
class _Tables:
    """The terms as tensors.

    Attributes:
        single: Cost of an option on its own, `(options,)`.
        unions: 0 or 1, `(options, unions)`: the options of each gate that has more than one.
        products: Per number of gates, indices into options and unions `(terms, gates)` and costs `(terms,)`.
    """

    single: Tensor
    unions: Tensor
    products: tuple[tuple[Tensor, Tensor], ...]

    def to(self, like: Tensor) -> _Tables:
        """On the device and with the dtype of `like`."""
        moved = [(index.to(like.device), costs.to(like)) for index, costs in self.products]
        return _Tables(self.single.to(like), self.unions.to(like), tuple(moved))


@dataclass(frozen=True)
class CostModel:
    """Cost of every part of a space under the law of architectures.

    Attributes:
        terms: Parts whose presence is a matter of choice.
        constant: Cost of what is always there.
        n_options: Length of the flattened marginals of each unit.
        kind: "exact" where the expectation under the law is exact, "multilinear" where choices that shape one
            operation together are treated as independent parts.
    """

    terms: tuple[CostTerm, ...]
    constant: float
    n_options: tuple[int, ...]
    kind: str = "exact"
    _tables: _Tables = field(init=False, repr=False, compare=False)
    _moved: dict[tuple[torch.device, torch.dtype], _Tables] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tables", _tables(self.terms, self.n_options))
        object.__setattr__(self, "_moved", {})

    @property
    def is_sum(self) -> bool:
        """Whether the cost of an architecture is a sum over its options: no part depends on two choices."""
        return all(len(term.gates) == 1 for term in self.terms)

    def expected(self, marginals: Sequence[Tensor]) -> Tensor:
        """E[cost] = constant + sum_terms cost * prod_gates P(gate).

        Args:
            marginals: One tensor per unit, `(*batch, rows, options)`.

        Returns:
            `(*batch,)`, in the unit of the costs (parameters, multiply-accumulates, milliseconds).
        """
        joined = torch.cat([m.flatten(-2) for m in marginals], -1)
        tables = self._on(joined)
        result = joined @ tables.single + self.constant
        if not tables.products:
            return result
        opened = torch.cat([joined, joined @ tables.unions], -1) if tables.unions.shape[-1] else joined
        # An embedding gathers whole rows, and its gradient adds them up in a fixed order, on accelerators too.
        rows = opened.flatten(0, -2).T if opened.dim() > 1 else opened.unsqueeze(-1)
        for index, costs in tables.products:
            first, *others = nn.functional.embedding(index, rows).unbind(1)
            for other in others:
                first = first * other
            # Not costs @ first: its running sum loses digits over thousands of terms in single precision.
            result = result + (first * costs.unsqueeze(-1)).sum(0).reshape(result.shape)
        return result

    def _on(self, like: Tensor) -> _Tables:
        key = (like.device, like.dtype)
        if key not in self._moved:
            # The first call may come from Lightning's validation, whose tensors could not be used in training.
            with torch.inference_mode(False):
                self._moved[key] = self._tables.to(like)
        return self._moved[key]


def _tables(terms: Sequence[CostTerm], n_options: Sequence[int]) -> _Tables:
    """Terms with equal gates are added up, the others sorted by their number of gates."""
    offsets = [0]
    for n in n_options:
        offsets.append(offsets[-1] + n)
    total = offsets[-1]
    single = torch.zeros(total, dtype=torch.float64)
    unions: dict[tuple[int, ...], int] = {}
    products: dict[int, dict[tuple[int, ...], float]] = {}
    for term in terms:
        gates = [tuple(offsets[unit] + option for option in options) for unit, options in term.gates]
        if len(gates) == 1:
            single[list(gates[0])] += term.cost
            continue
        key = tuple(g[0] if len(g) == 1 else total + unions.setdefault(g, len(unions)) for g in gates)
        costs = products.setdefault(len(key), {})
        costs[key] = costs.get(key, 0.0) + term.cost
    union = torch.zeros(total, len(unions), dtype=torch.float64)
    for options, column in unions.items():
        union[list(options), column] = 1.0
    indexed = tuple(
        (torch.tensor(list(costs)), torch.tensor(list(costs.values()), dtype=torch.float64))
        for _, costs in sorted(products.items())
    )
    return _Tables(single, union, indexed)
