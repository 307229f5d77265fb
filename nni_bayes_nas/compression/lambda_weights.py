"""The parameters of a network as functions of the position of lambda, and how a network gets them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_bayes_nas.compression.weight_hypernet import Kind, WeightHypernet
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.variational import variational_layers


class LambdaWeights(nn.Module):
    """All parameters of a network with Gaussian layers, or without, as functions of a position t in [0, 1].

    Means, biases and normalization come from one hypernetwork, the logarithms of the standard deviations from another.
    The network's own parameters are values to begin with, and do not learn any more. Those that are frozen already are
    left alone.

    Args:
        network: Its parameters are the first values, at every position (nearly, where the kind is "low_rank" or "mlp").
        kind: See `WeightHypernet`.
        knots: Of kind "piecewise_linear", see there.
        rank: Of "low_rank" and "mlp".
        hidden: Units of these.
        seed: Of the initial hypernetworks.
        shared_knots: Of kind "piecewise_linear", see there.

    Attributes:
        means: Of all that is no standard deviation.
        rhos: Of these; None where no layer is Gaussian.
    """

    def __init__(
        self,
        network: nn.Module,
        kind: Kind,
        *,
        knots: int | Sequence[float] = 5,
        rank: int = 4,
        hidden: int = 32,
        seed: int = 0,
        shared_knots: bool = True,
    ) -> None:
        super().__init__()
        parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        own = {id(layer.rho) for layer in variational_layers(network).values()}
        self._rhos = [name for name, value in parameters.items() if id(value) in own]
        self._points = [name for name, value in parameters.items() if id(value) not in own]

        def hypernet(names: list[str]) -> WeightHypernet:
            initial = [parameters[name] for name in names]
            return WeightHypernet(
                initial, kind, knots=knots, rank=rank, hidden=hidden, seed=seed, shared_knots=shared_knots
            )

        self.means = hypernet(self._points)
        self.rhos = hypernet(self._rhos) if self._rhos else None
        network.requires_grad_(False)

    def forward(self, t: float) -> dict[str, Tensor]:
        """The parameters at t, by name.

        Raises:
            ConfigError: t lies outside [0, 1].
        """
        values = dict(zip(self._points, self.means(t), strict=True))
        if self.rhos is not None:
            values |= dict(zip(self._rhos, self.rhos(t), strict=True))
        return values

    def share(self, alone: bool) -> None:
        """Whether piecewise linear hypernetworks are what their knots share alone, and learn that, if it can learn."""
        for net in (self.means, self.rhos):
            if net is not None:
                net.alone = alone and net.kind == "piecewise_linear" and net.shared.requires_grad


class Meaning(nn.Module):
    """What the numbers beside it mean, as plain values: saved with them, and looked at before others are loaded.

    Args:
        values: By name; of a name with a mapping the first key that differs is told.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.values = dict(values)

    def get_extra_state(self) -> dict[str, Any]:
        """The values."""
        return self.values

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """See `refuse_others`."""
        refuse_others(self.values, state)


def refuse_others(values: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse numbers that mean something else.

    Args:
        values: What they mean here.
        saved: What they meant there.

    Raises:
        ConfigError: Names the first that differs.
    """
    for name, value in values.items():
        was = saved.get(name)
        if isinstance(value, dict) and isinstance(was, dict):
            name = next((key for key in {**value, **was} if value.get(key) != was.get(key)), name)
            was, value = was.get(name, was), value.get(name, value)
        if was != value:
            raise ConfigError(
                f"what is loaded must be of a model like this one, but {name} was {was}, not {value}; build that one."
            )


@contextlib.contextmanager
def swapped(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block the parameters of a network are these tensors, which gradients flow through.

    Unlike `torch.func.functional_call` it is not for one call of the network, but for whatever looks at its layers.
    """
    places = []
    for name in values:
        path, _, last = name.rpartition(".")
        places.append((network.get_submodule(path)._parameters, last))
    saved = [where[name] for where, name in places]
    for (where, name), value in zip(places, values.values(), strict=True):
        where[name] = value  # type: ignore[assignment]
    try:
        yield
    finally:
        for (where, name), parameter in zip(places, saved, strict=True):
            where[name] = parameter


@torch.no_grad()
def settle(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give the parameters of a network these values, in place."""
    parameters = dict(network.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)
