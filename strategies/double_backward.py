"""Which operations of a network cannot be differentiated twice, and where they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_bayes_nas.errors import SpaceError

_NOT_TWICE = re.compile(
    r"derivative for '?(?P<operation>[\w:.]+)'? is not implemented|differentiated? twice|[Dd]ouble backwards? is not"
)


def differentiate_twice(loss: Tensor, parameters: Sequence[Tensor]) -> RuntimeError | None:
    """The error of an operation without a double backward, if there is one on the way to the parameters."""
    if not loss.requires_grad or not parameters:
        return None
    first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    live = [g for g in first if g is not None and g.requires_grad]
    if (hidden := hidden_error(live)) is not None:
        return hidden
    try:
        if live:
            torch.autograd.grad(torch.stack([g.square().sum() for g in live]).sum(), parameters, allow_unused=True)
    except RuntimeError as error:
        if lacks_double_backward(error):
            return error
        raise
    return None


def hidden_error(gradients: Iterable[Tensor]) -> RuntimeError | None:
    """The error that a function marked with @once_differentiable has left in the graph of gradients.

    torch raises it only on the way to the leaf that stands for the lost graph: the derivative for anything else would
    silently miss a part.
    """
    nodes: list[Any] = [g.grad_fn for g in gradients]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "Error":
            return RuntimeError("a function marked with @once_differentiable is not to be differentiated twice")
        fresh = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= fresh
        nodes += fresh
    return None


def lacks_double_backward(error: RuntimeError) -> bool:
    """Whether torch says that an operation cannot be differentiated twice."""
    return _NOT_TWICE.search(str(error)) is not None


def refusal(error: RuntimeError, module: nn.Module | None, repeat: Callable[[], Any]) -> SpaceError:
    """The error for the user: names the operation as torch does, and the modules of `module` that `repeat` runs."""
    match = _NOT_TWICE.search(str(error))
    operation = match["operation"] if match is not None else None
    names = _innermost(module, repeat) if module is not None else []
    where = f" (module {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "") + ")" if names else ""
    return SpaceError(
        "the exact second order needs operations with a double backward, but "
        f"{operation or 'one marked @once_differentiable'}{where} has none; "
        'use second_order="finite_difference" or order=1.'
    )


def _innermost(module: nn.Module, repeat: Callable[[], Any]) -> list[str]:
    """Names of the modules that cannot be differentiated twice while all their children can, in order."""
    calls: dict[str, tuple[Any, Any]] = {}
    handles = []
    for name, part in module.named_modules():

        def keep(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.setdefault(name, (_leaves(args), _leaves(kwargs)))

        handles.append(part.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        repeat()
    finally:
        for handle in handles:
            handle.remove()
    parts = {name: part for name, part in module.named_modules() if name in calls}
    leaves = [name for name in parts if not any(other.startswith(_inside(name)) for other in parts if other)]
    # Mostly it is a leaf; the larger parts, which repeat the work of the smaller, are tried only if it is not.
    found = [name for name in leaves if _fails(parts[name], *calls[name])]
    if not found:
        for name in reversed([name for name in parts if name not in leaves]):
            if not any(other.startswith(_inside(name)) for other in found) and _fails(parts[name], *calls[name]):
                found.insert(0, name)
    return [f"`{name or 'itself'}` ({type(parts[name]).__name__})" for name in found]


def _inside(name: str) -> str:
    """How the names of the parts of a module begin."""
    return f"{name}." if name else ""


def _fails(part: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a part alone cannot be differentiated twice; one that does not run alone is not judged."""
    inputs = [t for t in _tensors([args, kwargs]) if t.requires_grad]
    own = [p for p in part.parameters() if p.requires_grad]
    try:
        # Not the leaves themselves: the part may work in place.
        output = part(*_map(args, Tensor.clone), **_map(kwargs, Tensor.clone))
        return differentiate_twice(scalar(output), [*inputs, *own]) is not None
    except RuntimeError:
        return False


def _leaves(value: Any) -> Any:
    return _map(value, lambda t: t.detach().clone().requires_grad_(t.is_floating_point()))


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(item, function) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def scalar(output: Any) -> Tensor:
    """A function of all outputs whose gradient depends on them."""
    parts: Iterable[Tensor] = (t for t in _tensors(output) if t.is_floating_point())
    return torch.stack([t.float().square().mean() for t in parts]).sum()
