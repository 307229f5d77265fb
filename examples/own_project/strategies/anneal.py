"""A strategy of one's own: HyperDARTS whose structure learns faster at first."""

from typing import Any

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.strategies import HyperDARTS
from nni_bayes_nas.strategies.bilevel import BilevelModule


class AnnealedModule(BilevelModule):
    """The search module with a learning rate of the structure that falls by `factor` from epoch to epoch."""

    factor = 1.0

    def on_train_epoch_start(self) -> None:
        """Set the learning rate from the epoch alone, so that a resumed search equals an undisturbed one."""
        super().on_train_epoch_start()
        optimizer: Any = self.architecture_optimizers()
        for group in optimizer.param_groups:
            group["lr"] = self.arc_learning_rate * self.factor**self.trainer.current_epoch


class AnnealedHyperDARTS(HyperDARTS):
    """HyperDARTS with an annealed structure step.

    The last four arguments are filled in from the configuration's other sections, if a strategy has them by name.

    Args:
        factor: By which the structure's learning rate falls every epoch, in (0, 1].
        arc_learning_rate: That of the first epoch.
        warmup_epochs: `search.warmup_epochs`.
        gradient_clip_val: `search.gradient_clip`.
        seed: Of the search.
        input_shape: Shape of one object of the data.
    """

    module_class = AnnealedModule

    def __init__(
        self,
        *,
        factor: float = 0.95,
        arc_learning_rate: float = 0.05,
        warmup_epochs: int = 1,
        gradient_clip_val: float | None = 5.0,
        seed: int = 0,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            arc_learning_rate=arc_learning_rate,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            seed=seed,
            input_shape=input_shape,
        )
        if not 0 < factor <= 1:
            raise ConfigError(f"factor must lie in (0, 1], got {factor}.")
        self.factor = factor

    def configure_oneshot_module(self, training_module: Any) -> BilevelModule:
        """NNI's seam for the search module."""
        module = super().configure_oneshot_module(training_module)
        module.factor = self.factor
        return module
