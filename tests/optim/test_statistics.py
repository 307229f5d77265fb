"""Statistics of gradients: against gradients of single objects, closed forms, and coverage of what they claim."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim import GradientStatistics

CHAINS = 1000


def test_the_covariance_of_single_objects_is_found_without_bias():
    """Mini-batches drawn with replacement, at fixed weights; by `torch.func.vmap` beside it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    x, y = torch.randn(40, 3), torch.randint(0, 2, (40,))
    values = dict(model.named_parameters())

    def loss(parameters, one, target):
        return F.cross_entropy(functional_call(model, parameters, (one.unsqueeze(0),)), target.unsqueeze(0))

    each = vmap(grad(loss), in_dims=(None, 0, 0))({name: p.detach() for name, p in values.items()}, x, y)
    statistics = GradientStatistics(model.named_parameters(), batch_size=8)
    found = []
    for _ in range(40):
        statistics.reset()
        for _ in range(50):
            at = torch.randint(0, 40, (8,))
            model.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            statistics.update()
        found.append(torch.cat([v.flatten() for v in statistics.per_object_variance().values()]))
    exact = torch.cat([g.var(0, correction=0).flatten() for g in each.values()])
    draws = torch.stack(found)
    error = draws.std(0) / len(draws) ** 0.5
    # Of 30 numbers: 4 standard errors, and nearly as many above as below.
    assert bool(((draws.mean(0) - exact).abs() < 4 * error).all())
    assert 0.2 < float((draws.mean(0) > exact).double().mean()) < 0.8


def test_means_by_hand():
    w = torch.nn.Parameter(torch.zeros(2))
    statistics = GradientStatistics([("w", w)], batch_size=4, gather=("moments", "noise", "path"))
    for gradient in ([1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]):
        w.grad = torch.tensor(gradient)
        statistics.update()
        with torch.no_grad():
            w -= 0.5 * w.grad
    torch.testing.assert_close(statistics.mean()["w"], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(statistics.absolute()["w"], torch.tensor([5 / 3, 0.0]))
    torch.testing.assert_close(statistics.second_moment()["w"], torch.tensor([11 / 3, 0.0]))
    # Differences -2 and 4: (4 + 16) / 2 / 2.
    torch.testing.assert_close(statistics.variance()["w"], torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(statistics.per_object_variance()["w"], torch.tensor([20.0, 0.0]))
    torch.testing.assert_close(statistics.drift()["w"], torch.tensor([(3 / 5) ** 0.5, 0.0]))
    # Steps of -.5 and .5 have been seen: it is back where it was; the other one has not moved.
    torch.testing.assert_close(statistics.effective_perturbation()["w"], torch.tensor([0.0, 0.0]))
    statistics.reset()
    w.grad = None
    statistics.update()
    torch.testing.assert_close(statistics.mean()["w"], torch.zeros(2))


def test_the_curvature_of_a_quadratic_loss_without_noise():
    h = torch.tensor([0.5, 2.0, 0.0])
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    statistics = GradientStatistics([("w", w)], batch_size=1, gather=("chain",), block=5)
    for _ in range(20):
        w.grad = h * (w.detach() - 0.3)
        statistics.update()
        with torch.no_grad():
            w -= 0.2 * w.grad
    torch.testing.assert_close(statistics.curvature()["w"], h, rtol=1e-3, atol=1e-6)
    value, sd = statistics.deviation()["w"]
    torch.testing.assert_close(value[:2], w.detach()[:2] - 0.3, rtol=1e-3, atol=1e-4)
    assert bool((sd < 1e-2).all())  # rounding, of blocks that are all alike


def coverage(statistics, w, best):
    """Share of the intervals of 90 % that hold the distance to the optimum, of every coordinate."""
    value, sd = statistics.deviation()["w"]
    return ((value - (w.detach() - best)).abs() < 1.645 * sd).double().mean(0).tolist()


def chains(gradient, start, rate, burn_in, steps, **block):
    """Many runs of SGD at once, a row each."""
    w = torch.nn.Parameter(start)
    statistics = GradientStatistics([("w", w)], batch_size=1, gather=("chain",), **block)
    for step in range(burn_in + steps):
        w.grad = gradient(w.detach())
        if step >= burn_in:
            statistics.update()
        with torch.no_grad():
            w -= rate * w.grad
    return statistics, w


@pytest.mark.parametrize(
    ("correlation", "burn_in", "start"),
    [(0.0, 0, 3.0), (0.0, 300, 0.0), (0.6, 0, 3.0), (0.6, 300, 0.0)],
    ids=["on the way", "at rest", "on the way, correlated", "at rest, correlated"],
)
def test_the_distance_to_the_optimum_of_a_quadratic(correlation, burn_in, start):
    """In .85 to .95 of the cases the interval of 90 % holds it, of every coordinate."""
    torch.manual_seed(0)
    hessian = torch.diag(torch.tensor([1.0, 0.5, 2.0]))
    hessian[0, 1] = hessian[1, 0] = correlation * 0.5**0.5
    best = torch.tensor([0.7, -1.0, 0.2])
    sds = torch.tensor([0.5, 1.0, 0.3])

    def gradient(w):
        return (w - best) @ hessian + sds * torch.randn_like(w)

    statistics, w = chains(gradient, torch.full((CHAINS, 3), start), 0.1, burn_in, 2000)
    assert all(0.85 <= share <= 0.95 for share in coverage(statistics, w, best))


@pytest.mark.parametrize(("at_rest", "burn_in"), [(True, 300), (False, 0)], ids=["at rest", "on the way"])
def test_the_distance_to_the_optimum_of_a_logistic_regression(at_rest, burn_in):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    x[:, 1] = 0.5 * x[:, 0] + 0.8 * x[:, 1]
    y = (torch.rand(200, generator=generator) < (x @ torch.tensor([1.0, -0.5, 0.3])).sigmoid()).float()

    def loss(w):
        z = x.double().numpy() @ w
        return float(np.logaddexp(0, z).mean() - (y.double().numpy() * z).mean())

    best = torch.from_numpy(minimize(loss, np.zeros(3), tol=1e-10).x).float()

    def gradient(w):
        at = torch.randint(0, 200, (CHAINS, 20), generator=generator)
        errors = torch.einsum("nsd,nd->ns", x[at], w).sigmoid() - y[at]
        return torch.einsum("ns,nsd->nd", errors, x[at]) / 20

    start = best if at_rest else torch.zeros(3)
    statistics, w = chains(gradient, start.expand(CHAINS, 3).clone(), 0.1, burn_in, 6000, block=300)
    assert all(0.85 <= share <= 0.95 for share in coverage(statistics, w, best))


BAD = {
    "part": (lambda s: GradientStatistics([], batch_size=1, gather=("mean",)), r"gather must name some of moments"),
    "size": (lambda s: GradientStatistics([], batch_size=0), r"batch_size must be at least 1, got 0"),
    "block": (lambda s: GradientStatistics([], batch_size=1, block=0), r"block must be at least 1, got 0"),
    "not gathered": (lambda s: s.deviation(), r"`chain` must be gathered for this, got gather=\['moments', 'noise'\]"),
    "too early": (lambda s: s.variance(), r"statistics need at least 2 updates for this, got 1; train on"),
}


@pytest.mark.parametrize(("ask", "match"), BAD.values(), ids=BAD)
def test_what_cannot_be_asked(ask, match):
    statistics = GradientStatistics([("w", torch.nn.Parameter(torch.zeros(1)))], batch_size=1)
    statistics.update()
    with pytest.raises(ConfigError, match=match):
        ask(statistics)
