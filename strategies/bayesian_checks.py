"""What the options of Bayesian searches must be, checked before any time is spent."""

from __future__ import annotations

from typing import Any, Literal, get_args

from nni_bayes_nas.bayes import dirichlet, elbo, normal
from nni_bayes_nas.compression.weight_hypernet import KINDS
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.gaussian_output import ESTIMATORS

from .bayesian import DEPENDENCES, BayesOptions

Family = Literal["dirichlet", "concrete", "logistic_normal", "softmax"]
FAMILIES: tuple[str, ...] = get_args(Family)


def check_bayes(family: str, bayes: BayesOptions, lambda_range: Any, complexity: str, floor: float) -> None:
    """Refuse options that are unknown, out of range, or mean nothing together.

    Args:
        family: Of the posterior of the structure.
        bayes: Priors and weights of the divergences.
        lambda_range: Lowest and highest lambda, or None.
        complexity: Of `StructureLoss`.
        floor: Of concentrations.

    Raises:
        ConfigError: With rule, value and remedy.
    """
    for name, value, known in (
        ("family", family, FAMILIES),
        ("scheme", bayes.scheme, ("single_level", "bilevel")),
        ("weights", bayes.weights, ("point", "variational")),
        ("dependence", bayes.dependence, DEPENDENCES),
        ("weight_prior", bayes.weight_prior, normal.PRIORS),
        ("estimator", bayes.estimator, ESTIMATORS),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    dirichlet.check_floor(floor)
    if family != "dirichlet" and floor != dirichlet.FLOOR:
        raise ConfigError(
            f"floor is one of concentrations, which family {family!r} has not, got {floor}; leave it out."
        )
    reach = floor if family == "dirichlet" else None
    dirichlet.check_prior(bayes.prior, floor=reach)
    if family != "dirichlet" and bayes.prior != 1 and bayes.none_prior is None:
        raise ConfigError(
            f"an equal prior of all options says nothing to family {family!r}, got prior {bayes.prior}; leave it out, "
            "or give none_prior too."
        )
    if bayes.none_prior is not None:
        dirichlet.check_prior(bayes.none_prior, "none_prior", reach)
    elbo.check_weight("kl_structure", bayes.kl_structure)
    elbo.check_weight("kl_weights", bayes.kl_weights)
    if not 0 <= bayes.kl_warmup <= 1:
        raise ConfigError(f"kl_warmup must lie in [0, 1], got {bayes.kl_warmup}; it is a share of the search.")
    if not 0 < bayes.weight_prior_sd < float("inf"):
        raise ConfigError(f"weight_prior_sd must be above 0, got {bayes.weight_prior_sd}; 1 is usual.")
    if bayes.weight_prior != "fixed" and bayes.weights != "point" and bayes.weight_prior_sd != 1:
        raise ConfigError(
            f"weight_prior_sd is of weight_prior 'fixed', got {bayes.weight_prior_sd} with {bayes.weight_prior!r}; "
            "leave it out."
        )
    if bayes.weights == "point":
        for name in ("dependence", "kl_weights", "weight_prior", "weight_prior_sd", "rho", "estimator"):
            value, usual = getattr(bayes, name), getattr(BayesOptions, name)
            if value != usual:
                raise ConfigError(
                    f"weights that are points depend on nothing and have no divergence, got {name} {value!r}; "
                    "set weights='variational', or leave it out."
                )
    if bayes.accumulate and (bayes.scheme == "bilevel" or bayes.weight_hypernet != "constant"):
        raise ConfigError(
            "accumulate is of the two halves of a single level whose weights do not depend on lambda, got scheme "
            f"{bayes.scheme!r} and weight_hypernet {bayes.weight_hypernet!r}; leave it out."
        )
    if bayes.weight_hypernet not in KINDS:
        raise ConfigError(f"weight_hypernet must be one of {', '.join(KINDS)}, got {bayes.weight_hypernet!r}.")
    if bayes.weight_rank < 1 or bayes.weight_hidden < 1:
        raise ConfigError(
            f"weight_rank and weight_hidden must be at least 1, got {bayes.weight_rank} and {bayes.weight_hidden}; "
            f"{BayesOptions.weight_rank} and {BayesOptions.weight_hidden} are the defaults."
        )
    sizes = (bayes.weight_rank, bayes.weight_hidden)
    if bayes.weight_hypernet not in ("low_rank", "mlp") and sizes != (
        BayesOptions.weight_rank,
        BayesOptions.weight_hidden,
    ):
        raise ConfigError(
            f"weight_rank and weight_hidden are of weight_hypernet low_rank and mlp, got {sizes[0]} and {sizes[1]} "
            f"with {bayes.weight_hypernet!r}; leave them out."
        )
    if bayes.weight_hypernet != "constant":
        _check_joint(bayes, lambda_range, complexity)
    elif (complexity != "none") != (lambda_range is not None):
        raise ConfigError(
            f"complexity and lambda_range belong together, got complexity {complexity!r} and range {lambda_range!r}; "
            "give both, or neither."
        )


def _check_joint(bayes: BayesOptions, lambda_range: Any, complexity: str) -> None:
    """Of weights that depend on lambda."""
    kind = bayes.weight_hypernet
    if lambda_range is None or bayes.weights == "point" or bayes.scheme == "bilevel":
        raise ConfigError(
            f"weights that depend on lambda have a range of it, and one bound with the structure, got weight_hypernet "
            f"{kind!r}, lambda_range {lambda_range!r}, weights {bayes.weights!r} and scheme {bayes.scheme!r}; set "
            "lambda_range, weights='variational' and scheme='single_level'."
        )
    if complexity == "target":
        raise ConfigError(
            f"lambda weighs the divergences where weights depend on it, got weight_hypernet {kind!r} and complexity "
            "'target', where it is but an index of sizes; set complexity to none or penalty."
        )
