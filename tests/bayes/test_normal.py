"""Gaussian posteriors: closed forms against torch, Monte Carlo and numerical optima."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from nni_bayes_nas.bayes import normal

FLOATS = st.floats(-3.0, 3.0)
POSITIVE = st.floats(0.05, 3.0)


def posterior(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, generator=generator, dtype=torch.float64)
    return mean, torch.rand(n, generator=generator, dtype=torch.float64) + 0.1


def within(sampled, expected):
    error = sampled.std() / len(sampled) ** 0.5
    assert abs(float(sampled.mean() - expected)) < 4 * float(error)


@given(st.lists(st.tuples(FLOATS, POSITIVE, FLOATS, POSITIVE), min_size=1, max_size=5))
def test_kl_is_torch_s(rows):
    mean, sd, prior_mean, prior_sd = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    expected = kl_divergence(Normal(mean, sd), Normal(prior_mean, prior_sd)).sum()
    torch.testing.assert_close(normal.kl(mean, sd, prior_mean, prior_sd), expected, rtol=1e-10, atol=1e-10)


def test_kl_by_monte_carlo():
    mean, sd = posterior(3)
    drawn = mean + sd * torch.randn(200_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    prior = torch.zeros_like(mean), torch.full_like(mean, 0.7)
    ratio = (normal.log_density(drawn, mean, sd) - normal.log_density(drawn, *prior)).sum(-1)
    within(ratio, normal.kl(mean, sd, 0.0, 0.7))


def test_density_is_torch_s():
    mean, sd = posterior()
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    torch.testing.assert_close(normal.log_density(x, mean, sd), Normal(mean, sd).log_prob(x))


def test_empirical_bayes_is_the_best_common_prior():
    mean, sd = posterior()
    grid = torch.linspace(0.2, 4, 400, dtype=torch.float64)
    values = torch.stack([normal.kl(mean, sd, 0.0, s) for s in grid])
    best = normal.kl_empirical_bayes(mean, sd)
    assert float(values.min()) == pytest.approx(float(best), abs=1e-3) and bool((values >= best - 1e-12).all())
    torch.testing.assert_close(best, normal.kl(mean, sd, 0.0, normal.empirical_sd(mean, sd)))


def test_ard_is_the_best_prior_of_every_weight():
    mean, sd = posterior()
    best = (mean.square() + sd.square()).sqrt()
    torch.testing.assert_close(normal.kl_ard(mean, sd), normal.kl(mean, sd, 0.0, best))
    for factor in (0.9, 1.1):
        assert float(normal.kl_ard(mean, sd)) < float(normal.kl(mean, sd, 0.0, factor * best))


@pytest.mark.parametrize("prior", normal.PRIORS)
def test_priors_by_name(prior):
    mean, sd = posterior()
    expected = {
        "fixed": normal.kl(mean, sd, 0.0, 0.3),
        "empirical_bayes": normal.kl_empirical_bayes(mean, sd),
        "ard": normal.kl_ard(mean, sd),
        "log_uniform": normal.kl_log_uniform(mean, sd),
    }[prior]
    torch.testing.assert_close(normal.kl_to_prior(mean, sd, prior, 0.3), expected)
    assert float(expected) >= 0


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 3.0, 10.0])
def test_the_log_uniform_prior_by_integration(ratio):
    """E log |w| - log sigma, less what it is at mu = 0; the approximation is good to .01 nat."""
    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    exact = [float((density * (z + r).abs().clamp_min(1e-6).log()).sum() * (z[1] - z[0])) for r in (ratio, 0.0)]
    mean, sd = torch.tensor([ratio], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert float(normal.kl_log_uniform(2 * mean, 2 * sd)) == pytest.approx(exact[0] - exact[1], abs=0.01)
    assert float(normal.kl_log_uniform(0 * mean, sd)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("prior", normal.PRIORS)
def test_gradients(prior):
    mean, sd = posterior()
    rho = sd.log()
    inputs = [x.requires_grad_(True) for x in (mean, rho)]
    assert torch.autograd.gradcheck(lambda m, r: normal.kl_to_prior(m, normal.sd(r), prior, 0.5), inputs)
    x = torch.linspace(-1, 1, len(mean), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, r: normal.log_density(x, m, normal.sd(r)), inputs)


def test_the_standard_deviation_keeps_its_range():
    rho = torch.tensor([-100.0, -5.0, 0.0, 100.0])
    low, high = normal.RHO_RANGE
    torch.testing.assert_close(normal.sd(rho).log(), torch.tensor([low, -5.0, 0.0, high]))


@given(POSITIVE, FLOATS, POSITIVE, POSITIVE)
def test_scaling_weights_and_prior_alike_leaves_the_divergence(gamma, mean, sd, prior_sd):
    """q(w | gamma) = N(gamma mu, gamma^2 sigma^2) against p(w | gamma) = N(0, gamma^2 s^2): free of gamma."""
    mean, sd = torch.tensor([mean], dtype=torch.float64), torch.tensor([sd], dtype=torch.float64)
    scaled = normal.kl(gamma * mean, gamma * sd, 0.0, gamma * prior_sd)
    torch.testing.assert_close(scaled, normal.kl(mean, sd, 0.0, prior_sd), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gates", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_gated_divergence_is_exact_for_gates_that_are_on_or_off(gates):
    (mean, sd), prior_sd = posterior(2), 0.8
    each = torch.stack([normal.kl(mean[i], sd[i], 0.0, prior_sd) for i in range(2)])
    on = torch.tensor(gates, dtype=torch.float64)
    given_gates = normal.kl(on * mean, torch.where(on > 0, sd, prior_sd), 0.0, prior_sd)
    torch.testing.assert_close(normal.gated_kl(on, each), given_gates)


def test_relative_density():
    mean, sd = torch.tensor([0.0, 1.0, -200.0]), torch.tensor([1.0, 0.5, 0.1])
    expected = Normal(mean, sd).log_prob(torch.zeros(3)) - Normal(mean, sd).log_prob(mean)
    torch.testing.assert_close(normal.log_relative_density(mean, sd), expected)
