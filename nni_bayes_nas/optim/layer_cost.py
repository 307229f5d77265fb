"""What the layers of a network cost, as they are measured in its passes, and where a frozen beginning pays most."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LayerCosts:
    """Watches the passes of a network until `remove`.

    Args:
        module: The network.

    Attributes:
        seconds: Of all passes, by the name of a module that has parameters of its own: the time of it and of what comes
            behind it up to the next one. Of what comes before the first, by "".
        places: At how many places of an object a module with parameters is applied: pixels of its output.
    """

    def __init__(self, module: nn.Module) -> None:
        self.seconds: dict[str, float] = {}
        self.places: dict[str, int] = {}
        self._last, self._began = "", 0.0
        self._first: nn.Module | None = None
        self._handles = []
        for name, layer in module.named_modules():
            if next(layer.children(), None) is not None:
                continue
            owns = next(layer.parameters(), None) is not None
            self._handles.append(layer.register_forward_pre_hook(self._begin))
            self._handles.append(layer.register_forward_hook(self._ended(name if owns else None)))

    @property
    def watching(self) -> bool:
        """Whether it does still."""
        return bool(self._handles)

    def remove(self) -> None:
        """Stop watching; what was found stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, layer: nn.Module, inputs: Any) -> None:
        self._first = self._first or layer
        if layer is self._first:  # another pass begins
            self._last = ""
        self._began = time.perf_counter()

    def _ended(self, name: str | None) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if name is not None:
                self._last = name
                if isinstance(output, Tensor) and output.dim() >= 2:
                    convolves = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
                    features = output.shape[1] if convolves or output.dim() == 4 else output.shape[-1]
                    self.places[name] = max(1, output.numel() // (len(output) * int(features)))
            self.seconds[self._last] = self.seconds.get(self._last, 0.0) + time.perf_counter() - self._began

        return hook


# Of a pass forward, and backward to inputs and to weights, the share that a frozen layer does without.
BACKWARD = 2 / 3


def best_cut(gains: Sequence[float], costs: Sequence[float], saved: float = 1.0) -> int:
    """How many layers from the beginning on to freeze: the share of the costs saved, less the share of the gain.

    max over c of saved * sum_{i < c} costs_i / sum costs - sum_{i < c} gains_i / sum gains; the last layer is never
    frozen.

    Args:
        gains: What is expected of optimizing each layer further, in the order of the network.
        costs: Of each.
        saved: Share of a layer's cost that freezing saves: all of it where its outputs are kept, else `BACKWARD`.
    """
    all_gains, all_costs = max(sum(gains), 1e-30), max(sum(costs), 1e-30)
    best, value, at = 0, 0.0, 0.0
    for i, (gain, cost) in enumerate(zip(gains[:-1], costs[:-1], strict=True)):
        at += saved * cost / all_costs - gain / all_gains
        if at > value:
            best, value = i + 1, at
    return best


def share_saved(epochs: float) -> float:
    """Of a frozen beginning whose outputs are kept, over so many epochs: all but the first one's pass forward."""
    return 1 - (1 - BACKWARD) * min(1.0, 1 / max(epochs, 1e-9))


def costs_of_groups(parameters: Mapping[str, Tensor], ids: Mapping[str, Tensor], places: Mapping[str, int]) -> Tensor:
    """Multiply-accumulates that the gradients of every group take for an object: of an entry as many as places.

    Args:
        parameters: By name.
        ids: Of `selection.groups`.
        places: Of `LayerCosts`.

    Returns:
        By the number of a group, at least 1.
    """
    every = torch.cat([ids[name].flatten() for name in parameters]).cpu()
    weights = [
        torch.full((p.numel(),), float(places.get(name.rpartition(".")[0], 1))) for name, p in parameters.items()
    ]
    return torch.bincount(every, torch.cat(weights)).clamp_min(1.0)


def entries_behind_cut(
    parameters: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    ids: Mapping[str, Tensor],
    costs: LayerCosts,
    saved: float,
    allowed: Mapping[str, Tensor] | None = None,
) -> int:
    """Parameters behind the best cut of the network, see `best_cut`.

    Args:
        parameters: By name.
        values: Their scores.
        ids: Of `selection.groups`, by layers.
        costs: What the layers were measured to take; on an accelerator passes end before the work is done, and
            multiply-accumulates are counted instead.
        saved: See `best_cut`.
        allowed: By name, booleans of entries that can be optimized; None: all.
    """
    n = 1 + max(int(ids[name].max()) for name in parameters)
    gains, seconds, sizes = [0.0] * n, [0.0] * n, [0] * n
    for name, p in parameters.items():
        layer, owner = int(ids[name].flatten()[0]), name.rpartition(".")[0]
        mask = None if not allowed else allowed[name].to(values[name].device)
        gains[layer] += float(values[name].sum() if mask is None else values[name][mask].sum())
        sizes[layer] += p.numel() if mask is None else int(mask.sum())
        counted = p.numel() * costs.places.get(owner, 1)
        seconds[layer] = seconds[layer] + counted if p.is_cuda else costs.seconds.get(owner, 0.0)
    return sum(sizes[best_cut(gains, seconds, saved) :])
