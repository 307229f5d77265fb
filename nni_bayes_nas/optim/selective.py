"""Lightning: after some steps only those parameters are optimized that are worth it, and only some are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim import cache as caching
from nni_bayes_nas.optim.amounts import epochs_left, planned_amounts, planned_steps, within
from nni_bayes_nas.optim.cache import ActivationCache, BatchIndices, chain_of
from nni_bayes_nas.optim.freeze_report import by_layer, multiply_accumulates, state_bytes, times_of, with_kept
from nni_bayes_nas.optim.holding import Holding, are_of_rows
from nni_bayes_nas.optim.layer_cost import BACKWARD, LayerCosts, costs_of_groups, entries_behind_cut, share_saved
from nni_bayes_nas.optim.moments import AdamMoments, fill_moments
from nni_bayes_nas.optim.options import Gradients, check_options, check_training
from nni_bayes_nas.optim.selection import (
    KEEPING,
    NEEDS,
    Criterion,
    Granularity,
    Keeping,
    Scope,
    choose,
    choose_in_layers,
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
        active: Parameters that go on: a number, or as a float a share of all. With 0 the training ends there. "auto",
            with granularity "prefix": the beginning is frozen up to where the share of the time that is saved exceeds
            the share of the scores that is given up by most, by the seconds that layers are measured to take.
        criterion: Whose largest scores go on; docs/theory.md has them, and `scores`.
        granularity: What is frozen together, see `groups`.
        scope: Whether shares are of all parameters ("global"), or of those of each layer ("layer"), of weights and
            neurons.
        start: Steps before the choice: a number, or as a float a share of the planned ones.
        window: Steps before the choice whose gradients count.
        gradients: Whose averages the criterion takes: of the "steps" of the window, or those that the "optimizer" keeps
            itself, of Adam and its kin (`AdamMoments`), which cost nothing and remember less.
        thaw_every: Steps after which it is chosen anew, by the gradients of `probe` steps in which frozen parameters
            have gradients and do not move; None: chosen once.
        probe: See there.
        always: Names of modules or parameters that go on in any case, within `active`.
        kept: Parameters that are not set to zero: a number, or a share; None: all. At the selection: what goes on, too.
        keep_by: What they are picked by; docs/theory.md has it, and `keeping_scores`.
        zero_at: When: at the "selection", or at the "end" of the training.
        batch_size: Objects of a mini-batch, for statistics of single objects.
        cache: Whether what frozen layers at the beginning of an `nn.Sequential` give is kept for every object, where
            data are not augmented: see `ActivationCache`. Of data that are augmented say False: "auto" then counts on
            no more than the pass backward.
        cache_limit: Bytes of it.
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
        active: int | float | Literal["auto"],
        criterion: Criterion = "gain",
        granularity: Granularity = "neuron",
        scope: Scope = "global",
        start: int | float = 0.2,
        window: int = 100,
        gradients: Gradients = "steps",
        thaw_every: int | None = None,
        probe: int = 20,
        always: Sequence[str] = (),
        kept: int | float | None = None,
        keep_by: Keeping = "magnitude",
        zero_at: Literal["selection", "end"] = "selection",
        batch_size: int = 1,
        cache: bool = True,
        cache_limit: int = 2**30,
        seed: int = 0,
    ) -> None:
        check_options(
            active, criterion, granularity, scope, start, window, gradients, thaw_every, probe, kept, keep_by, zero_at
        )
        self.share, self.kept_share = active, kept
        self.criterion, self.granularity, self.scope = criterion, granularity, scope
        self.start, self.window, self.cache, self.cache_limit = start, window, cache, cache_limit
        self.gradients, self.thaw_every, self.probe, self.always = gradients, thaw_every, probe, tuple(always)
        self.keep_by, self.zero_at, self.batch_size, self.seed = keep_by, zero_at, batch_size, seed
        self.active: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.seconds: dict[str, list[float]] = {"before": [], "after": []}
        self._report: dict[str, Any] = {}
        self._statistics: GradientStatistics | None = None
        self._loaded: dict[str, Any] | None = None
        self._holding: Holding | None = None
        self._indices: BatchIndices | None = None
        self._cached: ActivationCache | None = None
        self._kept_scores: dict[str, Tensor] = {}
        self._clock, self._previous, self._goes_on, self._counted = 0.0, 0, False, False
        self._costs = LayerCosts(torch.nn.Identity())

    # -- what a training in another form may change ------------------------------------------------------------------

    # Whether layers are called as they are: rows can be theirs alone, and batch normalization can be frozen.
    by_layers: ClassVar[bool] = True

    def chosen_optimizers(self, trainer: pl.Trainer) -> list[torch.optim.Optimizer]:
        """Those whose parameters are chosen from."""
        return list(trainer.optimizers)

    def steps_done(self, trainer: pl.Trainer) -> int:
        """Steps of these that are over."""
        return int(trainer.global_step)

    def plan(self, total: int | None, planned: int | None, *, exact: bool = True) -> None:
        """How many parameters go on and are kept, and after how many steps it is chosen; see `planned_amounts`."""
        amounts, nested = (self.share, self.kept_share, self.start), self.zero_at == "selection"
        least = 2 if self._needs() or self.gradients == "optimizer" else 0
        n_active, self.n_kept, self.at = planned_amounts(*amounts, total, planned, least, exact, nested)
        # Of "auto", where it goes on.
        self.n_active = sum(int(mask.sum()) for mask in self.active.values()) if n_active is None else n_active

    # -- what Lightning calls ----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at numbers, names and optimizers before any step."""
        self._optimizers = self.chosen_optimizers(trainer)
        if not self._goes_on:  # another fit than the last one, with the same callback
            self.active, self.kept, self._kept_scores, self._report = {}, {}, {}, {}
            self.seconds, self._statistics, self._previous = {"before": [], "after": []}, None, 0
        self._goes_on = False
        moved = {id(p) for one in self._optimizers for group in one.param_groups for p in group["params"]}
        self._parameters = {
            n: p for n, p in pl_module.named_parameters() if id(p) in moved and (p.requires_grad or n in self.active)
        }
        total, planned = sum(p.numel() for p in self._parameters.values()), planned_steps(trainer)
        self.plan(total, planned)
        done = self.steps_done(trainer)
        late = done if not self.active and done >= self.at > 0 and self._needs() else 0
        check_training(trainer, self._optimizers, thaws=self.thaw_every is not None, late=late)
        self._layers = groups(pl_module, "layer")
        known = {*self._parameters, *(name for name, _ in pl_module.named_modules())}
        if unknown := [name for name in self.always if name not in known]:
            raise ConfigError(f"always must name modules or parameters of the network, got {unknown[0]!r}.")
        # A layer with hooks is not fused.
        self._costs = LayerCosts(pl_module if self.by_layers else torch.nn.Identity())
        self._indices = caching.watch_indices(trainer.train_dataloader) if self.cache else None
        if self.active:  # goes on from a checkpoint
            self._previous = done
            trainer.should_stop = trainer.should_stop or self.n_active == 0
            if not (probes := self._probes(done)) or are_of_rows(self._optimizers):
                self._hold(trainer, pl_module)  # moments of rows become those of the whole when it is left
            if probes:
                self._hold(trainer, pl_module, probe=True)
        if self.at == 0 and not self.active:
            self._choose(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The clock; and frozen parameters have gradients where a probe begins."""
        self._clock, self._counted = time.perf_counter(), False
        if self._holding is not None and self._probes(self.steps_done(trainer)) and not self._holding.probe:
            self._hold(trainer, pl_module, probe=True)
        if self._cached is not None and self._indices is not None:
            self._cached.indices = self._indices.of(batch_idx)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Count gradients; keep what must not move."""
        if optimizer not in self._optimizers:
            return
        step = self.steps_done(trainer)
        gathers = self._probes(step) if self.active else self.at - self.window <= step < self.at
        # Of several optimizers before the first one's step: after it what is held has no gradient.
        if gathers and (self._needs() or self.active) and not self._counted:
            self._gathered().update()
        self._counted = True
        if self._holding is not None:
            self._holding.before_step()

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Choose, where it is time."""
        if self._holding is not None and not self.by_layers:
            self._holding.after_step()
        self.seconds["after" if self.active else "before"].append(time.perf_counter() - self._clock)
        if self.active:  # where it went on, it has seen a pass now
            self._costs.remove()
        # Of accumulated batches one alone is a step; of several optimizers one batch is several.
        step, before = self.steps_done(trainer), self._previous
        self._previous = step
        if step == before:
            return
        again = self.active and self.thaw_every and self._probes(before) and not self._probes(step)
        if (step >= self.at and not self.active) or again:
            self._choose(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Something may have put modules into training since."""
        if self._holding is not None:
            self._holding.still()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The end is part of the last checkpoint: what goes on from that does not train any more."""
        if trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs > 0:
            self.on_train_end(trainer, pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All parameters can be trained again; zero what is not kept, if it is time."""
        if self._holding is not None:
            self._look_back(trainer, pl_module)
        self._release()
        self._costs.remove()
        if self.zero_at == "end" and self.kept_share is not None:
            self._keep()
            self._zero()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The network and its optimizers are left as without this callback."""
        self._release()
        self._costs.remove()

    def state_dict(self) -> dict[str, Any]:
        """Choices, statistics that are being gathered, and what the report says so far."""
        gathered = None if self._statistics is None else self._statistics.state_dict()
        chosen = {"active": self.active, "kept": self.kept, "scores": self._kept_scores}
        return {**chosen, "statistics": gathered, "report": self._report, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.active, self.kept = dict(state_dict["active"]), dict(state_dict["kept"])
        self._kept_scores = dict(state_dict["scores"])
        self._statistics, self._loaded, self._goes_on = None, state_dict["statistics"], True
        self._report, self.seconds = dict(state_dict["report"]), dict(state_dict["seconds"])

    @property
    def has_ended(self) -> bool:
        """Whether there is a `freeze_report`."""
        return "layers" in self._report

    def freeze_report(self) -> dict[str, Any]:
        """What was frozen and what it saves, of a training that has ended.

        Returns:
            "layers", see `freeze_report.by_layer`, and how many are "kept" where some become zero; "macs" of an object
            "before" and "after" the choice, see there;
            "state_bytes" of the optimizer before and after; "cache_bytes", and "no_cache", why nothing was kept;
            "milliseconds" of a step before and after, medians, and "seconds", sums, with what is done once and probes.

        Raises:
            ConfigError: Nothing was chosen.
        """
        if not self.has_ended:
            raise ConfigError("a freeze report needs a choice, but the training has made none; train past `start`.")
        return {**self._report, "layers": with_kept(self._report["layers"], self.kept), **times_of(self.seconds)}

    # -- choices -----------------------------------------------------------------------------------------------------

    def _needs(self) -> list[Any]:
        """Statistics for the choice."""
        parts = list(NEEDS[self.criterion]) if self.gradients == "steps" else []
        if self.kept_share is not None:
            parts += [part for part in KEEPING[self.keep_by] if part not in parts]
        return parts

    def _gathered(self) -> GradientStatistics:
        if self._statistics is None:
            # Moments of what is thawed, too.
            parts = [*self._needs(), *(["moments"] if self.thaw_every and "moments" not in self._needs() else [])]
            self._statistics = GradientStatistics(self._parameters.items(), batch_size=self.batch_size, gather=parts)
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
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps_done(trainer))
        self._release()
        found = self._gathered()
        if self.kept_share is not None and not self._kept_scores:
            self._kept_scores = keeping_scores(self.keep_by, found, generator)
            if self.zero_at == "selection":
                self._keep()
        source: GradientStatistics | AdamMoments = found
        if self.gradients == "optimizer":
            source = AdamMoments(self._optimizers, self._parameters, self.batch_size)
        ids = groups(pl_module, self.granularity)
        values = scores(self.criterion, source, generator, ids)
        self._costs.remove()
        if self.share == "auto":
            chain = chain_of(pl_module)
            kept = self._indices is not None and chain is not None and caching.is_the_same_twice(chain[1])
            most = self.thaw_every and self.thaw_every - self.probe  # then what layers gave is computed anew
            saved = share_saved(epochs_left(trainer, self.steps_done(trainer), most)) if kept else BACKWARD
            limit = self.cache_limit / (1 if self._indices is None else self._indices.n_objects)
            how = self._costs, saved, self.kept or None
            n = entries_behind_cut(self._parameters, values, ids, *how, limit=limit)
            self.n_active = min(self.n_kept, n) if self.zero_at == "selection" else n
        before_it, places = self.active, self._costs.places
        self.active = self._pick(self.granularity == "prefix")(
            self.n_active,
            values,
            together={name: ids[name] for name in self._parameters},
            allowed=self.kept or None,
            always=[name for name in self._parameters if within(name, self.always)],
            costs=costs_of_groups(self._parameters, ids, places) if self.criterion == "gain_per_flop" else None,
        )
        if before_it:
            thawed = {name: mask & ~before_it[name].to(mask.device) for name, mask in self.active.items()}
            mean, square = found.mean(), found.second_moment()
            fill_moments(self._optimizers, self._parameters, thawed, mean, square, before_it)
        found.reset()
        self._zero()
        before = state_bytes(self._optimizers)
        self._hold(trainer, pl_module)
        self._report.setdefault("state_bytes", {"before": before})
        if self.n_active == 0:  # nothing has a gradient any more
            trainer.should_stop = True

    def _keep(self) -> None:
        """Pick what is kept: by magnitude as it is now, else as it was at the selection."""
        values = self._kept_scores
        if self.keep_by == "magnitude":
            values = {name: p.detach().abs() for name, p in self._parameters.items()}
        self.kept = self._pick()(self.n_kept, values)

    def _pick(self, in_order: bool = False) -> Callable[..., dict[str, Tensor]]:
        if self.scope == "layer":
            return partial(choose_in_layers, layers=self._layers)
        return partial(choose, in_order=in_order)

    @torch.no_grad()
    def _zero(self) -> None:
        for name, mask in self.kept.items():
            self._parameters[name].data.mul_(mask.to(self._parameters[name]))

    def _look_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What the report says, while everything is still held."""
        cached, chain, known = self._cached, chain_of(pl_module), dict[str, Any]()
        if cached is not None:
            known = {"cached": cached.layers, "rows_cached": cached.rows is not None}
        split = () if self._holding is None else tuple(self._holding.rows)
        count = partial(multiply_accumulates, self._parameters, places=self._costs.places)
        self._report |= {
            "layers": by_layer(pl_module, self.active),
            "macs": {"before": count({}), "after": count(self.active, split=split, **known)},
            "state_bytes": {**self._report.get("state_bytes", {}), "after": state_bytes(self._optimizers)},
            "cache_bytes": 0 if cached is None else cached.size,
            "no_cache": caching.why_not(self.cache, self._indices, chain, cached),
        }

    def _hold(self, trainer: pl.Trainer, pl_module: pl.LightningModule, probe: bool = False) -> None:
        self._release()
        self._holding = Holding(pl_module, self._optimizers, self.active, probe=probe, layers=self.by_layers)
        if self._indices is not None and not probe and (chain := chain_of(pl_module)) is not None:
            self._cached = ActivationCache(chain[1], self._holding, self._indices.n_objects, self.cache_limit)

    def _release(self) -> None:
        if self._cached is not None:
            self._cached.release()
        self._cached = None
        if self._holding is not None:
            self._holding.release()
        self._holding = None
