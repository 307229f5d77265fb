"""Parameters held where they are while an optimizer steps the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from nni_bayes_nas.optim.rows import Rows, can_split, swap

# Above this share of active rows a layer is left as it is: there is nothing to save.
_MOST = 0.75


class _Partly(NamedTuple):
    """A tensor of which some entries must not move: booleans of those that may, and the values of the others."""

    tensor: Tensor
    mask: Tensor
    saved: Tensor


class Holding:
    """Some entries of some parameters move, the others stay to the bit, until `release`.

    Parameters that stay as a whole have no gradient and no state in an optimizer. Of linear layers and convolutions
    with few active rows the optimizer sees these rows alone (`rows`). What is active in part of a row, or of another
    tensor, is put back after every step.

    Args:
        module: The network.
        optimizers: Of its parameters.
        active: By the name of a parameter, booleans of what moves.
        probe: All parameters have gradients, until `before_step`: to be counted; nothing is by rows.
        layers: False where the network is not run layer by layer: nothing is by rows, and batch normalization goes on.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        active: Mapping[str, Tensor],
        *,
        probe: bool = False,
        layers: bool = True,
    ) -> None:
        self.module, self.optimizers, self.probe, self._layers = module, list(optimizers), probe, layers
        parameters = dict(module.named_parameters())
        self.parameters = {name: parameters[name] for name in active}
        self.active = {name: mask.to(self.parameters[name].device) for name, mask in active.items()}
        self.some = {name: bool(mask.any()) for name, mask in self.active.items()}
        self.rows: dict[str, Rows] = {}
        self._partly: list[_Partly] = []
        self._stilled: list[_BatchNorm] = []
        self._handles: list[RemovableHandle] = []
        # Several steps may follow one another in a batch, and others look at the weights before its end.
        for optimizer in self.optimizers if layers else ():
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self.after_step()))
        for name, p in self.parameters.items():
            p.requires_grad_(self.some[name] or probe)
            if not self.some[name]:
                p.grad = None
                for optimizer in self.optimizers:
                    optimizer.state.pop(p, None)
        if layers and not probe:
            self._split()
        by_rows = {id(x) for rows in self.rows.values() for x in (rows.layer.weight, rows.layer.bias)}
        for name, p in self.parameters.items():
            if id(p) not in by_rows and self.some[name]:
                self._hold(p, self.active[name])
        self.still()

    def still(self) -> None:
        """Batch normalization that is frozen keeps its running statistics; to be called after every `train()`."""
        for name, layer in self.module.named_modules() if self._layers else ():
            if isinstance(layer, _BatchNorm) and layer.training:
                own = [self.some.get(f"{name}.{key}" if name else key) for key, _ in layer.named_parameters()]
                if own and all(moves is False for moves in own):
                    layer.eval()
                    self._stilled.append(layer)

    def before_step(self) -> None:
        """What is held has no gradient, after a probe counted it."""
        for name, p in self.parameters.items():
            if not self.some[name]:
                p.grad = None
        for tensor, mask, _ in self._partly if self.probe else ():
            if tensor.grad is not None:
                tensor.grad.masked_fill_(~mask, 0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """What is held is put back: momentum, weight decay and moments may have moved it.

        Called behind every step of the optimizers, but where the network is not run layer by layer.
        """
        for tensor, mask, saved in self._partly:
            tensor.copy_(torch.where(mask, tensor, saved))
        for rows in self.rows.values():
            rows.sync()

    def release(self) -> None:
        """All parameters have gradients again, the optimizers see whole ones, and batch normalization learns."""
        for handle in self._handles:
            handle.remove()
        for layer in self._stilled:
            layer.train()
        for rows in self.rows.values():
            for whole, part in _pairs(rows):
                for optimizer in self.optimizers:
                    swap(optimizer, whole, part, rows.rows, back=True)
            rows.undo()
        self.rows, self._partly, self._stilled, self._handles = {}, [], [], []
        for p in self.parameters.values():
            p.requires_grad_(True)

    def _split(self) -> None:
        # What two modules share has gradients from both.
        own = (module.parameters(recurse=False) for module in self.module.modules())
        uses = Counter(id(p) for each in own for p in each)
        for name, layer in self.module.named_modules():
            prefix = f"{name}." if name else ""
            mask = self.active.get(f"{prefix}weight")
            if mask is None or not can_split(layer) or not self.some[f"{prefix}weight"]:
                continue
            if any(uses[id(p)] > 1 for p in layer.parameters()):
                continue
            some = mask.flatten(1).any(1)
            of_bias = self.active.get(f"{prefix}bias")
            if of_bias is not None:
                some = some | of_bias
            if float(some.double().mean()) > _MOST or (getattr(layer, "bias", None) is not None and of_bias is None):
                continue
            rows = Rows(layer, some.nonzero().flatten())
            self.rows[name] = rows
            for whole, part in _pairs(rows):
                for optimizer in self.optimizers:
                    swap(optimizer, whole, part, rows.rows, back=False)
            self._hold(rows.weight, mask[rows.rows])
            if rows.bias is not None and of_bias is not None:
                self._hold(rows.bias, of_bias[rows.rows])

    def _hold(self, tensor: Tensor, mask: Tensor) -> None:
        if bool(mask.all()):
            return
        self._partly.append(_Partly(tensor, mask, tensor.detach().clone()))
        if not self.probe:
            # Of whoever asks: steps that are only thought of, of second order, leave it where it is too.
            held = ~mask
            handle = tensor.register_hook(lambda gradient: gradient.masked_fill(held, 0.0))  # type: ignore[no-untyped-call]
            self._handles.append(handle)


def are_of_rows(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether moments are those of some rows, of a checkpoint that was written while layers were split."""
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            if any(
                isinstance(x, Tensor) and x.dim() > 0 and x.shape[1:] == p.shape[1:] and x.shape != p.shape
                for x in state.values()
            ):
                return True
    return False


def _pairs(rows: Rows) -> list[tuple[Tensor, Tensor]]:
    """Whole parameters of the layer, and their active rows."""
    found: list[tuple[Tensor, Tensor]] = [(rows.layer.weight, rows.weight)]
    if rows.bias is not None and rows.layer.bias is not None:
        found.append((rows.layer.bias, rows.bias))
    return found
