"""Hypernetworks of weights over lambda, and direct runs at single lambda beside them."""

from collections.abc import Sequence
from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.plan import Ledger, Result, TrialSpec


class Compression:
    """The plan of the command ``compress``.

    Trials: ``compress-piecewise_linear-seed0`` for every kind of hypernetwork and repeat,
    ``compress-direct-lam1-seed0`` for every lambda that is trained on its own; with several priors, for each of them
    ``compress-piecewise_linear-ard-seed0``.
    """

    def __init__(self, config: Config) -> None:
        settings = config.compress
        seeds = range(config.seed, config.seed + settings.repeats)
        runs: list[tuple[str, dict[str, Any]]] = [(kind, {"hypernet": kind, "lambda": None}) for kind in settings.kinds]
        direct = {_name(lam, settings.direct): lam for lam in settings.direct}
        runs += [(f"direct-lam{name}", {"hypernet": "constant", "lambda": lam}) for name, lam in direct.items()]
        several = len(settings.priors) > 1
        self.specs = [
            TrialSpec(
                f"compress-{name}-{prior}-seed{seed}" if several else f"compress-{name}-seed{seed}",
                "compress",
                {**parameters, "prior": prior, "seed": seed},
            )
            for name, parameters in runs
            for prior in settings.priors
            for seed in seeds
        ]

    def trials(self, results: dict[str, Result], failed: set[str]) -> list[TrialSpec]:
        """All of them: none waits for another."""
        return self.specs

    def verdict(self, results: dict[str, Result], failed: set[str]) -> str | None:
        """The plan cannot finish when every trial failed."""
        return "every compression failed" if all(spec.name in failed for spec in self.specs) else None

    def summary(self, results: dict[str, Result], failed: set[str], ledger: Ledger) -> dict[str, Any]:
        """Under "compression" one row for every trial that is done."""
        rows = []
        for spec in self.specs:
            if (result := results.get(spec.name)) is not None:
                row = {"name": spec.name, "trial": ledger.entries[spec.name]["job"], **spec.parameters}
                row["rows"] = result["compression"]
                rows.append({**row, **{key: result[key] for key in ("training_seconds", "seconds")}})
        return {"searches": [], "architectures": [], "curves": {}, "compression": rows}


def _name(lam: float, every: Sequence[float]) -> str:
    """Short where that is no other's."""
    short = f"{lam:g}"
    return short if sum(f"{one:g}" == short for one in every) == 1 else repr(lam)
