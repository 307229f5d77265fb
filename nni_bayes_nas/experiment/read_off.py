"""The network of a compression at any lambda and any share of its weights, from what its trial has left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nni_bayes_nas.compression.curve import accuracy_pruning_curve
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.compress import build_model
from nni_bayes_nas.experiment.compressed import Compressed
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.experiment.pruned import calibration
from nni_bayes_nas.layers.normalization import batch_norms, recalibrate
from nni_bayes_nas.variants import varied


def gaussian_network(found: Compressed, data: DataSplits) -> nn.Module:
    """The network at a lambda, with Gaussian layers, before its batch normalization is that of the lambda.

    Of a search the architecture is that of the posterior mean at lambda.

    Args:
        found: No point of a curve.
        data: Of the training; objects are not needed.
    """
    config, seed = varied(found.config, found.changes), int(found.row["seed"])
    state = torch.load(found.directory / "model.pt", map_location="cpu", weights_only=True)
    if found.row["hypernet"] != "joint":
        model = build_model(config, data, found.row)
        model.load_state_dict(state)
        return model.materialize(found.lam)
    strategy = build_strategy(config, data, seed)
    strategy.restore(build_space(config, data, seed), state)
    network: nn.Module = strategy.materialize(found.lam, found.choices)
    return network


def read_off(network: nn.Module, found: Compressed) -> nn.Module:
    """The network of the means, pruned; no step of an optimizer is taken.

    Running statistics of batch normalization, where there is some, are those of the training data of the configuration,
    which are loaded then.

    Args:
        network: Of `gaussian_network`.
        found: What is wanted.

    Raises:
        ConfigError: The configuration has no such data any more.
        DataError: They are not there.
    """
    settings, inputs = found.config.compress, list[Tensor]()
    if batch_norms(network):
        inputs = calibration(load_data(varied(found.config, found.changes).data), torch.device("cpu"))
    recalibrate(network, inputs)
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
