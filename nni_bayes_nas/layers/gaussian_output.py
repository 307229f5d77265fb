"""What a layer with Gaussian weights gives: the output of the means, and noise of the size that the weights give it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from nni_bayes_nas.layers.memory_format import is_batched

Estimator = Literal["local", "flipout"]
ESTIMATORS: tuple[Estimator, ...] = ("local", "flipout")
# Input, weight and bias to output, linear in the weight.
Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_LEAST_VARIANCE = 1e-12
# Numbers that are drawn at a time: what they are made of stays in the cache.
_PART = 2**17


def noisy_output(
    x: Tensor, apply: Apply, mean: Tensor, sd: Tensor, bias: Tensor | None, estimator: Estimator
) -> Tensor:
    """The output for weights N(mean, sd^2), with noise as the estimator has it.

    Args:
        x: Input; features come last, or the channels of an image second.
        apply: What the layer computes.
        mean: Of the weights.
        sd: Their standard deviations, of the same shape.
        bias: A point; None for none.
        estimator: "local": of every output for itself, variance apply(x^2, sd^2); "flipout": of one draw of the
            weights, with other signs for every object.
    """
    output = apply(x, mean, bias)
    if estimator == "local":
        # Without the bias, which has no variance.
        noise = gaussian_like(output)
        if torch._C._are_functorch_transforms_active():
            variance = apply(x.square(), sd.square(), None)
            return output + variance.clamp_min(_LEAST_VARIANCE).sqrt() * noise
        noisy: Tensor = _AddNoise.apply(output, _of_squares(x, apply, sd.square()), noise)
        return noisy
    noise = apply(x * _signs(x, mean.dim()), sd * torch.randn_like(sd), None)
    return output + noise * _signs(noise, mean.dim())


def gaussian_like(x: Tensor) -> Tensor:
    """Standard normal numbers of the shape of x, from torch's own generator, in the order of x in memory.

    On a CPU by a table of 2^16 quantiles of equal probability, of variance 1 and at most 4.3: torch draws normal
    numbers there with one thread, and fills a tensor that is channels_last one after the other, which takes longer than
    the convolution that they are for. Of the table only the random bits, 16 for a number, are drawn so.
    """
    if is_batched(x) or x.device.type != "cpu":
        return torch.randn_like(x)
    flat, table = torch.empty(x.numel(), dtype=x.dtype), _quantiles(x.dtype)
    for part in flat.tensor_split(tuple(range(_PART, len(flat), _PART))):
        bits = torch.empty((len(part) + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        torch.index_select(table, 0, bits.view(torch.int16)[: len(part)].int().add_(2**15), out=part)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = x.shape
        return flat.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return flat.reshape(x.shape)


@functools.lru_cache
def _quantiles(dtype: torch.dtype) -> Tensor:
    """Those of a normal distribution, in order."""
    levels = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    quantiles = torch.special.ndtri(levels)
    result: Tensor = (quantiles / quantiles.square().mean().sqrt()).to(dtype)
    return result


def _of_squares(x: Tensor, apply: Apply, weight: Tensor) -> Tensor:
    """apply(x^2, weight), which keeps x in place of x^2: x is kept anyway, by what gives the mean."""
    squares, source = x.square(), x.detach()
    at = squares.data_ptr(), squares.shape, squares.stride()

    def pack(kept: Tensor) -> Tensor | None:
        return None if (kept.data_ptr(), kept.shape, kept.stride()) == at else kept

    def unpack(kept: Tensor | None) -> Tensor:
        return source.square() if kept is None else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return apply(squares, weight, None)


class _AddNoise(torch.autograd.Function):
    """mean + sqrt(variance) noise; keeps variance and noise alone, and can be differentiated twice.

    Below the least variance the derivative is that at it, so that inputs that are zero have one.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        ctx.save_for_backward(variance, noise)
        ctx.mark_dirty(mean)  # nobody else's: another tensor of its size costs as much as filling it
        return mean.addcmul_(variance.clamp_min(_LEAST_VARIANCE).sqrt_(), noise)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        variance, noise = ctx.saved_tensors
        (gradient,) = gradients
        if torch.is_grad_enabled():
            return gradient, gradient * noise * variance.clamp_min(_LEAST_VARIANCE).rsqrt() / 2, None
        slope = variance.clamp_min(_LEAST_VARIANCE).rsqrt_().mul_(noise)
        return gradient, slope.mul_(gradient).mul_(0.5), None


def _signs(x: Tensor, weight_dim: int) -> Tensor:
    """-1 or 1 for each object and feature or channel, equal at all places of an image."""
    # Of a linear layer features come last, of a convolution channels come second.
    shape = x.shape if weight_dim == 2 else (*x.shape[:2], *[1] * (x.dim() - 2))
    return torch.randint(0, 2, shape, device=x.device).to(x.dtype) * 2 - 1
