"""Weights as functions of lambda: exact posteriors of a linear model, priors, one network out of many."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.compression import HyperVariational
from nni_bayes_nas.compression.hyper_variational import PRIORS
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.layers.variational import Variational, to_variational, weight_noise

N, D, NOISE, PRIOR_SD = 30, 4, 0.5, 0.8


class Regression:
    """Bayesian linear regression with known noise: y = x w + e, w ~ N(0, s^2); tempered by lambda."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        mixing = torch.eye(D, dtype=torch.float64) + 0.3
        self.x = torch.randn(N, D, generator=generator, dtype=torch.float64) @ mixing
        truth = torch.tensor([1.0, -0.5, 0.2, 0.0], dtype=torch.float64)
        self.y = self.x @ truth + NOISE * torch.randn(N, generator=generator, dtype=torch.float64)

    def expected_log_likelihood(self, mean, sd):
        """E_q log p(y | w), in closed form."""
        errors = (self.y - self.x @ mean).square().sum() + self.x.square().sum(0) @ sd.square()
        return -errors / (2 * NOISE**2) - N / 2 * math.log(2 * math.pi * NOISE**2)

    def best(self, lam):
        """Mean and standard deviations of the best diagonal Gaussian."""
        precision = self.x.T @ self.x / NOISE**2 / lam + torch.eye(D, dtype=torch.float64) / PRIOR_SD**2
        mean = torch.linalg.solve(precision, self.x.T @ self.y / NOISE**2 / lam)
        return mean, precision.diagonal().rsqrt()

    def objective(self, mean, sd, lam):
        return self.expected_log_likelihood(mean, sd) - lam * normal.kl(mean, sd, 0.0, PRIOR_SD)


DATA = Regression()
GRID = torch.linspace(0, 1, 17).tolist()


def lam_of(t):
    return 0.1 * 100.0**t


def hyper(kind, **options):
    model = nn.Linear(D, 1, bias=False).double()
    options = {"prior": "fixed", "prior_sd": PRIOR_SD, "lambda_range": (0.1, 10.0), "rho": -2.0, **options}
    return HyperVariational(model, kind=kind, **options)


def gaussian(found):
    return found.values["weight"].flatten(), normal.sd(found.values["rho"]).flatten()


def fitted(model, lams=None):
    """By the mean of J over lambda, as the package trains: not of J / lambda, which is a divergence in nats."""
    lams = [lam_of(t) for t in GRID] if lams is None else lams
    options = {"max_iter": 300, "tolerance_grad": 1e-10, "tolerance_change": 1e-14}
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", history_size=50, **options)

    def closure():
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for lam in lams:
            found = model.at(lam)
            loss = loss - (DATA.expected_log_likelihood(*gaussian(found)) - found.complexity()) / len(lams)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_one_lambda_finds_the_exact_tempered_posterior(lam):
    mean, sd = gaussian(fitted(hyper("constant", lambda_range=lam), [lam]).at())
    best_mean, best_sd = DATA.best(lam)
    torch.testing.assert_close(mean, best_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sd, best_sd, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("piecewise_linear", {"knots": 9}), ("mlp", {"rank": 3, "hidden": 8}), ("low_rank", {"rank": 2})],
)
def test_hypernetworks_follow_it_over_all_lambda(kind, options):
    torch.manual_seed(0)
    model, worst, gaps = fitted(hyper(kind, **options)), 0.0, []
    with torch.no_grad():
        for t in torch.linspace(0, 1, 50).tolist():
            lam = min(lam_of(t), 10.0)
            (mean, sd), (best_mean, best_sd) = gaussian(model.at(lam)), DATA.best(lam)
            worst = max(worst, float(normal.kl(mean, sd, best_mean, best_sd)))
            gaps.append(float(DATA.objective(best_mean, best_sd, lam) - DATA.objective(mean, sd, lam)))
    assert worst <= 1e-2 and min(gaps) >= -1e-9


def test_linear_is_the_best_affine_fit():
    """Independently: affine means and logarithms of standard deviations, by another optimizer."""
    model = fitted(hyper("linear"))

    def loss(parameters):
        parts = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
        a, b, r, s = parts.reshape(4, D)
        total = sum(-DATA.objective(a + b * t, (r + s * t).exp(), lam_of(t)) / len(GRID) for t in GRID)
        total.backward()
        return float(total.detach()), parts.grad.numpy()

    found = minimize(loss, np.concatenate([np.zeros(2 * D), -2 * np.ones(D), np.zeros(D)]), jac=True, tol=1e-12)
    a, b, r, s = torch.from_numpy(found.x).reshape(4, D)
    for t in (0.0, 0.4, 1.0):
        mean, sd = gaussian(model.at(lam_of(t)))
        torch.testing.assert_close(mean, a + b * t, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(sd, (r + s * t).exp(), atol=1e-3, rtol=1e-3)
    # It is not the exact family, which is rational in lambda.
    with torch.no_grad():
        worst = max(float(normal.kl(*gaussian(model.at(lam_of(t))), *DATA.best(lam_of(t)))) for t in GRID)
    assert worst > 0.02


def test_direct_runs_are_above_a_hypernetwork_and_on_a_convex_curve():
    """J of the package's own models, each trained at one lambda; the slope from one to the next lies between -KLs."""
    lams, values, kls = (0.2, 0.6, 1.5, 4.0, 9.0), [], []
    shared = fitted(hyper("piecewise_linear", knots=5))
    for lam in lams:
        found = fitted(hyper("constant", lambda_range=lam), [lam]).at()
        with torch.no_grad():
            values.append(float(DATA.expected_log_likelihood(*gaussian(found)) - found.complexity()))
            kls.append(float(found.kl()))
            ours = shared.at(lam)
            assert values[-1] >= float(DATA.expected_log_likelihood(*gaussian(ours)) - ours.complexity()) - 1e-6
    # The slope itself, by a central difference of two more models.
    above, below = (fitted(hyper("constant", lambda_range=lam), [lam]).at() for lam in (1.51, 1.49))
    with torch.no_grad():
        ends = [float(DATA.expected_log_likelihood(*gaussian(q)) - q.complexity()) for q in (above, below)]
    assert (ends[0] - ends[1]) / 0.02 == pytest.approx(-kls[2], rel=1e-3)
    for i in range(len(lams) - 1):
        slope = (values[i + 1] - values[i]) / (lams[i + 1] - lams[i])
        assert -kls[i] - 1e-6 <= slope <= -kls[i + 1] + 1e-6 < 0


def test_the_literal_axis_is_lambda_itself_and_its_zero_the_likelihood():
    model = hyper("linear", lambda_range=(0.0, 4.0), axis="literal")
    for net in (model.hyper.means, model.hyper.rhos):
        for vector in net.vectors:
            nn.init.normal_(vector)
    ends, inside = (model.at(0.0).values, model.at(4.0).values), model.at(1.0).values
    for name in inside:
        torch.testing.assert_close(inside[name], 0.75 * ends[0][name] + 0.25 * ends[1][name])
    mean, _ = gaussian(fitted(hyper("constant", lambda_range=0.0, axis="literal"), [0.0]).at())
    least_squares = torch.linalg.lstsq(DATA.x, DATA.y[:, None]).solution.flatten()
    torch.testing.assert_close(mean, least_squares, atol=1e-5, rtol=1e-5)


def test_what_is_frozen_stays():
    """A backbone, say: named in skip, it is no function of lambda, and is not trained by what is read off either."""
    net = network()
    net[0].requires_grad_(False)
    with pytest.raises(SpaceError, match=r"but 0.weight has requires_grad=False; name its layer in skip"):
        HyperVariational(net)
    model = HyperVariational(net, skip=["0"])
    values = model.at(1.0).values
    assert not {"0.weight", "0.bias"} & set(values) and "4.weight" in values
    made = model.materialize(1.0)
    assert {name for name, p in made.named_parameters() if not p.requires_grad} == {"0.weight", "0.bias"}
    torch.testing.assert_close(made.eval()(X), network().eval()(X))


def test_points_have_no_prior_that_learns():
    with pytest.raises(ConfigError, match="prior must be fixed or scaled for weights that are points, got 'ard'"):
        HyperVariational(network(), weights="point", prior="ard")
    assert HyperVariational(network(), weights="point").prior == "fixed" and HyperVariational(network()).prior == "ard"


def test_the_best_objective_is_convex_in_lambda_and_falls_by_the_divergence():
    """J*(lambda) = max_q(L - lambda KL): a maximum of straight lines; its slope is -KL."""
    lams = torch.linspace(0.2, 5, 200, dtype=torch.float64)
    best = [DATA.best(float(lam)) for lam in lams]
    values = torch.stack([DATA.objective(*q, float(lam)) for q, lam in zip(best, lams, strict=True)])
    kls = torch.stack([normal.kl(*q, 0.0, PRIOR_SD) for q in best])
    slopes = values.diff() / lams.diff()
    assert bool((slopes <= 0).all()) and bool((slopes.diff() >= -1e-9).all())
    assert bool((-kls[:-1] - 1e-9 <= slopes).all()) and bool((slopes <= -kls[1:] + 1e-9).all())


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


X = torch.randn(16, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def log_likelihood(outputs, y):
    return -nn.functional.cross_entropy(outputs, y, reduction="sum")


@pytest.mark.parametrize("weights", ["variational", "point"])
def test_every_lambda_begins_as_the_given_network(weights):
    model = HyperVariational(network(), weights=weights).eval()
    plain = network().eval()
    for lam in (0.1, 0.7, 3.0):
        torch.testing.assert_close(model(X, lam), plain(X))
    assert not any(p.requires_grad for p in model.network.parameters())
    names = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert names == ({"means", "rhos"} if weights == "variational" else {"means"})


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("lam", [0.5, 2.0])
def test_what_weights_cost(prior, lam):
    width = {"prior_sd": 0.3} if prior in ("fixed", "scaled") else {}
    model = HyperVariational(network(), prior=prior, rho=-2.0, **width)
    given = "fixed" if prior == "scaled" else prior
    plain = to_variational(network(), prior=given, prior_sd=0.3 * (lam**-0.5 if prior == "scaled" else 1), rho=-2.0)
    expected = sum(layer.kl() for layer in plain.modules() if isinstance(layer, Variational))
    torch.testing.assert_close(model.at(lam).kl(), expected)
    torch.testing.assert_close(model.at(lam).complexity(), expected * (1 if prior == "scaled" else lam))
    made = model.materialize(lam)
    torch.testing.assert_close(sum(layer.kl() for layer in made.modules() if isinstance(layer, Variational)), expected)


def test_what_points_cost():
    """lambda |w|^2 / (2 s^2): -log of the prior; matrices and filters alone."""
    model = HyperVariational(network(), weights="point", prior_sd=0.3)
    expected = sum(p.square().sum() for p in network().parameters() if p.dim() > 1) / (2 * 0.3**2)
    torch.testing.assert_close(model.at(2.0).complexity(), 2 * expected)
    scaled = HyperVariational(network(), weights="point", prior="scaled", prior_sd=0.3)
    torch.testing.assert_close(scaled.at(2.0).complexity(), 2 * expected)
    names = ["0.weight", "4.weight", "6.weight"]
    assert model.prunable == names and list(model.log_relative_density(1.0)) == names


@pytest.mark.parametrize("weights", ["variational", "point"])
def test_a_network_of_its_own(weights):
    torch.manual_seed(0)
    model = HyperVariational(network(), weights=weights, kind="linear")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    made = model.materialize(0.4)
    assert any(isinstance(m, Variational) for m in made.modules()) == (weights == "variational")
    assert all(p.requires_grad for p in made.parameters())
    model.eval(), made.eval()
    torch.testing.assert_close(made(X), model(X, 0.4))
    assert not torch.allclose(made(X), model(X, 3.0))
    made.train()
    nn.functional.cross_entropy(made(X), Y).backward()
    before = model(X, 0.4)
    torch.optim.SGD(made.parameters(), lr=0.1).step()
    torch.testing.assert_close(model(X, 0.4), before)


def test_normalization_of_a_network_of_its_own():
    model = HyperVariational(network(), kind="linear")
    made = model.materialize(1.0, [X[:8], X[8:]]).eval()
    with torch.no_grad():
        seen = torch.stack([made[0](part).mean((0, 2, 3)) for part in (X[:8], X[8:])]).mean(0)
    torch.testing.assert_close(made[1].running_mean, seen)
    assert not torch.allclose(made[1].running_mean, model.network[1].running_mean)


def test_parts_of_the_objective():
    model = HyperVariational(network(), rho=-8.0).eval()
    found = model.elbo(0.5, [(X[:10], Y[:10]), (X[10:], Y[10:])], log_likelihood, draws=3)
    with torch.no_grad():
        exact = float(log_likelihood(model(X, 0.5), Y))
    assert found["expected_log_likelihood"] == pytest.approx(exact, abs=0.05)
    assert found["expected_log_likelihood"] != exact
    assert found["objective"] == pytest.approx(found["expected_log_likelihood"] - 0.5 * found["kl"])
    for draws in (0, -1):
        with pytest.raises(ConfigError, match=f"draws` must be at least 1, got {draws}"):
            model.elbo(0.5, [(X, Y)], log_likelihood, draws=draws)
    once = iter([(X, Y)])
    assert model.elbo(0.5, once, log_likelihood)["expected_log_likelihood"] < 0
    with pytest.raises(ConfigError, match="data` must have objects, got 0"):
        model.elbo(0.5, once, log_likelihood)


def test_noise_comes_with_training():
    model = HyperVariational(network(), rho=-2.0)
    found = model.train().at(1.0)
    assert not torch.equal(found(X), found(X))
    with weight_noise(model.network, False):
        torch.testing.assert_close(found(X), found(X))


def test_lambdas_of_a_step():
    model, generator = HyperVariational(network()), torch.Generator().manual_seed(0)
    drawn = [lam for _ in range(200) for lam in model.draw(5, generator)]
    assert min(drawn) == 0.1 and max(drawn) == 3.0
    logs = np.log(drawn)
    assert abs(logs.mean() - math.log(0.3**0.5)) < 0.1 and len(set(drawn)) > 500
    literal = HyperVariational(network(), axis="literal", lambda_range=(0.0, 0.1))
    drawn = [lam for _ in range(200) for lam in literal.draw(5, generator)]
    assert min(drawn) == 0.0 and max(drawn) == 0.1 and np.mean(drawn) == pytest.approx(0.05, abs=0.004)
    with torch.no_grad():
        assert float(literal.at(0.0).complexity()) == 0.0 < float(literal.at(0.1).complexity())
    assert HyperVariational(network(), kind="constant", lambda_range=2.0).draw(3, generator) == [2.0] * 3


def test_it_is_saved_and_loaded():
    torch.manual_seed(1)
    model = HyperVariational(network(), kind="mlp")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    other = HyperVariational(network(), kind="mlp", seed=5)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    torch.testing.assert_close(other.eval()(X, 0.3), model.eval()(X, 0.3))
    for options, named in (
        ({"lambda_range": (0.1, 2.0)}, "axis"),
        ({"kind": "linear"}, "kind"),
        ({"prior": "fixed"}, "prior"),
    ):
        another = HyperVariational(network(), **{"kind": "mlp", **options})
        with pytest.raises(ConfigError, match=f"of a model like this one, but {named} was"):
            another.load_state_dict(model.state_dict(), strict=False)
    for options, named in (({"rank": 2}, "rank was 4, not 2"), ({"hidden": 5}, "hidden was 32, not 5")):
        with pytest.raises(ConfigError, match=f"of a model like this one, but {named}"):
            HyperVariational(network(), kind="mlp", **options).load_state_dict(model.state_dict())
    other = network()
    other[4], other[6] = nn.Linear(4 * 36, 7).double(), nn.Linear(7, 3).double()
    wider = HyperVariational(other, kind="mlp")
    with pytest.raises(ConfigError, match=r"but 4\.weight was \[5, 144\], not \[7, 144\]"):
        wider.load_state_dict(model.state_dict())


def test_the_objective_of_a_linear_model_is_exact():
    """elbo(lambda) against E_q log p(D | w) and KL in closed form: mean squares over many draws."""
    lam = 2.0
    model = fitted(hyper("constant", lambda_range=lam), [lam])

    def of_the_model(outputs, y):
        return torch.distributions.Normal(outputs.flatten(), NOISE).log_prob(y).sum()

    torch.manual_seed(0)
    found = model.elbo(None, [(DATA.x, DATA.y)], of_the_model, draws=4000)
    mean, sd = gaussian(model.at())
    exact = float(DATA.expected_log_likelihood(mean, sd).detach())
    kl = float(model.at().kl().detach())
    assert found["kl"] == pytest.approx(kl) and found["objective"] == pytest.approx(
        found["expected_log_likelihood"] - lam * kl
    )
    assert found["expected_log_likelihood"] == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prior": "laplace"}, "prior must be one of fixed, scaled, empirical_bayes, ard, log_uniform, got 'laplace'"),
        ({"weights": "mean"}, "weights must be one of variational, point"),
        ({"lambda_range": (-1.0, 1.0)}, "lambda must be at least 0 and finite, got -1"),
        ({"lambda_range": (3.0, 0.1)}, "0 < low < high"),
        ({"lambda_range": 1.0}, "kind must be 'constant' for one lambda, got 'piecewise_linear'"),
        ({"prior": "scaled", "axis": "literal", "lambda_range": (0.0, 1.0)}, "lambda must be above 0 with the prior"),
        ({"knots": 1}, "knots must be at least 2"),
        ({"prior": "fixed", "prior_sd": 0.0}, "prior_sd is a standard deviation"),
        ({"prior_sd": 0.3}, "prior_sd is of the priors fixed and scaled, got 0.3 with 'ard'; leave it out"),
        ({"kind": "linear", "knots": 3}, "knots is none of kind 'linear', got 3; leave it out"),
        ({"kind": "mlp", "shared_knots": False}, "shared_knots is none of kind 'mlp', got False"),
    ],
)
def test_models_that_cannot_be(options, match):
    with pytest.raises(ConfigError, match=match):
        HyperVariational(network(), **options)


def test_lambdas_that_were_not_trained():
    model = HyperVariational(network())
    for lam, match in ((0.05, r"\[0.1, 3\], got 0.05"), (None, "lambda must be given")):
        with pytest.raises(ConfigError, match=match):
            model.at(lam)
    with pytest.raises(ConfigError, match="lambda must be 1, the one that was trained, got 2"):
        HyperVariational(network(), kind="constant", lambda_range=1.0).at(2.0)


def test_layers_that_cannot_be_treated_are_named():
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    with pytest.raises(SpaceError, match=r"must have weights of its own, but 0\.weight and 2\.weight are one"):
        HyperVariational(tied)
    twice = nn.Linear(3, 3)
    assert float(HyperVariational(nn.Sequential(twice, nn.ReLU(), twice)).at(1.0).kl().detach()) > 0
    with pytest.raises(SpaceError, match=r"1 \(GRU\)"):
        HyperVariational(nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3)))
    with pytest.raises(SpaceError, match="ReLU has none; give another"):
        HyperVariational(nn.ReLU())
