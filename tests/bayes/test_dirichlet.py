"""Dirichlet distributions: closed forms, Monte Carlo, gradients, and where single precision ends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.bayes import dirichlet, elbo, objective
from nni_bayes_nas.errors import ConfigError

CONCENTRATIONS = st.lists(st.floats(0.06, 30.0), min_size=2, max_size=6)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@given(CONCENTRATIONS, st.floats(0.1, 5.0))
def test_kl_closed_form(values, prior):
    a = tensor(values)
    b = torch.full_like(a, prior)
    expected = (
        torch.lgamma(a.sum())
        - torch.lgamma(a).sum()
        - torch.lgamma(b.sum())
        + torch.lgamma(b).sum()
        + ((a - b) * (torch.digamma(a) - torch.digamma(a.sum()))).sum()
    )
    torch.testing.assert_close(dirichlet.kl(a, prior), expected, rtol=1e-9, atol=1e-9)
    assert float(expected) >= -1e-9


def test_kl_and_entropy_by_monte_carlo():
    a, b = tensor([0.7, 2.0, 1.3]), tensor([1.0, 1.0, 3.0])
    drawn = dirichlet.rsample(a, torch.Generator().manual_seed(0), (200_000,))
    log_q = dirichlet.log_density(drawn, a)
    for sampled, expected in (
        (log_q - dirichlet.log_density(drawn, b), dirichlet.kl(a, b)),
        (-log_q, dirichlet.entropy(a)),
        (drawn[:, 0].log(), dirichlet.expected_log(a)[0]),
    ):
        assert abs(float(sampled.mean() - expected)) < 4 * float(sampled.std()) / len(sampled) ** 0.5


def test_moments_by_monte_carlo():
    a = tensor([0.5, 4.0, 1.5])
    drawn = dirichlet.rsample(a, torch.Generator().manual_seed(1), (200_000,))
    error = dirichlet.variance(a).sqrt() / len(drawn) ** 0.5
    assert bool(((drawn.mean(0) - dirichlet.mean(a)).abs() < 4 * error).all())
    squares = (drawn - dirichlet.mean(a)).square()
    assert bool(((squares.mean(0) - dirichlet.variance(a)).abs() < 4 * squares.std(0) / len(drawn) ** 0.5).all())


def test_pathwise_gradient_is_that_of_the_expectation():
    """d E[x_0^2] / d a against the closed form E[x_0^2] = a_0 (a_0 + 1) / (s (s + 1))."""
    a = tensor([0.8, 1.7, 0.4]).requires_grad_(True)
    each = a.expand(100_000, 3).detach().requires_grad_(True)
    drawn = dirichlet.rsample(each, torch.Generator().manual_seed(2))
    (ours,) = torch.autograd.grad(drawn[:, 0].square().sum(), each)
    s = a.sum()
    (expected,) = torch.autograd.grad(a[0] * (a[0] + 1) / (s * (s + 1)), a)
    assert bool(((ours.mean(0) - expected).abs() < 4 * ours.std(0) / len(ours) ** 0.5).all())


def test_gradients_of_closed_forms():
    a = tensor([[0.8, 1.7, 0.4], [3.0, 0.2, 9.0]]).requires_grad_(True)
    for function in (dirichlet.entropy, lambda x: dirichlet.kl(x, 0.5), dirichlet.mean, dirichlet.expected_log):
        assert torch.autograd.gradcheck(function, a)
    x = tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    assert torch.autograd.gradcheck(lambda a: dirichlet.log_density(x, a), a)
    assert torch.autograd.gradcheck(
        lambda r: dirichlet.concentration(r, 0.1), tensor([-3.0, 0.0, 2.0]).requires_grad_()
    )


def test_equal_noise_and_nothing_taken_from_torch_s_own():
    a = tensor([0.8, 1.7, 0.4])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (dirichlet.rsample(a, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, dirichlet.rsample(a, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_at_the_floor_are_inside(dtype):
    a = torch.full((8,), dirichlet.LEAST_FLOOR, dtype=dtype)
    drawn = dirichlet.rsample(a, torch.Generator().manual_seed(0), (20_000,))
    assert drawn.dtype == dtype and bool((drawn > 0).all()) and bool(torch.isfinite(drawn.log()).all())
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20_000, dtype=dtype))


@given(st.lists(st.floats(-30.0, 30.0), min_size=1, max_size=5), st.sampled_from([0.05, 0.1, 1.0]))
def test_concentrations_stay_between_floor_and_cap(raw, floor):
    a = dirichlet.concentration(tensor(raw), floor)
    assert bool((a >= floor).all()) and bool((a <= dirichlet.CAP).all())
    assert float(dirichlet.concentration(tensor([1e9]), floor)) == dirichlet.CAP


@given(CONCENTRATIONS)
def test_raw_is_the_inverse(values):
    a = tensor(values)
    torch.testing.assert_close(dirichlet.concentration(dirichlet.raw_of(a, 0.05), 0.05), a, rtol=1e-9, atol=1e-9)


def test_large_concentrations_end_in_a_point():
    a = tensor([600.0, 300.0, 100.0])
    assert float(dirichlet.variance(a).max()) < 3e-4 and float(dirichlet.entropy(a)) < -5
    assert float(dirichlet.kl(torch.ones(3), 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(dirichlet.entropy(torch.ones(3, dtype=torch.float64))) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("floor", [0.0, 0.01, -1.0, math.nan])
def test_floors_that_underflow_are_refused(floor):
    with pytest.raises(ConfigError, match=r"at least 0\.05"):
        dirichlet.concentration(torch.zeros(2), floor)


@pytest.mark.parametrize("prior", [0.0, -1.0, math.inf, math.nan])
def test_priors_that_are_not_positive_are_refused(prior):
    with pytest.raises(ConfigError, match="above 0"):
        dirichlet.check_prior(prior)


def test_no_raw_value_gives_less_than_the_floor():
    with pytest.raises(ConfigError, match="above the floor"):
        dirichlet.raw_of(torch.tensor([0.1, 2.0]), 0.1)


@pytest.mark.parametrize("counts", [(3, 1), (5, 0, 2), (40, 25, 10, 5)])
def test_bound_of_a_categorical_likelihood_ends_in_the_exact_posterior_and_evidence(counts):
    """n options counted, a prior Dir(b): the posterior is Dir(b + n), and the bound the log evidence.

    So concentrations grow with the objects, one for each.
    """
    n = torch.tensor(counts, dtype=torch.float64)
    b, m = torch.full_like(n, 0.7), int(n.sum())
    raw = dirichlet.raw_of(torch.ones_like(n)).requires_grad_(True)
    optimizer = torch.optim.LBFGS([raw], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        a = dirichlet.concentration(raw)
        task = -(n * dirichlet.expected_log(a)).sum() / m
        return objective.total({"task": task, **elbo.divergence_terms({"kl": dirichlet.kl(a, b)}, m)})

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(dirichlet.concentration(raw).detach(), b + n, rtol=1e-4, atol=1e-4)
    evidence = torch.lgamma(b.sum()) - torch.lgamma(b.sum() + m) + (torch.lgamma(b + n) - torch.lgamma(b)).sum()
    torch.testing.assert_close(-m * loss().detach(), evidence, rtol=1e-8, atol=1e-8)
