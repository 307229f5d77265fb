"""Values of NNI's expressions over choices (`MutableExpression`), each with its probability."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ExpressionTable:
    """Every value that an expression over categorical choices can take.

    NNI's `traverse_all_options` evaluates the expression anew, and checks it, for every combination of choices in
    every pass of a supernet; the table does it once.

    Args:
        expression: A `MutableExpression` of categorical choices, or one of them.

    Attributes:
        values: The distinct values, in rising order.
    """

    def __init__(self, expression: Any) -> None:
        options = {label: list(choice.values) for label, choice in expression.simplify().items()}
        self.labels = list(options)
        results = [
            expression.freeze(dict(zip(self.labels, combination, strict=True)))
            for combination in itertools.product(*options.values())
        ]
        self.values: list[Any] = sorted(set(results))
        self._members = torch.zeros(len(results), len(self.values), dtype=torch.float64)
        for row, result in enumerate(results):
            self._members[row, self.values.index(result)] = 1.0
        self._moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def probabilities(self, weights: Mapping[str, Tensor]) -> dict[Any, Tensor]:
        """Probability of every value; the choices are independent.

        Args:
            weights: By label, `(*batch, options)` with the options in the order of the choice.

        Returns:
            By value, `(*batch,)`.
        """
        joint = weights[self.labels[0]]
        for label in self.labels[1:]:
            joint = (joint.unsqueeze(-1) * weights[label].unsqueeze(-2)).flatten(-2)
        key = (joint.device, joint.dtype)
        if key not in self._moved:
            # The first pass may be a validation's in inference mode, whose tensors could not be used in training.
            with torch.inference_mode(False):
                self._moved[key] = self._members.to(joint)
        # No matrix product: counters of multiply-accumulates would take it for a part of the network.
        return dict(zip(self.values, (joint.unsqueeze(-1) * self._moved[key]).sum(-2).unbind(-1), strict=True))
