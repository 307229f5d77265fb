"""DARTS whose structure parameters are a hypernetwork of the complexity parameter lambda."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from nni_bayes_nas.complexity.axis import Axis, LambdaAxis, LiteralAxis
from nni_bayes_nas.errors import ConfigError

from .costs import CostKind
from .differentiable import DifferentiableStrategy
from .fused import Execution
from .guards import guards_of
from .option_checks import check_lambda
from .relaxations import Mixing, Relaxation, TemperatureSchedule
from .step_options import StepOptions
from .structure_loss import TARGET_WEIGHT, Complexity, Scale, StructureLoss

# What an automatic range is before the search has found one.
_FIRST_RANGE = (1e-3, 1.0)
_LEAST_KNOTS = 5


class HyperDARTS(DifferentiableStrategy):
    """One search for a family of architectures: alpha = alpha(u), u the position of lambda in its range.

    The weight step minimizes E_u[L_train(alpha(u))]. The structure step, with hypernet "price", minimizes
    E_u[L_val(alpha(u))] over scores b such that E[cost](u) = c(u) at the knots of u: alpha(u) = b - p(u) costs, and the
    price p(u) is what c(u) asks for (`PriceHypernet`, `SizeControl`). c falls linearly from target_range[0] at the
    smallest lambda to target_range[1] at the largest. Otherwise it minimizes
    E_u[L_val(alpha(u)) + complexity_weight * C(u)].

    What lambda means: with complexity "target" u is the normalized log of lambda, C(u) = (E[cost](u) - c(u))^2; with
    "penalty" lambda is the loss that a unit of cost must save, C(u) = lambda * E[cost](u) (Yakovlev et al., DARTS-CC):
    at a price, the u that minimizes L_val(alpha(u)) + complexity_weight * lambda * E[cost](u) in the last quarter of
    the search is the position of lambda.
    E[cost] is normalized to [0, 1] between the cheapest and the dearest architecture of the space, for the target on
    the logarithm of the cost. After the search any lambda of the range gives an architecture without an optimizer
    step: `export(lam)`, `list_models(limit=k)`, `for_budget(max_params=n)`.

    Args:
        lambda_range: Lowest (largest networks) and highest (smallest networks) lambda. "auto", for complexity
            "penalty": sizes follow the target, and the slopes of validation loss against cost tell which lambda matter;
            other hypernetworks than "price" are penalized with them in the second half of the search.
        axis: "log", normalized; "literal": the original, alpha = lambda b1 + b2 with lambda as it is.
        hypernet: "price": every option has a score that is learned, less a price for its cost, which never falls with
            u, so that sizes as derived never grow with lambda where the cost is a sum over the choices; "linear",
            "piecewise_linear" or "mlp" in u: every option for itself.
        n_knots: Knots of the price (9 by default), or of a piecewise linear hypernetwork (5).
        ramp: For "price": share of the structure steps until the values of lambda that a step sees have spread from
            the one at which all options are equally probable (there they stand in the warm-up) over the whole range.
        relaxation: "softmax"; "gumbel" with noise per step and label (and object, where every object has its lambda);
            "sigmoid" (Fair DARTS) with `zero_one`; "identity": the raw alpha of the original.
        mixing: "marginals": every option is weighted by its probability to be part of the architecture, so that the
            mixture becomes the derived network as the temperature falls; "probabilities", as in DARTS.
        mixing_temperature: Of the mixing weights at the end of the search; it falls from 1.
        temperature_schedule: How temperatures fall after the warm-up: "geometric", "linear"; "constant": never 1.
        one_hot_passes: Passes of single architectures per weight step, one at the lowest lambda, the others anywhere.
        complexity: "target", "penalty" or "none" (not at a price).
        complexity_weight: Factor of the complexity term; None takes 20 for "target" and 1 for "penalty". At a price the
            target is no term, and has no factor.
        target_scale: "log": the same step of log lambda divides the size by the same factor; "linear": it takes away
            the same number of parameters.
        target_range: Normalized expected cost at the lowest and at the highest lambda, on that scale.
        temperature: At the end of the search, of the sharpened law that the complexity terms see beside the law itself;
            it falls from 1.
        monotonicity: Factor of the term that punishes sizes growing with lambda; left out for "price" where the cost is
            a sum over the choices, since they cannot grow there.
        zero_one: Factor of the zero-one loss of relaxation "sigmoid".
        l1: Factor of the L1 norm of the logits.
        cost: What complexity counts: parameters, multiply-accumulates, or the latency of a table.
        latency_table: File of the table; see `nni_bayes_nas.complexity.latency`.
        lambda_per: "object": one lambda per object of the mini-batch; "step": `lambdas_per_step` passes with one each.
        lambdas_per_step: Passes of a step where all objects share lambda.
        order: 1, or 2: the structure step differentiates through a virtual weight step, that of the mixture alone:
            not clipped, and without the one-hot passes.
        second_order: "exact" (Hessian-vector product) or "finite_difference".
        execution: "plain": the supernet operation by operation; "fused": what operations share is computed once, with
            the same result up to rounding; "auto": fused on a CPU, and on a GPU where it is compiled or recorded.
        compile: Whether the passes of the mixture run through `torch.compile`: order 1 alone. It takes a minute or more
            for each of two forms, before the first step that needs it, and pays in long searches.
        cuda_graphs: Whether the passes of the mixture are recorded once and replayed on a GPU: order 1 alone.
        validation_points: Where validation metrics are taken, as fractions of the range of lambda.
        arc_learning_rate: Learning rate of the hypernetwork (Adam).
        arc_weight_decay: Its L2 decay.
        warmup_epochs: Epochs in which only the weights learn.
        gradient_clip_val: Norm to which the gradient of the weights is clipped.
        seed: Of the initial structure and of every draw.
        input_shape: Shape of one object; None reads it off the evaluator's data.
        mutation_hooks: Hooks of the user's own for NNI, tried before ours.
        auxiliary: Guards against collapse, see `Guards`: weight of an identity on every edge during the search.
        auxiliary_end: Its weight at the end, to which it falls; None leaves it constant.
        normalize: Whether batch normalization follows every operation that does not end in it.
        without: Options that cannot be chosen, "none" say.

    Raises:
        ConfigError: If a range is empty or reversed, or options exclude each other.
    """

    def __init__(
        self,
        *,
        lambda_range: tuple[float, float] | Literal["auto"] = (1e-3, 1.0),
        axis: Literal["log", "literal"] = "log",
        hypernet: Literal["price", "linear", "piecewise_linear", "mlp"] = "price",
        n_knots: int | None = None,
        ramp: float | None = None,
        relaxation: Relaxation = "softmax",
        mixing: Mixing | None = None,
        mixing_temperature: float = 0.1,
        temperature_schedule: TemperatureSchedule = "geometric",
        one_hot_passes: int = 2,
        complexity: Complexity = "target",
        complexity_weight: float | None = None,
        target_scale: Scale = "log",
        target_range: tuple[float, float] = (0.98, 0.02),
        temperature: float = 0.1,
        monotonicity: float = 20.0,
        zero_one: float | None = None,
        l1: float = 0.0,
        cost: CostKind = "params",
        latency_table: str | None = None,
        lambda_per: Literal["object", "step"] = "object",
        lambdas_per_step: int = 2,
        order: Literal[1, 2] = 1,
        second_order: Literal["exact", "finite_difference"] = "exact",
        execution: Execution = "auto",
        compile: bool = False,
        cuda_graphs: bool = False,
        validation_points: tuple[float, ...] = (0.0, 0.5, 1.0),
        arc_learning_rate: float = 0.02,
        arc_weight_decay: float = 0.0,
        warmup_epochs: int = 1,
        gradient_clip_val: float | None = 5.0,
        seed: int = 0,
        input_shape: Sequence[int] | None = None,
        mutation_hooks: list[Any] | None = None,
        auxiliary: float = 0.0,
        auxiliary_end: float | None = None,
        normalize: bool = False,
        without: tuple[str, ...] = (),
    ) -> None:
        priced = hypernet == "price"
        if n_knots is None:
            n_knots = 9 if priced else 5
        _check(hypernet, axis, complexity, n_knots, target_scale, target_range, validation_points)
        if priced:
            _check_price(complexity, complexity_weight, n_knots, target_range)
        elif ramp is not None:
            raise ConfigError(f"ramp belongs to hypernet 'price', got {ramp} for another one; leave it out.")
        raw = relaxation in ("sigmoid", "identity")
        if hypernet == "price" and raw:
            raise ConfigError(
                f"hypernet 'price' needs probabilities, got relaxation {relaxation!r}; "
                "set hypernet='piecewise_linear', 'linear' or 'mlp'."
            )
        automatic = lambda_range == "auto"
        if automatic and (complexity != "penalty" or axis != "log"):
            raise ConfigError(
                "lambda_range 'auto' looks for the lambda that matters to complexity 'penalty' on the log axis, got "
                f"complexity {complexity!r} on the {axis} axis; give a range such as (0.001, 1.0)."
            )
        observed = automatic or (priced and complexity == "penalty")
        if observed and complexity_weight is not None and not complexity_weight > 0:
            raise ConfigError(
                f"what lambda costs is its multiple of complexity_weight, got {complexity_weight}; set it above 0."
            )
        if complexity_weight is None:
            complexity_weight = TARGET_WEIGHT if complexity == "target" else 1.0
        if zero_one is None:
            zero_one = 1.0 if relaxation == "sigmoid" else 0.0
        super().__init__(
            structure={
                "relaxation": relaxation,
                "mixing": mixing or ("probabilities" if raw else "marginals"),
                "hypernet": hypernet,
                "n_knots": n_knots,
                "axis": _axis(axis, _FIRST_RANGE if lambda_range == "auto" else lambda_range),
                "observed": observed,
                "automatic_range": automatic,
            },
            loss=StructureLoss(
                complexity,
                complexity_weight,
                target_scale=target_scale,
                target_range=(target_range[0], target_range[1]),
                temperature=temperature,
                monotonicity=monotonicity,
                l1=l1,
                zero_one=zero_one,
            ),
            step=StepOptions(
                lambda_per=lambda_per,
                lambdas_per_step=lambdas_per_step,
                # Raw weights are no probabilities that could be sharpened.
                mixing_temperature=1.0 if relaxation == "identity" else mixing_temperature,
                temperature_schedule=temperature_schedule,
                one_hot_passes=one_hot_passes,
                ramp=(0.5 if priced else 0.0) if ramp is None else ramp,
                order=order,
                second_order=second_order,
                execution=execution,
                compile=compile,
                cuda_graphs=cuda_graphs,
            ),
            cost=cost,
            latency_table=latency_table,
            validation_points=tuple(validation_points),
            arc_learning_rate=arc_learning_rate,
            arc_weight_decay=arc_weight_decay,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            seed=seed,
            input_shape=input_shape,
            mutation_hooks=mutation_hooks,
            guards=guards_of(auxiliary, auxiliary_end, normalize, without),
        )


def _axis(kind: str, lambda_range: tuple[float, float]) -> Axis:
    if len(lambda_range) != 2:
        raise ConfigError(f"lambda_range must be (low, high) or 'auto', got {lambda_range!r}.")
    return LiteralAxis(*lambda_range) if kind == "literal" else LambdaAxis(*lambda_range)


def _check_price(
    complexity: str, complexity_weight: float | None, n_knots: int, target_range: tuple[float, float]
) -> None:
    if complexity == "none":
        raise ConfigError(
            "hypernet 'price' has a size for every lambda, got complexity 'none'; "
            "set complexity='target', or hypernet='piecewise_linear'."
        )
    if complexity == "target" and complexity_weight is not None:
        raise ConfigError(
            f"hypernet 'price' solves for its targets, got complexity_weight {complexity_weight}; leave it out."
        )
    if n_knots < _LEAST_KNOTS:
        raise ConfigError(
            f"n_knots must be at least {_LEAST_KNOTS} for hypernet 'price', got {n_knots}; "
            "between knots prices, and so sizes, would be far from what they should be."
        )
    if target_range[0] == 1 or target_range[1] == 0:
        raise ConfigError(
            f"target_range must lie inside (0, 1) for hypernet 'price', got {target_range}; "
            "no price reaches the ends, (0.98, 0.02) is near enough to derive the dearest and the cheapest network."
        )


def _check(
    hypernet: str,
    axis: str,
    complexity: str,
    n_knots: int,
    target_scale: str,
    target_range: tuple[float, float],
    validation_points: Sequence[float],
) -> None:
    for name, value, known in (
        ("hypernet", hypernet, ("price", "linear", "piecewise_linear", "mlp")),
        ("axis", axis, ("log", "literal")),
        ("complexity", complexity, ("target", "penalty", "none")),
        ("target_scale", target_scale, ("log", "linear")),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    check_lambda(n_knots, target_range)
    if axis == "literal" and hypernet == "price":
        raise ConfigError("hypernet 'price' lives on the log axis, got the literal one; set hypernet='linear'.")
    if not validation_points or not all(0 <= point <= 1 for point in validation_points):
        raise ConfigError(
            f"validation_points must be fractions of the range of lambda, in [0, 1], got {tuple(validation_points)}; "
            "0 is its lowest end."
        )
