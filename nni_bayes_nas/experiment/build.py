"""From a configuration to space, strategy and data; everything that can be refused is refused here."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import torch
from torch import nn

from nni_bayes_nas import registry
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, DataError, NniBayesNasError, SpaceError
from nni_bayes_nas.experiment.data import DataSplits, data_arguments, halves, load_data

with warnings.catch_warnings():
    # nni/nas/nn/pytorch/layers.py (v3.0) warns about classes that torch has gained since; none of them is a layer.
    warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module", category=RuntimeWarning)
    import nni.nas.nn.pytorch
    import nni.nas.strategy

_FROM_DATA = ("in_channels", "num_classes")
_FROM_SEARCH = ("warmup_epochs", "gradient_clip_val", "seed", "input_shape")


def space_arguments(config: Config, data: DataSplits) -> tuple[Any, dict[str, Any]]:
    """The class of the space and all its arguments; channels and classes come from the data unless they are given."""
    cls = registry.resolve("search space", config.space.name, registry.SEARCH_SPACES)
    args = registry.fill_args(cls, config.space.args, "space.args", given=_FROM_DATA)
    accepted = registry.accepted_names(cls)
    from_data = {"in_channels": data.shape[0], "num_classes": data.num_classes}
    return cls, {**{k: v for k, v in from_data.items() if k in accepted}, **args}


def build_space(config: Config, data: DataSplits, seed: int) -> Any:
    """A fresh instance of the model space; its initial weights depend on the seed alone."""
    cls, args = space_arguments(config, data)
    torch.manual_seed(seed)
    space = _call(cls, args, SpaceError, f"space `{config.space.name}`")
    if not isinstance(space, nni.nas.nn.pytorch.ModelSpace):
        raise SpaceError(
            f"space.name must mean a subclass of nni.nas.nn.pytorch.ModelSpace, but {config.space.name!r} gives "
            f"{type(space).__name__}; derive your class from ModelSpace."
        )
    return space


def build_strategy(config: Config, data: DataSplits, seed: int) -> Any:
    """The strategy; seed, warm-up, clipping and input shape come from the configuration's other sections."""
    cls = registry.resolve("strategy", config.strategy.name, registry.STRATEGIES)
    args = registry.fill_args(cls, config.strategy.args, "strategy.args", given=_FROM_SEARCH)
    accepted = registry.accepted_names(cls)
    given = {
        "warmup_epochs": config.search.warmup_epochs,
        "gradient_clip_val": config.search.gradient_clip,
        "seed": seed,
        "input_shape": data.shape,
    }
    if clash := [name for name in _FROM_SEARCH if name in args]:
        raise ConfigError(
            f"strategy.args may not hold `{clash[0]}`: it comes from other sections; "
            "set search.warmup_epochs, search.gradient_clip, seed or the data instead."
        )
    arguments = {**{k: v for k, v in given.items() if k in accepted}, **args}
    strategy = _call(cls, arguments, ConfigError, f"strategy `{config.strategy.name}`")
    missing = [
        name for name in ("mutate_model", "measure", "structure", "export", "lambdas") if not _has(strategy, name)
    ]
    if missing:
        raise ConfigError(
            f"strategy.name must mean a strategy that derives from nni_bayes_nas's DifferentiableStrategy, but "
            f"{config.strategy.name!r} lacks {missing}; NNI's own strategies run through NasExperiment."
        )
    return strategy


def _call(function: Any, args: dict[str, Any], error: type[NniBayesNasError], what: str) -> Any:
    """Call what the user may have written; whatever it raises becomes an error that says so."""
    try:
        return function(**args)
    except NniBayesNasError:
        raise
    except Exception as cause:
        said = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
        raise error(f"{what} must accept its arguments, but calling it failed: {said}") from cause


def _has(strategy: Any, name: str) -> bool:
    return hasattr(type(strategy), name)


def effective(config: Config) -> Config:
    """The configuration with the defaults of the space's, the strategy's and the data's arguments filled in."""
    space = registry.resolve("search space", config.space.name, registry.SEARCH_SPACES)
    strategy = registry.resolve("strategy", config.strategy.name, registry.STRATEGIES)
    return dataclasses.replace(
        config,
        space=dataclasses.replace(
            config.space, args=registry.fill_args(space, config.space.args, "space.args", given=_FROM_DATA)
        ),
        strategy=dataclasses.replace(
            config.strategy,
            args=registry.fill_args(strategy, config.strategy.args, "strategy.args", given=_FROM_SEARCH),
        ),
        data=dataclasses.replace(config.data, args=data_arguments(config.data)[1]),
    )


def validate(config: Config) -> Config:
    """Build everything once and run one forward pass; returns the effective configuration.

    Raises:
        ConfigError: The user's mistake: names, arguments, choices that cannot be relaxed, data that do not fit.
    """
    config = effective(config)
    data = load_data(config.data)
    space = build_space(config, data, config.seed)
    strategy = build_strategy(config, data, config.seed)
    halves(data.train, config.search.structure_fraction, config.seed)
    supernet = strategy.mutate_model(copy.deepcopy(space))
    x, _ = data.train[:2]
    logits = _forward(space, x, data)
    if logits.ndim != 2 or logits.shape[1] != data.num_classes:
        raise DataError(
            f"the classes of the data must fit the space, but data `{config.data.name}` have {data.num_classes} "
            f"classes and the space gives {tuple(logits.shape[1:])} outputs; set space.args.num_classes."
        )
    strategy.measure(supernet, data.shape)
    return config


def _forward(space: nn.Module, x: torch.Tensor, data: DataSplits) -> torch.Tensor:
    space.eval()
    try:
        with torch.no_grad():
            logits: torch.Tensor = space(x)
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise DataError(
            f"the data must fit the space, but a forward pass of objects of shape {data.shape} failed: "
            f"{said}; check space.args.in_channels, the stem and the size of the images."
        ) from error
    return logits
