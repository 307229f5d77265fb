"""The validation of a search: at positions of lambda, by the mean mixing weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.errors import NumericsError
from nni_bayes_nas.layers.normalization import batch_statistics
from nni_bayes_nas.precision import Autocast

from .step_options import StepOptions
from .structure import Structure
from .structure_loss import NormalizedCost
from .supernet import Binding


class SearchValidation:
    """Hooks of Lightning for the search module; what they read is `BilevelModule`'s."""

    structure: Structure
    binding: Binding
    costs: NormalizedCost
    step_options: StepOptions
    validation_points: tuple[float, ...]
    training_module: Any
    device: Any
    trainer: Any
    current_epoch: int
    temperature: Any
    log_dict: Any

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The evaluator's validation at one position of lambda per data loader, with the mean mixing weights."""
        temperature = self.temperature(self.step_options.mixing_temperature)
        with Autocast.now(self.device.type).left():
            self.binding.weights = self.structure.draw(self.validation_positions()[dataloader_idx], temperature)
        with batch_statistics(self.training_module):
            return self.training_module.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log entropy, expected cost at both ends of lambda, and the evaluator's metrics averaged over positions."""
        with torch.no_grad():
            lams = self.end_lambdas()
            ends = [self.structure.position(lam) for lam in (lams[0], lams[-1])]
            costs = [self.structure.expected_cost(self.costs.cost, u) for u in ends]
            entropies = [self.structure.entropy(lam) for lam in lams]
            terms = {
                "entropy": torch.stack(entropies).mean(),
                "expected_cost_min_lambda": costs[0],
                "expected_cost_max_lambda": costs[1],
            }
        for name, value in terms.items():
            if not bool(torch.isfinite(value)):
                raise NumericsError(
                    f"every term must be finite, but `{name}` is {value.item()} in epoch {self.current_epoch}."
                )
        # One loader per position makes Lightning log `val_acc/dataloader_idx_0`, ..., but NNI's evaluators and
        # checkpoint callbacks look `val_acc` up.
        by_name: dict[str, list[Tensor]] = {}
        for name, value in self.trainer.callback_metrics.items():
            if "/dataloader_idx_" in name:
                by_name.setdefault(name.split("/dataloader_idx_")[0], []).append(value)
        self.log_dict({**terms, **{name: torch.stack(values).mean() for name, values in by_name.items()}})

    def validation_positions(self) -> list[Tensor]:
        """Positions of lambda at which the validation metrics are taken."""
        points = self.structure.reference.new_tensor(self.validation_points)
        axis = self.structure.axis
        return list((points if axis is None else axis.positions(points)).unbind())

    def named_weights(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean probabilities at the positions of the validation: fraction of the range -> label -> option -> weight."""
        with torch.no_grad():
            return {
                ("mean" if self.structure.axis is None else str(point)): self.structure.named_probs(u)
                for point, u in zip(self.validation_points, self.validation_positions(), strict=True)
            }

    def end_lambdas(self) -> list[float | None]:
        """The ends of the range of lambda, or [None]."""
        axis = self.structure.axis
        return [None] if axis is None else [axis.low, axis.high]
