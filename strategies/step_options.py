"""How a search step is put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .fused import Execution
from .relaxations import TemperatureSchedule


@dataclass(frozen=True)
class StepOptions:
    """How a search step is put together.

    Attributes:
        lambda_per: "object": every object of a mini-batch has its own lambda; "step": all share one, and a step
            averages `lambdas_per_step` passes.
        lambdas_per_step: Passes of a step for "step".
        mixing_temperature: Temperature of the mixing weights at the end of the search; it falls from 1 after the
            warm-up. With mixing "marginals" the gap between mixture and derived network closes with it.
        temperature_schedule: How temperatures fall, see `relaxations.TEMPERATURE_SCHEDULES`.
        ramp: Share of the structure steps until the positions of lambda have spread over its range; for "price".
        one_hot_passes: Passes of single architectures in a weight step, beside the mixture's: one at the large end of
            the range of lambda, the others stratified over it (after the sandwich rule of Yu & Huang, 2019, arXiv
            1903.05134; there is no pass for the smallest network alone, which has hardly a weight). They are drawn
            from the law in the warm-up and derived after it, and cost what the architecture costs.
        order: 1, or 2: the structure step differentiates through a virtual weight step (of the mixture, not clipped).
        second_order: "exact" or "finite_difference".
        execution: "plain": the supernet operation by operation; "fused": with what operations share computed once;
            "auto": fused, but plain on a GPU where the passes are neither compiled nor recorded.
        compile: Whether the passes of the mixture run through `torch.compile`.
        cuda_graphs: Whether the passes of the mixture are recorded once and replayed on a GPU.
        draw_per: "object": every object of a mini-batch has mixing weights drawn for itself; "step": all share one
            draw. A structure with lambda per object draws so too.
        partial_channels: Of so many equal parts of the channels, where operations keep their number, the operations see
            the first; 1: all.
        keep_options: How many options of every choice are left at the end of each stage but the last; the structure
            steps are divided evenly.
    """

    lambda_per: Literal["object", "step"] = "step"
    lambdas_per_step: int = 1
    mixing_temperature: float = 1.0
    temperature_schedule: TemperatureSchedule = "geometric"
    one_hot_passes: int = 0
    ramp: float = 0.0
    order: Literal[1, 2] = 1
    second_order: Literal["exact", "finite_difference"] = "exact"
    execution: Execution = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    draw_per: Literal["object", "step"] = "step"
    partial_channels: int = 1
    keep_options: tuple[int, ...] = ()
