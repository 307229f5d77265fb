"""Where a network takes the scale of its weights away again: what lies between layers and normalization behind them."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Normalized = Literal["filters", "layer"] | None
IsLayer = Callable[[nn.Module], bool]
# By what it has from every channel, and by what all channels together have.
_OF_CHANNELS, _OF_LAYERS = (_BatchNorm, _InstanceNorm), (nn.GroupNorm, nn.LayerNorm)
NORMALIZATION = (*_OF_CHANNELS, *_OF_LAYERS)
# What a positive factor of its input goes through.
HOMOGENEOUS = (
    *(nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.Upsample),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
_HOMOGENEOUS_FUNCTIONS: tuple[Any, ...] = (
    *(torch.relu, F.relu, F.leaky_relu, torch.flatten, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
    *(F.dropout, F.dropout2d),
)
_HOMOGENEOUS_METHODS = ("relu", "relu_", "flatten", "contiguous")


def before_normalization(model: nn.Module, is_layer: IsLayer) -> dict[int, Normalized]:
    """By id, the layers whose scale a normalization behind them takes away: of every filter, or of the layer.

    Chains are read as they are, `nn.Sequential` in `nn.Sequential` too. Other modules that hold normalization are
    traced (`torch.fx`), their own children as they are; what cannot be traced is taken to keep its scale.

    Args:
        model: A network.
        is_layer: Whether a module is a linear or convolutional layer with weights that matter.
    """
    found: dict[int, Normalized] = {}
    for module in model.modules():
        if is_chain(module):
            found |= _of_chain(_flat(module), is_layer)
        elif any(isinstance(child, NORMALIZATION) for child in module.children()):
            for chain in _chains(module):
                found |= _of_chain(chain, is_layer)
    # A layer that is used elsewhere too has a scale there.
    uses = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    return {layer: behind for layer, behind in found.items() if uses[layer] == 1}


def directly_normalized(model: nn.Module, is_layer: IsLayer) -> list[tuple[nn.Module, nn.Module]]:
    """Pairs of a layer and the normalization of channels that nothing lies between; read as `before_normalization`."""
    found: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        chains = [_flat(module)] if is_chain(module) else []
        if not chains and any(isinstance(child, _OF_CHANNELS) for child in module.children()):
            chains = list(_chains(module))
        for chain in chains:
            pairs = itertools.pairwise(chain)
            found += [(a, b) for a, b in pairs if is_layer(a) and isinstance(b, _OF_CHANNELS)]
    return found


def is_chain(module: nn.Module) -> bool:
    """Whether it calls its children one after the other; a subclass of `nn.Sequential` may do something else."""
    return type(module).forward is nn.Sequential.forward


def _flat(chain: nn.Module) -> list[nn.Module]:
    # A module that is there twice is there twice.
    children = [child for child in chain._modules.values() if child is not None]
    return [m for child in children for m in (_flat(child) if is_chain(child) else [child])]


def _of_chain(chain: Sequence[nn.Module], is_layer: IsLayer) -> dict[int, Normalized]:
    found: dict[int, Normalized] = {}
    # What normalization there is behind the layer at hand: none, one directly, or one through other layers.
    behind: Normalized = None
    channels = 0
    for layer in reversed(chain):
        if isinstance(layer, _OF_CHANNELS):
            behind, channels = "filters", layer.num_features
        elif isinstance(layer, _OF_LAYERS):
            behind = "layer"
        elif is_layer(layer):
            unbiased = getattr(layer, "bias", None) is None
            if behind == "filters" and getattr(layer, "out_features", channels) != channels:
                behind = "layer"  # channels are others than its outputs: of (batch, channels, features)
            if behind == "filters" or (behind == "layer" and unbiased):
                found[id(layer)] = behind
            behind = "layer" if behind is not None and (behind == "filters" or unbiased) else None
        elif isinstance(layer, nn.Unflatten):
            # Of several filters that meet in one channel, none has a scale of its own to lose.
            behind = "layer" if behind is not None else None
        elif isinstance(layer, HOMOGENEOUS):
            continue
        else:
            behind = None
    return found


class _Tracer(fx.Tracer):
    """Enters chains alone."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential)


def _chains(module: nn.Module) -> Iterable[list[nn.Module]]:
    """What leads to each normalization of a module without a branch, ending with it; nothing if it cannot be traced."""
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever its forward does with what is not a tensor yet
        return
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(_at(module, node), NORMALIZATION):
            continue
        chain = [_at(module, node)]
        while node.args and isinstance(node.args[0], fx.Node):
            node = node.args[0]
            if len(node.users) > 1 or (step := _step(module, node)) is None or calls.count(node.target) > 1:
                break
            chain.insert(0, step)
        yield chain


def last_called(model: nn.Module, is_layer: IsLayer) -> str | None:
    """The name of the layer that comes last in a pass, whatever the order in which modules are listed; None if there is
    none, or the network cannot be traced."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return is_layer(m) or super().is_leaf_module(m, module_qualified_name)

    try:
        nodes = Tracer().trace(model).nodes
    except Exception:  # whatever its forward does with what is not a tensor yet
        return None
    calls = [str(node.target) for node in nodes if node.op == "call_module" and is_layer(_at(model, node))]
    return calls[-1] if calls else None


def _at(module: nn.Module, node: fx.Node) -> nn.Module:
    return operator.attrgetter(str(node.target))(module)  # type: ignore[no-any-return]


def _step(module: nn.Module, node: fx.Node) -> nn.Module | None:
    """A node as a layer of a chain; None for what is none."""
    if node.op == "call_module":
        return _at(module, node)
    return nn.ReLU() if homogeneous_call(node) else None


def homogeneous_call(node: fx.Node) -> bool:
    """Whether a node calls a function or a method that a positive factor of its input goes through."""
    return (node.op == "call_function" and node.target in _HOMOGENEOUS_FUNCTIONS) or (
        node.op == "call_method" and node.target in _HOMOGENEOUS_METHODS
    )


__all__ = [
    "HOMOGENEOUS",
    "NORMALIZATION",
    "Normalized",
    "before_normalization",
    "directly_normalized",
    "homogeneous_call",
    "last_called",
]
