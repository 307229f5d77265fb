"""The evidence lower bound as a loss: the one place where divergences are divided by the number of objects.

log p(D | A) >= E_q log p(D | w, Gamma, A) - KL(q(Gamma) || p(Gamma)) - E_q(Gamma) KL(q(w | Gamma) || p(w | Gamma)).

Divided by the m objects of the training set, and with its sign changed, it is what a mini-batch estimates: the mean
loss of its objects, in nats, plus KL / m. A weight of 1 gives the bound itself; lambda > 1 is a posterior as of m /
lambda objects, lambda < 1 a cold one.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nni_bayes_nas.errors import ConfigError


def divergence_terms(
    divergences: Mapping[str, Tensor], n_objects: int, weights: Mapping[str, float] | None = None, warmth: float = 1.0
) -> dict[str, Tensor]:
    """Terms of the loss per object: warmth * weight * KL / m, by name; to be added by `objective.total`.

    Args:
        divergences: Sums in nats, `()` each.
        n_objects: m, the size of the training set, not of the batch.
        weights: Factors by name, >= 0; one that is not named is 1.
        warmth: From 0 to 1 in the warm-up, see `warmth`.

    Raises:
        ConfigError: A weight is negative, or m is not positive.
    """
    if n_objects < 1:
        raise ConfigError(f"n_objects must be the size of the training set, got {n_objects}; pass len(dataset).")
    weights = weights or {}
    for name, weight in weights.items():
        check_weight(name, weight)
    return {name: warmth * weights.get(name, 1.0) / n_objects * kl for name, kl in divergences.items()}


def check_weight(name: str, weight: float) -> None:
    """Raise ConfigError for the negative weight of a divergence."""
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"{name} weighs a divergence and must be at least 0, got {weight}; 1 gives the bound itself.")


def warmth(progress: float, until: float) -> float:
    """Share of the divergences that counts: from 0 up to 1, which it reaches when `until` of the training is over.

    Without it a posterior of many weights is its prior before the data have been seen (Bowman et al., 2016, arXiv
    1511.06349, section 3.1).

    Args:
        progress: Share of the training that is over, in [0, 1].
        until: In [0, 1]; 0 counts all from the first step on.
    """
    return 1.0 if progress >= until else progress / until
