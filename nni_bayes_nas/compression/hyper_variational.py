"""A network whose Gaussian weights are a function of the complexity parameter lambda."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.coercion import require
from nni_bayes_nas.complexity.axis import Axis, LambdaAxis, LiteralAxis
from nni_bayes_nas.compression.lambda_weights import LambdaWeights, refuse_others, settle
from nni_bayes_nas.compression.weight_hypernet import Kind, options_of, unused_option
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.layers.gaussian_output import Estimator
from nni_bayes_nas.layers.normalization import recalibrate
from nni_bayes_nas.layers.variational import check_tied, divergence, to_variational, variational_layers, weight_noise

Weights = Literal["variational", "point"]
Prior = Literal["fixed", "scaled", "empirical_bayes", "ard", "log_uniform"]
PRIORS: tuple[Prior, ...] = ("fixed", "scaled", "empirical_bayes", "ard", "log_uniform")
WITH_SD: tuple[Prior, ...] = ("fixed", "scaled")
"""Priors that are of a standard deviation."""


@dataclass(frozen=True)
class AtLambda:
    """The network at one lambda: its weights as the hypernetwork gives them, evaluated once.

    Attributes:
        model: The whole.
        lam: Lambda.
        values: Parameters of its network, by name.
    """

    model: HyperVariational
    lam: float
    values: dict[str, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """The network's outputs; with the noise of the weights in training, and where `weight_noise` says so."""
        outputs: Tensor = functional_call(self.model.network, self.values, (x,))
        return outputs

    def divergences(self) -> dict[str, Tensor]:
        """KL of the weights of every layer to their prior, in nats; for points -log N(0, s^2) up to a constant.

        To the prior "scaled" it is that to N(0, s^2 / lambda).
        """
        model, values, sd = self.model, self.values, self.model.prior_sd_at(self.lam)
        if model.weights == "point":
            return {name: values[name].square().sum() / (2 * sd**2) for name in model.prunable}
        return {
            name: divergence(values[_of(name, "weight")], values[_of(name, "rho")], layer.prior, sd, layer.normalized)
            for name, layer in variational_layers(model.network).items()
        }

    def kl(self) -> Tensor:
        """The sum of the divergences; `()`."""
        return torch.stack(list(self.divergences().values())).sum()

    def complexity(self) -> Tensor:
        """What J takes away from the expected log-likelihood: lambda KL; to the prior "scaled" the KL alone; `()`."""
        return self.kl() if self.model.prior == "scaled" else self.lam * self.kl()


class HyperVariational(nn.Module):
    """Any network of linear layers and 2d convolutions, with weights q_lambda(w) = N(mu(lambda), sigma(lambda)^2).

    Trained for all lambda of a range at once, they maximize the mean over lambda of

        J(lambda) = E_q log p(D | w) - lambda KL(q || p):

    lambda = 1 is the evidence lower bound, above it posteriors are as of fewer objects, and more weights can go. Biases
    and normalization are points, and functions of lambda too; what is frozen stays what it is.

    Args:
        model: The network; it is copied, and its weights are the first means, at every lambda (nearly, where the kind
            is "low_rank" or "mlp").
        kind: How the weights depend on lambda, see `WeightHypernet`; "constant" for one lambda, a direct run.
        weights: "variational", or "point": one value of every weight, the baseline with L2 decay.
        prior: "fixed" N(0, s^2); "scaled" N(0, s^2 / lambda), where lambda weighs nothing else (Grebenkova et al.'s
            covariance reparametrization); "empirical_bayes"; "ard"; "log_uniform" (`bayes.normal`). None: "ard" of
            Gaussian weights, and "fixed" of points, which have no other but "scaled".
        prior_sd: s.
        lambda_range: Lowest and highest lambda, or one lambda.
        axis: "log": drawn log-uniformly; "literal": the position is lambda itself, which may begin at 0, where the
            weights maximize the likelihood; drawn uniformly.
        rho: Logarithm of the standard deviations at first.
        estimator: See `to_variational`.
        skip: Names of modules that stay points.
        knots: Of kind "piecewise_linear", see `WeightHypernet`.
        rank: Of "low_rank" and "mlp".
        hidden: Units of these.
        seed: Of the initial hypernetwork.
        shared_knots: Of kind "piecewise_linear", see `WeightHypernet`.

    Attributes:
        network: The network, its parameters those of the beginning.
        prunable: Names of the weights that are matrices or filters.

    Raises:
        ConfigError: Options that cannot be.
        SpaceError: Layers with weights that cannot be converted, that share one, or that are frozen; it names them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: Kind = "piecewise_linear",
        weights: Weights = "variational",
        prior: Prior | None = None,
        prior_sd: float = 1.0,
        lambda_range: tuple[float, float] | float = (0.1, 3.0),
        axis: Literal["log", "literal"] = "log",
        rho: float = -5.0,
        estimator: Estimator = "local",
        skip: Sequence[str] = (),
        knots: int | Sequence[float] = 5,
        rank: int = 4,
        hidden: int = 32,
        seed: int = 0,
        shared_knots: bool = True,
    ) -> None:
        super().__init__()
        prior = prior or ("fixed" if weights == "point" else "ard")
        _check(kind, weights, prior, lambda_range, axis)
        options = {"knots": knots, "rank": rank, "hidden": hidden, "shared_knots": shared_knots}
        if (name := unused_option([kind], options)) is not None:
            raise ConfigError(f"{name} is none of kind {kind!r}, got {options[name]}; leave it out.")
        if prior not in WITH_SD and prior_sd != 1:
            raise ConfigError(
                f"prior_sd is of the priors fixed and scaled, got {prior_sd} with {prior!r}; leave it out."
            )
        check_tied(model)
        self.kind, self.weights, self.prior, self.prior_sd = kind, weights, prior, prior_sd
        self.rank, self.hidden = rank, hidden
        self.axis: Axis | None = None
        self.single: float | None = None
        if isinstance(lambda_range, (int, float)):
            self.single = float(lambda_range)
        else:
            self.axis = LambdaAxis(*lambda_range) if axis == "log" else LiteralAxis(*lambda_range, uniform=True)
        # To any layer the scaled prior is a fixed one, of another width at every lambda.
        given: Any = "fixed" if prior == "scaled" else prior
        network = to_variational(
            copy.deepcopy(model), prior=given, prior_sd=prior_sd, rho=rho, estimator=estimator, skip=skip
        )
        converted = variational_layers(network)
        if not converted:
            raise SpaceError(
                f"a network must have linear layers or 2d convolutions, {type(model).__name__} has none"
                f"{' left; shorten skip' if skip else '; give another'}."
            )
        self.prunable = [_of(name, "weight") for name in converted]
        _check_frozen(model, self.prunable)
        if weights == "point":
            network = copy.deepcopy(model)
        self.network = network.train()  # a network that comes in evaluation mode would learn without noise
        self.hyper = LambdaWeights(
            network, kind, knots=knots, rank=rank, hidden=hidden, seed=seed, shared_knots=shared_knots
        )

    def at(self, lam: float | None = None) -> AtLambda:
        """The network at lambda; None only where there is one lambda.

        Raises:
            ConfigError: Lambda lies outside of what is trained.
        """
        lam = self._checked(lam)
        return AtLambda(self, lam, self.hyper(self._position(lam)))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.hyper.parameters()).device

    def prior_sd_at(self, lam: float) -> float:
        """Standard deviation of the priors "fixed" and "scaled" at lambda."""
        return self.prior_sd * (lam**-0.5 if self.prior == "scaled" else 1.0)

    def forward(self, x: Tensor, lam: float | None = None) -> Tensor:
        """The outputs of the network at lambda.

        Raises:
            ConfigError: Lambda lies outside of what is trained.
        """
        return self.at(lam)(x)

    def draw(self, n: int, generator: torch.Generator) -> list[float]:
        """`n` values of lambda for a step: stratified, both ends among those that are drawn."""
        if self.axis is None:
            return [self._checked(None)] * n
        lams: list[float] = self.axis.to_lambda(self.axis.positions_per_step(n, generator).double()).tolist()
        return [min(max(lam, self.axis.low), self.axis.high) for lam in lams]

    @torch.no_grad()
    def materialize(self, lam: float | None = None, calibration: Iterable[Tensor] = ()) -> nn.Module:
        """The network at lambda as a module of its own: Gaussian layers, or plain ones for points.

        Args:
            lam: Lambda.
            calibration: Batches of inputs, by which the running statistics of batch normalization become those of this
                network; without them they stay those of all lambda.

        Raises:
            ConfigError: Lambda lies outside of what is trained.
        """
        network, values = copy.deepcopy(self.network), self.at(lam).values
        settle(network, values)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in values)  # what was frozen before stays so
        for layer in variational_layers(network).values():
            layer.prior_sd = self.prior_sd_at(self._checked(lam))
        recalibrate(network, calibration)
        return network

    @torch.no_grad()
    def log_relative_density(self, lam: float | None = None) -> dict[str, Tensor]:
        """log q(0) / q(mode) of every weight, by name, at most 0; for points -w^2 / 2. Near 0: can be left out.

        Of a Gaussian -mu^2 / (2 sigma^2) (Graves, 2011, "Practical Variational Inference for Neural Networks").

        Raises:
            ConfigError: Lambda lies outside of what is trained.
        """
        values = self.at(lam).values
        if self.weights == "point":
            return {name: -values[name].square() / 2 for name in self.prunable}
        rhos = [name.removesuffix("weight") + "rho" for name in self.prunable]
        pairs = zip(self.prunable, rhos, strict=True)
        return {name: normal.log_relative_density(values[name], normal.sd(values[rho])) for name, rho in pairs}

    def relative_density(self, lam: float | None = None) -> dict[str, Tensor]:
        """q(0) / q(mode) of every weight, by name, in [0, 1]; it underflows: rank by its logarithm.

        Raises:
            ConfigError: Lambda lies outside of what is trained.
        """
        return {name: value.exp() for name, value in self.log_relative_density(lam).items()}

    @torch.no_grad()
    def elbo(
        self,
        lam: float | None,
        data: Iterable[Sequence[Tensor]],
        log_likelihood: Callable[[Tensor, Tensor], Tensor],
        draws: int = 1,
        calibration: Iterable[Tensor] = (),
    ) -> dict[str, float]:
        """J and its parts at lambda, in nats, sums over all objects; of the network in evaluation mode.

        Args:
            lam: Lambda.
            data: Batches of all objects, inputs and targets.
            log_likelihood: log p(y | f(x, w)) of outputs and targets, summed over the batch; `()`.
            draws: Of the weights, for every batch.
            calibration: Batches of inputs, see `expected_log_likelihood`.

        Returns:
            "expected_log_likelihood", "kl", "objective": J.

        Raises:
            ConfigError: Lambda lies outside of what is trained; or as `expected_log_likelihood`.
        """
        found, network = self.at(lam), self.materialize(lam).eval()
        total = expected_log_likelihood(network, data, log_likelihood, draws, list(calibration))
        return {
            "expected_log_likelihood": total,
            "kl": float(found.kl()),
            "objective": total - float(found.complexity()),
        }

    def get_extra_state(self) -> dict[str, Any]:
        """What the numbers mean: saved with them."""
        axis = None if self.axis is None else [type(self.axis).__name__, self.axis.low, self.axis.high]
        options: dict[str, Any] = {"kind": self.kind, "weights": self.weights, "prior": self.prior}
        options |= {"prior_sd": self.prior_sd} if self.prior in WITH_SD else {}
        shapes = {name: list(value.shape) for name, value in self.network.named_parameters()}
        sizes = options_of(self.kind, {"rank": self.rank, "hidden": self.hidden})
        knots = list(self.hyper.means.knots)
        return {**options, "axis": axis, "single": self.single, "knots": knots, **sizes, "shapes": shapes}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuses those of another model.

        Raises:
            ConfigError: Names what differs.
        """
        refuse_others(self.get_extra_state(), state)

    def _checked(self, lam: float | None) -> float:
        if lam is None:
            if self.single is None:
                raise ConfigError("lambda must be given, for the weights depend on it; add one of the trained range.")
            return self.single
        if self.single is not None and lam != self.single:
            raise ConfigError(
                f"lambda must be {self.single:g}, the one that was trained, got {lam:g}; train with a lambda_range."
            )
        return lam

    def _position(self, lam: float) -> float:
        if self.axis is None:
            return 0.0
        u, (low, high) = self.axis.to_u(lam), self.axis.domain
        return min(1.0, max(0.0, (u - low) / (high - low)))


@torch.no_grad()
def expected_log_likelihood(
    network: nn.Module,
    data: Iterable[Sequence[Tensor]],
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    draws: int = 1,
    calibration: Sequence[Tensor] = (),
) -> float:
    """E_q[log p(D | w)] of a network with Gaussian layers, in nats, a sum over all objects.

    Args:
        network: In evaluation mode.
        data: Batches of all objects, inputs and targets.
        log_likelihood: log p(y | f(x, w)) of outputs and targets, summed over the batch; `()`.
        draws: Of the weights, for every batch.
        calibration: Batches of inputs, for batch normalization by statistics with the noise, see `weight_noise`.

    Raises:
        ConfigError: No draws, or no objects.
    """
    require(draws >= 1, "draws", "must be at least 1", draws, "1 is the default")
    device, total, n = next(network.parameters()).device, 0.0, 0
    with weight_noise(network, True, calibration):
        for x, y in ((x.to(device), y.to(device)) for x, y in data):
            total += sum(float(log_likelihood(network(x), y)) for _ in range(draws)) / draws
            n += len(y)
    require(n >= 1, "data", "must have objects", n, "an iterator can be read once: pass a list or a loader")
    return total


def _of(layer: str, name: str) -> str:
    """Name of a parameter of a layer, which may be the whole network."""
    return f"{layer}.{name}" if layer else name


def _check_frozen(model: nn.Module, weights: Sequence[str]) -> None:
    fixed = [name for name, value in model.named_parameters() if not value.requires_grad]
    if frozen := [name for name in weights if name in fixed]:
        raise SpaceError(
            f"weights that become a function of lambda must not be frozen, but {frozen[0]} has requires_grad=False; "
            "name its layer in skip."
        )


def _check(kind: str, weights: str, prior: str, lambda_range: tuple[float, float] | float, axis: str) -> None:
    for name, value, known in (
        ("weights", weights, ("variational", "point")),
        ("prior", prior, PRIORS),
        ("axis", axis, ("log", "literal")),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if weights == "point" and prior not in WITH_SD:
        raise ConfigError(f"prior must be fixed or scaled for weights that are points, got {prior!r}; or leave it out.")
    single = isinstance(lambda_range, (int, float))
    if not isinstance(lambda_range, (int, float)) and len(lambda_range) != 2:
        raise ConfigError(f"lambda_range must be (low, high) or one lambda, got {tuple(lambda_range)}; e.g. (0.1, 3).")
    low = lambda_range if isinstance(lambda_range, (int, float)) else lambda_range[0]
    if not 0 <= low < float("inf"):
        raise ConfigError(f"lambda must be at least 0 and finite, got {low:g}; 1 gives the evidence bound.")
    if prior == "scaled" and not low > 0:
        raise ConfigError("lambda must be above 0 with the prior 'scaled', whose variance is divided by it, got 0.")
    if single and kind != "constant":
        raise ConfigError(f"kind must be 'constant' for one lambda, got {kind!r}; or give a lambda_range.")
