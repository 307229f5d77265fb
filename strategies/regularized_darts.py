"""DARTS with an L1 term and a cost penalty: the baseline of complexity control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .bilevel import StructureLoss
from .costs import CostKind
from .differentiable import DifferentiableStrategy


class RegularizedDARTS(DifferentiableStrategy):
    """First order DARTS (Liu, Simonyan & Yang, 2019, arXiv 1806.09055) with regularized structure.

    The structure step minimizes L_val + l1 * sum |alpha| + penalty * E[cost], E[cost] normalized to [0, 1] between the
    cheapest and the dearest architecture of the space; the weight step minimizes L_train.

    Args:
        l1: Factor of the L1 norm of the structure parameters.
        penalty: Price of complexity; 0 leaves it out.
        cost: What complexity counts: parameters or multiply-accumulates.
        arc_learning_rate: Learning rate of the structure parameters (Adam).
        arc_weight_decay: Their L2 decay.
        warmup_epochs: Epochs in which only the weights learn.
        gradient_clip_val: Norm to which the gradient of the weights is clipped.
        seed: Of the initial structure and of every draw.
        input_shape: Shape of one object; None reads it off the evaluator's data.
        mutation_hooks: Hooks of the user's own for NNI, tried before ours.
    """

    def __init__(
        self,
        *,
        l1: float = 0.0,
        penalty: float = 0.0,
        cost: CostKind = "params",
        arc_learning_rate: float = 0.01,
        arc_weight_decay: float = 1e-3,
        warmup_epochs: int = 0,
        gradient_clip_val: float | None = 5.0,
        seed: int = 0,
        input_shape: Sequence[int] | None = None,
        mutation_hooks: list[Any] | None = None,
    ) -> None:
        super().__init__(
            structure={"hypernet": "constant"},
            loss=StructureLoss("penalty" if penalty else "none", 1.0, penalty=penalty, l1=l1),
            cost=cost,
            lambda_per="step",
            lambdas_per_step=1,
            validation_u=(0.0,),
            arc_learning_rate=arc_learning_rate,
            arc_weight_decay=arc_weight_decay,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            seed=seed,
            input_shape=input_shape,
            mutation_hooks=mutation_hooks,
        )
