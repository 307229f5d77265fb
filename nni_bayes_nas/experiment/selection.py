"""Sections `selection`: which parameters of a training, or weights of a search, go on after some steps."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch

from nni_bayes_nas import registry
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.augment import augmentation
from nni_bayes_nas.optim.selective import SelectiveOptimization

_GIVEN = ("batch_size", "seed")
_CACHE = ("cache", "cache_limit")
Section = Literal["search", "retrain"]


class SelectiveSearch(SelectiveOptimization):
    """The same for the weights of a supernet; the structure is optimized to the end.

    A step is a batch. A fused supernet reads weights past its layers: of what is frozen no gradient is taken, and
    single entries are put back after every step; rows have no parameters of their own, and nothing is cached.
    """

    by_layers: ClassVar[bool] = False

    def __init__(self, **args: Any) -> None:
        super().__init__(**args, cache=False)
        self._batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As of a training; some weights must go on, since every step is one of the weights too.

        Raises:
            ConfigError: None would.
        """
        if not self._goes_on:
            self._batches = 0
        super().on_train_start(trainer, pl_module)
        if self.n_active == 0:
            raise ConfigError(
                f"`search.selection.active` must leave weights to be optimized, but {self.share} of them is none\n"
                "raise it"
            )

    def chosen_optimizers(self, trainer: pl.Trainer) -> list[torch.optim.Optimizer]:
        """Those of the weights."""
        return [one for one in trainer.optimizers if not getattr(one, "is_arch_optimizer", False)]

    def steps_done(self, trainer: pl.Trainer) -> int:
        """Batches: Lightning counts the steps of both optimizers."""
        return self._batches

    def before_clipping(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """What is held is in no norm; and statistics are those of gradients that are not clipped."""
        self.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch first."""
        self._batches += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """The batches too."""
        return {**super().state_dict(), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        super().load_state_dict(state_dict)
        self._batches = int(state_dict["batches"])

    def freeze_report(self) -> dict[str, Any]:
        """As of a training, without what is counted where layers are called, and what is kept of them."""
        left_out = ("macs", "cache_bytes", "no_cache")
        return {name: value for name, value in super().freeze_report().items() if name not in left_out}


def selection_arguments(config: Config, section: Section) -> dict[str, Any] | None:
    """`search.selection` or `retrain.selection` with the defaults of its callback; None without one.

    Raises:
        ConfigError: What the callback does not know, or cannot have; trainings side by side.
    """
    settings, place = getattr(config, section), f"{section}.selection"
    if settings.selection is None:
        return None
    given = (*_GIVEN, *_CACHE) if section == "search" else _GIVEN
    args = registry.fill_args(SelectiveOptimization, settings.selection, place, given=given)
    adam = section == "search" and config.search.optimizer == "adam"
    if args["gradients"] == "optimizer" and not adam:
        has = f"search.optimizer is {config.search.optimizer}" if section == "search" else "a retraining has SGD"
        raise ConfigError(
            f"`{place}.gradients` must be steps unless the optimizer is Adam, which keeps moments, but {has}\n"
            "leave it out"
        )
    if section == "search":
        _check_search(config, args)
        SelectiveSearch(**args)
    else:
        SelectiveOptimization(**args)
    if args["kept"] is not None and config.data.task == "regression":
        raise ConfigError(
            f"`{place}.kept` sets parameters to zero, but in a regression the logarithm of the noise is one\n"
            "leave it out"
        )
    if settings.replicas > 1:
        raise ConfigError(
            f"`{place}` freezes other parameters in every training, but `{section}.replicas` has "
            f"{settings.replicas} side by side\nset {section}.replicas to 1"
        )
    return args


def check_amounts(config: Config, section: Section, total: int | None, steps: int) -> None:
    """Refuse numbers of parameters and steps that there are not, before any trial.

    Args:
        config: The configuration.
        section: Whose `selection`; without one nothing happens.
        total: Parameters that it chooses from, at most; None where nobody knows.
        steps: That are planned.

    Raises:
        ConfigError: Names the section.
    """
    chosen = selective(config, 0) if section == "retrain" else selective_search(config, 0, 1)
    if chosen is None:
        return
    try:
        chosen.plan(total, steps, exact=False)
    except ConfigError as error:
        raise ConfigError(f"`{section}.selection` does not fit: {error}") from error


def _check_search(config: Config, args: dict[str, Any]) -> None:
    if unknown := [name for name in _CACHE if name in args]:
        raise ConfigError(
            f"`search.selection` keeps no outputs of layers, but it has `{unknown[0]}`\nremove it; a retraining can"
            " have it"
        )
    measured = "auto" if args["active"] == "auto" else args["criterion"]
    if measured in ("auto", "gain_per_flop"):
        raise ConfigError(
            f"`search.selection` cannot have {measured!r}, which measures layers in their passes, and a supernet has "
            "passes of its own\ngive a number or a share as `active`, and gain, say, as `criterion`"
        )
    if config.strategy.args.get("weight_hypernet", "constant") != "constant":
        raise ConfigError(
            "`search.selection` chooses among weights, but with `strategy.args.weight_hypernet` these are functions of "
            "lambda, whose parameters are no single weights\nleave one of them out"
        )
    if args["kept"] is not None and config.strategy.args.get("weights") == "variational":
        raise ConfigError(
            "`search.selection.kept` sets parameters to zero, but of Gaussian weights half are logarithms of standard "
            "deviations\nleave it out, and prune by relative density what the search gives"
        )
    if config.strategy.args.get("keep_options"):
        raise ConfigError(
            "`search.selection` may leave nothing but weights of options that `strategy.args.keep_options` drops\n"
            "leave one of them out"
        )
    for name in ("cuda_graphs", "compile"):
        if config.strategy.args.get(name):
            raise ConfigError(
                f"`search.selection` changes what has a gradient, but with `strategy.args.{name}` passes are as they "
                "were at first\nleave one of them out"
            )


def freeze_report_of(trainer: pl.Trainer) -> dict[str, Any]:
    """What a selective training saved, under "selection"; empty where there was none, or nothing was chosen."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    chosen = [one for one in callbacks if isinstance(one, SelectiveOptimization) and one.has_ended]
    return {"selection": chosen[0].freeze_report()} if chosen else {}


def selective(config: Config, seed: int) -> SelectiveOptimization | None:
    """The callback of a retraining; None without `retrain.selection`."""
    args = selection_arguments(config, "retrain")
    if args is None:
        return None
    # Of images that are augmented nothing can be kept, and "auto" must know.
    args["cache"] = args["cache"] and augmentation(config.retrain) is None
    return SelectiveOptimization(**args, batch_size=config.retrain.batch_size, seed=seed)


def selective_search(config: Config, seed: int, batches: int) -> SelectiveSearch | None:
    """The callback of a search; None without `search.selection`.

    Args:
        config: The configuration.
        seed: Of random choices.
        batches: Of `search.batch_size` objects, that a step of the weights takes.
    """
    args = selection_arguments(config, "search")
    return None if args is None else SelectiveSearch(**args, batch_size=batches * config.search.batch_size, seed=seed)
