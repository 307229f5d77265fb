"""What a finished search knows without another optimizer step: accuracies with its own weights, and prices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nni_bayes_nas.experiment.data import BATCH_OF_FIRST, first_batches
from nni_bayes_nas.experiment.evaluator import SupervisedModule
from nni_bayes_nas.layers.normalization import batch_statistics, recalibrated

# Objects of the calibration and of the evaluation: enough for a mean and a variance per channel, and for a standard
# error of one point of accuracy. A mixture costs what all operations cost, and is looked at on fewer.
_CALIBRATION, _EVALUATION = 1024, 2000
_CALIBRATION_OF_MIXTURE, _EVALUATION_OF_MIXTURE = 512, 1000
_PRICED = 512
_RELATIVE_STEP = 0.01
_NO_SLOPE, _ROUNDING = 1e-100, 1e-5


class SharedWeights:
    """A finished supernet, looked at: mixtures and single architectures with the weights of the search.

    Args:
        strategy: The strategy that has searched.
        calibration: Training data of the weight step; the first 1,024 objects (512 for mixtures) recalibrate the
            normalization.
        epochs: After which the search ended by itself; None: all of them.
        validation: Validation data; the first 2,000 objects (1,000 for mixtures) are used.
    """

    def __init__(
        self, strategy: Any, calibration: TensorDataset, validation: TensorDataset, epochs: int | None = None
    ) -> None:
        search = strategy.oneshot_module
        self.strategy, self.structure, self.binding = strategy, strategy.structure, search.binding
        # As in the last step, which a search that was resumed at its end has not taken again.
        self.temperature, progress = search.final_temperature, 1.0
        if epochs is not None:
            search.current_step = epochs * search.steps_per_epoch - 1
            self.temperature, progress = search.temperature(search.final_temperature), search.progress
        self.binding.auxiliary = self.binding.guards.auxiliary_at(progress)
        self.module: SupervisedModule = search.training_module
        self.network: nn.Module = self.module.model
        device = self.structure.reference.device
        self.calibration = [x for x, _ in first_batches(calibration, _CALIBRATION, device)]
        self.validation = first_batches(validation, _EVALUATION, device)

    @contextmanager
    def alone(self, choices: Mapping[str, Any]) -> Iterator[nn.Module]:
        """One architecture with the weights of the search, normalization recalibrated: a network inside the block.

        Equal to NNI's weight-preserving freeze of the supernet, which shares the same modules; but where operations see
        a part of the channels, which they do here too.
        """
        with (
            self.binding.only(choices, self.structure.reference),
            recalibrated(self.network, self.network, self.calibration),
        ):
            yield self.network

    def one_hot(self, choices: Mapping[str, Any]) -> dict[str, float]:
        """Validation terms of one architecture with the weights of the search, normalization recalibrated."""
        with self.alone(choices) as network:
            return measure(self.module, network, self.validation)

    def mixture(self, lam: float | None) -> dict[str, float]:
        """Validation terms of the mixture at lambda, at the temperature at which the search ended."""
        with torch.no_grad():
            return self.mixed(self.structure.mean(lam, self.temperature))

    def mixed(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Validation terms of the supernet with mixing weights."""
        self.binding.weights = weights
        calibration, validation = (
            _CALIBRATION_OF_MIXTURE // BATCH_OF_FIRST,
            -(-_EVALUATION_OF_MIXTURE // BATCH_OF_FIRST),
        )
        with recalibrated(self.network, self.network, self.calibration[:calibration]):
            return measure(self.module, self.network, self.validation[:validation])

    def price(self, lam: float | None) -> float | None:
        """The implied price -dL_val / dE[cost] along the family at lambda, in nats per unit of normalized cost.

        How much validation loss of the mixture a unit of cost saves where lambda stands. Under complexity "penalty" a
        search that has converged balances it with lambda where the size moves with lambda; where the size stays, at an
        end or on a plateau, it says what the nearest other network would save. Both derivatives are taken along the
        direction in which the logits move with lambda. None where the expected cost does not depend on lambda.
        """
        axis, structure = self.strategy.axis, self.structure
        if axis is None:
            return None
        low, high = axis.domain
        u, step = float(structure.position(lam)), _RELATIVE_STEP * (high - low)
        with torch.no_grad():
            ends = structure.reference.new_tensor([max(low, u - step), min(high, u + step)])
            before, after = structure.logits(ends).double()
            direction = after - before
            # Double precision: where one option has nearly all the weight, both slopes are tiny, not their ratio.
            flat = structure.logits(structure.position(lam)).double()
        if float(direction.abs().max()) <= _ROUNDING * float(flat.abs().max()):
            return None
        flat.requires_grad_(True)
        cheapest, dearest = self.strategy.cost_bounds
        expected = structure.expected_of(self.strategy.cost, flat, self.temperature) / (dearest - cheapest)
        cost_slope = torch.autograd.grad(expected, flat)[0] @ direction
        if not float(cost_slope.abs()) > _NO_SLOPE:
            return None
        gradient = torch.zeros_like(flat)
        with recalibrated(self.network, self.network, []), batch_statistics(self.network):
            priced = self.validation[: _PRICED // BATCH_OF_FIRST]
            for x, y in priced:
                weights = structure.weights_of(flat, self.temperature)
                self.binding.weights = {label: w.to(structure.reference) for label, w in weights.items()}
                loss = self.module.loss(self.network(x), y)
                gradient += torch.autograd.grad(loss, flat)[0] / len(priced)
        return float(-(gradient @ direction) / cost_slope)


def measure(
    module: SupervisedModule, forward: Callable[[Tensor], Tensor], loader: Iterable[list[Tensor]]
) -> dict[str, float]:
    """The validation terms of a network, as `validation_step` logs them, without a trainer and without gradients."""
    metrics: Any = module.metrics["val"]
    metrics.reset()
    sums: dict[str, float] = {}
    n = 0
    with torch.no_grad():
        for x, y in loader:
            outputs = forward(x)
            metrics.update(*module.collect(outputs, y))
            for name, value in module.means(outputs, y).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(y)
            n += len(y)
    terms = {**{name: total / n for name, total in sums.items()}, **{k: float(v) for k, v in metrics.compute().items()}}
    metrics.reset()
    return terms
