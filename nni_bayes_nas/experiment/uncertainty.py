"""How sure classifiers are, and how right they are to be so: scores of probabilities, single ones and ensembles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from nni_bayes_nas.errors import ConfigError


def ensemble(log_probs: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Log-probabilities of the mixture sum_k w_k p_k, `(n, classes)`.

    Args:
        log_probs: Of the members, `(n, classes)` each.
        weights: Of the members, normalized here; None: equal ones.

    Raises:
        ConfigError: No member, or weights that are negative, or as many as do not fit.
    """
    if not log_probs:
        raise ConfigError("an ensemble needs at least one member, got none.")
    given = list(weights) if weights is not None else [1.0] * len(log_probs)
    if len(given) != len(log_probs) or not all(w >= 0 for w in given) or not sum(given) > 0:
        raise ConfigError(f"an ensemble of {len(log_probs)} needs as many weights, at least 0, got {given}.")
    stacked = torch.stack([p.double() for p in log_probs])
    w = torch.tensor(given, dtype=torch.float64, device=stacked.device)
    return torch.logsumexp(stacked + (w / w.sum()).log()[:, None, None], 0)


def scores(log_probs: Tensor, y: Tensor, bins: int = 15) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score of probabilities.

    Args:
        log_probs: `(n, classes)`.
        y: Classes, `(n,)`.
        bins: Of the expected calibration error, of equal width (Guo et al., 2017, arXiv 1706.04599).

    Returns:
        "accuracy"; "nll", mean -log p(y), in nats; "ece", mean over the objects of |confidence - accuracy| in their
        bin; "brier", mean squared distance of the probabilities to the class, in [0, 2] (Brier, 1950).
    """
    log_probs = log_probs.double().log_softmax(-1)
    probs = log_probs.exp()
    classes = probs.shape[-1]
    one_hot = torch.nn.functional.one_hot(y, classes).double()
    ece = multiclass_calibration_error(probs.float(), y, num_classes=classes, n_bins=bins, norm="l1")
    return {
        "accuracy": float((probs.argmax(-1) == y).double().mean()),
        "nll": float(-log_probs.gather(-1, y[:, None]).mean()),
        "ece": float(ece),
        "brier": float((probs - one_hot).square().sum(-1).mean()),
    }
