"""DARTS with an L1 term and a cost penalty: the baseline of complexity control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from .costs import CostKind
from .differentiable import DifferentiableStrategy
from .fused import Execution
from .guards import guards_of
from .relaxations import Mixing, Relaxation, TemperatureSchedule
from .step_options import StepOptions
from .structure_loss import StructureLoss


class RegularizedDARTS(DifferentiableStrategy):
    """DARTS (Liu, Simonyan & Yang, 2019, arXiv 1806.09055) with regularized structure.

    The structure step minimizes L_val + l1 * sum |alpha| + penalty * E[cost], E[cost] normalized to [0, 1] between the
    cheapest and the dearest architecture of the space; the weight step minimizes L_train.

    Args:
        l1: Factor of the L1 norm of the structure parameters.
        penalty: Price of complexity; 0 leaves it out.
        cost: What complexity counts: parameters, multiply-accumulates, or the latency of a table.
        latency_table: File of the table; see `nni_bayes_nas.complexity.latency`.
        relaxation: "softmax", "gumbel", "sigmoid" (with `zero_one`) or "identity".
        mixing: "probabilities", as in DARTS, or "marginals", as in HyperDARTS.
        mixing_temperature: Of the mixing weights at the end of the search; it falls from 1.
        temperature_schedule: How temperatures fall after the warm-up: "geometric", "linear"; "constant": never 1.
        one_hot_passes: Passes of single architectures per weight step, as many as HyperDARTS has: drawn from the law in
            the warm-up; after it the derived one, in one pass that counts as often.
        zero_one: Factor of the zero-one loss of relaxation "sigmoid".
        order: 1, or 2: the structure step differentiates through a virtual weight step, that of the mixture alone:
            not clipped, and without the one-hot passes.
        second_order: "exact" (Hessian-vector product) or "finite_difference".
        execution: "plain": the supernet operation by operation; "fused": what operations share is computed once, with
            the same result up to rounding; "auto": fused on a CPU, and on a GPU where it is compiled or recorded.
        compile: Whether the passes of the mixture run through `torch.compile`: order 1 alone. It takes a minute or more
            for each of two forms, before the first step that needs it, and pays in long searches.
        cuda_graphs: Whether the passes of the mixture are recorded once and replayed on a GPU: order 1 alone.
        arc_learning_rate: Learning rate of the structure parameters (Adam).
        arc_weight_decay: Their L2 decay.
        warmup_epochs: Epochs in which only the weights learn.
        gradient_clip_val: Norm to which the gradient of the weights is clipped.
        seed: Of the initial structure and of every draw.
        input_shape: Shape of one object; None reads it off the evaluator's data.
        mutation_hooks: Hooks of the user's own for NNI, tried before ours.
        auxiliary: Guards against collapse, see `Guards`: weight of an identity on every edge during the search.
        auxiliary_end: Its weight at the end, to which it falls; None leaves it constant.
        normalize: Whether batch normalization follows every operation that does not end in it.
        without: Options that cannot be chosen, "none" say.
    """

    def __init__(
        self,
        *,
        l1: float = 0.0,
        penalty: float = 0.0,
        cost: CostKind = "params",
        latency_table: str | None = None,
        relaxation: Relaxation = "softmax",
        mixing: Mixing = "probabilities",
        mixing_temperature: float = 1.0,
        temperature_schedule: TemperatureSchedule = "geometric",
        one_hot_passes: int = 0,
        zero_one: float | None = None,
        order: Literal[1, 2] = 1,
        second_order: Literal["exact", "finite_difference"] = "exact",
        execution: Execution = "auto",
        compile: bool = False,
        cuda_graphs: bool = False,
        arc_learning_rate: float = 0.01,
        arc_weight_decay: float = 1e-3,
        warmup_epochs: int = 0,
        gradient_clip_val: float | None = 5.0,
        seed: int = 0,
        input_shape: Sequence[int] | None = None,
        mutation_hooks: list[Any] | None = None,
        auxiliary: float = 0.0,
        auxiliary_end: float | None = None,
        normalize: bool = False,
        without: tuple[str, ...] = (),
    ) -> None:
        if zero_one is None:
            zero_one = 1.0 if relaxation == "sigmoid" else 0.0
        super().__init__(
            structure={"hypernet": "constant", "relaxation": relaxation, "mixing": mixing},
            loss=StructureLoss("penalty" if penalty else "none", penalty=penalty, l1=l1, zero_one=zero_one),
            step=StepOptions(
                mixing_temperature=mixing_temperature,
                temperature_schedule=temperature_schedule,
                one_hot_passes=one_hot_passes,
                order=order,
                second_order=second_order,
                execution=execution,
                compile=compile,
                cuda_graphs=cuda_graphs,
            ),
            cost=cost,
            latency_table=latency_table,
            validation_points=(0.0,),
            arc_learning_rate=arc_learning_rate,
            arc_weight_decay=arc_weight_decay,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            seed=seed,
            input_shape=input_shape,
            mutation_hooks=mutation_hooks,
            guards=guards_of(auxiliary, auxiliary_end, normalize, without),
        )
