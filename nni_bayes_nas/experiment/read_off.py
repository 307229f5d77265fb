"""The network of a compression at any lambda and any share of its weights, from what its trial has left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nni_bayes_nas.compression.curve import accuracy_pruning_curve
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.compress import build_model
from nni_bayes_nas.experiment.compressed import Compressed
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.experiment.pruned import calibration
from nni_bayes_nas.variants import varied


def read_off(found: Compressed) -> nn.Module:
    """The network of the means at a lambda, pruned; no step of an optimizer is taken.

    Running statistics of batch normalization are those of the training data of the configuration, which are loaded.
    Of a search the architecture is that of the posterior mean at lambda.

    Raises:
        ConfigError: Lambda lies outside the trained range.
    """
    config = varied(found.config, found.changes)
    data, settings = load_data(config.data), config.compress
    state = torch.load(found.directory / "model.pt", map_location="cpu", weights_only=True)
    gaussian = _of_a_search if found.row["hypernet"] == "joint" else _of_a_training
    inputs = calibration(data, torch.device("cpu"))
    network = gaussian(config, data, found, state, inputs)
    kept: list[nn.Module] = []
    accuracy_pruning_curve(
        network.eval(),
        [found.point["fraction"]],
        lambda pruned: {},
        scope=settings.scope,
        structured=settings.structured,
        calibration=inputs,
        keep=lambda row, pruned: kept.append(pruned),
    )
    return kept[0]


def _of_a_training(config: Any, data: DataSplits, found: Compressed, state: Any, inputs: Any) -> nn.Module:
    model = build_model(config, data, found.row)
    model.load_state_dict(state)
    return model.materialize(found.lam, inputs)


def _of_a_search(config: Any, data: DataSplits, found: Compressed, state: Any, inputs: Any) -> nn.Module:
    seed = int(found.row["seed"])
    strategy = build_strategy(config, data, seed)
    strategy.restore(build_space(config, data, seed), state)
    network: nn.Module = strategy.materialize(found.lam, found.choices)
    return network
