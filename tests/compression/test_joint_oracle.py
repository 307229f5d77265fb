"""One lambda for structure and weights, against exact posteriors by enumeration of 2^K structures.

y = sum_k gamma_k w_k x_k + noise, with gamma_k of 0 or 1 with probability 1/2 and w_k ~ N(0, s^2). At lambda the best
posterior of all, q*(Gamma, w) ~ p(Gamma, w) p(y | Gamma, w)^(1 / lambda), is that of noise sqrt(lambda) times as large:
a mixture of 2^K Gaussians. Gates of q are independent, and a weight has a Gaussian if its gate is on, its prior if not.
"""

import itertools
import math

import pytest
import torch

from nni_bayes_nas.bayes import elbo, normal, objective
from nni_bayes_nas.complexity.axis import LambdaAxis
from nni_bayes_nas.complexity.hypernet import Hypernet
from nni_bayes_nas.compression.lambda_weights import LambdaWeights, swapped
from nni_bayes_nas.layers.variational import to_variational

K, N, S, NOISE = 3, 30, 1.5, 0.7
GATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=K)), dtype=torch.float64)
AXIS = LambdaAxis(0.1, 10.0)
READ = (0.1, 0.25, 1.0, 4.0, 10.0)


def data(correlation):
    """Objects whose first two features are correlated so much; the third has no influence."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(N, K, generator=generator, dtype=torch.float64))[0] * math.sqrt(N)
    x[:, 1] = correlation * x[:, 0] + math.sqrt(1 - correlation**2) * x[:, 1]
    y = x @ torch.tensor([1.2, -0.4, 0.0], dtype=torch.float64)
    return x, y + NOISE * torch.randn(N, generator=generator, dtype=torch.float64)


def exact(x, y, lam):
    """log p(Gamma | y), and mean and covariance of w given Gamma and y, at lambda; `(2^K,)`, and by structure."""
    variance, evidence, given = lam * NOISE**2, [], []
    for gates in GATES:
        on = x * gates
        covariance = variance * torch.eye(N, dtype=x.dtype) + S**2 * on @ on.T
        evidence.append(torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))
        cov = torch.linalg.inv(torch.eye(K, dtype=x.dtype) / S**2 + on.T @ on / variance)
        given.append(torch.distributions.MultivariateNormal(cov @ on.T @ y / variance, cov))
    return torch.stack(evidence).log_softmax(0), given


class Joint:
    """q(Gamma, w | lambda): the package's hypernetworks of the structure and of the weights, at one position."""

    def __init__(self, kind, knots=9):
        torch.manual_seed(0)
        self.layer = to_variational(torch.nn.Linear(K, 1, bias=False).double(), prior="fixed", prior_sd=S, rho=-2.0)
        options = {"hidden": 8, "rank": 3} if kind == "mlp" else {"knots": knots}
        self.weights = LambdaWeights(self.layer, kind, **options)
        self.gates = Hypernet(kind, K, n_knots=knots, hidden=8).double()
        self.gates.initialize(torch.zeros(K, dtype=torch.float64))
        self.parameters = [*self.weights.parameters(), *self.gates.parameters()]

    def at(self, lam):
        """log q(Gamma), mean and standard deviation of w where on, and their divergence."""
        u = AXIS.to_u(lam)
        logits = self.gates(torch.tensor(u, dtype=torch.float64))
        log_q = torch.nn.functional.logsigmoid((2 * GATES - 1) * logits).sum(-1)
        with swapped(self.layer, self.weights(u)):
            return log_q, self.layer.weight.flatten(), normal.sd(self.layer.rho).flatten()

    def loss(self, x, y, lam):
        """Less the bound over N, the divergences weighed by lambda: exact sums over structures."""
        log_q, mean, sd = self.at(lam)
        each = torch.stack([normal.kl(m, s, 0.0, S) for m, s in zip(mean, sd, strict=True)])  # `kl` is their sum
        errors = (y - GATES * mean @ x.T).square().sum(-1) + GATES * sd.square() @ x.square().sum(0)
        q = log_q.exp()
        divergences = {
            "structure": (q * (log_q - K * math.log(0.5))).sum(),
            "weights": normal.gated_kl(q @ GATES, each),
        }
        task = (q * errors).sum() / (2 * NOISE**2) / N
        return objective.total({"task": task, **elbo.divergence_terms(divergences, N, dict.fromkeys(divergences, lam))})

    def fit(self, x, y, lams, iterations=250):
        optimizer = torch.optim.LBFGS(
            self.parameters,
            max_iter=iterations,
            line_search_fn="strong_wolfe",
            history_size=50,
            tolerance_change=1e-14,
            tolerance_grad=1e-10,
        )

        def closure():
            optimizer.zero_grad()
            # As a search does; it is lambda times the divergence that counts.
            loss = torch.stack([self.loss(x, y, lam) for lam in lams]).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return self

    @torch.no_grad()
    def divergence(self, x, y, lam):
        """KL(q || q*) at lambda."""
        log_q, mean, sd = self.at(lam)
        log_p, given = exact(x, y, lam)
        total = torch.zeros((), dtype=torch.float64)
        for gates, lq, lp, theirs in zip(GATES, log_q, log_p, given, strict=True):
            on = gates > 0
            ours = torch.distributions.MultivariateNormal(
                gates * mean, torch.diag(torch.where(on, sd, torch.full_like(sd, S)).square())
            )
            total += lq.exp() * (lq - lp + torch.distributions.kl_divergence(ours, theirs))
        return float(total)


GRID = [min(0.1 * 100.0 ** (i / 16), 10.0) for i in range(17)]


@pytest.mark.parametrize(
    ("kind", "correlation", "limit", "iterations"),
    [("piecewise_linear", 0.3, 0.05, 250), pytest.param("mlp", 0.0, 0.01, 1000, marks=pytest.mark.slow)],
)
def test_one_search_follows_the_exact_joint_posterior_over_two_decades_of_lambda(kind, correlation, limit, iterations):
    """At 5 lambda within .05 nat per dimension, of which there are 2K; two of them lie between the knots."""
    x, y = data(correlation)
    q = Joint(kind).fit(x, y, GRID, iterations)
    assert max(q.divergence(x, y, lam) for lam in READ) / (2 * K) <= limit


def test_what_lambda_costs_is_the_distance_to_searches_of_one_lambda():
    """Correlated features have a posterior that is out of reach for independent gates: the rest is small."""
    x, y = data(0.6)
    q = Joint("piecewise_linear").fit(x, y, GRID)
    for lam in (READ[0], READ[2]):
        alone = Joint("linear").fit(x, y, [lam]).divergence(x, y, lam)
        assert alone - 1e-6 <= q.divergence(x, y, lam) <= alone + 0.01 * 2 * K


def test_a_straight_line_of_concentrations_and_weights_is_not_enough():
    """Otherwise the test above would hold for whatever is trained."""
    x, y = data(0.3)
    q = Joint("linear").fit(x, y, GRID)
    assert max(q.divergence(x, y, lam) for lam in READ) / (2 * K) > 0.05


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_the_loss_is_the_tempered_evidence_less_the_divergence(lam):
    """For any q; the bound and the exact posterior have nothing in common but the model."""
    x, y = data(0.3)
    q = Joint("piecewise_linear", knots=3)
    with torch.no_grad():
        for i, parameter in enumerate(q.parameters):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            parameter.add_(noise / 2)
        variance, evidence = lam * NOISE**2, []
        for gates in GATES:
            on = x * gates
            covariance = variance * torch.eye(N, dtype=x.dtype) + S**2 * on @ on.T
            evidence.append(torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))
        log_evidence = torch.stack(evidence).logsumexp(0) - K * math.log(2) + N / 2 * math.log(2 * math.pi * variance)
        bound = -N * float(q.loss(x, y, lam)) / lam
    assert bound == pytest.approx(float(log_evidence) - q.divergence(x, y, lam), rel=1e-8)
