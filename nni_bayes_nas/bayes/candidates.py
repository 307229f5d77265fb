"""A posterior over a list of architectures: how probable it is of each that it is the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes.posterior import Weighted
from nni_bayes_nas.errors import ConfigError

_SUM_TOLERANCE = 0.01


class CandidatePosterior:
    """P(architecture is the best one) over candidates, and what is believed of each one's score.

    The posterior of a search knows the data through the supernet; this one has seen single architectures trained too,
    see `experiment.surrogate`. It has the methods of `ArchitecturePosterior` that a list can have.

    Args:
        choices: The candidates.
        probabilities: That each is the best; they sum to one.
        mean: Of its standardized score, larger is better; in the order of the candidates.
        sd: Of the same.

    Raises:
        ConfigError: Lists of different lengths or none, a candidate twice, or what are no probabilities.
    """

    def __init__(
        self,
        choices: Sequence[Mapping[str, Any]],
        probabilities: Sequence[float],
        mean: Sequence[float],
        sd: Sequence[float],
    ) -> None:
        if not choices or len({len(choices), len(probabilities), len(mean), len(sd)}) > 1:
            raise ConfigError(
                "candidates must have a probability, a mean and a standard deviation each, got "
                f"{len(choices)}, {len(probabilities)}, {len(mean)} and {len(sd)}."
            )
        total = math.fsum(probabilities)
        if not (min(probabilities) >= 0 and abs(total - 1) < _SUM_TOLERANCE):
            raise ConfigError(f"probabilities of candidates must sum to one, got {total} from {min(probabilities)} up.")
        self.choices = tuple(dict(one) for one in choices)
        self.probabilities = tuple(float(p) / total for p in probabilities)
        self.mean, self.sd = tuple(map(float, mean)), tuple(map(float, sd))
        self._place = {Architecture(one).key: i for i, one in enumerate(self.choices)}
        if len(self._place) < len(self.choices):
            raise ConfigError(f"candidates must differ, got {len(self.choices) - len(self._place)} twice.")

    def __len__(self) -> int:
        return len(self.choices)

    def log_prob(self, choices: Mapping[str, Any]) -> float:
        """Log-probability that an architecture is the best one, in nats; -inf for what is no candidate."""
        place = self._place.get(Architecture(choices).key)
        p = 0.0 if place is None else self.probabilities[place]
        return math.log(p) if p > 0 else -math.inf

    def entropy(self) -> float:
        """Of which one is the best, in nats; at most log(candidates)."""
        return -math.fsum(p * math.log(p) for p in self.probabilities if p > 0)

    def sample(self, n: int, generator: torch.Generator) -> list[dict[str, Any]]:
        """`n` independent draws; raises ConfigError for a number below 0."""
        if n < 0:
            raise ConfigError(f"n is a number of draws and must be at least 0, got {n}.")
        if n == 0:
            return []
        weights = torch.tensor(self.probabilities, dtype=torch.float64)
        return [dict(self.choices[int(i)]) for i in torch.multinomial(weights, n, True, generator=generator)]

    def top_k(self, k: int) -> list[Weighted]:
        """The k most probable candidates, the most probable first; of equal ones those of the larger mean.

        Raises:
            ConfigError: k is not positive, or above the number of candidates.
        """
        if not 1 <= k <= len(self):
            raise ConfigError(f"k must be from 1 to the number of candidates {len(self)}, got {k}.")
        order = sorted(range(len(self)), key=lambda i: (-self.probabilities[i], -self.mean[i], i))
        return [Weighted(dict(self.choices[i]), self.log_prob(self.choices[i])) for i in order[:k]]

    def inclusion(self) -> dict[str, dict[str, float]]:
        """Probability that the best one has an option, by label and option."""
        found: dict[str, dict[str, float]] = {}
        for one, p in zip(self.choices, self.probabilities, strict=True):
            for label, value in one.items():
                for option in value if isinstance(value, (list, tuple)) else [value]:
                    row = found.setdefault(label, {})
                    row[str(option)] = row.get(str(option), 0.0) + p
        return found


__all__ = ["CandidatePosterior"]
