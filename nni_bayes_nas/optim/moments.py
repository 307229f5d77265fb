"""The moments that Adam keeps of gradients: statistics at no further cost, and those of entries that are thawed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError

_MEAN, _SQUARE = "exp_avg", "exp_avg_sq"


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
        ConfigError: A parameter of which no optimizer has such moments.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, Tensor], batch_size: int
    ) -> None:
        self.parameters, self.batch_size = dict(parameters), batch_size
        self._of: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for name in _names(group, self.parameters):
                    state = optimizer.state.get(self.parameters[name], {})
                    if {_MEAN, _SQUARE, "step"} <= set(state):
                        self._of[name] = (state, group["betas"])
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
                raise ConfigError("a variance needs at least 2 steps of the optimizer, got 1; train on.")
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
) -> None:
    """Moments of entries that are optimized again, in place, as if Adam had seen such gradients all along.

    What was frozen has moments of zero, or ones that have faded, while the count of steps went on, so that nothing
    corrects their bias: with the usual betas the first step would be .1 / sqrt(.001), three times too long. They become

        exp_avg = (1 - beta_1^t) E g;  exp_avg_sq = (1 - beta_2^t) E g^2.

    Optimizers without such moments, and parameters that have none, are left alone.

    Args:
        optimizers: Their states are changed.
        parameters: By name.
        thawed: By name, booleans of these entries.
        mean: E g, by name.
        second_moment: E g^2.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in _names(group, {name: parameters[name] for name in thawed}):
                state = optimizer.state.get(parameters[name], {})
                if not {_MEAN, _SQUARE, "step"} <= set(state):
                    continue
                steps, mask = float(state["step"]), thawed[name].to(state[_MEAN].device)
                for key, beta, value in zip((_MEAN, _SQUARE), group["betas"], (mean, second_moment), strict=True):
                    given = value[name].to(state[key]) * (1 - beta**steps)
                    state[key].copy_(torch.where(mask, given, state[key]))


def _names(group: dict[str, Any], parameters: Mapping[str, Tensor]) -> list[str]:
    held = {id(p) for p in group["params"]}
    return [name for name, p in parameters.items() if id(p) in held]


def _steps_in_mean(beta: float, steps: float) -> float:
    """1 / sum of the squared weights that an exponential average gives to so many values."""
    squares = (1 - beta) ** 2 * (1 - beta ** (2 * steps)) / (1 - beta**2)
    return float((1 - beta**steps) ** 2 / squares)
