"""What optimizers have in common whose iterates are draws of a posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nni_bayes_nas.errors import ConfigError


class Sampler(Optimizer):
    """Base of optimizers that step along the gradient of a mean loss, and may add noise.

    The loss is the mean over the objects of a mini-batch of -log p(y | x, w), and `weight_decay` the precision of a
    prior N(0, 1 / (n_objects weight_decay)), so that the posterior is proportional to exp(-n_objects U(w)) with
    U = mean loss + weight_decay |w|^2 / 2. Rates are those of SGD on U.

    Parameters without a gradient are left as they are. Noise comes from a generator of its own, of seed and step
    alone, so that a run that goes on from its state dict draws the same.

    Args:
        params: As of any optimizer; groups may have values of their own for all that follows but `seed`.
        defaults: Of the groups.
        seed: Of the noise.
        foreach: Whether all parameters of a group are treated by one call per operation; None: yes.

    Raises:
        ConfigError: A value that cannot be.
    """

    def __init__(self, params: Any, defaults: dict[str, Any], *, seed: int = 0, foreach: bool | None = None) -> None:
        self.seed = seed
        super().__init__(params, {**defaults, "foreach": foreach})
        self._generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            group.setdefault("steps", 0)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: with the seed, of which the noise is."""
        return {**super().__getstate__(), "seed": self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of `__getstate__`, or of a state dict."""
        super().__setstate__(state)
        self.__dict__.setdefault("_generators", {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of any optimizer; its values are looked at."""
        for name, value in {**self.defaults, **param_group}.items():
            if name in _RULES and (not isinstance(value, (int, float)) or not _RULES[name][0](value)):
                raise ConfigError(f"{name} must be {_RULES[name][1]}, got {value}.")
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("steps", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            What the closure gives.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for place, group in enumerate(self.param_groups):
            self._reseed(place, group)
            params = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in params):
                raise ConfigError(f"{type(self).__name__} needs dense gradients, got sparse ones; set sparse=False.")
            parts = [params] if group["foreach"] is not False or self.is_joint(group) else [[p] for p in params]
            for part in parts if params else ():
                self.update(group, part, [p.grad for p in part])
            group["steps"] += 1
        return loss

    def update(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
        """Change parameters of a group in place; `group["steps"]` is the number of steps before."""
        raise NotImplementedError

    def is_joint(self, group: dict[str, Any]) -> bool:
        """Whether the step of a parameter depends on those beside it in its group."""
        return False

    def slopes(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The gradient of U."""
        if group["weight_decay"] == 0:
            return gradients
        return list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))

    def state_of(self, params: Iterable[Tensor], name: str) -> list[Tensor]:
        """A tensor of the shape of each parameter, zero at first, kept in the state dict."""
        found = []
        for p in params:
            state = self.state[p]
            if name not in state:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            found.append(state[name])
        return found

    def noise_like(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Standard normal numbers of the shape of each parameter."""
        return [
            torch.randn(p.shape, generator=self._generators[p.device], device=p.device, dtype=p.dtype) for p in params
        ]

    def _reseed(self, place: int, group: dict[str, Any]) -> None:
        for device in {p.device for p in group["params"]}:
            generator = self._generators.setdefault(device, torch.Generator(device))
            generator.manual_seed((self.seed * 1_000_003 + group["steps"]) * 1_009 + place)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda x: x >= 0 and math.isfinite(x), "at least 0 and finite"),
    "n_objects": (lambda x: x >= 1, "at least 1, the size of the training set"),
    "temperature": (lambda x: x >= 0 and math.isfinite(x), "at least 0; 1 gives the posterior"),
    "weight_decay": (lambda x: x >= 0 and math.isfinite(x), "at least 0 and finite"),
    "decay": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "eps": (lambda x: x > 0, "above 0"),
    "gather": (lambda x: x >= 2, "at least 2 steps"),
    "max_lr": (lambda x: x > 0 and math.isfinite(x), "above 0 and finite"),
}
