"""How many factors gamma the output of an operation has whose layers have weights gamma v, by what it computes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from nni_bayes_nas.layers.flow import HOMOGENEOUS, NORMALIZATION, homogeneous_call

_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
# Sums, of which all parts must have as many factors; products, of which the numbers add up.
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub", "sub_")
_JOINS: tuple[Any, ...] = (torch.cat, torch.concat, torch.stack)
_PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_RATIOS: tuple[Any, ...] = (operator.truediv, torch.div, "div", "div_")
# What tells the form of a tensor, not its values.
_SHAPES: tuple[Any, ...] = ("size", "dim", getattr)
_MOVES: tuple[Any, ...] = (
    *(operator.getitem, operator.neg, torch.permute, torch.transpose, torch.reshape, torch.squeeze, torch.unsqueeze),
    *("view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "clone", "chunk", "split", "mean", "sum"),
    *(torch.chunk, torch.split, torch.mean, torch.sum),
)


class _Unclear(Exception):
    """No number of factors; says because of what."""


class _Tracer(fx.Tracer):
    """Enters all that has parts."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def factors(operation: nn.Module, is_layer: Callable[[nn.Module], bool]) -> tuple[int, str | None]:
    """The number n of gamma^n o(x; v) = o(x; gamma v), with the weights and biases of all layers of the operation.

    What is positively homogeneous lets a factor pass; a layer adds one; sums need as many in all of their parts. Of a
    layer that normalization follows the weights are meant with the scale of that folded in: behind it there is one
    factor, whatever there was before. The operation is traced (`torch.fx`).

    Args:
        operation: Whose layers are scaled.
        is_layer: Whether a module is one of these.

    Returns:
        The number, and because of what there is none, if there is none: a module's class or a function's name.
    """
    whole = nn.Sequential(operation)
    if not any(is_layer(module) for module in operation.modules()):
        return 0, None
    try:
        graph = _Tracer().trace(whole)
    except Exception:  # whatever its forward does with what is not a tensor yet
        return 0, f"{type(operation).__name__}, which cannot be traced"
    found: dict[fx.Node, int] = {}
    try:
        for node in graph.nodes:
            found[node] = _of(node, found, whole, is_layer)
    except _Unclear as unclear:
        return 0, str(unclear)
    return found[node], None


def _of(node: fx.Node, found: Mapping[fx.Node, int], whole: nn.Module, is_layer: Callable[[nn.Module], bool]) -> int:
    inputs = [found[other] for other in node.all_input_nodes]
    if node.op in ("placeholder", "get_attr"):
        return 0
    if node.op == "output":
        return _same(inputs, "outputs")
    most = max(inputs, default=0)
    if node.op == "call_module":
        return _behind(operator.attrgetter(str(node.target))(whole), most, is_layer)
    if most == 0 or node.target in _SHAPES:
        return 0
    name = getattr(node.target, "__name__", str(node.target))
    if node.target in (*_SUMS, *_JOINS):
        tensors = node.args[0] if node.target in _JOINS else node.args
        parts = tensors if isinstance(tensors, (list, tuple)) else ()
        # A number that is added has no factor.
        return _same([found[p] if isinstance(p, fx.Node) else 0 for p in parts], name)
    if node.target in _PRODUCTS:
        return sum(inputs) * (2 if len(inputs) == 1 and _squares(node) else 1)
    divided = node.target in _RATIOS and not (isinstance(node.args[1], fx.Node) and found[node.args[1]])
    padded = node.target is F.pad and not node.kwargs.get("value") and not any(node.args[3:])
    if divided or padded or node.target in _MOVES or homogeneous_call(node):
        return most
    raise _Unclear(name)


def _squares(node: fx.Node) -> bool:
    return len(node.args) > 1 and node.args[0] is node.args[1]


def _behind(layer: nn.Module, before: int, is_layer: Callable[[nn.Module], bool]) -> int:
    if isinstance(layer, NORMALIZATION):
        return min(before, 1)
    if is_layer(layer):
        # gamma W gamma^n y + gamma b has no power of gamma in front but where there is no b.
        if before and getattr(layer, "bias", None) is not None:
            raise _Unclear(f"{type(layer).__name__} with a bias")
        return before + 1
    homogeneous = isinstance(layer, HOMOGENEOUS) or (isinstance(layer, _PADS) and layer.value == 0)
    if before and not homogeneous:
        raise _Unclear(type(layer).__name__)
    return before


def _same(numbers: list[int], what: str) -> int:
    if len(set(numbers)) > 1:
        raise _Unclear(f"{what} of parts with and without the factor")
    return numbers[0] if numbers else 0


__all__ = ["factors"]
