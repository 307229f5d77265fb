"""Structure and weights together, against exact posteriors by enumeration: y = sum_k gamma_k w_k x_k + noise.

gamma_k is 0 or 1 with probability 1/2, w_k ~ N(0, s^2), so that p(Gamma, w | D) is a mixture of 2^K Gaussians.
"""

import itertools
import math

import pytest
import torch

from nni_bayes_nas.bayes import elbo, normal, objective

K, N, S, NOISE = 3, 12, 1.5, 0.7
GATES = [torch.tensor(g, dtype=torch.float64) for g in itertools.product((0.0, 1.0), repeat=K)]


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, K, generator=generator, dtype=torch.float64)
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]  # so that operations 0 and 1 can stand for one another
    y = x @ torch.tensor([1.2, 0.0, -0.4], dtype=torch.float64)
    return x, y + NOISE * torch.randn(N, generator=generator, dtype=torch.float64)


def exact(x, y, gates):
    """log p(y | Gamma), and mean and covariance of w given Gamma and y; a weight that is off keeps its prior."""
    on = x * gates
    covariance = NOISE**2 * torch.eye(len(y), dtype=x.dtype) + S**2 * on @ on.T
    log_evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    precision = torch.eye(x.shape[1], dtype=x.dtype) / S**2 + on.T @ on / NOISE**2
    cov = torch.linalg.inv(precision)
    return log_evidence, cov @ on.T @ y / NOISE**2, cov


def expected_log_likelihood(x, y, gates, mean, sd):
    """E_q(w) log p(y | Gamma, w), in closed form."""
    on = x * gates
    squares = (y - on @ mean).square().sum() + (on.square() * sd.square()).sum()
    return -squares / (2 * NOISE**2) - len(y) * math.log(2 * math.pi * NOISE**2) / 2


class Family:
    """q(Gamma, w) with independent gates; weights as the family has them."""

    def __init__(self, kind):
        self.kind = kind
        self.parameters = [torch.zeros(K, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)]
        self.parameters.append(torch.full((K,), -1.0, dtype=torch.float64))
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def log_q(self, gates):
        signs = 2 * gates - 1
        return torch.nn.functional.logsigmoid(signs * self.parameters[0].clamp(-30, 30)).sum()

    def weights(self, gates):
        """Mean and sd given the gates; of "scaled" those of v, where w = gamma v has the prior N(0, gamma^2 s^2)."""
        _, mean, rho = self.parameters
        if self.kind == "gated":
            return gates * mean, torch.where(gates > 0, normal.sd(rho), S)
        return mean, normal.sd(rho)

    def weight_kl(self, gates):
        _, mean, rho = self.parameters
        each = torch.stack([normal.kl(m, s, 0.0, S) for m, s in zip(mean, normal.sd(rho), strict=True)])
        return normal.gated_kl(gates, each) if self.kind == "gated" else each.sum()

    def bound(self, x, y):
        """The ELBO, by the functions of the package: nothing here knows the exact posterior."""
        total = torch.zeros((), dtype=torch.float64)
        for gates in GATES:
            log_q = self.log_q(gates)
            mean, sd = self.weights(gates)
            divergences = {"structure": log_q - K * math.log(0.5), "weights": self.weight_kl(gates)}
            times = gates.square() if self.kind == "scaled" else gates
            terms = {"task": -expected_log_likelihood(x, y, times, mean, sd) / N}
            loss = objective.total({**terms, **elbo.divergence_terms(divergences, N)})
            total = total - log_q.exp() * N * loss
        return total

    def divergence(self, x, y):
        """KL(q || p(Gamma, w | D)), by enumeration of the exact posterior."""
        evidences = torch.stack([exact(x, y, g)[0] for g in GATES]) + K * math.log(0.5)
        total = torch.zeros((), dtype=torch.float64)
        for gates, joint in zip(GATES, evidences, strict=True):
            mean, sd = self.weights(gates)
            _, exact_mean, exact_cov = exact(x, y, gates)
            ours = torch.distributions.MultivariateNormal(mean, torch.diag(sd.square()))
            theirs = torch.distributions.MultivariateNormal(exact_mean, exact_cov)
            kl = torch.distributions.kl_divergence(ours, theirs)
            log_q = self.log_q(gates)
            total = total + log_q.exp() * (log_q - joint + evidences.logsumexp(0) + kl)
        return total

    def fit(self, x, y):
        """The best of some starts by the bound: the problem has local optima, which is what it is chosen for."""
        ends = []
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter, scale in zip(self.parameters, (3.0, 1.0, 0.0), strict=True):
                    parameter.copy_(scale * torch.randn(K, generator=generator, dtype=torch.float64))
                self.parameters[2].sub_(1.0)
            self._climb(x, y)
            ends.append((float(self.bound(x, y).detach()), [p.detach().clone() for p in self.parameters]))
        with torch.no_grad():
            for parameter, value in zip(self.parameters, max(ends, key=lambda end: end[0])[1], strict=True):
                parameter.copy_(value)
        return self

    def _climb(self, x, y):
        optimizer = torch.optim.LBFGS(self.parameters, max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = -self.bound(x, y)
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["independent", "gated"])
def test_the_bound_is_the_evidence_less_the_divergence(kind, seed):
    x, y = data(seed)
    q = Family(kind)
    with torch.no_grad():
        for parameter in q.parameters:
            parameter.add_(torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2)
        evidence = (torch.stack([exact(x, y, g)[0] for g in GATES]) + K * math.log(0.5)).logsumexp(0)
        torch.testing.assert_close(q.bound(x, y), evidence - q.divergence(x, y), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_depend_on_the_structure_are_strictly_closer(seed):
    """Independent weights have to fit with the gate on and off; gated ones keep their prior where it is off."""
    x, y = data(seed)
    independent, gated = (Family(kind).fit(x, y).divergence(x, y) for kind in ("independent", "gated"))
    assert float(gated.detach()) < float(independent.detach()) - 0.05


@pytest.mark.parametrize("seed", range(2))
def test_scaled_weights_have_the_bound_of_independent_ones_where_gates_are_on_or_off(seed):
    """w = gamma v: with gates of 0 or 1, gamma (gamma v) x is gamma v x, and KL(v) is paid on and off."""
    x, y = data(seed)
    scaled, independent = Family("scaled"), Family("independent")
    with torch.no_grad():
        for a, b in zip(scaled.parameters, independent.parameters, strict=True):
            a.add_(torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
            b.copy_(a)
    torch.testing.assert_close(scaled.bound(x, y), independent.bound(x, y))


def divergence_of_scaled(q, x, y):
    """KL over (Gamma, w): a weight that is off is 0 in posterior and prior alike, so that what is on alone counts."""
    evidences = torch.stack([exact(x, y, g)[0] for g in GATES]) + K * math.log(0.5)
    found = torch.zeros((), dtype=torch.float64)
    for gates, joint in zip(GATES, evidences, strict=True):
        on = gates > 0
        mean, sd = q.weights(gates)
        _, exact_mean, exact_cov = exact(x, y, gates)
        kl = torch.zeros((), dtype=torch.float64)
        if bool(on.any()):
            ours = torch.distributions.MultivariateNormal(mean[on], torch.diag(sd[on].square()))
            theirs = torch.distributions.MultivariateNormal(exact_mean[on], exact_cov[on][:, on])
            kl = torch.distributions.kl_divergence(ours, theirs)
        log_q = q.log_q(gates)
        found = found + log_q.exp() * (log_q - joint + evidences.logsumexp(0) + kl)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_scaled_weights_are_independent_ones_of_which_what_is_off_counts_nothing(seed):
    """With the same numbers: they compute the same, gamma v x; the difference is KL(v) of what is off, by hand."""
    x, y = data(seed)
    scaled, gated, independent = families = [Family(kind) for kind in ("scaled", "gated", "independent")]
    with torch.no_grad():
        for q in families:
            for parameter in q.parameters:
                parameter.add_(torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2)
        _, mean, rho = scaled.parameters
        each = torch.stack([normal.kl(m, s, 0.0, S) for m, s in zip(mean, normal.sd(rho), strict=True)])
        off = sum(scaled.log_q(gates).exp() * ((1 - gates) * each).sum() for gates in GATES)
        found = divergence_of_scaled(scaled, x, y)
        torch.testing.assert_close(found, gated.divergence(x, y))
        torch.testing.assert_close(found, independent.divergence(x, y) - off)
    assert float(off) > 0.05


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_gated_weights_are_strictly_closer_than_scaled_ones(seed):
    """Each at its best by its bound; both divergences count what is on alone."""
    x, y = data(seed)
    scaled, gated = (Family(kind).fit(x, y) for kind in ("scaled", "gated"))
    assert float((divergence_of_scaled(scaled, x, y) - gated.divergence(x, y)).detach()) > 0.1


@pytest.mark.parametrize("gates", [(0.3, 1.0, 0.6), (0.9, 0.2, 0.5)])
def test_scaled_weights_at_gates_in_between(gates):
    """w = gamma v ~ N(0, gamma^2 s^2) and its output gamma w x: the bound in w is that in v, and is one."""
    x, y = data()
    gamma = torch.tensor(gates, dtype=torch.float64)
    mean, sd = torch.tensor([0.5, -0.2, 0.8], dtype=torch.float64), torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
    of_v = expected_log_likelihood(x, y, gamma.square(), mean, sd) - normal.kl(mean, sd, 0.0, S)
    kl_of_w = normal.kl(gamma * mean, gamma * sd, 0.0, gamma * S)
    of_w = expected_log_likelihood(x, y, gamma, gamma * mean, gamma * sd) - kl_of_w
    torch.testing.assert_close(of_v, of_w)
    features = S * x * gamma.square()
    covariance = NOISE**2 * torch.eye(N, dtype=x.dtype) + features @ features.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    assert float(of_v) < float(evidence)


# -- Bayesian linear regression: one structure -----------------------------------------------------------------------


def best(x, y, k):
    """The best diagonal posterior of the first k weights: the exact mean, and variances 1 / precision_ii."""
    gates = torch.ones(k, dtype=torch.float64)
    _, mean, cov = exact(x[:, :k], y, gates)
    return mean, torch.linalg.inv(cov).diagonal().rsqrt()


def regression_bound(x, y, mean, sd):
    gates = torch.ones_like(mean)
    return expected_log_likelihood(x, y, gates, mean, sd) - normal.kl(mean, sd, 0.0, S)


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_is_below_the_evidence_and_reaches_it_where_posteriors_are_diagonal(seed):
    x, y = data(seed)
    evidence = exact(x, y, torch.ones(K, dtype=torch.float64))[0]
    mean, sd = best(x, y, K)
    bound = regression_bound(x, y, mean, sd)
    assert float(bound) < float(evidence)
    for other in (regression_bound(x, y, mean + 0.1, sd), regression_bound(x, y, mean, 1.2 * sd)):
        assert float(other) < float(bound)
    orthogonal = torch.linalg.qr(x)[0] * 3
    evidence = exact(orthogonal, y, torch.ones(K, dtype=torch.float64))[0]
    torch.testing.assert_close(regression_bound(orthogonal, y, *best(orthogonal, y, K)), evidence)


def test_nested_models_are_ranked_as_by_the_evidence():
    """50 objects of y = tanh(x_0) + noise / 2; models of 1, 2 and 6 features of which the first alone matters."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = x[:, 0].tanh() + 0.5 * torch.randn(50, generator=generator, dtype=torch.float64)
    evidences = [float(exact(x[:, :k], y, torch.ones(k, dtype=torch.float64))[0]) for k in (1, 2, 6)]
    bounds = [float(regression_bound(x[:, :k], y, *best(x, y, k))) for k in (1, 2, 6)]
    assert sorted(range(3), key=bounds.__getitem__) == sorted(range(3), key=evidences.__getitem__) == [2, 1, 0]


def test_a_large_weight_of_the_divergence_gives_the_prior_and_more_data_a_narrower_posterior():
    x, y = data()
    for weight, near_prior in ((1.0, False), (1e6, True)):
        mean = torch.zeros(K, dtype=torch.float64, requires_grad=True)
        rho = torch.zeros(K, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([mean, rho], max_iter=200, line_search_fn="strong_wolfe")

        def closure(mean=mean, rho=rho, weight=weight, optimizer=optimizer):
            optimizer.zero_grad()
            task = -expected_log_likelihood(x, y, torch.ones_like(mean), mean, normal.sd(rho)) / N
            kl = normal.kl(mean, normal.sd(rho), 0.0, S)
            loss = objective.total({"task": task, **elbo.divergence_terms({"kl": kl}, N, {"kl": weight})})
            loss.backward()
            return loss

        optimizer.step(closure)
        far = max(float((normal.sd(rho) - S).detach().abs().max()), float(mean.detach().abs().max()))
        assert (far < 1e-3) == near_prior
    sds = [best(torch.cat([x] * times), torch.cat([y] * times), K)[1] for times in (1, 4, 16)]
    assert bool((sds[0] > sds[1]).all()) and bool((sds[1] > sds[2]).all())
