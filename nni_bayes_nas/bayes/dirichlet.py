"""Dirichlet distributions over the weights of options: torch's, kept inside the range where single precision holds.

Concentrations are `(*batch, options)`. Divergences and entropies are in nats, one for each row. Below a concentration
of .05 draws in single precision underflow to exact zeros, and below .01 to NaN, which is why there is a floor.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

from nni_bayes_nas.errors import ConfigError

LEAST_FLOOR = 0.05
FLOOR = 0.1
CAP = 1e3
# Draws are kept away from the edge of the simplex before anything takes their logarithm.
_SMALLEST = 1e-6


def concentration(raw: Tensor, floor: float = FLOOR) -> Tensor:
    """min(floor + softplus(raw), CAP), of the shape of `raw`.

    Raises:
        ConfigError: The floor is below LEAST_FLOOR.
    """
    check_floor(floor)
    return (floor + F.softplus(raw)).clamp_max(CAP)


def raw_of(concentrations: Tensor, floor: float = FLOOR) -> Tensor:
    """The inverse of `concentration`, for values above the floor and below the cap."""
    check_floor(floor)
    above = concentrations - floor
    if not bool((above > 0).all()):
        raise ConfigError(
            f"concentrations must be above the floor {floor}, got {float(concentrations.min())}; lower the floor."
        )
    # log(e^x - 1), which overflows as it is written.
    return above + torch.log(-torch.expm1(-above))


def check_floor(floor: float) -> None:
    """Raise ConfigError for a floor at which draws underflow."""
    if not floor >= LEAST_FLOOR:
        raise ConfigError(
            f"the floor of concentrations must be at least {LEAST_FLOOR}, got {floor}; draws of smaller ones underflow."
        )


def check_prior(prior: float, name: str = "prior", floor: float | None = None) -> None:
    """Raise ConfigError for a prior concentration that is not positive, or that no posterior of a floor can reach."""
    if not 0 < prior < float("inf"):
        raise ConfigError(f"{name} is a concentration and must be above 0, got {prior}; 1 is uniform.")
    if floor is not None and not floor < prior < CAP:
        raise ConfigError(
            f"{name} must be a concentration that the posterior can have, above the floor {floor:g} and below {CAP:g}, "
            f"got {prior:g}; 1 is uniform."
        )


def mean(concentrations: Tensor) -> Tensor:
    """a_k / sum a, the probabilities that architectures are derived from; same shape."""
    return concentrations / concentrations.sum(-1, keepdim=True)


def variance(concentrations: Tensor) -> Tensor:
    """m_k (1 - m_k) / (sum a + 1); same shape."""
    m = mean(concentrations)
    return m * (1 - m) / (concentrations.sum(-1, keepdim=True) + 1)


def entropy(concentrations: Tensor) -> Tensor:
    """Differential entropy, `(*batch,)`; negative for a concentrated distribution."""
    result: Tensor = _distribution(concentrations).entropy()  # type: ignore[no-untyped-call]
    return result


def kl(concentrations: Tensor, prior: Tensor | float) -> Tensor:
    """KL(Dir(a) || Dir(b)), `(*batch,)`, >= 0.

    log Gamma(sum a) - sum log Gamma(a_k) - log Gamma(sum b) + sum log Gamma(b_k)
    + sum (a_k - b_k) (psi(a_k) - psi(sum a)).

    Args:
        concentrations: a.
        prior: b, broadcast against them; a number is symmetric, and 1 uniform.
    """
    b = torch.as_tensor(prior, dtype=concentrations.dtype, device=concentrations.device).expand_as(concentrations)
    return kl_divergence(_distribution(concentrations), _distribution(b))


def log_density(x: Tensor, concentrations: Tensor) -> Tensor:
    """log Dir(x; a) at points of the simplex, `(*batch,)`; points on its edge are moved inside."""
    result: Tensor = _distribution(concentrations).log_prob(inside(x))  # type: ignore[no-untyped-call]
    return result


def expected_log(concentrations: Tensor) -> Tensor:
    """E log x_k = psi(a_k) - psi(sum a); same shape."""
    return torch.digamma(concentrations) - torch.digamma(concentrations.sum(-1, keepdim=True))


def inside(x: Tensor) -> Tensor:
    """A point of the simplex with every coordinate at least about 1e-6; same shape."""
    kept = x.clamp(_SMALLEST, 1.0)
    return kept / kept.sum(-1, keepdim=True)


def rsample(concentrations: Tensor, generator: torch.Generator | None = None, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws with pathwise gradients (Figurnov, Mohamed & Mnih, 2018, arXiv 1805.08498), `(*shape, *batch, options)`.

    They are taken in double precision on the CPU, where their gradients are exact enough, and come back as the
    concentrations are.

    Args:
        concentrations: a, at least LEAST_FLOOR.
        generator: Of the noise; equal states and concentrations give equal draws. None draws from torch's own.
        shape: Of the draws.
    """
    a = concentrations.to(device="cpu", dtype=torch.float64)
    if generator is None:
        drawn = Dirichlet(a, validate_args=False).rsample(shape)
    else:
        # torch's rsample takes no generator; torch.manual_seed would seed accelerators too.
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            drawn = Dirichlet(a, validate_args=False).rsample(shape)
    return inside(drawn).to(concentrations)


def _distribution(concentrations: Tensor) -> Dirichlet:
    return Dirichlet(concentrations, validate_args=False)
