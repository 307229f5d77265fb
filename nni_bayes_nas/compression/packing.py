"""A pruned network whose file is small: of mostly empty weights only what is left is stored, and where it lies.

The network computes what it did before; its state dict holds "parametrizations.weight.original", the entries,
"parametrizations.weight.0.gaps" and the shape, ".sizes" (`layers.packed`), in the place of a weight: 5 bytes for each
that is left. Programs of torch.export and ONNX that are written of it are small too, and unpack themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nni_bayes_nas.compression.pruning import mean_network, prunable
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.masked import make_plain
from nni_bayes_nas.layers.packed import Packed, gaps_of

_GAPS, _SIZES = "parametrizations.weight.0.gaps", "parametrizations.weight.0.sizes"


@torch.no_grad()
def pack(network: nn.Module) -> nn.Module:
    """A plain network with the means of Gaussian layers, and packed weights where that is smaller.

    Args:
        network: Pruned by `prune`, or in any other way that leaves zeros; it is left alone.
    """
    plain = unpack(mean_network(network))
    for layer in prunable(plain).values():
        weight: Any = layer.weight
        gaps = gaps_of(weight != 0)
        if len(gaps) * (weight.element_size() + 1) < weight.numel() * weight.element_size():
            parametrize.register_parametrization(layer, "weight", Packed(weight.shape, gaps))
    return plain


@torch.no_grad()
def unpack(network: nn.Module) -> nn.Module:
    """A copy with plain weights, zeros among them: masks and packing are gone."""
    plain = copy.deepcopy(network)
    for layer in prunable(plain).values():
        make_plain(layer)
    return plain


def load_packed(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A plain network like `network` with the state dict of a packed one.

    Raises:
        ConfigError: The state is that of another architecture.
    """
    made = copy.deepcopy(network)
    layers = prunable(made)
    for name, gaps in state.items():
        prefix = name.removesuffix(_GAPS)
        layer = layers.get(prefix.removesuffix("."))
        if name.endswith(_GAPS) and layer is not None:
            weight: Any = layer.weight
            sizes = state.get(prefix + _SIZES)
            if sizes is not None and sizes.tolist() != list(weight.shape):
                raise ConfigError(
                    f"the state must be that of a network like this one, but {prefix}weight has shape "
                    f"{tuple(sizes.tolist())} in it and {tuple(weight.shape)} here; build the network that was packed."
                )
            if bool((gaps > 0).all()) and int(gaps.long().sum()) <= weight.numel():
                parametrize.register_parametrization(layer, "weight", Packed(weight.shape, gaps))
    try:
        made.load_state_dict(dict(state))
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the state must be that of a network like this one, but: {said}; build the network that was packed."
        ) from error
    return unpack(made)
