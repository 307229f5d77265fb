"""Weighted sampling without replacement: the law of the edges that a node keeps.

Successive sampling: k items are drawn one after another, each with probability proportional to its
weight among those that are left (Yates & Grundy, 1953). All results are exact, by summation over
the ordered draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MAX_ORDERED_DRAWS = 20_000


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"1 <= k <= n must hold, got k={k}, n={n}; a set cannot hold more items than there are.")


def inclusion_probabilities(log_weights: Tensor, k: int) -> Tensor:
    """Probability that each item is among the k drawn ones; sums to k over the items.

    pi_i(k) = p_i + sum_{j != i} p_j pi_i(k - 1 | j left out), p = softmax(log w). Every conditional probability is a
    softmax of its own, so that nothing cancels or underflows when one weight dominates.

    Args:
        log_weights: Logarithms of the weights up to a constant, `(*batch, n)`.
        k: Number of items drawn, 1 <= k <= n.

    Returns:
        Probabilities, `(*batch, n)`.

    Raises:
        ValueError: If k is out of range, or the exact sum would have too many terms.
    """
    n = log_weights.shape[-1]
    _check(n, k)
    if k == n:
        return torch.ones_like(log_weights)
    if math.perm(n, k - 1) > _MAX_ORDERED_DRAWS:
        raise ValueError(f"k={k} of n={n} has too many ordered draws for an exact sum; keep fewer inputs per node.")
    first = log_weights.softmax(-1)
    if k == 1:
        return first
    # Row j: the weights after j was drawn.
    left_out = torch.eye(n, dtype=torch.bool, device=log_weights.device)
    rest = log_weights.unsqueeze(-2).masked_fill(left_out, -torch.inf)
    return first + (first.unsqueeze(-1) * _after_first(rest, k - 1)).sum(-2)


def _after_first(rest: Tensor, k: int) -> Tensor:
    """Inclusion probabilities of k more items where row j has item j masked; `(*batch, n, n)`."""
    if k == 1:
        return rest.softmax(-1)
    n = rest.shape[-1]
    rows = []
    for j in range(n):
        keep = [i for i in range(n) if i != j]
        inner = inclusion_probabilities(rest[..., j, keep], k)
        index = torch.tensor(keep, device=rest.device)
        rows.append(torch.zeros_like(rest[..., j, :]).index_copy(-1, index, inner))
    return torch.stack(rows, -2)


def log_prob(log_weights: Tensor, subset: Sequence[int]) -> Tensor:
    """Log-probability, in nats, of drawing exactly this set, in any order.

    Args:
        log_weights: Logarithms of the weights up to a constant, `(*batch, n)`.
        subset: Distinct indices of the items in the set.

    Returns:
        Log-probability, `(*batch,)`.
    """
    n = log_weights.shape[-1]
    _check(n, len(subset))
    if len(set(subset)) != len(subset):
        raise ValueError(f"the items of a set must be distinct, got {list(subset)}.")
    orders = []
    for order in itertools.permutations(subset):
        left = list(range(n))
        terms = []
        for item in order:
            terms.append(log_weights[..., item] - log_weights[..., left].logsumexp(-1))
            left.remove(item)
        orders.append(torch.stack(terms).sum(0))
    return torch.logsumexp(torch.stack(orders), 0)


def entropy(log_weights: Tensor, k: int) -> Tensor:
    """Entropy of the set, in nats, by enumeration; `(*batch, n)` -> `(*batch,)`."""
    n = log_weights.shape[-1]
    logs = torch.stack([log_prob(log_weights, subset) for subset in itertools.combinations(range(n), k)])
    return -(logs.exp() * logs).sum(0)


def sample(log_weights: Tensor, k: int, generator: torch.Generator | None = None) -> list[int]:
    """One set of k items from unbatched log-weights `(n,)`, sorted.

    The k largest of log w + Gumbel noise follow successive sampling exactly (Kool, van Hoof & Welling, 2019,
    arXiv 1903.06059).
    """
    _check(log_weights.shape[-1], k)
    uniform = torch.rand(log_weights.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    noisy = log_weights.detach().double() - (-uniform.log()).log()
    return sorted(int(i) for i in noisy.topk(k).indices)
