"""SGD at a constant rate, whose noise of mini-batches makes its iterates draws near an optimum."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim.sampler import Sampler

Preconditioner = Literal["none", "scalar", "diagonal"]
PRECONDITIONERS: tuple[Preconditioner, ...] = ("none", "scalar", "diagonal")


class ConstantSGD(Sampler):
    """SGD at the constant rate whose iterates are nearest to draws of the posterior (Mandt, Hoffman & Blei, 2017).

    Near an optimum, w <- w - H g with the gradient g of a mini-batch has iterates of covariance Sigma with

        A Sigma H^-1 + H^-1 Sigma A = Var(g)   (continuous time; arXiv 1704.04289, Eq. 13, in the units used here)

    for the Hessian A of U. KL(N(w*, Sigma) || posterior) is least, for one rate exactly, for rates of their own where
    log det Sigma is log det H and a constant (A and Var(g) diagonal, say), at

        scalar      H = 2 D / (n_objects tr Var(g)) for all D parameters whose gradients have noise
        diagonal    H_i = 2 / (n_objects Var(g_i))

    where Var(g) is that of mini-batches, as they come: C / S for the covariance C of single objects and batches of S.
    It is estimated while the optimizer runs, by half the mean square of the difference of gradients that follow each
    other, in which a gradient that changes slowly cancels: exponentially weighted, by `decay`. The first `gather` steps
    are SGD's, at `lr`.

    Args:
        params: Parameters, or groups of them.
        lr: Of the first steps, and of all with preconditioner "none".
        n_objects: m, of the training set.
        preconditioner: See above.
        gather: Gradients of a parameter before the preconditioner is used for it.
        decay: Of the estimated variances.
        max_lr: Largest entry of H: where a gradient has no noise, that of a dead input, there is no optimum; where it
            has little, the optimum may be beyond the rates at which steps converge. See `share_at_max_lr`.
        weight_decay: See `Sampler`.
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
        preconditioner: Preconditioner = "diagonal",
        gather: int = 100,
        decay: float = 0.99,
        max_lr: float = 0.5,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "n_objects": n_objects, "gather": gather, "decay": decay, "max_lr": max_lr}
        more = {"preconditioner": preconditioner, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, **more}, foreach=foreach)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of any optimizer; its values are looked at."""
        preconditioner = {**self.defaults, **param_group}["preconditioner"]
        if preconditioner not in PRECONDITIONERS:
            known = ", ".join(PRECONDITIONERS)
            raise ConfigError(f"preconditioner must be one of {known}, got {preconditioner!r}.")
        super().add_param_group(param_group)

    def update(self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]) -> None:
        """See the class."""
        slopes = self.slopes(group, params, gradients)
        if group["preconditioner"] == "none":
            torch._foreach_add_(params, slopes, alpha=-group["lr"])
            return
        variances, noisy, seen = self._variances(group, params, gradients)
        # One that got its first gradient later has a variance later, too.
        late = [n < group["gather"] for n in seen]
        if all(late):
            torch._foreach_add_(params, slopes, alpha=-group["lr"])
        elif group["preconditioner"] == "diagonal":
            rates = optimal_rates(variances, group["n_objects"], group["max_lr"])
            rates = [torch.full_like(r, group["lr"]) if wait else r for r, wait in zip(rates, late, strict=True)]
            torch._foreach_addcmul_(params, slopes, rates, value=-1.0)
        else:
            known = [(v, moves) for v, moves, wait in zip(variances, noisy, late, strict=True) if not wait]
            n = torch.stack([moves.sum() for _, moves in known]).sum()
            total = torch.stack([(v * moves).sum() for v, moves in known]).sum()
            rate = torch.where(total > 0, 2 * n / (group["n_objects"] * total), group["max_lr"])
            rate = rate.clamp_max(group["max_lr"])
            rates = [slope.new_tensor(group["lr"]) if wait else rate for slope, wait in zip(slopes, late, strict=True)]
            torch._foreach_sub_(params, torch._foreach_mul(slopes, rates))

    @torch.no_grad()
    def share_at_max_lr(self) -> float:
        """Of entries whose gradients have noise, the share whose rate is the largest: their iterates are no draws."""
        n = largest = 0
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p, {})
                if (seen := int(state.get("seen", 0))) > group["gather"]:
                    variance = state["half_square"] / (1 - group["decay"] ** (seen - 1))
                    rates = optimal_rates([variance], group["n_objects"], group["max_lr"])[0]
                    n += int((variance > 0).sum())
                    largest += int(((variance > 0) & (rates >= group["max_lr"])).sum())
        return largest / max(1, n)

    def is_joint(self, group: dict[str, Any]) -> bool:
        """One rate for all."""
        return bool(group["preconditioner"] == "scalar")

    def _variances(
        self, group: dict[str, Any], params: list[Tensor], gradients: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Of the gradients of mini-batches; which have noise now, which held ones have not; gradients before this."""
        decay, seen = group["decay"], [int(self.state[p].get("seen", 0)) for p in params]
        before, halves = self.state_of(params, "gradient"), self.state_of(params, "half_square")
        # Nothing is before a first gradient, not even a zero.
        differences = torch._foreach_mul(torch._foreach_sub(gradients, before), [float(n > 0) for n in seen])
        torch._foreach_mul_(halves, decay)
        torch._foreach_addcmul_(halves, differences, differences, value=(1 - decay) / 2)
        torch._foreach_copy_(before, gradients)
        for p, n in zip(params, seen, strict=True):
            self.state[p]["seen"] = n + 1
        variances = list(torch._foreach_div(halves, [1 - decay ** max(1, n) for n in seen]))
        return variances, [difference != 0 for difference in differences], seen


def optimal_rates(variances: list[Tensor], n_objects: int, largest: float) -> list[Tensor]:
    """H_i = min(2 / (n_objects Var(g_i)), largest), see `ConstantSGD`; of the shapes of the variances."""
    return [(2 / (n_objects * v)).clamp_max(largest) for v in variances]
