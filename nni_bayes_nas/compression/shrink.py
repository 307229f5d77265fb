"""A smaller dense network that computes what a pruned one does: neurons and filters that say nothing are taken out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_bayes_nas.compression.networks import Stored
from nni_bayes_nas.compression.pruning import make_permanent, mean_network
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.flow import is_chain

# Of a map that is constant they make a constant one, whatever its size.
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.ELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout)
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass
class _Flow:
    """What arrives at a layer.

    Attributes:
        alive: Channels or features of the pruned network that are still there, `(kept,)`.
        constant: What the others are, everywhere; `(all,)`, of use where they are not alive.
    """

    alive: Tensor
    constant: Tensor


@torch.no_grad()
def shrink(network: nn.Module) -> nn.Sequential:
    """The network without the neurons and filters that are constant: a row of zeros gives its bias, whatever comes in.

    Constants go into the biases behind, so that outputs in evaluation mode are the same up to rounding. Where a
    convolution with padding follows, the edge of the image sees zeros instead, and only what is constantly zero goes.

    Args:
        network: A chain of linear layers, convolutions without groups, batch normalization, activations, pooling,
            dropout and `Flatten`, in `nn.Sequential`s; pruned, Gaussian layers by their means. It is left alone.

    Raises:
        SpaceError: Another module, normalization by the batch alone, or columns of images as features; it is named.
    """
    plain = mean_network(network)
    make_permanent(plain)
    chain = list(_flat("", plain))
    for name, module in chain:
        known = (nn.Linear, nn.Conv2d, _BatchNorm, nn.Flatten, Stored, *_ELEMENTWISE, *_POOLING)
        how = _unlike(module)
        if how or not isinstance(module, known):
            raise SpaceError(
                f"what is made smaller must be a chain of linear layers, convolutions, normalization, activations and "
                f"pooling, but {name or 'the network'} is {type(module).__name__}{how}; `pack` stores any network."
            )
    image = ""
    for name, module in chain:
        if isinstance(module, nn.Linear) and image:
            raise SpaceError(
                f"a linear layer must take features, but {name} follows the convolution {image} without a Flatten, and "
                "takes columns of images; put one between."
            )
        image = name if isinstance(module, nn.Conv2d) else "" if isinstance(module, nn.Flatten) else image
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise SpaceError(
                f"normalization must have running statistics, by which a constant channel stays one, but {name} has "
                "track_running_stats=False; leave it out."
            )
    last = max((i for i, (_, m) in enumerate(chain) if isinstance(m, (nn.Linear, nn.Conv2d))), default=-1)
    made: list[nn.Module] = []
    flow: _Flow | None = None
    for i, (_, module) in enumerate(chain):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            smaller, flow = _matrix(module, flow, [m for _, m in chain[i + 1 :]], keep_all=i == last)
        else:
            smaller, flow = _between(module, flow)
        made.append(smaller)
    return nn.Sequential(*made).eval()


def _flat(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if is_chain(module):
        for key, child in module._modules.items():  # the same module twice is there twice
            if child is None:
                continue
            yield from _flat(f"{name}.{key}" if name else key, child)
    else:
        yield name, module


def _unlike(module: nn.Module) -> str:
    """What keeps a module of a known kind from making constants of constants."""
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return " with groups"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f" with padding_mode={module.padding_mode!r}"
    if isinstance(module, nn.Flatten) and (module.start_dim != 1 or module.end_dim not in (-1, 3)):
        return f" of the dimensions {module.start_dim} to {module.end_dim}"
    return " with a divisor_override" if getattr(module, "divisor_override", None) else ""


def _goes(behind: list[nn.Module], bias: Tensor) -> Tensor:
    """Of channels that are constantly their bias, which ones can go; `(channels,)`."""
    value = bias
    for module in behind:
        padded = getattr(module, "padding", 0) not in (0, (0, 0), "valid")
        if padded:
            return value == 0
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            break
        value = _constant(module, value)
    return torch.ones_like(value, dtype=torch.bool)


def _constant(module: nn.Module, value: Tensor) -> Tensor:
    """What normalization or an activation in evaluation mode makes of constant channels; `(channels,)`."""
    if isinstance(module, _BatchNorm):
        if module.num_features != len(value):
            raise SpaceError(
                f"normalization must be of channels, not of the {module.num_features} places of a flattened image; put "
                "it before Flatten."
            )
        shape = (1, -1, 1, 1) if isinstance(module, nn.BatchNorm2d) else (1, -1)
        return copy.deepcopy(module).eval()(value.reshape(shape)).flatten()  # type: ignore[no-any-return]
    # A copy, for activations that work in place.
    return copy.deepcopy(module).eval()(value.clone()) if isinstance(module, _ELEMENTWISE) else value


def _matrix(layer: Any, flow: _Flow | None, behind: list[nn.Module], *, keep_all: bool) -> tuple[nn.Module, _Flow]:
    """A linear layer or convolution without what is not alive before and behind it."""
    weight, rows = layer.weight, layer.weight.shape[0]
    bias = weight.new_zeros(rows) if layer.bias is None else layer.bias.clone()
    if flow is not None:
        per_channel = weight.shape[1] // len(flow.constant)  # of an image that was flattened
        dead = torch.ones_like(flow.constant, dtype=torch.bool)
        dead[flow.alive] = False
        spread = weight.reshape(rows, len(flow.constant), -1)
        bias += spread[:, dead].sum(-1) @ flow.constant[dead]
        kept = spread[:, flow.alive].reshape(rows, len(flow.alive) * per_channel, *weight.shape[2:])
    else:
        kept = weight
    says = kept.flatten(1).any(1) | ~_goes(behind, bias)
    if keep_all or not bool(says.any()):
        # One row at least: a layer without any is none.
        says = torch.ones_like(says) if keep_all else torch.arange(rows, device=weight.device) == 0
    alive = says.nonzero().flatten()
    if isinstance(layer, nn.Linear):
        new: Any = nn.Linear(kept.shape[1], len(alive), bias=True)
    else:
        shape = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        new = nn.Conv2d(kept.shape[1], len(alive), layer.kernel_size, bias=True, **shape)
    new = new.to(weight)
    new.weight.copy_(kept[alive])
    new.bias.copy_(bias[alive])
    return new, _Flow(alive, bias)


def _between(module: nn.Module, flow: _Flow | None) -> tuple[nn.Module, _Flow | None]:
    """Normalization, activation, pooling or `Flatten` for what is alive, and what it makes of constants."""
    if flow is None or isinstance(module, nn.Flatten):
        return copy.deepcopy(module), flow
    made, constant = copy.deepcopy(module), _constant(module, flow.constant)
    if isinstance(module, _BatchNorm):
        made = type(module)(len(flow.alive), module.eps, module.momentum, module.affine).to(flow.constant)
        for name, tensor in module.state_dict().items():
            made.state_dict()[name].copy_(tensor[flow.alive] if tensor.dim() else tensor)
    return made, _Flow(flow.alive, constant)
