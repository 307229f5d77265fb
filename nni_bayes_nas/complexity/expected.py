"""Expected cost of an architecture: a sum of products of independent probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class CostTerm:
    """A part of the supernet that costs `cost` when all its gates are open.

    A gate is (unit, options): the part is there if the unit takes one of these options, numbered as in the
    flattened marginals of the unit. Gates of one term belong to different units.
    """

    gates: tuple[tuple[int, tuple[int, ...]], ...]
    cost: float


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
    _single: Tensor = field(init=False, repr=False, compare=False)
    _products: tuple[CostTerm, ...] = field(init=False, repr=False, compare=False)
    _offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        offsets = [0]
        for n in self.n_options:
            offsets.append(offsets[-1] + n)
        single = torch.zeros(offsets[-1], dtype=torch.float64)
        products = []
        for term in self.terms:
            if len(term.gates) == 1:
                unit, options = term.gates[0]
                single[[offsets[unit] + option for option in options]] += term.cost
            else:
                products.append(term)
        object.__setattr__(self, "_single", single)
        object.__setattr__(self, "_products", tuple(products))
        object.__setattr__(self, "_offsets", tuple(offsets))

    def expected(self, marginals: Sequence[Tensor]) -> Tensor:
        """E[cost] = constant + sum_terms cost * prod_gates P(gate).

        Args:
            marginals: One tensor per unit, `(*batch, rows, options)`.

        Returns:
            `(*batch,)`, in the unit of the costs (parameters, multiply-accumulates).
        """
        joined = torch.cat([m.flatten(-2) for m in marginals], -1)
        result = joined @ self._single.to(joined) + self.constant
        for term in self._products:
            product: Tensor | float = term.cost
            for unit, options in term.gates:
                start = self._offsets[unit]
                product = product * joined[..., [start + option for option in options]].sum(-1)
            result = result + product
        return result
