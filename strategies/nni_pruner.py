"""A pruner for NNI's compression: weights go by their relative density instead of their magnitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nni.compression.base.setting import PruningSetting
from nni.compression.pruning import LevelPruner
from nni.compression.pruning.tools import norm_metrics
from torch import Tensor, nn

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.compression.pruning import apply_masks
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.variational import VariationalConv2d, VariationalLinear, variational_layers

for _kind in (VariationalLinear, VariationalConv2d):  # NNI knows types of layers by their names
    PruningSetting.register(_kind.__name__, PruningSetting.default_setting)


class RelativeDensityPruner(LevelPruner):  # type: ignore[misc]
    """NNI's `LevelPruner`, by (mu / sigma)^2: exp(-mu^2 / (2 sigma^2)) is the density at zero over that at the mode.

    NNI's masks are of the means: to a Gaussian layer in training what is masked still has its noise, and its share of
    the divergence. `pruned` leaves both out, as `compression.prune` does.

    ::

        network = model.materialize(lam=1.0)
        config = [{"op_types": ["VariationalLinear"], "sparse_ratio": 0.9}]
        pruned = RelativeDensityPruner(network, config).pruned()

    Args:
        model: With Gaussian layers; or a plain network of their means, with `sd`.
        config_list: NNI's; layers are those of its "op_types" and "op_names".
        sd: Standard deviations of the weights by layer; None reads them off the Gaussian layers.
        kwargs: Of `LevelPruner`.

    Raises:
        ConfigError: A layer that is to be pruned has no standard deviations, or others of another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        config_list: Sequence[dict[str, Any]],
        sd: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        self._layers = variational_layers(model) if sd is None else {}
        self._given = dict(sd or {})
        super().__init__(model, list(config_list), **kwargs)
        for name, targets in self._target_spaces.items():
            deviations = self._deviations()
            known, shape = deviations.get(name), targets["weight"].target.shape
            if known is None or known.shape != shape:
                self.unwrap_model()
                have = {key: tuple(value.shape) for key, value in deviations.items()}
                raise ConfigError(
                    f"sd must hold the standard deviations of every layer that is pruned, but {name!r} has weights of "
                    f"shape {tuple(shape)}, and there are {have}; add it."
                )

    def pruned(self) -> nn.Module:
        """Compress the network, take NNI's wrappers off, and leave out what NNI masks: for certain, its noise too."""
        _, masks = self.compress()
        self.unwrap_model()
        network: nn.Module = self.bound_model
        apply_masks(network, {name: targets["weight"] for name, targets in masks.items()})
        for name, targets in masks.items():
            bias = network.get_submodule(name).bias
            if isinstance(bias, Tensor) and targets.get("bias") is not None:
                bias.data *= targets["bias"]  # of rows that go as a whole NNI masks it too
        return network

    def _deviations(self) -> dict[str, Tensor]:
        # Of the moment: NNI prunes while a network is trained, too.
        return {**self._given, **{name: normal.sd(layer.rho).detach() for name, layer in self._layers.items()}}

    def _calculate_metrics(self, data: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        sd = self._deviations()
        squares = {
            name: {target: (mean.detach() / sd[name]).square() for target, mean in targets.items()}
            for name, targets in data.items()
        }
        # Of a granularity, "out_channel" say, their sums: of a block a product of densities.
        found: dict[str, dict[str, Tensor]] = norm_metrics(p=1, data=squares, target_spaces=self._target_spaces)
        return found
