"""What the gradients of a training say of its parameters: size, noise, drift, curvature, distance to the optimum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError

Part = Literal["moments", "noise", "path", "chain"]
PARTS: tuple[Part, ...] = ("moments", "noise", "path", "chain")
_TINY = 1e-30
# Of the correlation of blocks.
_MOST = 0.95


class Deviation(NamedTuple):
    """w - w* as it is estimated, and the standard deviation of the estimate; of the shape of the parameter."""

    value: Tensor
    sd: Tensor


class GradientStatistics:
    """Averages over the steps since `reset`; `update` is called between the backward pass and the optimizer's step.

    Nothing is kept of single steps: a few tensors of the size of the parameters for each part that is gathered.

    Args:
        named_parameters: As a module's. Parameters without a gradient have a gradient of zero.
        batch_size: Objects of a mini-batch, over which gradients are means.
        gather: Parts. "moments": of the gradient. "noise": variance of the gradient of a mini-batch. "path": how far
            parameters went. "chain": curvature, and the distance to the optimum.
        block: Steps whose means are taken as draws by `deviation`, which depend on those before at most: more than the
            steps in which a parameter forgets where it was, 1 / (rate * curvature).

    Attributes:
        steps: Since `reset`.

    Raises:
        ConfigError: An unknown part; sizes below 1.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        batch_size: int,
        gather: Sequence[Part] = ("moments", "noise"),
        block: int = 100,
    ) -> None:
        if unknown := [part for part in gather if part not in PARTS]:
            raise ConfigError(f"gather must name some of {', '.join(PARTS)}, got {unknown[0]!r}.")
        for name, value in (("batch_size", batch_size), ("block", block)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        self.parameters = dict(named_parameters)
        self.batch_size, self.block, self.gather = batch_size, block, tuple(gather)
        self.reset()

    def reset(self) -> None:
        """Forget the steps so far."""
        self.steps = self.blocks = 0
        self._sums: dict[str, list[Tensor]] = {}
        values = list(self.parameters.values())
        self._first = [p.detach().clone() for p in values] if {"path", "chain"} & set(self.gather) else []
        self._last = [w.clone() for w in self._first] if "path" in self.gather else []
        self._before: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Count the gradients of the parameters as they stand."""
        values = [p.detach() for p in self.parameters.values()]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        if "moments" in self.gather:
            self._add("g", gradients)
            self._add("|g|", list(torch._foreach_abs(gradients)))
            self._add("gg", gradients, gradients)
        if "noise" in self.gather:
            if self._before:
                differences = list(torch._foreach_sub(gradients, self._before))
                self._add("dd", differences, differences)
            self._before = [g.clone() for g in gradients]
        if "path" in self.gather:
            moved = list(torch._foreach_sub(values, self._last))
            self._add("|dw|", list(torch._foreach_abs(moved)))
            torch._foreach_copy_(self._last, values)
        self.steps += 1
        if "chain" in self.gather:
            self._chain(list(torch._foreach_sub(values, self._first)), gradients)

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a run that goes on."""
        kept = {"first": self._first, "last": self._last, "before": self._before}
        return {"steps": self.steps, "blocks": self.blocks, "sums": dict(self._sums), **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, for the same parameters."""
        self.steps, self.blocks = state["steps"], state["blocks"]
        places = [p.device for p in self.parameters.values()]

        def here(tensors: list[Tensor]) -> list[Tensor]:
            return [x.to(place) for x, place in zip(tensors, places, strict=False)]

        self._sums = {key: here(values) for key, values in state["sums"].items()}
        self._first, self._last, self._before = (here(state[name]) for name in ("first", "last", "before"))

    def mean(self) -> dict[str, Tensor]:
        """E g."""
        return self._mean("g", "moments")

    def absolute(self) -> dict[str, Tensor]:
        """E |g|."""
        return self._mean("|g|", "moments")

    def second_moment(self) -> dict[str, Tensor]:
        """E g^2."""
        return self._mean("gg", "moments")

    def variance(self) -> dict[str, Tensor]:
        """Of the gradient of a mini-batch: half the mean square of successive differences (von Neumann et al., 1941).

        At fixed weights it has no bias; along a training a gradient that changes slowly cancels.
        """
        self._check("noise", 2)
        return self._named([s / (2 * (self.steps - 1)) for s in self._sums["dd"]])

    def per_object_variance(self) -> dict[str, Tensor]:
        """The diagonal of C, the covariance of the gradient of one object: `batch_size` times `variance`."""
        return {name: self.batch_size * v for name, v in self.variance().items()}

    def drift(self) -> dict[str, Tensor]:
        """The mean gradient in units of its standard error, E g / sqrt(variance / steps): far from 0, still moving."""
        spread = self.variance()
        floor = torch.finfo(torch.float32).tiny
        return {name: g / (spread[name] / self.steps).clamp_min(floor).sqrt() for name, g in self.mean().items()}

    def effective_perturbation(self) -> dict[str, Tensor]:
        """|sum of steps| / sum of |steps|, in [0, 1]: near 0 for a parameter that goes to and fro (Chen et al., 2021).

        0 where nothing has moved: a parameter that no step reaches has nothing to gain.
        """
        self._check("path", 2)
        far = torch._foreach_abs(torch._foreach_sub(self._last, self._first))
        ways = self._sums["|dw|"]
        return self._named([torch.where(way > 0, f / way, 0.0) for f, way in zip(far, ways, strict=True)])

    def curvature(self) -> dict[str, Tensor]:
        """Slope of the gradient in the parameter, Cov(g, w) / Var(w) over the steps; 0 where nothing has moved.

        It is the diagonal of the Hessian of a loss that is quadratic and without interaction.
        """
        self._check("chain", 2)
        return self._named(self._slopes())

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of the parameters over the steps, of "chain"."""
        self._check("chain", 2)
        found, n = [], self.steps
        for first, w, ww in zip(self._first, self._sums["w"], self._sums["ww"], strict=True):
            spread = (ww / n - (w / n).square()).clamp_min(0.0) * n / (n - 1)
            found.append((first + w / n, spread.sqrt()))
        return dict(zip(self.parameters, found, strict=True))

    def deviation(self) -> dict[str, Deviation]:
        """How far each parameter is from the optimum, w - w*, with its standard deviation.

        Means over blocks of steps, of parameters and gradients, give w* = mean w - mean g / curvature each; their mean
        is the estimate, their spread its error, with (1 + r) / (1 - r) times the variance where each is correlated to
        the one before by r. Where the curvature comes out as not positive it is mean w alone, right
        for a chain that has come to rest. The rate is taken to be constant, and small.

        Raises:
            ConfigError: "chain" was not gathered, or fewer than two blocks are full.
        """
        self._check("chain", 2 * self.block)
        n, slopes, found = self.blocks, self._slopes(), []
        for i, (name, p) in enumerate(self.parameters.items()):
            w, g, ww, gg, wg = (self._sums[key][i] / n for key in ("w_b", "g_b", "ww_b", "gg_b", "wg_b"))
            inverse = torch.where(slopes[i] > 0, 1 / slopes[i], 0.0)
            spread = (ww - w * w) - 2 * inverse * (wg - w * g) + inverse.square() * (gg - g * g)
            r = (self._of_neighbours(i, inverse, w - inverse * g) / (n * spread).clamp_min(_TINY) + 1 / n).clamp(
                0, _MOST
            )
            spread = spread * (1 + r) / (1 - r)
            now = p.detach() - self._first[i]
            sd = (spread.clamp_min(0.0) / (n - 1)).sqrt()
            found.append((name, Deviation(now - (w - inverse * g), sd)))
        return dict(found)

    def _of_neighbours(self, i: int, inverse: Tensor, mean: Tensor) -> Tensor:
        """Sum over blocks of the product of the deviations from the mean of one and of the one before; it is 1 / n of
        the sum of squares too small, as the mean is theirs."""
        along, across, of_g = (self._sums[key][i] for key in ("ww_p", "wg_p", "gg_p"))
        first, last = (self._sums[f"w_{end}"][i] - inverse * self._sums[f"g_{end}"][i] for end in ("1", "p"))
        products = along - inverse * across + inverse.square() * of_g
        return products + mean * (first + last) - (self.blocks + 1) * mean.square()

    def _chain(self, values: list[Tensor], gradients: list[Tensor]) -> None:
        self._add("w", values)
        self._add("ww", values, values)
        self._add("wg", values, gradients)
        self._add("g_", gradients)
        self._add("w_now", values)
        self._add("g_now", gradients)
        if self.steps % self.block:
            return
        w, g = ([x / self.block for x in self._sums.pop(key)] for key in ("w_now", "g_now"))
        if self.blocks:
            before = self._sums["w_p"], self._sums["g_p"]
            self._add("ww_p", w, before[0])
            self._add("wg_p", w, before[1])
            self._add("wg_p", g, before[0])
            self._add("gg_p", g, before[1])
        else:
            self._sums |= {"w_1": w, "g_1": g}
        self._sums |= {"w_p": w, "g_p": g}
        self._add("w_b", w)
        self._add("g_b", g)
        self._add("ww_b", w, w)
        self._add("gg_b", g, g)
        self._add("wg_b", w, g)
        self.blocks += 1

    def _slopes(self) -> list[Tensor]:
        n, found = self.steps, []
        for w, ww, wg, g in zip(*(self._sums[key] for key in ("w", "ww", "wg", "g_")), strict=True):
            spread, together = ww / n - (w / n).square(), wg / n - w * g / n**2
            found.append(torch.where(spread > 0, together / spread, 0.0))
        return found

    def _add(self, key: str, x: list[Tensor], times: list[Tensor] | None = None) -> None:
        if key not in self._sums:
            self._sums[key] = [torch.zeros_like(part) for part in x]
        if times is None:
            torch._foreach_add_(self._sums[key], x)
        else:
            torch._foreach_addcmul_(self._sums[key], x, times)

    def _mean(self, key: str, part: Part) -> dict[str, Tensor]:
        self._check(part, 1)
        return self._named([s / self.steps for s in self._sums[key]])

    def _named(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.parameters, values, strict=True))

    def _check(self, part: Part, steps: int) -> None:
        if part not in self.gather:
            raise ConfigError(f"`{part}` must be gathered for this, got gather={list(self.gather)}; add it.")
        if self.steps < steps:
            raise ConfigError(f"statistics need at least {steps} updates for this, got {self.steps}; train on.")
