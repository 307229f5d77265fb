"""Batch normalization whose second derivatives take a few passes over memory; torch puts them together from dozens.

With batch means over objects and pixels, s^2 the variance, i = 1 / sqrt(s^2 + eps) and xh = i (x - mean(x)), the layer
is y = w xh + bias, and the derivatives of <g, y> are (Ioffe & Szegedy, 2015, arXiv 1502.03167, section 3)
    for x:    w i (g - mean(g) - xh mean(g xh)),
    for w:    sum(g xh),
    for bias: sum(g).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """What torch's `batch_norm` computes in training; can be differentiated twice, at little cost.

    Args:
        x: `(batch, channels, ...)`, with more than one value per channel.
        running_mean: `(channels,)`; moved towards the mean of the batch.
        running_var: `(channels,)`; moved towards its unbiased variance.
        weight: `(channels,)`.
        bias: `(channels,)`.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.

    Raises:
        RuntimeError: If it is differentiated a third time.
    """
    result: Tensor = _Norm.apply(x, weight, bias, (running_mean, running_var, momentum, eps))
    return result


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        mean, var, momentum, eps = how
        y, batch_mean, inverse = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, batch_mean, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight, of_bias = _Gradients.apply(gradients[0], *ctx.saved_tensors)
        _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return of_x, of_weight if needs_weight else None, of_bias if needs_bias else None, None


class _Gradients(torch.autograd.Function):
    """The gradients of `_Norm` for x, weight and bias, from that of its output."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        of_x, of_weight, of_bias = _native(g, x, weight, mean, inverse, (True, True, True))
        ctx.save_for_backward(g, x, weight, mean, inverse, of_weight, of_bias)
        return of_x, of_weight, of_bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The derivatives of <u, of_x> + <p, of_weight> + <q, of_bias> for g, x and weight.

        With a = mean(u), b = mean(g), c = mean(u xh), e = mean(g xh), f = mean(u g), h = w i^2 and k = i (p - w i c),
        since dxh = i (dx - mean(dx) - xh mean(xh dx)) and di = -i^2 mean(xh dx), they are
            for g:      w i (u - a) + k (x - mean(x)) + q,
            for x:      k (g - b - e xh) - h (e (u - a) + (f - a b - 2 c e) xh),
            for weight: n i (f - a b - c e),   n values per channel.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("this batch normalization has no third derivative")
        g, x, weight, mean, i, sum_gxh, sum_g = ctx.saved_tensors
        u, p, q = gradients
        n = x.numel() // x.shape[1]
        zero = torch.zeros_like(mean)
        w = torch.ones_like(mean) if weight is None else weight
        p, q = zero if p is None else p, zero if q is None else q
        a, b, c, e, f = zero, sum_g / n, zero, sum_gxh / n, zero
        if u is not None:
            _, sum_uxh, sum_u = _native(u, x, None, mean, i, (False, True, True))
            a, c = sum_u / n, sum_uxh / n
            f = (u * g).sum([axis for axis in range(x.dim()) if axis != 1]) / n
        h, k = w * i * i, i * (p - w * i * c)
        for_g = for_x = None
        if ctx.needs_input_grad[0]:
            for_g = _linear([(u, w * i), (x, k)], q - w * i * a - k * mean)
        if ctx.needs_input_grad[1]:
            of_xh = -k * e - h * (f - a * b - 2 * c * e)
            for_x = _linear([(g, k), (u, -h * e), (x, of_xh * i)], h * e * a - k * b - of_xh * i * mean)
        return for_g, for_x, n * i * (f - a * b - c * e) if ctx.needs_input_grad[2] else None, None, None


def _linear(terms: Sequence[tuple[Tensor | None, Tensor]], constant: Tensor) -> Tensor:
    """Sum of tensors, `(batch, channels, ...)`, each times a factor by channel; None counts as zeros."""
    given = [(tensor, factor) for tensor, factor in terms if tensor is not None]
    shape = -1, *[1] * (given[0][0].dim() - 2)
    (tensor, factor), *others = given
    result = tensor * factor.reshape(shape)
    for tensor, factor in others:
        result.addcmul_(tensor, factor.reshape(shape))
    return result.add_(constant.reshape(shape))


def _native(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, wanted: tuple[bool, bool, bool]
) -> Any:
    """torch's own gradients; it does not look at `eps`, nor at running statistics in training."""
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, inverse, True, 0.0, wanted)
