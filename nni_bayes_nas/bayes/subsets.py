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


def inclusion_probabilities(weights: Tensor, k: int) -> Tensor:
    """Probability that each item is among the k drawn ones; sums to k over the items.

    For k = 2 it is pi_i = p_i + sum_{j != i} p_j p_i / (1 - p_j) with p = w / sum(w).

    Args:
        weights: Non-negative, `(*batch, n)`, not all zero.
        k: Number of items drawn, 1 <= k <= n.

    Returns:
        Probabilities, `(*batch, n)`.

    Raises:
        ValueError: If k is out of range, or the exact sum would have too many terms.
    """
    n = weights.shape[-1]
    _check(n, k)
    if k == n:
        return torch.ones_like(weights)
    if math.perm(n, max(k - 2, 0)) > _MAX_ORDERED_DRAWS:
        raise ValueError(f"k={k} of n={n} has too many ordered draws for an exact sum; keep fewer inputs per node.")
    total = weights.sum(-1, keepdim=True)
    first = weights / total
    if k == 1:
        return first
    if k == 2:
        # `rest` is summed from the others: total - weight would cancel when one weight dominates.
        others = weights.unsqueeze(-2) * (1 - torch.eye(n, dtype=weights.dtype, device=weights.device))
        rest = others.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
        second = (first / rest).unsqueeze(-1) * others
        return first + second.sum(-2)
    result = first
    for j in range(n):
        keep = [i for i in range(n) if i != j]
        inner = inclusion_probabilities(weights[..., keep], k - 1)
        padded = torch.zeros_like(weights).index_copy(-1, torch.tensor(keep, device=weights.device), inner)
        result = result + first[..., j : j + 1] * padded
    return result


def log_prob(weights: Tensor, subset: Sequence[int]) -> Tensor:
    """Log-probability, in nats, of drawing exactly this set, in any order.

    Args:
        weights: Non-negative, `(*batch, n)`.
        subset: Distinct indices of the items in the set.

    Returns:
        Log-probability, `(*batch,)`.
    """
    n = weights.shape[-1]
    _check(n, len(subset))
    if len(set(subset)) != len(subset):
        raise ValueError(f"the items of a set must be distinct, got {list(subset)}.")
    orders = []
    for order in itertools.permutations(subset):
        left = list(range(n))
        terms = []
        for item in order:
            terms.append(weights[..., item].log() - weights[..., left].sum(-1).log())
            left.remove(item)
        orders.append(torch.stack(terms).sum(0))
    return torch.logsumexp(torch.stack(orders), 0)


def entropy(weights: Tensor, k: int) -> Tensor:
    """Entropy of the set, in nats, by enumeration; `(*batch, n)` -> `(*batch,)`."""
    n = weights.shape[-1]
    logs = torch.stack([log_prob(weights, subset) for subset in itertools.combinations(range(n), k)])
    total: Tensor = torch.special.entr(logs.exp()).sum(0)
    return total


def sample(weights: Tensor, k: int, generator: torch.Generator | None = None) -> list[int]:
    """One set of k items drawn from unbatched weights `(n,)`, sorted."""
    _check(weights.shape[-1], k)
    drawn = torch.multinomial(weights.detach(), k, replacement=False, generator=generator)
    return sorted(int(i) for i in drawn)
