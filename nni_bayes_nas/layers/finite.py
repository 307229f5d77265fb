"""Which layer of a network first gives what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nni_bayes_nas.bayes import objective


def check_layers(network: nn.Module, call: Callable[[Tensor], Any], x: Tensor, *, at: str = "", step: int) -> None:
    """Call a network once more, and name the first of its layers, in the order of calls, whose output is not finite.

    For a loss that is NaN already: it costs a pass, and counts in running statistics.

    Args:
        network: Its modules without children are the layers.
        call: The network, or what calls it with other weights.
        x: The inputs, of the step that failed.
        at: For the message, behind the layer's name: " at lambda 0.1", say.
        step: Optimizer step, for the message.

    Raises:
        NumericsError: The inputs or a layer's output are not finite.
    """
    objective.check_finite("inputs", x, step=step)

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                objective.check_finite(f"output of {name or type(module).__name__}{at}", output, step=step)

        return look

    layers = [(name, m) for name, m in network.named_modules() if not any(m.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in layers]
    try:
        with torch.no_grad():
            call(x)
    finally:
        for hook in hooks:
            hook.remove()
