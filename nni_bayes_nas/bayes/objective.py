"""The one place where the terms of a loss are added, scaled and checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nni_bayes_nas.errors import NumericsError


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float] | None = None, *, step: int = 0) -> Tensor:
    """Weighted sum of named terms, sum_t weight_t * term_t; a term without a weight counts once.

    Args:
        terms: Scalars by name, nats per object where they are log-likelihoods.
        weights: Factors by name.
        step: Optimizer step, for the error message.

    Returns:
        The scalar that is minimized.

    Raises:
        NumericsError: If a term is NaN or infinite; it names the term and the step.
    """
    weights = weights or {}
    result: Tensor | None = None
    for name, term in terms.items():
        check_finite(name, term, step=step)
        scaled = term * weights.get(name, 1.0)
        result = scaled if result is None else result + scaled
    if result is None:
        raise ValueError("a loss needs at least one term, got none.")
    return result


def check_finite(name: str, value: Tensor, *, step: int) -> None:
    """Raise NumericsError, naming term and step, unless every element of `value` is finite."""
    if not bool(torch.isfinite(value).all()):
        raise NumericsError(
            f"every term of the loss must be finite, but `{name}` is {_first_bad(value)} at step {step}; "
            "lower the learning rate, clip the gradient or look for constant features in the data."
        )


def _first_bad(value: Tensor) -> float:
    flat = value.detach().flatten()
    return float(flat[~torch.isfinite(flat)][0])
