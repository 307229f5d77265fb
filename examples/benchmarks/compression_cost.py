"""What a hypernetwork costs beside a direct run: blocks of steps, and looks at validation data, that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config

LAMBDAS_PER_STEP = (1, 2, 4)
_BLOCKS, _STEPS = 15, 20


def cost(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Seconds of a step, medians over blocks, and ratios of blocks of the same turn.

    Args:
        config: Of the hypernetwork; a direct run has it at one lambda.
        parameters: "seed".
        directory: Not used.
        report: Not used.

    Returns:
        "direct" and by the values of lambda in a step "hypernetwork", seconds; "ratios", by the same, of the
        hypernetwork's to as many direct steps; "validation", seconds of a look of a direct run, and of a hypernetwork
        with its three lambda; "steps" of an epoch, and "ratio_of_epochs", of a hypernetwork's with the configuration's
        lambda per step to a direct run's, looks included.
    """
    import torch

    from nni_bayes_nas.bayes import objective
    from nni_bayes_nas.compression.training import HyperVariationalModule
    from nni_bayes_nas.experiment.compress import build_model, module_options
    from nni_bayes_nas.experiment.data import batches, load_data
    from nni_bayes_nas.layers.variational import weight_noise

    seed, settings = int(parameters["seed"]), config.compress
    data = load_data(config.data)
    given = [
        batch for batch, _ in zip(batches(data.train, settings.batch_size, seed=seed), range(_STEPS), strict=False)
    ]

    def steps_of(hypernet: str, lam: float | None, n: int) -> Callable[[], float]:
        model = build_model(config, data, {"hypernet": hypernet, "lambda": lam, "prior": "ard", "seed": seed})
        options = module_options(replace(settings, lambdas_per_step=n, shared_until=0.0))
        module = HyperVariationalModule(model, n_objects=len(data.train), seed=seed, **options)
        optimizer, stream, at = module.made_optimizer(), cycle(given), iter(range(10**9))

        def block() -> float:
            began = time.perf_counter()
            for _ in range(len(given)):
                total = objective.total(module.terms(next(stream), next(at), 0.5))
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
            return (time.perf_counter() - began) / len(given)

        return block

    def look_of(hypernet: str, lam: float | None) -> Callable[[], float]:
        model = build_model(config, data, {"hypernet": hypernet, "lambda": lam, "prior": "ard", "seed": seed})
        lams = [lam] if model.axis is None else model.axis.grid(3)

        def look() -> float:
            began = time.perf_counter()
            with torch.no_grad(), weight_noise(model.network, False):
                found = [model.at(one) for one in lams]
                for x, _ in batches(data.val, 256, seed=None):
                    for at in found:
                        at(x)
            return time.perf_counter() - began

        return look

    arms: list[Callable[[], float]] = [steps_of("constant", 1.0, 1)]
    arms += [steps_of("piecewise_linear", None, n) for n in LAMBDAS_PER_STEP]
    arms += [look_of("constant", 1.0), look_of("piecewise_linear", None)]
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(_BLOCKS + 1):  # the first one warms up
        for i in range(len(arms)):
            which = (i + turn) % len(arms)
            taken = arms[which]()
            if turn:
                seconds[which].append(taken)
    direct, others = seconds[0], dict(zip(LAMBDAS_PER_STEP, seconds[1:-2], strict=True))
    looks = [statistics.median(values) for values in seconds[-2:]]
    steps = len(data.train) // settings.batch_size
    whole = [
        steps * statistics.median(own) + look
        for own, look in zip((direct, others[settings.lambdas_per_step]), looks, strict=True)
    ]
    return {
        "default": 0.0,
        "validation": looks,
        "steps": steps,
        "ratio_of_epochs": whole[1] / whole[0],
        "direct": statistics.median(direct),
        "hypernetwork": {str(n): statistics.median(values) for n, values in others.items()},
        "ratios": {
            str(n): statistics.median(a / (n * b) for a, b in zip(values, direct, strict=True))
            for n, values in others.items()
        },
    }
