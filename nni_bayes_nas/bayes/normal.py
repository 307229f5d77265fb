"""Diagonal Gaussian posteriors of weights, and what they cost against a prior.

All divergences are sums over the weights, in nats. A posterior is given by its means and by rho, the logarithms of its
standard deviations before clamping; `sd` is the one place where these become standard deviations.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Prior = Literal["fixed", "empirical_bayes", "ard", "log_uniform"]
PRIORS: tuple[Prior, ...] = ("fixed", "empirical_bayes", "ard", "log_uniform")
# exp of these: from a weight that is known to six digits to one that is not known at all.
RHO_RANGE = (-12.0, 3.0)
# Of the approximation to the log-uniform prior.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


def sd(rho: Tensor) -> Tensor:
    """Standard deviations, exp(rho) with rho kept in `RHO_RANGE`; same shape."""
    return rho.clamp(*RHO_RANGE).exp()


def kl(mean: Tensor, sd: Tensor, prior_mean: Tensor | float = 0.0, prior_sd: Tensor | float = 1.0) -> Tensor:
    """KL(N(mean, sd^2) || N(prior_mean, prior_sd^2)), summed.

    sum_i log(s_i / sigma_i) + (sigma_i^2 + (mu_i - m_i)^2) / (2 s_i^2) - 1/2.

    Args:
        mean: mu, any shape.
        sd: sigma > 0, the same shape.
        prior_mean: m, broadcast against it.
        prior_sd: s > 0, broadcast against it.

    Returns:
        `()`, >= 0.
    """
    s = torch.as_tensor(prior_sd, dtype=mean.dtype, device=mean.device)
    return (s.log() - sd.log() + (sd.square() + (mean - prior_mean).square()) / (2 * s.square()) - 0.5).sum()


def empirical_sd(mean: Tensor, sd: Tensor) -> Tensor:
    """The prior standard deviation that makes `kl` to N(0, s^2) smallest: s^2 = mean of mu^2 + sigma^2; `()`."""
    return (mean.square() + sd.square()).mean().sqrt()


def kl_empirical_bayes(mean: Tensor, sd: Tensor) -> Tensor:
    """KL to N(0, s^2) with the best s for these weights together: sum_i log(s / sigma_i); `()`."""
    return mean.numel() * empirical_sd(mean, sd).log() - sd.log().sum()


def kl_ard(mean: Tensor, sd: Tensor) -> Tensor:
    """KL to N(0, s_i^2) with the best s_i for every weight: sum_i log(1 + mu_i^2 / sigma_i^2) / 2; `()`.

    Automatic relevance determination (MacKay, 1995); zero for a weight whose mean is zero.
    """
    return torch.log1p((mean / sd).square()).sum() / 2


def kl_log_uniform(mean: Tensor, sd: Tensor) -> Tensor:
    """Divergence from p(|w|) ~ 1 / |w|, up to a constant that is infinite; `()`, 0 for weights whose means are 0.

    sum_i log(1 + 1 / alpha_i) / 2 + k1 (1 - sigmoid(k2 + k3 log alpha_i)) with alpha = sigma^2 / mu^2.

    The approximation of Molchanov et al. (2017, arXiv 1701.05369, equation 14); their constant is left out. The prior
    is improper: what is built with it is no evidence.
    """
    log_alpha = 2 * (sd.log() - mean.abs().clamp_min(1e-20).log())
    return (F.softplus(-log_alpha) / 2 + _K1 * torch.sigmoid(-(_K2 + _K3 * log_alpha))).sum()


def kl_to_prior(mean: Tensor, sd: Tensor, prior: Prior, prior_sd: float = 1.0) -> Tensor:
    """KL of a posterior to a prior with mean zero, summed; `()`.

    Args:
        mean: Any shape.
        sd: The same shape.
        prior: "fixed": N(0, prior_sd^2); "empirical_bayes": one standard deviation, the best for these weights; "ard":
            one for each of them; "log_uniform": see `kl_log_uniform`.
        prior_sd: Of "fixed".
    """
    if prior == "fixed":
        return kl(mean, sd, 0.0, prior_sd)
    others = {"ard": kl_ard, "empirical_bayes": kl_empirical_bayes, "log_uniform": kl_log_uniform}
    return others[prior](mean, sd)


def gated_kl(gates: Tensor, divergences: Tensor) -> Tensor:
    """sum_l gate_l KL_l, where an operation that is off keeps its prior; `()`.

    For gates of 0 or 1, and q(w_l | off) = p(w_l), this is KL(q(w | gates) || p(w)) exactly, and the bound built with
    it is one. For gates in between it is a surrogate, the straight line between the two, and what is built with it is
    no bound.

    Args:
        gates: `(n,)`, in [0, 1].
        divergences: Of each operation's weights when it is on, `(n,)`.
    """
    return (gates * divergences).sum()


def log_density(x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """log N(x; mean, sd^2), elementwise."""
    return -((x - mean) / sd).square() / 2 - sd.log() - math.log(2 * math.pi) / 2


def log_relative_density(mean: Tensor, sd: Tensor) -> Tensor:
    """log of q(0) / q(mode) = -mu^2 / (2 sigma^2), elementwise; near 0 for weights that may be left out.

    Graves, 2011, section 5; the logarithm does not underflow.
    """
    return -(mean / sd).square() / 2
