"""What the options of a selective optimization must be, checked before any step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import nn

from nni_bayes_nas.coercion import require
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim.selection import GRANULARITIES, KEEPING, check_criterion

Gradients = Literal["steps", "optimizer"]
# Optimizers whose step of an entry depends on others.
_COUPLED = ("lbfgs", "adafactor", "muon", "shampoo", "lars", "lamb", "soap", "sam", "novograd", "prodigy")
# Those whose state is there from the beginning, and is not an average of what comes.
_WHOLE = ("adagrad", "rprop")


def check_options(
    active: Any,
    criterion: str,
    granularity: str,
    scope: str,
    start: Any,
    window: int,
    gradients: str,
    thaw_every: int | None,
    probe: int,
    kept: Any,
    keep_by: str,
    zero_at: str,
) -> None:
    """Refuse values that cannot be; arguments are those of `SelectiveOptimization`.

    Raises:
        ConfigError: With rule, value and remedy.
    """
    check_criterion(criterion)
    for name, value, known in (
        ("granularity", granularity, GRANULARITIES),
        ("scope", scope, ("global", "layer")),
        ("keep_by", keep_by, tuple(KEEPING)),
        ("zero_at", zero_at, ("selection", "end")),
        ("gradients", gradients, get_args(Gradients)),
    ):
        require(value in known, name, f"must be one of {', '.join(known)}", value, f"{known[0]} say")
    whole = active != "auto" or (granularity == "prefix" and criterion not in ("random", "gain_per_flop"))
    rule = "auto needs granularity prefix and a criterion that measures"
    require(whole, "active", rule, f"{granularity} and {criterion}", "gain, say")
    inside = scope == "global" or granularity in ("weight", "neuron")
    require(inside, "scope", "must be global where whole layers are frozen", scope, "or granularity weight or neuron")
    share_of_all = 1.0 if active == "auto" else active
    for name, amount in (("active", share_of_all), ("kept", 1.0 if kept is None else kept), ("start", start)):
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        require(number, name, "must be a number, or a float in [0, 1], a share", amount, "0.2 say")
        share = not isinstance(amount, float) or amount <= 1
        require(amount >= 0 and share, name, "must be a number, or a float in [0, 1], a share", amount, "0.2 say")
    for name, least, n in (("window", 2, window), ("probe", 2, probe), ("thaw_every", 1, thaw_every or 1)):
        whole = isinstance(n, int) and not isinstance(n, bool) and n >= least
        require(whole, name, f"must be a whole number of at least {least} steps", n, "100 say")
    moments = gradients == "steps" or criterion in ("snr", "preconditioner", "gain", "gain_per_flop")
    rule = "must be snr, preconditioner, gain or gain_per_flop by the optimizer's own moments of gradients"
    require(moments, "criterion", rule, criterion, "gain say")
    once = gradients == "steps" or thaw_every is None
    require(
        once, "gradients", "must be steps where it is chosen anew: what is frozen has no moments", gradients, "steps"
    )
    longer = thaw_every is None or thaw_every > probe
    measures = thaw_every is None or criterion != "effective_perturbation"
    require(measures, "criterion", "must be one of gradients where it is chosen anew", criterion, "gain say")
    require(longer, "thaw_every", f"must be more than the {probe} steps of a probe", thaw_every, "raise it")


def check_training(
    trainer: pl.Trainer, optimizers: Sequence[torch.optim.Optimizer], *, thaws: bool, late: int = 0
) -> None:
    """Refuse several devices, whose gradients are not those of a step; half precision, of whose steps some are skipped;
    callbacks that write averages into parameters; and optimizers whose steps of single entries cannot be left out.

    Args:
        trainer: Of the training.
        optimizers: Of what is chosen from.
        thaws: Whether something may move again later.
        late: Steps of the checkpoint from which it goes on, where the choice should have been before; else 0.

    Raises:
        ConfigError: With rule, value and remedy.
    """
    n, precision = trainer.world_size, str(trainer.precision)
    require(n == 1, "devices", "must be 1 with selective optimization", n, "start a training for each device")
    half = precision.startswith("16")
    require(not half, "precision", "must have no steps that are skipped as they overflow", precision, "bf16-mixed say")
    rule = f"must lie behind the {late} steps of the checkpoint, which has made no choice"
    require(late == 0, "start", rule, "fewer", "raise it")
    for callback in getattr(trainer, "callbacks", ()):
        if any("WeightAveraging" in kind.__name__ for kind in type(callback).__mro__):
            raise ConfigError(
                "selective optimization holds parameters where they are, got the callback "
                f"{type(callback).__name__}, which writes averages into them; leave one out."
            )
    network = getattr(trainer, "lightning_module", nn.Identity())
    for name, module in network.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.requires_grad:
            raise ConfigError(
                f"selective optimization needs gradients of all entries, but {name} has sparse=True; set it to False."
            )
    for optimizer in optimizers:
        names = [kind.__name__.lower() for kind in type(optimizer).__mro__]
        if any(name in _COUPLED or name.startswith("dadapt") for name in names):
            raise ConfigError(
                "selective optimization needs an optimizer that steps each entry by its own gradient, got "
                f"{type(optimizer).__name__}; take Adam or SGD."
            )
        if thaws and any(name in _WHOLE for name in names):
            raise ConfigError(
                "what is frozen loses its state in the optimizer, without which it cannot go on with "
                f"{type(optimizer).__name__}, got thaw_every; take Adam or SGD, or leave it out."
            )
