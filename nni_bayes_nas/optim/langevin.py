"""Stochastic gradient Langevin dynamics: steps along the gradient with as much noise as makes the iterates draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.optim.sampler import Sampler


class SGLD(Sampler):
    """Stochastic gradient Langevin dynamics (Welling & Teh, 2011).

        w <- w - lr grad U(w) + N(0, 2 lr temperature / n_objects)

    with U of `Sampler`; in the paper's form the step is epsilon = 2 lr / n_objects. As lr falls to zero the iterates
    are draws of the posterior, at `temperature` 1; mini-batches add noise of their own, of which nothing is taken away.

    Args:
        params: Parameters, or groups of them.
        lr: As of SGD on U.
        n_objects: m, of the training set.
        temperature: Factor of the variance of the noise; 0 gives SGD.
        weight_decay: See `Sampler`.
        seed: Of the noise.
        foreach: See `Sampler`.

    Raises:
        ConfigError: A value that cannot be.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        n_objects: int,
        temperature: float = 1.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        foreach: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "n_objects": n_objects, "temperature": temperature, "weight_decay": weight_decay}
        super().__init__(params, defaults, seed=seed, foreach=foreach)

    def update(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
        """See the class."""
        slopes = self.slopes(group, params, gradients)
        torch._foreach_add_(params, slopes, alpha=-group["lr"])
        if (scale := _scale(group)) > 0:
            torch._foreach_add_(params, self.noise_like(params), alpha=scale)


class PreconditionedSGLD(Sampler):
    """Preconditioned SGLD (Li, Chen, Carlson & Carin, 2016, arXiv 1512.07666), without its term of the derivative of G.

        V <- decay V + (1 - decay) g^2,  G = 1 / (eps + sqrt(V))
        w <- w - lr G grad U(w) + N(0, 2 lr G temperature / n_objects)

    where g is the gradient of the mean loss, and V is corrected for its start at zero, as in Adam. The term that is
    left out is small where V changes slowly: a `decay` close to 1. At the default, on Gaussian targets, variances of
    draws are 10 to 45 % too large without noise of mini-batches, and 5 to 15 % with as much as is usual.

    Args:
        params: Parameters, or groups of them.
        lr: As of RMSprop on U.
        n_objects: m, of the training set.
        temperature: Factor of the variance of the noise.
        decay: Of V.
        eps: See above; the largest step is lr / eps times the gradient.
        weight_decay: See `Sampler`.
        seed: Of the noise.
        foreach: See `Sampler`.

    Raises:
        ConfigError: A value that cannot be.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        n_objects: int,
        temperature: float = 1.0,
        decay: float = 0.99,
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        seed: int = 0,
        foreach: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "n_objects": n_objects, "temperature": temperature, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "decay": decay, "eps": eps}, seed=seed, foreach=foreach)

    def update(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
        """See the class."""
        decay, squares = group["decay"], self.state_of(params, "square")
        torch._foreach_mul_(squares, decay)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - decay)
        # Of every parameter by itself: one that has a gradient later, or again, begins then.
        for p in params:
            self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
        roots = torch._foreach_div(squares, [1 - decay ** self.state[p]["seen"] for p in params])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, self.slopes(group, params, gradients), roots, value=-group["lr"])
        if (scale := _scale(group)) > 0:
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(params, self.noise_like(params), roots, value=scale)


def _scale(group: dict[str, Any]) -> float:
    """Standard deviation of the noise, before a preconditioner."""
    return math.sqrt(2 * group["lr"] * group["temperature"] / group["n_objects"])
