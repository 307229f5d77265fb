"""Samplers against what is known of them: Gaussian targets, Lyapunov's equation, closed forms of a step."""

import copy
import math

import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim import SGLD, ConstantSGD, PreconditionedSGLD
from nni_bayes_nas.optim.constant_sgd import optimal_rates

CHAINS, N = 2000, 50
PRECISION = torch.tensor([[1.5, 0.4], [0.4, 0.6]])  # of one object; the target is N(0, (N PRECISION)^-1)
MAKERS = {
    "sgld": lambda p, **k: SGLD(p, 0.05, n_objects=N, **k),
    "psgld": lambda p, **k: PreconditionedSGLD(p, 0.01, n_objects=N, **k),
    "none": lambda p, **k: ConstantSGD(p, 0.05, n_objects=N, preconditioner="none", **k),
    "scalar": lambda p, **k: ConstantSGD(p, 0.05, n_objects=N, preconditioner="scalar", gather=3, **k),
    "diagonal": lambda p, **k: ConstantSGD(p, 0.05, n_objects=N, gather=3, **k),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def run(make, steps, hessian=PRECISION, noise=None, start=0.0):
    """Many chains at once, each a row; the gradient of the mean loss, with the noise of mini-batches."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.full((CHAINS, len(hessian)), start))
    optimizer = make([w])
    for _ in range(steps):
        w.grad = w.detach() @ hessian
        if noise is not None:
            w.grad += torch.randn(w.shape) @ noise.T
        optimizer.step()
    return w.detach()


def close(found, expected):
    """Covariances of draws: the error of an entry is sqrt((v_ii v_jj + v_ij^2) / n)."""
    spread = (expected.diagonal().outer(expected.diagonal()) + expected.square()) / CHAINS
    assert bool(((found - expected).abs() < 4 * spread.sqrt()).all()), (found, expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_langevin_draws_a_gaussian(weight_decay):
    lr = 0.05
    w = run(lambda p: SGLD(p, lr, n_objects=N, weight_decay=weight_decay), 300)
    hessian = PRECISION + weight_decay * torch.eye(2)
    # Of the discrete chain; at lr 0 it is the inverse of N times the Hessian.
    step = torch.eye(2) - lr * hessian
    exact = torch.from_numpy(solve_discrete_lyapunov(step.numpy(), (2 * lr / N * torch.eye(2)).numpy()))
    assert bool(((exact - torch.linalg.inv(N * hessian)).abs() < 0.1 * exact.diagonal().max()).all())
    close(torch.cov(w.T), exact)
    assert bool((w.mean(0).abs() < 4 * (exact.diagonal() / CHAINS).sqrt()).all())


def test_temperature_is_a_factor_of_the_covariance():
    cold, warm = (run(lambda p, t=t: SGLD(p, 0.05, n_objects=N, temperature=t), 200) for t in (0.25, 1.0))
    torch.testing.assert_close(4 * torch.cov(cold.T), torch.cov(warm.T))


def test_preconditioned_langevin_draws_a_gaussian():
    """Scales that differ by a hundred, seen by one rate; every chain has a V of its own."""
    hessian = torch.diag(torch.tensor([3.0, 0.03]))
    w = run(lambda p: PreconditionedSGLD(p, 5e-3, n_objects=N, decay=0.9998), 8000, hessian)
    exact = 1 / (N * hessian.diagonal())
    # The error of a variance is sqrt(2 / n); 3 % are left to the term that is left out.
    assert bool(((w.var(0) / exact - 1).abs() < 4 * math.sqrt(2 / CHAINS) + 0.03).all()), w.var(0) / exact
    assert bool((w.mean(0).abs() < 4 * (exact / CHAINS).sqrt()).all())


def test_preconditioned_langevin_draws_a_gaussian_with_correlation():
    w = run(lambda p: PreconditionedSGLD(p, 5e-3, n_objects=N, decay=0.9998), 8000)
    close(torch.cov(w.T), torch.linalg.inv(N * PRECISION))


@pytest.mark.parametrize(("noise", "most"), [(0.0, 1.5), (0.3, 1.2)])
def test_at_the_default_decay_draws_are_somewhat_too_wide(noise, most):
    """V follows the chain then, and what its derivative adds is left out; noise of mini-batches makes it steadier."""
    hessian = torch.diag(torch.tensor([3.0, 0.03]))
    w = run(lambda p: PreconditionedSGLD(p, 5e-3, n_objects=N), 4000, hessian, noise=noise * hessian.sqrt())
    wide = w.var(0) * N * hessian.diagonal()
    assert bool((wide > 1.0).all()) and bool((wide < most).all()), wide


def test_constant_rates_end_in_the_solution_of_lyapunovs_equation():
    noise = torch.tensor([[0.3, 0.0], [0.2, 0.4]])  # B / sqrt(S): a factor of the covariance of a mini-batch's gradient
    lr = 0.1
    w = run(lambda p: ConstantSGD(p, lr, n_objects=N, preconditioner="none"), 300, noise=noise)
    step = torch.eye(2) - lr * PRECISION
    exact = torch.from_numpy(solve_discrete_lyapunov(step.numpy(), (lr**2 * noise @ noise.T).numpy())).float()
    close(torch.cov(w.T), exact)
    # In continuous time, A Sigma + Sigma A = lr B B^T / S.
    left = PRECISION @ exact + exact @ PRECISION
    assert bool(((left - lr * noise @ noise.T).abs() < 0.15 * lr * (noise @ noise.T).max()).all())


def stationary(rates, noise, hessian=PRECISION):
    """Of w <- w - H g, exactly: a product of (I - H A) on both sides."""
    step = torch.eye(2) - rates.diag() @ hessian
    added = rates.diag() @ noise @ noise.T @ rates.diag()
    return torch.from_numpy(solve_discrete_lyapunov(step.double().numpy(), added.double().numpy())).float()


def test_rates_of_their_own_end_in_the_solution_of_lyapunovs_equation_too():
    """H = 2 / (m Var(g)) of every parameter, estimated while it runs."""
    noise = torch.tensor([[0.5, 0.0], [0.2, 0.6]])
    rates = 2 / (N * (noise @ noise.T).diagonal())
    w = run(lambda p: ConstantSGD(p, 0.05, n_objects=N, gather=1000, decay=0.999, max_lr=1.0), 1300, noise=noise)
    exact = stationary(rates, noise)
    close(torch.cov(w.T), exact)
    # In continuous time A Sigma H^-1 + H^-1 Sigma A = Var(g); steps leave the term A Sigma A to it.
    left = PRECISION @ exact / rates + (exact / rates[:, None]) @ PRECISION - PRECISION @ exact @ PRECISION
    torch.testing.assert_close(left, noise @ noise.T, rtol=1e-3, atol=1e-5)


def test_the_optimal_rates_minimize_the_divergence_to_the_posterior():
    noise = torch.tensor([[0.05, 0.0], [0.02, 0.25]])
    variance = (noise @ noise.T).diagonal()
    (best,) = optimal_rates([variance], 20_000, 1.0)
    torch.testing.assert_close(best, 2 / (20_000 * variance))
    divergences = {}
    for name, factors in {"best": (1, 1), "less": (0.8, 1), "more": (1, 1.25), "other": (1.25, 0.8)}.items():
        rates = best * torch.tensor(factors)
        covariance = stationary(rates, noise)
        precision = 20_000 * PRECISION
        # KL(N(0, Sigma) || N(0, (N A)^-1)), up to a constant.
        divergences[name] = float((torch.trace(precision @ covariance) - torch.logdet(precision @ covariance)) / 2)
    assert min(divergences, key=divergences.get) == "best"


@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_rates_are_estimated_from_the_noise(kind):
    """Noise of two sizes, and a drift of the gradient that must not count."""
    torch.manual_seed(0)
    sds = torch.tensor([0.1, 0.4])
    w = torch.nn.Parameter(torch.zeros(2))
    optimizer = ConstantSGD([w], 0.0, n_objects=N, preconditioner=kind, gather=4000, decay=0.999, max_lr=1e3)
    for step in range(4000):
        w.grad = sds * torch.randn(2) + step / 1000
        optimizer.step()
    before, w.grad = w.detach().clone(), torch.ones(2)
    optimizer.step()
    # The last gradient is a jump of 3: it weighs a thousandth.
    variances = sds.square() if kind == "diagonal" else sds.square().mean().expand(2)
    rates = before - w.detach()
    torch.testing.assert_close(rates, 2 / (N * (variances + 9 / 2000)), rtol=0.15, atol=0.0)


def test_a_gradient_without_noise_has_the_largest_rate():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = ConstantSGD([w], 0.1, n_objects=N, gather=2, max_lr=0.5)
    for _ in range(3):
        w.grad = torch.tensor([0.0, 1.0, 2.0])
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([1.0, 1 - 0.2 - 0.5, 1 - 0.4 - 1.0]))


def test_one_rate_is_that_of_what_moves_now():
    """Entries that are held, or dead, are not among the D; without any noise the rate is the largest."""
    torch.manual_seed(0)
    w, other = torch.nn.Parameter(torch.zeros(40)), torch.nn.Parameter(torch.zeros(10))
    runs = {}
    for foreach in (True, False):
        torch.manual_seed(1)
        for p in (w, other):
            p.data.zero_()
        optimizer = ConstantSGD([w, other], 0.0, n_objects=N, preconditioner="scalar", gather=200, foreach=foreach)
        for step in range(260):
            w.grad, other.grad = 0.2 * torch.randn(40), 0.4 * torch.randn(10)
            if step >= 200:
                w.grad[8:] = 0.0
            before = other.detach().clone()
            optimizer.step()
        runs[foreach] = (before - other.detach()) / other.grad
        rate = float(runs[foreach][0])
        assert rate == pytest.approx(2 * 18 / (N * (8 * 0.04 + 10 * 0.16)), rel=0.3) and rate < 0.5
        torch.testing.assert_close(runs[foreach], torch.full((10,), rate), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(runs[True], runs[False])
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ConstantSGD([p], 0.1, n_objects=N, preconditioner="scalar", gather=2, max_lr=0.25)
    for _ in range(4):
        p.grad = torch.ones(3)
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 - 2 * 0.1 - 2 * 0.25))


def test_the_share_of_entries_at_the_largest_rate():
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = ConstantSGD([p], 0.1, n_objects=N, gather=20, max_lr=0.5)
    assert optimizer.share_at_max_lr() == 0.0
    torch.manual_seed(0)
    for _ in range(60):
        p.grad = torch.tensor([0.0, 1e-4, 1.0, 1.0]) * torch.randn(4)
        optimizer.step()
    # One entry has no gradient, and does not count; of the others one has hardly any noise.
    assert optimizer.share_at_max_lr() == pytest.approx(1 / 3)


# -- as any optimizer ------------------------------------------------------------------------------------------------


def trained(make, steps, model, optimizer=None, **options):
    torch.manual_seed(1)
    optimizer = optimizer or make(model.parameters(), **options)
    x, y = torch.randn(16, 3), torch.randn(16, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return optimizer


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


@makers
def test_one_call_for_all_parameters_is_as_one_for_each(make):
    fast, slow = net(), net()
    trained(make, 6, fast)
    trained(make, 6, slow, foreach=False)
    for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@makers
def test_a_run_that_goes_on_is_the_same(make):
    whole, part = net(), net()
    trained(make, 8, whole)
    first = trained(make, 4, part)
    again = make(part.parameters())
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    trained(make, 4, part, again)
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)


@makers
def test_closures_groups_and_parameters_without_a_gradient(make):
    model = net()
    still = torch.nn.Parameter(torch.ones(2))
    optimizer = make([{"params": model[0].parameters()}, {"params": [*model[2].parameters(), still], "lr": 0.0}])
    before = copy.deepcopy(model.state_dict())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().mean()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == pytest.approx(loss_at(before))
    assert torch.equal(still, torch.ones(2)) and not torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[2].weight, before["2.weight"])


def loss_at(state):
    model = net()
    model.load_state_dict(state)
    return float(model(torch.ones(1, 3)).square().mean().detach())


@makers
def test_seeds_and_global_noise(make):
    """Noise is the optimizer's own: what else is drawn does not change it."""
    one, other = net(), net()
    trained(make, 3, one)
    optimizer = make(other.parameters())
    for _ in range(3):
        trained(make, 1, other, optimizer)
        torch.randn(7)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_different_seeds_differ():
    one, other = net(), net()
    trained(MAKERS["sgld"], 2, one)
    trained(MAKERS["sgld"], 2, other, seed=1)
    assert not torch.equal(one[0].weight, other[0].weight)


BAD = {
    "lr": (lambda p: SGLD(p, -1.0, n_objects=N), r"lr must be at least 0 and finite, got -1"),
    "n": (lambda p: SGLD(p, n_objects=0), r"n_objects must be at least 1, the size of the training set, got 0"),
    "temperature": (lambda p: SGLD(p, n_objects=N, temperature=math.inf), r"temperature must be at least 0"),
    "decay": (lambda p: PreconditionedSGLD(p, n_objects=N, decay=1.0), r"decay must be in \[0, 1\), got 1"),
    "eps": (lambda p: PreconditionedSGLD(p, n_objects=N, eps=0.0), r"eps must be above 0"),
    "kind": (lambda p: ConstantSGD(p, n_objects=N, preconditioner="full"), r"must be one of none, scalar, diagonal"),
    "gather": (lambda p: ConstantSGD(p, n_objects=N, gather=1), r"gather must be at least 2 steps, got 1"),
    "group": (lambda p: SGLD([{"params": p, "weight_decay": -1.0}], n_objects=N), r"weight_decay must be at least 0"),
}


@pytest.mark.parametrize(("make", "match"), BAD.values(), ids=BAD)
def test_what_cannot_be(make, match):
    with pytest.raises(ConfigError, match=match):
        make([torch.nn.Parameter(torch.zeros(1))])


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = SGLD(table.parameters(), n_objects=N)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match=r"needs dense gradients, got sparse ones"):
        optimizer.step()


def test_a_parameter_whose_gradient_comes_later_begins_then():
    """Its first step is that of any parameter: with V = (1 - decay) g^2, corrected, lr / (1 + eps / g)."""
    early, late = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = PreconditionedSGLD([early, late], 0.01, n_objects=10, temperature=0.0)
    early.grad = torch.ones(1)
    for _ in range(200):
        optimizer.step()
    late.grad = torch.ones(1)
    optimizer.step()
    assert late.item() == pytest.approx(-0.01, rel=1e-3)


@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_a_parameter_that_starts_late_is_as_one_that_starts(kind):
    """Its gradients before the first one are none, not zeros: rates are those of the same gradients from step 0 on."""
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(4, generator=generator, dtype=torch.float64) + 5 for _ in range(12)]

    def moved(late):
        early, w = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        # One rate for a group: the other parameter would have a part in it.
        optimizer = ConstantSGD(
            [w] if kind == "scalar" else [early, w], 0.1, n_objects=N, preconditioner=kind, gather=3
        )
        for step in range(12 + late):
            early.grad = torch.ones_like(early) * (-1) ** step
            w.grad = gradients[step - late] if step >= late else None
            optimizer.step()
        return w.detach()

    torch.testing.assert_close(moved(7), moved(0))
