"""Concrete and logistic-normal distributions: densities, divergences, limits."""

import math

import pytest
import torch
from torch.distributions import Categorical, ExpTransform, RelaxedOneHotCategorical, kl_divergence

from nni_bayes_nas.bayes import concrete, logistic_normal


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


LOGITS, OTHER = tensor([0.5, -1.0, 0.2]), tensor([0.0, 0.3, -0.4])


def within(sampled, expected):
    assert abs(float(sampled.mean() - expected)) < 4 * float(sampled.std()) / len(sampled) ** 0.5


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_density_is_torch_s(temperature):
    log_x = concrete.log_rsample(LOGITS, temperature, torch.Generator().manual_seed(0))
    torch_s = RelaxedOneHotCategorical(tensor(temperature), logits=LOGITS)
    # The density of log x is that of x times dx / d log x.
    expected = torch_s.log_prob(log_x.exp()) + ExpTransform().log_abs_det_jacobian(log_x, log_x.exp()).sum()
    torch.testing.assert_close(concrete.log_density_of_log(log_x, LOGITS, temperature), expected)


def test_options_are_drawn_with_their_probabilities():
    drawn = concrete.log_rsample(LOGITS.expand(100_000, 3), 0.5, torch.Generator().manual_seed(1)).argmax(-1)
    shares, p = torch.bincount(drawn, minlength=3).double() / len(drawn), LOGITS.softmax(-1)
    assert bool(((shares - p).abs() < 4 * (p * (1 - p) / len(drawn)).sqrt()).all())


def test_categorical_divergence_by_monte_carlo():
    drawn = concrete.log_rsample(LOGITS.expand(200_000, 3), 0.5, torch.Generator().manual_seed(5)).argmax(-1)
    within((LOGITS.log_softmax(-1) - OTHER.log_softmax(-1))[drawn], concrete.kl_categorical(LOGITS, OTHER))


def test_a_low_temperature_gives_no_minus_infinity_in_single_precision():
    drawn = concrete.log_rsample((10 * LOGITS).float().expand(1000, 3), 0.01, torch.Generator().manual_seed(1))
    assert bool(torch.isfinite(drawn).all())


def test_categorical_divergence_is_torch_s_and_at_most_that_of_the_draws():
    expected = kl_divergence(Categorical(logits=LOGITS), Categorical(logits=OTHER))
    torch.testing.assert_close(concrete.kl_categorical(LOGITS, OTHER), expected)
    drawn = concrete.log_rsample(LOGITS.expand(200_000, 3), 0.5, torch.Generator().manual_seed(2))
    assert float(concrete.kl_sampled(drawn, LOGITS, OTHER, 0.5).mean()) > float(expected)
    assert float(concrete.kl_categorical(LOGITS, LOGITS + 1)) == pytest.approx(0, abs=1e-12)


def test_sampled_divergence_does_not_depend_on_the_temperature():
    means = []
    for temperature in (0.2, 1.5):
        drawn = concrete.log_rsample(LOGITS.expand(200_000, 3), temperature, torch.Generator().manual_seed(3))
        means.append(float(concrete.kl_sampled(drawn, LOGITS, OTHER, temperature).mean()))
    assert means[0] == pytest.approx(means[1], abs=1e-9)


SD, OTHER_SD = tensor([0.5, 1.2, 0.8]), tensor([1.0, 0.7, 1.1])


@pytest.mark.parametrize(("small", "last"), [(1e-3, 3.0), (3e-4, 1.0), (3e-4, 3.0), (1e-4, 0.5)])
def test_logistic_normal_divergence_of_deviations_far_apart(small, last):
    """log det of diag(v) + v_n 11' is sum log v_k + log sum_k 1 / v_k over all k; the rest by Sherman and Morrison."""
    sd = torch.tensor([small, small, small, last], requires_grad=True)
    mean = torch.tensor([0.3, -0.2, 0.1, 0.0])
    found = logistic_normal.kl(mean, sd)
    v = sd.detach().double().square()
    log_det = float(v.log().sum() + (1 / v).sum().log())
    # The prior has 1 in the diagonal and 1 beside it: its inverse is I - 11' / n, its determinant n.
    covariance = torch.diag(v[:3]) + v[3]
    inverse = torch.eye(3, dtype=torch.float64) - 0.25
    apart = (mean[:3] - mean[3]).double()
    expected = 0.5 * (float((inverse @ covariance).trace() + apart @ inverse @ apart) - 3 + math.log(4) - log_det)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, sd)
    assert gradient.dtype == torch.float32 and bool(torch.isfinite(gradient).all())
    assert gradient[:3].tolist() == pytest.approx([float(gradient[0])] * 3, rel=1e-3)


def test_logistic_normal_divergence_by_monte_carlo():
    drawn = logistic_normal.log_rsample(LOGITS.expand(200_000, 3), SD, 1.0, torch.Generator().manual_seed(4))
    ratio = logistic_normal.log_density_of_log(drawn, LOGITS, SD) - logistic_normal.log_density_of_log(
        drawn, OTHER, OTHER_SD
    )
    within(ratio, logistic_normal.kl(LOGITS, SD, OTHER, OTHER_SD))


def test_a_constant_added_to_all_logits_changes_nothing():
    value = logistic_normal.kl(LOGITS, SD, OTHER, OTHER_SD)
    torch.testing.assert_close(logistic_normal.kl(LOGITS + 3, SD, OTHER - 2, OTHER_SD), value)
    torch.testing.assert_close(logistic_normal.kl(LOGITS.flip(0), SD.flip(0), OTHER.flip(0), OTHER_SD.flip(0)), value)
    assert float(logistic_normal.kl(LOGITS, SD, LOGITS + 1, SD)) == pytest.approx(0, abs=1e-12)


def test_the_divergence_of_the_simplex_is_at_most_that_of_the_logits():
    from nni_bayes_nas.bayes import normal

    assert float(logistic_normal.kl(LOGITS, SD, OTHER, OTHER_SD)) <= float(normal.kl(LOGITS, SD, OTHER, OTHER_SD))


def test_gradients():
    inputs = [x.clone().requires_grad_(True) for x in (LOGITS, SD)]
    assert torch.autograd.gradcheck(logistic_normal.kl, inputs)
    generator = torch.Generator()
    pair = [x.clone().requires_grad_(True) for x in (LOGITS, OTHER)]
    assert torch.autograd.gradcheck(concrete.kl_categorical, pair)
    fixed = concrete.log_rsample(LOGITS, 0.7, torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda a, b: concrete.kl_sampled(fixed, a, b, 0.7), pair)
    assert torch.autograd.gradcheck(
        lambda m, s: logistic_normal.log_rsample(m, s, 0.7, generator.manual_seed(0)), inputs
    )
    assert torch.autograd.gradcheck(
        lambda x: concrete.log_density_of_log(concrete.log_rsample(x, 0.7, generator.manual_seed(0)), x, 0.7),
        inputs[:1],
    )
