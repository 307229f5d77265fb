"""The concrete distribution (Gumbel-softmax): relaxed draws of one option, `(*batch, options)`.

Maddison, Mnih & Teh, 2017, arXiv 1611.00712; Jang, Gu & Poole, 2017, arXiv 1611.01144. Logarithms of draws are what is
computed with: the draws themselves underflow at low temperatures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gumbel(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard Gumbel noise of this shape, from a generator on the CPU."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    return (-(-uniform.log()).log()).to(like)


def log_rsample(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """log softmax((logits + Gumbel noise) / temperature); differentiable; same shape."""
    noise = gumbel(tuple(logits.shape), generator, logits)
    return ((logits + noise) / temperature).log_softmax(-1)


def log_density_of_log(log_x: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Log density of log x, for x concrete, `(*batch,)` (Maddison et al., Eq. 22: "ExpConcrete").

    log (n - 1)! + (n - 1) log t + sum_k (l_k - t log x_k) - n log sum_k exp(l_k - t log x_k), l = log softmax(logits).

    Args:
        log_x: Logarithms of points of the simplex, `(*batch, n)`.
        logits: Same shape, or broadcast against it.
        temperature: t > 0.
    """
    n = log_x.shape[-1]
    scores = logits.log_softmax(-1) - temperature * log_x
    constant = math.lgamma(n) + (n - 1) * math.log(temperature)
    return constant + scores.sum(-1) - n * scores.logsumexp(-1)


def kl_sampled(log_x: Tensor, logits: Tensor, prior_logits: Tensor, temperature: float) -> Tensor:
    """log q(x) - log p(x) at draws of q, whose mean is KL(q || p); `(*batch,)`, both of one temperature.

    The mean does not depend on the temperature: log x is an affine function of the noisy logits.
    """
    ours = log_density_of_log(log_x, logits, temperature)
    return ours - log_density_of_log(log_x, prior_logits, temperature)


def kl_categorical(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL of the largest option of a draw: sum_k pi_k (log pi_k - log p_k), `(*batch,)`.

    It is at most the KL of the concrete distributions, since which option is the largest is a function of the draw, and
    it has no variance. It is what counts where the draw is an architecture.
    """
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - prior_logits.log_softmax(-1))).sum(-1)
