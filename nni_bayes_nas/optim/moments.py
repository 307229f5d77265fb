"""What optimizers keep of gradients: statistics at no further cost, and what they get of entries that are thawed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError

_MEAN, _SQUARE = "exp_avg", "exp_avg_sq"
_KEPT = {_MEAN, _SQUARE, "step"}


class AdamMoments:
    """What the optimizer itself knows of the gradients: averages that forget, of Adam and those that derive from it.

    With t steps, w_i the weight of the gradient of step i in the mean and n = 1 / sum w_i^2, which goes to
    (1 + beta_1) / (1 - beta_1), 19 by default:

        mean = exp_avg / (1 - beta_1^t);  second moment = exp_avg_sq / (1 - beta_2^t);
        variance = (second moment - mean^2) n / (n - 1), at least 0.

    The mean is one of few steps, and of noise alone its square is variance / n: `GradientStatistics` sees more.

    Args:
        optimizers: Hold the parameters.
        parameters: By name.
        batch_size: Objects of a mini-batch, over which gradients are means.

    Raises:
        ConfigError: An optimizer without such moments, or without a step. A parameter that has had no gradient yet has
            moments of zero.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, Tensor], batch_size: int
    ) -> None:
        self.parameters, self.batch_size = dict(parameters), batch_size
        self._of: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {}
        for optimizer in optimizers:
            stepped = any(set(state) >= _KEPT for state in optimizer.state.values())
            for group in optimizer.param_groups if stepped else ():
                for name in _names(group, self.parameters):
                    p = self.parameters[name]
                    none = {_MEAN: torch.zeros_like(p), _SQUARE: torch.zeros_like(p), "step": 2.0}
                    state = optimizer.state.get(p, {})
                    self._of[name] = (state if set(state) >= _KEPT else none, group["betas"])
        if missing := [name for name in self.parameters if name not in self._of]:
            raise ConfigError(
                f"moments of gradients must be those of Adam, after a step, but of {missing[0]} there are none; take "
                "Adam, or statistics of steps."
            )

    def mean(self) -> dict[str, Tensor]:
        """E g."""
        return self._each(lambda state, betas: state[_MEAN] / (1 - betas[0] ** float(state["step"])))

    def second_moment(self) -> dict[str, Tensor]:
        """E g^2."""
        return self._each(lambda state, betas: state[_SQUARE] / (1 - betas[1] ** float(state["step"])))

    def variance(self) -> dict[str, Tensor]:
        """Of the gradient of a mini-batch."""
        mean, square = self.mean(), self.second_moment()
        found = {}
        for name, (state, betas) in self._of.items():
            n = _steps_in_mean(betas[0], float(state["step"]))
            if not n > 1:
                raise ConfigError(
                    f"a variance needs at least 2 steps of the optimizer in its mean, got {n:g} with beta_1 "
                    f"{betas[0]:g}; train on, or take a beta_1 above 0."
                )
            found[name] = (square[name] - mean[name].square()).clamp_min(0.0) * n / (n - 1)
        return found

    def per_object_variance(self) -> dict[str, Tensor]:
        """The diagonal of C, the covariance of the gradient of one object: `batch_size` times `variance`."""
        return {name: self.batch_size * v for name, v in self.variance().items()}

    def _each(self, function: Callable[[dict[str, Any], tuple[float, float]], Tensor]) -> dict[str, Tensor]:
        return {name: function(*self._of[name]) for name in self.parameters}


@torch.no_grad()
def fill_moments(
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Mapping[str, Tensor],
    thawed: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    second_moment: Mapping[str, Tensor],
    active: Mapping[str, Tensor],
) -> None:
    """Moments of entries that are optimized again, in place, as if Adam had seen such gradients all along.

    What was frozen has averages of zero, or ones that have faded, while the count of steps went on, so that nothing
    corrects their bias: with Adam's usual betas the first step would be .1 / sqrt(.001), three times too long. With s^2
    what the optimizer has of the entries that were active all along over what was counted of them (it sees gradients
    that are clipped, and longer ago) and t its steps they become, of

        Adam and its kin        exp_avg = (1 - beta_1^t) s E g, exp_avg_sq = (1 - beta_2^t) s^2 E g^2
        RMSprop, Adadelta       square_avg = (1 - decay^t) s^2 E g^2, RMSprop's grad_avg = (1 - decay^t) s E g
        PreconditionedSGLD      square = (1 - decay^t) s^2 E g^2
        ConstantSGD             half_square = (1 - decay^(t - 1)) s^2 Var(g), gradient = s E g

    Other states, momentum say, begin again at zero. Parameters without a state are left alone.

    Args:
        optimizers: Their states are changed.
        parameters: By name.
        thawed: By name, booleans of these entries.
        mean: E g, by name.
        second_moment: E g^2.
        active: By name, booleans of entries that were optimized until now.
    """
    for optimizer in optimizers:
        of: dict[str, list[_Average]] = {}
        for group in optimizer.param_groups:
            for name in _names(group, {name: parameters[name] for name in thawed}):
                if found := _averages(optimizer.state.get(parameters[name], {}), group):
                    of[name] = found
        has = counted = 0.0
        for name, averages in of.items():
            for state, key, power, weight in averages:
                if power > 1:
                    own = active[name].to(state[key].device)
                    has += float(state[key][own].sum()) / weight
                    counted += float(_powers(mean[name], second_moment[name])[power].to(state[key])[own].sum())
        square = has / counted if has > 0 and counted > 0 else 1.0
        for name, averages in of.items():
            for state, key, power, weight in averages:
                factor = weight * (square**0.5 if power == 1 else square)
                value = factor * _powers(mean[name], second_moment[name])[power].to(state[key])
                state[key].copy_(torch.where(thawed[name].to(value.device), value, state[key]))


class _Average(NamedTuple):
    """One of an optimizer: its state and key, what it is of (1: E g, 2: E g^2, 3: Var(g)), the sum of its weights."""

    state: dict[str, Any]
    key: str
    power: int
    weight: float


def _powers(mean: Tensor, second_moment: Tensor) -> dict[int, Tensor]:
    return {1: mean, 2: second_moment, 3: (second_moment - mean.square()).clamp_min(0.0)}


def _averages(state: dict[str, Any], group: dict[str, Any]) -> list[_Average]:
    """What the state of a parameter has of its gradients."""
    if set(state) >= _KEPT:
        adams = zip((_MEAN, _SQUARE), (1, 2), group["betas"], strict=True)
        return [_Average(state, key, power, 1 - beta ** float(state["step"])) for key, power, beta in adams]
    if "half_square" in state:
        weight = 1 - group["decay"] ** max(1, int(state["seen"]) - 1)
        return [_Average(state, "half_square", 3, weight), _Average(state, "gradient", 1, 1.0)]
    keys = {"square": ("decay", "seen"), "square_avg": ("alpha" if "alpha" in group else "rho", "step")}
    for key, (decay, steps) in keys.items():
        if key in state and decay in group and steps in state:
            weight = 1 - group[decay] ** float(state[steps])
            means = [_Average(state, "grad_avg", 1, weight)] if "grad_avg" in state else []
            return [_Average(state, key, 2, weight), *means]
    return []


def _names(group: dict[str, Any], parameters: Mapping[str, Tensor]) -> list[str]:
    held = {id(p) for p in group["params"]}
    return [name for name, p in parameters.items() if id(p) in held]


def _steps_in_mean(beta: float, steps: float) -> float:
    """1 / sum of the squared weights that an exponential average gives to so many values."""
    squares = (1 - beta) ** 2 * (1 - beta ** (2 * steps)) / (1 - beta**2)
    return float((1 - beta**steps) ** 2 / squares)
