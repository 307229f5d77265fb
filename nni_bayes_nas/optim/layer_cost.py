"""What the layers of a network cost, as they are measured in its passes, and where a frozen beginning pays most."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

# On a GPU every clock waits for the work before it, so that a few passes are timed, not those that choose kernels.
_FIRST_TIMED, _TIMED = 3, 20
_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.PReLU, _BatchNorm, _InstanceNorm, nn.GroupNorm)


def _units(module: nn.Module, seen: set[int], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules without parts, and attention, which uses its own without calling them."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if next(module.children(), None) is None or isinstance(module, nn.MultiheadAttention):
        yield name, module
        return
    for part, child in module.named_children():
        yield from _units(child, seen, f"{name}.{part}" if name else part)


class LayerCosts:
    """Watches the passes of a network until `remove`; on a GPU it times the fourth to the 23rd.

    Args:
        module: The network.

    Attributes:
        seconds: Of all passes, by the name of a module that has parameters of its own: the time of it and of what comes
            behind it up to the next one. Of what comes before the first, by "".
        places: At how many places of an object a module with parameters is applied: pixels of its output.
        bytes_before: Of the input of an object of a module with parameters: what is kept, where it is the first that is
            not frozen.
    """

    def __init__(self, module: nn.Module) -> None:
        self.seconds: dict[str, float] = {}
        self.places: dict[str, int] = {}
        self.bytes_before: dict[str, int] = {}
        self._last = ""
        self._began: float | None = None
        self._first: nn.Module | None = None
        self._passes = 0
        self._handles = []
        for name, layer in _units(module, set()):
            parts = [f"{name}.{part}" if part else name for part, _ in layer.named_modules()]
            owners = parts if next(layer.parameters(), None) is not None else []
            self._handles.append(layer.register_forward_pre_hook(self._begin))
            self._handles.append(layer.register_forward_hook(self._ended(owners)))

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
            self._passes += 1
        self._began = self._now(inputs[0] if inputs else None)

    def _ended(self, owners: list[str]) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if owners:
                self._last = owners[0]
                first = inputs[0] if inputs else None
                if isinstance(first, Tensor) and first.dim() >= 2 and len(first):
                    self.bytes_before |= dict.fromkeys(owners, first[0].numel() * first.element_size())
                output = output[0] if isinstance(output, tuple) else output
                if isinstance(output, Tensor) and output.dim() >= 2:
                    features = output.shape[1] if isinstance(layer, _CHANNELS_FIRST) else output.shape[-1]
                    at = max(1, output.numel() // (len(output) * int(features)))
                    self.places |= dict.fromkeys(owners, at)
            ended = self._now(output)
            if ended is not None and self._began is not None:
                self.seconds[self._last] = self.seconds.get(self._last, 0.0) + ended - self._began

        return hook

    def _now(self, values: Any) -> float | None:
        if isinstance(values, Tensor) and values.is_cuda:
            if not _FIRST_TIMED < self._passes <= _FIRST_TIMED + _TIMED:
                return None
            torch.cuda.synchronize(values.device)
        return time.perf_counter()


# Of a pass forward, and backward to inputs and to weights, the share that a frozen layer does without.
BACKWARD = 2 / 3


def best_cut(gains: Sequence[float], costs: Sequence[float], saved: float | Sequence[float] = 1.0) -> int:
    """How many layers from the beginning on to freeze: the share of the costs saved, less the share of the gain.

    max over c of saved_c * sum_{i < c} costs_i / sum costs - sum_{i < c} gains_i / sum gains; the last layer is never
    frozen.

    Args:
        gains: What is expected of optimizing each layer further, in the order of the network.
        costs: Of each.
        saved: Share of the costs of a beginning that freezing saves: all of it where its outputs are kept, else
            `BACKWARD`; one for all, or of the first layer, of the first two, and so on.
    """
    all_gains, all_costs = max(sum(gains), 1e-30), max(sum(costs), 1e-30)
    best, value = 0, 0.0
    for n in range(1, len(gains)):
        share = saved if isinstance(saved, float) else saved[n - 1]
        at = share * sum(costs[:n]) / all_costs - sum(gains[:n]) / all_gains
        if at > value:
            best, value = n, at
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
    *,
    limit: float = float("inf"),
) -> int:
    """Parameters behind the best cut of the network, see `best_cut`.

    Args:
        parameters: By name.
        values: Their scores.
        ids: Of `selection.groups`, by layers.
        costs: What the layers were measured to take; where they were not, as on a GPU in the first passes,
            multiply-accumulates are counted instead.
        saved: See `best_cut`, where outputs can be kept.
        allowed: By name, booleans of entries that can be optimized; None: all.
        limit: Bytes that may be kept of an object: behind a beginning that gives more, nothing is.
    """
    n = 1 + max(int(ids[name].max()) for name in parameters)
    gains, seconds, counts, sizes, given = [0.0] * n, [0.0] * n, [0.0] * n, [0] * n, [0] * n
    for name, p in parameters.items():
        layer, owner = int(ids[name].flatten()[0]), name.rpartition(".")[0]
        mask = None if not allowed else allowed[name].to(values[name].device)
        gains[layer] += float(values[name].sum() if mask is None else values[name][mask].sum())
        sizes[layer] += p.numel() if mask is None else int(mask.sum())
        counts[layer] += p.numel() * costs.places.get(owner, 1)
        seconds[layer] = costs.seconds.get(owner, 0.0)
        given[layer] = costs.bytes_before.get(owner, 0)
    shares = [saved if size <= limit else min(saved, BACKWARD) for size in given[1:]]
    return sum(sizes[best_cut(gains, seconds if any(seconds) else counts, shares) :])
