"""What a selective training saves: by layer, in multiply-accumulates, bytes and seconds."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def multiply_accumulates(
    parameters: Mapping[str, Tensor],
    active: Mapping[str, Tensor],
    places: Mapping[str, int],
    cached: int = 0,
    rows_cached: bool = False,
    split: Collection[str] | None = None,
) -> dict[str, int]:
    """Of one object: a pass forward, and backward the gradients of inputs and of weights.

    Layers are taken in the order of the parameters, as a chain: no gradient of an input is needed up to the first layer
    of which something is active. A weight of n dimensions above 1 is used at every place once.

    Args:
        parameters: By name.
        active: Booleans; empty: all.
        places: Of an object, by the name of a module.
        cached: Layers at the beginning whose outputs are known.
        rows_cached: Whether in the layer behind them the outputs of the rows that are not active are known.
        split: Names of the layers that are run by rows, of others all gradients are taken where one is active; None:
            all that are active in part.

    Returns:
        "forward", "inputs", "weights" and "total".
    """
    found = {"forward": 0, "inputs": 0, "weights": 0}
    begun, layer = False, 0
    for name, p in parameters.items():
        if p.dim() < 2:
            continue
        each = p.numel() * places.get(name.rpartition(".")[0], 1)
        rows = float(active[name].flatten(1).any(1).double().mean()) if active else 1.0
        if split is not None and rows > 0 and name.rpartition(".")[0] not in split:
            rows = 1.0
        known = layer < cached or (layer == cached and rows_cached)
        found["forward"] += (round(each * float(rows)) if layer == cached else 0) if known else each
        found["inputs"] += each if begun else 0
        found["weights"] += round(each * float(rows))
        begun = begun or float(rows) > 0
        layer += 1
    return {**found, "total": sum(found.values())}


def state_bytes(optimizers: list[torch.optim.Optimizer]) -> int:
    """Of the moments that optimizers keep."""
    tensors = (value for one in optimizers for state in one.state.values() for value in state.values())
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def by_layer(module: nn.Module, active: Mapping[str, Tensor]) -> dict[str, Any]:
    """By the name of a parameter: how many there are, how many are active, and in how many rows."""
    parameters = dict(module.named_parameters())
    return {
        name: {
            "parameters": parameters[name].numel(),
            "active": int(mask.sum()),
            "rows": len(mask) if mask.dim() else 1,
            "active_rows": int(mask.flatten(1).any(1).sum()) if mask.dim() > 1 else int(mask.sum()),
        }
        for name, mask in active.items()
    }


def with_kept(layers: Mapping[str, Mapping[str, Any]], kept: Mapping[str, Tensor]) -> dict[str, Any]:
    """`by_layer`, with how many are not made zero, "kept"; as it is where nothing is."""
    return {name: {**row, **({"kept": int(kept[name].sum())} if name in kept else {})} for name, row in layers.items()}


def times_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians in "milliseconds" and sums in "seconds", of what there is."""
    known = {name: values for name, values in seconds.items() if values}
    return {
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in known.items()},
        "seconds": {name: sum(values) for name, values in known.items()},
    }
