"""Weighted sums of activations: term by term, and in one pass over memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.precision import in_full

# Below it a product written to memory, which stays in the cache, costs less than a call of the matrix library.
_SHORT = 4096


def mix(items: Sequence[Any], weights: Sequence[Tensor]) -> Any:
    """Weighted sum of equally shaped outputs (tensors, or nested sequences and mappings of them).

    Args:
        items: Outputs, one per option; a tensor has the batch as its first axis.
        weights: One per option, `()` or `(batch,)`.
    """
    first = items[0]
    if isinstance(first, Mapping):
        return {key: mix([item[key] for item in items], weights) for key in first}
    if isinstance(first, (list, tuple)):
        return [mix(column, weights) for column in zip(*items, strict=True)]
    result = None
    for item, weight in zip(items, weights, strict=True):
        scaled = item * weight.reshape(weight.shape + (1,) * (item.dim() - weight.dim()) if weight.dim() else ())
        result = scaled if result is None else result + scaled
    return result


def combine(items: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_i w_i x_i, differentiable twice; keeps the items for the gradient of the weights, and nothing else.

    Products and sums of their own would write each product to memory in the forward pass, and read and write it again
    in the backward pass.

    Args:
        items: x_i of equal shape `(batch, ...)`.
        weights: `(n,)`, or `(batch, n)` for weights of each object; `(batch, m, n)`, or `(1, m, n)` for all objects,
            for weights of each of m equal parts of the second axis.
    """
    if torch.compiler.is_compiling():  # which puts products and sums together by itself
        scaled = [item * _spread(w, item) for item, w in zip(items, weights.unbind(-1), strict=True)]
        return functools.reduce(torch.add, scaled)
    result: Tensor = _Combine.apply(weights, *items)
    return result


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *items: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *items)
        first, *others = items
        factors: tuple[Tensor, ...] = weights.unbind(-1)
        if weights.dim() == 1 and weights.device.type == "cpu":
            numbers = weights.tolist()
            result: Tensor = first * numbers[0]
            for item, number in zip(others, numbers[1:], strict=True):
                result.add_(item, alpha=number)
            return result
        result = first * _spread(factors[0], first)
        for item, factor in zip(others, factors[1:], strict=True):
            result.addcmul_(item, _spread(factor, item))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weights, *items = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        factors = weights.unbind(-1)
        of_items = [
            gradient * _spread(factor, item) if needed else None
            for factor, item, needed in zip(factors, items, wanted[1:], strict=True)
        ]
        if not wanted[0]:
            return None, *of_items
        if weights.dim() == 3:
            products = torch.stack([_inner_of_parts(gradient, item, weights.shape[1]) for item in items], -1)
        else:
            products = torch.stack([_inner(gradient, item) for item in items], -1)
        return products.sum_to_size(weights.shape).to(weights.dtype), *of_items


def _spread(factor: Tensor, like: Tensor) -> Tensor:
    """A factor, `()`, `(batch,)` or `(batch, parts)`, as it multiplies objects; in their precision."""
    if factor.dim() == 2:
        spread = _by_channel(factor.to(like.dtype), like.shape[1])
        return spread.reshape(spread.shape + (1,) * (like.dim() - 2))
    return factor.to(like.dtype).reshape(factor.shape + (1,) * (like.dim() - 1)) if factor.dim() else factor.to(like)


def _by_channel(factor: Tensor, channels: int) -> Tensor:
    """`(batch, parts)` -> `(batch, channels)`: the factor of every channel, part by part."""
    return factor.repeat_interleave(channels // factor.shape[1], 1)


def _inner_of_parts(a: Tensor, b: Tensor, parts: int) -> Tensor:
    """Inner products of the parts of the second axis, `(batch, parts)`."""
    products = in_full(a * b)
    products = products.flatten(2).sum(2) if a.dim() > 2 else products
    return products.reshape(len(a), parts, -1).sum(2)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the objects of two tensors, `(batch,)`, in the order in which the first lies in memory."""
    order = (0, 2, 3, 1) if a.dim() == 4 and a.stride(1) == 1 else tuple(range(a.dim()))
    # A sum of products in low precision would be a gradient of the structure of three digits.
    rows = [in_full(x.permute(order).reshape(x.shape[0], -1)) for x in (a, b)]
    if rows[0].shape[1] < _SHORT:
        return (rows[0] * rows[1]).sum(1)
    return torch.bmm(rows[0].unsqueeze(1), rows[1].unsqueeze(2)).reshape(-1)
