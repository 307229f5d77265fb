"""Logistic-normal distributions over the weights of options: softmax of Gaussian logits, `(*batch, options)`.

Aitchison & Shen, 1980. A constant that is added to all logits changes nothing, so that the distribution over the
simplex has the n - 1 differences to their mean as parameters: all that is said of it is said of those.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_rsample(mean: Tensor, sd: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """log softmax((mean + sd * noise) / temperature); differentiable; same shape."""
    noise = torch.randn(tuple(mean.shape), generator=generator, dtype=torch.float64).to(mean)
    return ((mean + sd * noise) / temperature).log_softmax(-1)


def kl(mean: Tensor, sd: Tensor, prior_mean: Tensor | float = 0.0, prior_sd: Tensor | float = 1.0) -> Tensor:
    """KL of two logistic-normal distributions, `(*batch,)`, in nats.

    It is that of the Gaussians of the differences of the logits to the last one, since softmax is one-to-one in these:
    with C the (n - 1) x n matrix of differences, KL(N(C mu, C S C') || N(C m, C P C')).

    Args:
        mean: mu, `(*batch, n)`.
        sd: Standard deviations of the independent logits, the same shape.
        prior_mean: m, broadcast against it.
        prior_sd: Broadcast against it.
    """
    ours = _differences(mean, sd)
    theirs = _differences(
        torch.as_tensor(prior_mean).to(mean).expand_as(mean), torch.as_tensor(prior_sd).to(mean).expand_as(mean)
    )
    return torch.distributions.kl_divergence(ours, theirs).to(mean)


def log_density_of_log(log_x: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Log density of the differences log x_k - log x_n, `(*batch,)`, at temperature 1."""
    differences = log_x[..., :-1] - log_x[..., -1:]
    result: Tensor = _differences(mean, sd).log_prob(differences.double())  # type: ignore[no-untyped-call]
    return result.to(log_x)


def _differences(mean: Tensor, sd: Tensor) -> torch.distributions.MultivariateNormal:
    # In double precision: in single the variances that are small beside the last one are lost in the sum.
    mean, variances = mean.double(), sd.double().square()
    covariance = torch.diag_embed(variances[..., :-1]) + variances[..., -1:, None]
    return torch.distributions.MultivariateNormal(mean[..., :-1] - mean[..., -1:], covariance, validate_args=False)
