"""Which of NNI's mutation hooks may have a module, and what becomes of those that none takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nni.mutable import Categorical
from nni.nas.nn.pytorch.base import ParametrizedModule
from nni.nas.oneshot.pytorch.strategy import no_default_hook
from torch import nn

from nni_bayes_nas.errors import SpaceError


def if_mutable(hook: Callable[..., Any]) -> Callable[..., Any]:
    """NNI's hook makes a slow mixed operation of every MutableConv2d, also where no argument is a choice."""

    def mutate(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
        if isinstance(module, ParametrizedModule) and module.mutables:
            return hook(module, name, memo, mutate_kwargs)
        return None

    return mutate


def refuse_the_rest(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> Any:
    """NNI's refusal of what no hook took, as an error that names the module.

    Raises:
        SpaceError: If the module has choices.
    """
    try:
        return no_default_hook(module, name, memo, mutate_kwargs)
    except TypeError as error:
        raise SpaceError(
            f"every choice must be relaxable, but module `{name}` ({type(module).__name__}) is not: {error}"
        ) from error


def check_relaxable(model: nn.Module) -> None:
    """Raise SpaceError, naming the label, if a choice of the space is not categorical."""
    space: Any = model
    for label, mutable in space.simplify().items():
        values = getattr(mutable, "values", None)
        if values is None or (not isinstance(mutable, Categorical) and type(mutable).__name__ != "CategoricalMultiple"):
            raise SpaceError(
                f"differentiable strategies relax categorical choices only, but `{label}` is a "
                f"{type(mutable).__name__}; replace it by a choice among values, or search with a multi-trial strategy."
            )
