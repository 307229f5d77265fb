"""DARTS whose structure parameters are a hypernetwork of the complexity parameter lambda."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from nni_bayes_nas.complexity.axis import LambdaAxis
from nni_bayes_nas.errors import ConfigError

from .bilevel import StructureLoss
from .costs import CostKind
from .differentiable import DifferentiableStrategy, LambdaPer


class HyperDARTS(DifferentiableStrategy):
    """One search for a family of architectures: alpha = alpha(u), u the normalized log of lambda.

    The structure step minimizes E_u[L_val(alpha(u)) + complexity_weight * C(u)], the weight step
    E_u[L_train(alpha(u))].
    With complexity "target", C(u) = (E[cost](u) - c(u))^2 with c falling linearly from target_range[0] at the smallest
    lambda to target_range[1] at the largest; with "penalty", C(u) = lambda * E[cost](u) (Yakovlev et al., DARTS-CC).
    E[cost] is normalized to [0, 1] between the cheapest and the dearest architecture of the space. After the search any
    lambda of the range gives an architecture without an optimizer step: `export(lam)`, `list_models(limit=k)`.

    Args:
        lambda_range: Lowest (largest networks) and highest (smallest networks) lambda.
        hypernet: "linear" or "piecewise_linear" in u.
        n_knots: Knots of a piecewise linear hypernetwork.
        complexity: "target" or "penalty".
        complexity_weight: Factor of the complexity term.
        target_range: Normalized expected cost at the lowest and at the highest lambda.
        temperature: At the end of the search, of the sharpened law that the complexity terms see beside the law itself;
            it falls linearly from 1.
        monotonicity: Factor of the term that punishes sizes growing with lambda.
        cost: What complexity counts: parameters or multiply-accumulates.
        lambda_per: "object": one lambda per object of the mini-batch; "step": `lambdas_per_step` passes with one each.
        lambdas_per_step: Passes of a step where all objects share lambda.
        arc_learning_rate: Learning rate of the hypernetwork (Adam).
        arc_weight_decay: Its L2 decay.
        warmup_epochs: Epochs in which only the weights learn.
        gradient_clip_val: Norm to which the gradient of the weights is clipped.
        seed: Of the initial structure and of every draw.
        input_shape: Shape of one object; None reads it off the evaluator's data.
        mutation_hooks: Hooks of the user's own for NNI, tried before ours.

    Raises:
        ConfigError: If a range is empty or reversed.
    """

    def __init__(
        self,
        *,
        lambda_range: tuple[float, float] = (1e-3, 1.0),
        hypernet: Literal["linear", "piecewise_linear"] = "piecewise_linear",
        n_knots: int = 5,
        complexity: Literal["target", "penalty"] = "target",
        complexity_weight: float = 20.0,
        target_range: tuple[float, float] = (0.95, 0.05),
        temperature: float = 0.1,
        monotonicity: float = 20.0,
        cost: CostKind = "params",
        lambda_per: LambdaPer = "object",
        lambdas_per_step: int = 2,
        arc_learning_rate: float = 0.05,
        arc_weight_decay: float = 0.0,
        warmup_epochs: int = 1,
        gradient_clip_val: float | None = 5.0,
        seed: int = 0,
        input_shape: Sequence[int] | None = None,
        mutation_hooks: list[Any] | None = None,
    ) -> None:
        if hypernet not in ("linear", "piecewise_linear"):
            raise ConfigError(f"hypernet must be 'linear' or 'piecewise_linear', got {hypernet!r}.")
        if complexity not in ("target", "penalty"):
            raise ConfigError(f"complexity must be 'target' or 'penalty', got {complexity!r}.")
        if n_knots < 2:
            raise ConfigError(f"n_knots must be at least 2, got {n_knots}; one knot would ignore lambda.")
        if not (len(target_range) == 2 and 0 <= target_range[1] < target_range[0] <= 1):
            raise ConfigError(
                f"target_range must be (large, small) with 0 <= small < large <= 1, got {target_range}; "
                "it is the share of the largest cost, at the lowest and at the highest lambda."
            )
        if not 0 < temperature <= 1:
            raise ConfigError(f"temperature must lie in (0, 1], got {temperature}; 1 leaves the law as it is.")
        if not monotonicity >= 0:
            raise ConfigError(f"monotonicity must not be negative, got {monotonicity}.")
        super().__init__(
            structure={"hypernet": hypernet, "n_knots": n_knots, "axis": LambdaAxis(*lambda_range)},
            loss=StructureLoss(
                complexity,
                complexity_weight,
                target_range=target_range,
                temperature=temperature,
                monotonicity=monotonicity,
            ),
            cost=cost,
            lambda_per=lambda_per,
            lambdas_per_step=lambdas_per_step,
            validation_u=(0.0, 0.5, 1.0),
            arc_learning_rate=arc_learning_rate,
            arc_weight_decay=arc_weight_decay,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            seed=seed,
            input_shape=input_shape,
            mutation_hooks=mutation_hooks,
        )
