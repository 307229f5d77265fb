"""Section `selection` of a training: which parameters go on after some steps."""

from __future__ import annotations

from typing import Any

from nni_bayes_nas import registry
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim.selective import SelectiveOptimization

_GIVEN = ("batch_size", "seed")


def selection_arguments(config: Config) -> dict[str, Any] | None:
    """`retrain.selection` with the defaults of its callback; None without one.

    Raises:
        ConfigError: What the callback does not know, or cannot have; retrainings side by side.
    """
    if config.retrain.selection is None:
        return None
    args = registry.fill_args(SelectiveOptimization, config.retrain.selection, "retrain.selection", given=_GIVEN)
    SelectiveOptimization(**args)
    if config.retrain.replicas > 1:
        raise ConfigError(
            "`retrain.selection` freezes other parameters in every retraining, but `retrain.replicas` trains "
            f"{config.retrain.replicas} side by side\nset retrain.replicas to 1"
        )
    return args


def selective(config: Config, seed: int) -> SelectiveOptimization | None:
    """The callback of a retraining; None without `retrain.selection`."""
    args = selection_arguments(config)
    return None if args is None else SelectiveOptimization(**args, batch_size=config.retrain.batch_size, seed=seed)
