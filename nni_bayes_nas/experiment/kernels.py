"""Covariances over architectures for scikit-learn's Gaussian processes; the last feature is the prior's opinion."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import RBF, Kernel


class Places(RBF):  # type: ignore[misc]
    """The radial kernel on all features but the last one: similar where architectures are."""

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """`(n, m)`; with the gradient in the logarithm of the length."""
        return super().__call__(X[:, :-1], None if Y is None else Y[:, :-1], eval_gradient)


class Effects(Kernel):  # type: ignore[misc]
    """variance * (options that two architectures share) / places: a sum of an effect of every option, each unknown.

    Args:
        variance: Of the sum; nothing is fitted.
        places: Options that an architecture has.
    """

    def __init__(self, variance: float, places: float) -> None:
        self.variance = variance
        self.places = places

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """`(n, m)`; there is no gradient, `(n, n, 0)`."""
        value = self.variance / self.places * X[:, :-1] @ (X if Y is None else Y)[:, :-1].T
        return (value, np.empty((len(X), len(X), 0))) if eval_gradient else value

    def diag(self, X: Any) -> Any:
        """`(n,)`."""
        return self.variance / self.places * (X[:, :-1] ** 2).sum(1)

    def is_stationary(self) -> bool:
        """No: it is a linear function's."""
        return False


class Slope(Kernel):  # type: ignore[misc]
    """variance * z z': how far scores follow the last feature, z, is not known beforehand.

    Args:
        variance: Of the slope; nothing is fitted.
    """

    def __init__(self, variance: float) -> None:
        self.variance = variance

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """`(n, m)`; there is no gradient, `(n, n, 0)`."""
        value = self.variance * np.outer(X[:, -1], (X if Y is None else Y)[:, -1])
        return (value, np.empty((len(X), len(X), 0))) if eval_gradient else value

    def diag(self, X: Any) -> Any:
        """`(n,)`."""
        return self.variance * X[:, -1] ** 2

    def is_stationary(self) -> bool:
        """No: it grows with z."""
        return False


__all__ = ["Effects", "Places", "Slope"]
