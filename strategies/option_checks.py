"""What the options of a differentiable strategy must be, checked before any time is spent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, get_args

from nni_bayes_nas.errors import ConfigError

from .fused import Execution
from .relaxations import RELAXATIONS, TEMPERATURE_SCHEDULES, WITHOUT_PRIOR
from .step_options import StepOptions
from .structure_loss import StructureLoss


def check_options(
    structure: dict[str, Any],
    loss: StructureLoss,
    step: StepOptions,
    *,
    cost: str,
    latency_table: Any,
    bayesian: bool = False,
) -> None:
    """Refuse options that are unknown, out of range, or exclude each other.

    Args:
        structure: Keyword arguments of `Structure`.
        loss: What is added to the task loss.
        step: How a step is put together.
        cost: What complexity counts.
        latency_table: File of the table, or None.
        bayesian: Whether the structure has a prior.

    Raises:
        ConfigError: With rule, value and remedy.
    """
    _check_choice("cost", cost, ("params", "macs", "latency"))
    _check_choice("lambda_per", step.lambda_per, ("object", "step"))
    _check_choice("order", step.order, (1, 2))
    _check_choice("temperature_schedule", step.temperature_schedule, tuple(TEMPERATURE_SCHEDULES))
    _check_choice("second_order", step.second_order, ("exact", "finite_difference"))
    _check_choice("execution", step.execution, get_args(Execution))
    if step.compile and step.order == 2:
        raise ConfigError("compile needs order 1, got order 2: torch compiles no second derivatives; leave one out.")
    if step.cuda_graphs and step.compile:
        raise ConfigError("passes are compiled or recorded, got compile true and cuda_graphs true; leave one out.")
    if step.cuda_graphs and step.order == 2:
        raise ConfigError("cuda_graphs needs order 1, got order 2: no graph has second derivatives; leave one out.")
    if step.partial_channels < 1:
        raise ConfigError(f"partial_channels must be at least 1, got {step.partial_channels}; 4 is usual.")
    kept = list(step.keep_options)
    if any(n < 1 for n in kept) or any(a <= b for a, b in itertools.pairwise(kept)):
        raise ConfigError(f"keep_options must fall from stage to stage and be at least 1, got {kept}; [4, 2], say.")
    for name, on in (("partial_channels", step.partial_channels > 1), ("keep_options", bool(kept))):
        if on and (step.compile or step.cuda_graphs):
            raise ConfigError(f"passes with {name} can be neither compiled nor recorded; leave one out.")
    _check_choice("relaxation", structure.get("relaxation", "softmax"), RELAXATIONS if bayesian else WITHOUT_PRIOR)
    _check_choice("mixing", structure.get("mixing", "probabilities"), ("probabilities", "marginals"))
    if (cost == "latency") != (latency_table is not None):
        raise ConfigError(
            f"cost 'latency' and latency_table belong together, got cost {cost!r} and table {latency_table!r}; "
            "give both, or neither."
        )
    if structure.get("mixing") == "marginals" and structure.get("relaxation") in ("sigmoid", "identity"):
        raise ConfigError(
            f"mixing 'marginals' needs probabilities, got relaxation {structure['relaxation']!r}; "
            "set mixing='probabilities', or another relaxation."
        )
    for name, temperature in (("temperature", loss.temperature), ("mixing_temperature", step.mixing_temperature)):
        if not 0 < temperature <= 1:
            raise ConfigError(f"{name} must lie in (0, 1], got {temperature}; 1 leaves the probabilities alone.")
    if step.lambdas_per_step < 1:
        raise ConfigError(f"lambdas_per_step must be at least 1, got {step.lambdas_per_step}; 2 is usual.")
    if not 0 <= step.ramp <= 1:
        raise ConfigError(f"ramp must lie in [0, 1], got {step.ramp}; it is a share of the steps of the structure.")
    if step.one_hot_passes < 0:
        raise ConfigError(f"one_hot_passes must not be negative, got {step.one_hot_passes}; 0 means none.")
    for name, value in {
        **loss.factors(),
        "complexity_weight": loss.complexity_weight,
        "penalty": loss.penalty,
    }.items():
        if not value >= 0:
            raise ConfigError(f"{name} must not be negative, got {value}.")


def check_lambda(n_knots: int, target_range: Sequence[float]) -> None:
    """Refuse what cannot say how a structure depends on lambda.

    Raises:
        ConfigError: With rule, value and remedy.
    """
    if n_knots < 2:
        raise ConfigError(f"n_knots must be at least 2, got {n_knots}; one knot would ignore lambda.")
    if not (len(target_range) == 2 and 0 <= target_range[1] < target_range[0] <= 1):
        raise ConfigError(
            f"target_range must be (large, small) with 0 <= small < large <= 1, got {target_range}; "
            "it is the share of the largest cost, at the lowest and at the highest lambda."
        )


def _check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}.")
