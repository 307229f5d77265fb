"""Lightning: after some steps only those parameters are optimized that are worth it, and only some are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nni_bayes_nas.coercion import require
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim.selection import (
    GRANULARITIES,
    KEEPING,
    NEEDS,
    Criterion,
    Granularity,
    Keeping,
    check_criterion,
    choose,
    groups,
    keeping_scores,
    scores,
)
from nni_bayes_nas.optim.statistics import GradientStatistics


class SelectiveOptimization(pl.Callback):
    """Freezes parameters after `start` steps but those that a criterion picks, and sets all but some to zero.

    What is frozen does not change by a bit, whatever momentum, weight decay or moments the optimizer has. Parameters
    that are frozen as a whole have no gradient and no state in the optimizer any more, and the backward pass ends where
    nothing before it is optimized. Batch normalization whose parameters are all frozen keeps its running statistics.

    Args:
        active: Parameters that go on: a number, or as a float a share of all. With 0 the training ends there.
        criterion: See `scores`.
        granularity: What is frozen together, see `groups`.
        start: Steps before the choice: a number, or as a float a share of the planned ones.
        window: Steps before the choice whose gradients count.
        thaw_every: Steps after which it is chosen anew, by the gradients of `probe` steps in which frozen parameters
            have gradients and do not move; None: chosen once.
        probe: See there.
        always: Names of modules or parameters that go on in any case, within `active`.
        kept: Parameters that are not set to zero: a number, or a share; None: all. What goes on is among them.
        keep_by: What they are picked by, see `keeping_scores`.
        zero_at: When: at the "selection", or at the "end" of the training.
        batch_size: Objects of a mini-batch, for statistics of single objects.
        seed: Of random choices.

    Attributes:
        active: By parameter, booleans of what goes on; empty before the choice.
        kept: By parameter, booleans of what is not zero; empty where all are kept.

    Raises:
        ConfigError: Values that cannot be; in `fit`, a number of parameters or steps that there are not, or an
            optimizer whose steps cannot be undone for single parameters.
    """

    def __init__(
        self,
        *,
        active: float,
        criterion: Criterion = "gain",
        granularity: Granularity = "neuron",
        start: float = 0.2,
        window: int = 100,
        thaw_every: int | None = None,
        probe: int = 20,
        always: Sequence[str] = (),
        kept: float | None = None,
        keep_by: Keeping = "magnitude",
        zero_at: Literal["selection", "end"] = "selection",
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        check_criterion(criterion)
        for name, value, known in (
            ("granularity", granularity, GRANULARITIES),
            ("keep_by", keep_by, tuple(KEEPING)),
            ("zero_at", zero_at, ("selection", "end")),
        ):
            require(value in known, name, f"must be one of {', '.join(known)}", value, f"{known[0]} say")
        for name, amount in (("active", active), ("kept", 1.0 if kept is None else kept), ("start", start)):
            share = not isinstance(amount, float) or amount <= 1
            require(amount >= 0 and share, name, "must be a number, or a float in [0, 1], a share", amount, "0.2 say")
        for name, least, n in (("window", 2, window), ("probe", 2, probe), ("thaw_every", 1, thaw_every or 1)):
            require(n >= least, name, f"must be at least {least} steps", n, "100 say")
        longer = thaw_every is None or thaw_every > probe
        require(longer, "thaw_every", f"must be more than the {probe} steps of a probe", thaw_every, "raise it")
        self.share, self.kept_share = active, kept
        self.criterion, self.granularity, self.start, self.window = criterion, granularity, start, window
        self.thaw_every, self.probe, self.always = thaw_every, probe, tuple(always)
        self.keep_by, self.zero_at, self.batch_size, self.seed = keep_by, zero_at, batch_size, seed
        self.active: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.seconds = {"before": 0.0, "after": 0.0}
        self.counted = {"before": 0, "after": 0}
        self._statistics: GradientStatistics | None = None
        self._loaded: dict[str, Any] | None = None
        self._saved: dict[str, Tensor] = {}
        self._some: dict[str, bool] = {}
        self._kept_scores: dict[str, Tensor] = {}
        self._places: dict[str, int] = {}
        self._clock = 0.0

    # -- what Lightning calls ----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at numbers, names and optimizers before any step."""
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise ConfigError(
                    "selective optimization needs an optimizer that steps each parameter by its own gradient, got "
                    "LBFGS; take Adam or SGD."
                )
        self._parameters = {n: p for n, p in pl_module.named_parameters() if p.requires_grad or n in self.active}
        total, planned = sum(p.numel() for p in self._parameters.values()), int(trainer.estimated_stepping_batches)
        self.n_active = _amount("active", self.share, total, "parameters")
        self.n_kept = total if self.kept_share is None else _amount("kept", self.kept_share, total, "parameters")
        self.at = _amount("start", self.start, planned, "planned steps")
        self.planned = planned
        least = 2 if self._needs() else 0
        if not least <= self.at < planned:
            raise ConfigError(f"start must be from {least} to {planned - 1} of {planned} planned steps, got {self.at}.")
        if self.n_kept < self.n_active:
            raise ConfigError(f"what goes on must be kept: active {self.n_active} of kept {self.n_kept} parameters.")
        known = {*self._parameters, *(name for name, _ in pl_module.named_modules())}
        if unknown := [name for name in self.always if name not in known]:
            raise ConfigError(f"always must name modules or parameters of the network, got {unknown[0]!r}.")
        if self.criterion == "gain_per_flop":
            self._watch_places(pl_module)
        if self.active:  # goes on from a checkpoint
            self._freeze(trainer, pl_module)
        if self.at == 0 and not self.active:
            self._choose(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The clock; and frozen parameters have gradients where a probe begins."""
        self._clock = time.perf_counter()
        if self._probes(trainer.global_step) and self.active:
            for p in self._parameters.values():
                p.requires_grad_(True)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Count gradients; keep what must not move."""
        step = trainer.global_step
        gathers = self._probes(step) if self.active else self.at - self.window <= step < self.at
        if gathers and self._needs():
            self._gathered().update()
        if not self.active:
            return
        for name, p in self._parameters.items():
            if not self._some[name]:
                p.grad = None
            elif name in self._saved and p.grad is not None:
                p.grad.masked_fill_(~self.active[name], 0.0)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put back what moved all the same; choose, where it is time."""
        for name, value in self._saved.items():
            p = self._parameters[name]
            torch.where(self.active[name], p, value, out=p.data)
        which = "after" if self.active else "before"
        self.seconds[which] += time.perf_counter() - self._clock
        self.counted[which] += 1
        step = trainer.global_step
        again = self.active and self.thaw_every and self._probes(step - 1) and not self._probes(step)
        if (step == self.at and not self.active) or again:
            self._choose(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has put all modules into training."""
        self._still(pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Zero what is not kept, if it is time; all parameters can be trained again."""
        if self.zero_at == "end" and self.kept_share is not None:
            self._keep()
            self._zero()
        for p in self._parameters.values():
            p.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Choices, and statistics that are being gathered."""
        gathered = None if self._statistics is None else self._statistics.state_dict()
        return {"active": self.active, "kept": self.kept, "scores": self._kept_scores, "statistics": gathered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.active, self.kept = dict(state_dict["active"]), dict(state_dict["kept"])
        self._kept_scores = dict(state_dict["scores"])
        self._loaded = state_dict["statistics"]

    # -- choices -----------------------------------------------------------------------------------------------------

    def _needs(self) -> list[Any]:
        """Statistics."""
        parts = list(NEEDS[self.criterion])
        if self.kept_share is not None:
            parts += [part for part in KEEPING[self.keep_by] if part not in parts]
        return parts

    def _gathered(self) -> GradientStatistics:
        if self._statistics is None:
            self._statistics = GradientStatistics(
                self._parameters.items(), batch_size=self.batch_size, gather=self._needs()
            )
            if self._loaded is not None:
                self._statistics.load_state_dict(self._loaded)
                self._loaded = None
        return self._statistics

    def _probes(self, step: int) -> bool:
        """Whether gradients of all parameters are counted in this step, after the first choice."""
        if self.thaw_every is None or step < self.at:
            return False
        since = (step - self.at) % self.thaw_every
        return since >= self.thaw_every - self.probe

    @torch.no_grad()
    def _choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + trainer.global_step)
        found = self._gathered()
        if self.kept_share is not None and not self._kept_scores:
            self._kept_scores = keeping_scores(self.keep_by, found, generator)
            if self.zero_at == "selection":
                self._keep()
        values = scores(self.criterion, found, generator)
        ids = groups(pl_module, self.granularity)
        self.active = choose(
            self.n_active,
            values,
            {name: ids[name] for name in self._parameters},
            allowed=self.kept or None,
            always=[name for name in self._parameters if _within(name, self.always)],
            costs=self._costs(pl_module, ids) if self.criterion == "gain_per_flop" else None,
            in_order=self.granularity == "prefix",
        )
        found.reset()
        if self.kept:
            self._zero()
        self._freeze(trainer, pl_module)
        if self.n_active == 0:  # nothing has a gradient any more
            trainer.should_stop = True

    def _keep(self) -> None:
        """Pick what is kept: by magnitude as it is now, else as it was at the selection."""
        values = self._kept_scores
        if self.keep_by == "magnitude":
            values = {name: p.detach().abs() for name, p in self._parameters.items()}
        self.kept = choose(self.n_kept, values)

    @torch.no_grad()
    def _zero(self) -> None:
        for name, mask in self.kept.items():
            self._parameters[name].data.mul_(mask.to(self._parameters[name]))

    def _costs(self, pl_module: nn.Module, ids: dict[str, Tensor]) -> Tensor:
        """Multiply-accumulates that the gradients of every group take for an object: of an entry as many as places."""
        every = torch.cat([ids[name].flatten() for name in self._parameters]).cpu()
        places = [
            torch.full((p.numel(),), float(self._places.get(name.rpartition(".")[0], 1)))
            for name, p in self._parameters.items()
        ]
        return torch.bincount(every, torch.cat(places)).clamp_min(1.0)

    def _watch_places(self, pl_module: nn.Module) -> None:
        """At how many places of an object every module has been applied, in its first pass."""
        handles: dict[str, Any] = {}
        for name, module in pl_module.named_modules():
            if next(module.parameters(recurse=False), None) is None:
                continue

            def see(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.dim() >= 2:
                    features = output.shape[-1] if output.dim() < 4 else output.shape[1]
                    self._places[name] = max(1, output.numel() // (len(output) * int(features)))
                handles.pop(name).remove()

            handles[name] = module.register_forward_hook(see)

    def _freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.active = {name: mask.to(self._parameters[name].device) for name, mask in self.active.items()}
        self._some = {name: bool(mask.any()) for name, mask in self.active.items()}
        self._saved = {}
        for name, p in self._parameters.items():
            mask = self.active[name]
            p.requires_grad_(self._some[name])
            if self._some[name] and not bool(mask.all()):
                self._saved[name] = p.detach().clone()
            if not self._some[name]:
                p.grad = None
                for optimizer in trainer.optimizers:
                    optimizer.state.pop(p, None)
        self._still(pl_module)

    def _still(self, pl_module: nn.Module) -> None:
        """Batch normalization that is frozen keeps its running statistics."""
        if not self.active:
            return
        for name, module in pl_module.named_modules():
            own = [
                self._some[f"{name}.{n}"]
                for n, _ in module.named_parameters(recurse=False)
                if f"{name}.{n}" in self._some
            ]
            if isinstance(module, _BatchNorm) and own and not any(own):
                module.eval()


def _amount(name: str, value: float, total: int, what: str) -> int:
    """A number, or that of a share."""
    n = round(value * total) if isinstance(value, float) else value
    if not 0 <= n <= total:
        raise ConfigError(f"{name} must be at most the {total} {what}, got {n}.")
    return n


def _within(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)
