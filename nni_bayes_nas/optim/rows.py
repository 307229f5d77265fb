"""Layers of which some rows are optimized: gradients, moments and steps of these alone.

A row is what gives one output of a linear layer, or one channel of a convolution. The layer computes what it did; its
backward pass leaves the gradients of the other rows out, and the optimizer sees a parameter of the active rows only.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle


class Rows:
    """Makes a layer's active rows a parameter of their own, until `undo`.

    Its pass backward cannot be differentiated itself: a penalty of gradients says so. Where the layer's tensors are
    used by function too, `F.linear(h, layer.weight.T)` say, the gradients that they have there are added to those of
    the rows.

    Args:
        layer: See `can_split`.
        rows: Indices of the active ones, rising.

    Attributes:
        weight: The active rows of the layer's weight.
        bias: Those of its bias; None without one.
        given: Outputs of the layer for the next pass, of a linear one, if those of the other rows are known: they are
            not computed then, and the input gets no gradient; those of the active rows are written over, in this very
            tensor. None: all is computed.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rows: Tensor) -> None:
        self.layer, self.rows = layer, rows
        self.weight = nn.Parameter(layer.weight.detach()[rows].clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach()[rows].clone())
        self.given: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        for whole, part in ((layer.weight, self.weight), (layer.bias, self.bias)):
            if whole is not None and part is not None:
                self._add(part, whole)  # of batches whose gradients add up
                if whole.requires_grad:
                    hook = functools.partial(self._add, part)
                    self._handles.append(whole.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        # An attribute of the instance goes before the method of the class.
        vars(layer)["forward"] = self._forward

    @torch.no_grad()
    def sync(self) -> None:
        """The layer's own tensors take the values of the active rows."""
        self.layer.weight.index_copy_(0, self.rows, self.weight)
        if self.bias is not None:
            assert self.layer.bias is not None
            self.layer.bias.index_copy_(0, self.rows, self.bias)

    def undo(self) -> None:
        """The layer is as it was, with the values of now; what of it has a gradient is for the caller to say."""
        self.sync()
        del vars(self.layer)["forward"]
        for handle in self._handles:
            handle.remove()

    def _add(self, part: Tensor, whole: Tensor) -> None:
        """What a tensor of the layer has of gradient is from elsewhere: the pass through the layer gives it none."""
        if whole.grad is not None:
            found = whole.grad.index_select(0, self.rows)
            part.grad = found if part.grad is None else part.grad + found
            whole.grad = None

    def _forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        own = (layer.weight, layer.bias, self.rows, self.weight, self.bias)
        output: Tensor
        if self.given is not None:
            given, self.given = self.given, None
            active = F.linear(x.detach(), self.weight, self.bias)
            return given.to(active.dtype).index_copy_(-1, self.rows, active)
        if isinstance(layer, nn.Linear):
            output = _RowLinear.apply(x, *own)
            return output
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        output = _RowConv.apply(batch, *own, layer.stride, layer.padding, layer.dilation)
        return output if x.dim() == 4 else output.squeeze(0)


def can_split(layer: nn.Module) -> bool:
    """Whether `Rows` can treat it: a plain linear layer, or convolution of images without groups, padded by zeros."""
    if parametrize.is_parametrized(layer) or "forward" in vars(layer):
        return False
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def swap(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor, rows: Tensor, *, back: bool) -> None:
    """Puts a parameter of some rows in the place of the whole one in an optimizer, with the moments of these rows.

    Args:
        optimizer: Its groups and state are changed.
        old: The whole parameter.
        new: That of the rows.
        rows: Their indices.
        back: The other way: the whole takes the place of its rows; moments of other rows are zero.
    """
    out, into = (new, old) if back else (old, new)
    for group in optimizer.param_groups:
        group["params"] = [into if p is out else p for p in group["params"]]
    if out not in optimizer.state:
        return
    state = optimizer.state.pop(out)
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.shape != out.shape or out.dim() == 0:
            continue
        if back:
            state[name] = torch.zeros_like(old).index_copy_(0, rows, value)
        else:
            state[name] = value[rows].clone()
    optimizer.state[into] = state


class _RowLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, *active: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, rows)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows = ctx.saved_tensors
        (gradient,) = gradients
        of_x = gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        part = gradient.index_select(-1, rows).flatten(0, -2)
        of_weight = (part.T @ x.to(part.dtype).flatten(0, -2)).to(weight.dtype)
        of_bias = part.sum(0).to(weight.dtype) if ctx.needs_input_grad[5] else None
        return of_x, None, None, None, of_weight, of_bias


class _RowConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        active: Tensor,
        active_bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, rows, active)
        ctx.how = (stride, padding, dilation)
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, active = ctx.saved_tensors
        (gradient,) = gradients
        of_x, kind = None, gradient.dtype
        if ctx.needs_input_grad[0]:
            of_x = _backward_of_convolution(gradient, x.to(kind), weight.to(kind), ctx.how, (True, False, False))[0]
        part = gradient.index_select(1, rows)
        with_bias = bool(ctx.needs_input_grad[5])
        found = _backward_of_convolution(part, x.to(kind), active.to(kind), ctx.how, (False, True, with_bias))
        of_bias = found[2].to(weight.dtype) if with_bias else None
        return of_x, None, None, None, found[1].to(weight.dtype), of_bias, None, None, None


def _backward_of_convolution(
    gradient: Tensor, x: Tensor, weight: Tensor, how: tuple[Any, Any, Any], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation = how
    sizes = [weight.shape[0]] if wanted[2] else None
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, sizes, stride, padding, dilation, False, [0, 0], 1, list(wanted)
    )
    return found
