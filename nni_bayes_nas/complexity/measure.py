"""Parameters and multiply-accumulate operations of a module, counted on the module itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Number of parameters; shared ones count once, buffers not at all."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulate operations of convolutions and matrix products for one object.

    Half of the floating point operations that torch counts; element-wise work and pooling are not counted.

    Args:
        module: Any module with one tensor as input.
        input_shape: Shape of one object, without the batch axis.
    """
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, *input_shape, device=device))
    finally:
        module.train(was_training)
    return int(counter.get_total_flops()) // 2
