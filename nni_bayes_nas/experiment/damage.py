"""Structure damage: a network of which some edges are missing, other ones in every batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import Cell, LayerChoice, Repeat
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingCell
from torch import Tensor, nn

from nni_bayes_nas.errors import ConfigError


def edges(space: nn.Module, network: nn.Module) -> list[str]:
    """Names of the modules of a network that a choice of operation put there.

    Args:
        space: The unfrozen space.
        network: One that was frozen from an equal one.

    Returns:
        The operations of every cell, and of every other choice of a layer; without those that the network has not.
    """
    names = []
    # A cell stays one, and may have another name; a choice of a layer becomes what was chosen.
    for name, module in network.named_modules():
        if isinstance(module, Cell):
            for node, operations in enumerate(_get(module, "ops")):
                names += [f"{name}.ops.{node}.{slot}" for slot, _ in enumerate(operations)]
    cells = [name for name, module in space.named_modules() if isinstance(module, Cell)]
    for name, module in space.named_modules():
        if isinstance(module, LayerChoice) and not any(name.startswith(f"{cell}.") for cell in cells):
            names.append(name)
    return [name for name in map(_namer(space), names) if _get(network, name) is not None]


def edges_of_supernet(supernet: nn.Module) -> list[str]:
    """Names of all operations of its cells; where it runs as one architecture, those that are called are its edges."""
    names = []
    for name, cell in supernet.named_modules():
        if isinstance(cell, PathSamplingCell):
            for node, by_edge in enumerate(cell.ops):
                for edge, operations in enumerate(by_edge):
                    names += [f"{name}.ops.{node}.{edge}.{operation}" for operation in operations]
    return names


def _namer(space: nn.Module) -> Callable[[str], str]:
    """From names in a space to those in a network: a Repeat becomes the chain of its blocks."""
    repeats = sorted((name for name, m in space.named_modules() if isinstance(m, Repeat)), key=len, reverse=True)

    def in_network(name: str) -> str:
        for repeat in repeats:  # the inner one first, whose own name the outer one changes
            if name.startswith(f"{repeat}.blocks."):
                name = f"{repeat}.{name.removeprefix(f'{repeat}.blocks.')}"
        return name

    return in_network


def _get(network: nn.Module, name: str) -> Any:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


@contextlib.contextmanager
def damaged(network: nn.Module, names: Sequence[str], share: float, generator: torch.Generator) -> Iterator[None]:
    """Inside the block every call of each of some modules gives zeros with a probability.

    Args:
        network: A network.
        names: Of its modules; each is there or not by itself.
        share: The probability, from 0 to 1.
        generator: Of the draws, on the CPU.

    Raises:
        ConfigError: A share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"damage is a share of the edges and must lie in [0, 1], got {share}.")

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if float(torch.rand((), generator=generator)) >= share:
            return None
        return torch.zeros_like(output) if isinstance(output, Tensor) else output

    handles = [network.get_submodule(name).register_forward_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
