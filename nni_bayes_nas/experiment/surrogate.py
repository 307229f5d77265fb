"""A Gaussian process over architectures whose prior mean is the posterior of a search.

Scores of short trainings, in units of their standard deviation, are modelled as

    y(a) = b + w z(log q(a)) + e(a) + f(a) + noise,    f ~ GP(0, c exp(-h(a, b) / l^2)),    w ~ N(w0, w0^2 / 4)

with b what makes the mean difference to the prior 0, z the standardization over the candidates and h the number of
places in which two architectures differ: on one-hot features the squared distance of a radial kernel is 2 h. e(a) is a
sum of effects of the options of a, of which nothing is known beforehand: an option that no training has had may be a
very good one, which is what makes a process try it. The search says which kinds of operation are good, and the
trainings where they belong; and they say how far the search is to be believed: what is tried is much alike, and its
scores vary less than those of all candidates would.

Longer trainings, of every rung, see the same f with less noise, at a level of their own that nothing is known of:

    y'(a) = d + f'(a) + noise',    f' = w z + f, as above,    var(noise') = var(noise) / (how much longer)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nni_bayes_nas.bayes import law
from nni_bayes_nas.errors import ConfigError

Array = NDArray[np.float64]
_FEW = 4
_NOISE = 0.1
_JITTER = 1e-6
_SLOPE = 0.5
# Variance of the sum of the effects of an architecture's options.
_EFFECTS = 30.0
# Variance of the level of longer trainings, in units of that of scores.
_ANY_LEVEL = 1e4


def features(units: Sequence[law.Unit], architectures: Sequence[dict[str, Any]]) -> Array:
    """One-hot rows, `(n, options)`: half their squared distance counts the options in which two differ."""
    rows = [np.concatenate([law.one_hot(unit, a).numpy().ravel() for unit in units]) for a in architectures]
    return np.stack(rows).astype(np.float64)


def standardized(values: Array) -> Array:
    """Mean 0 and standard deviation 1; zeros where all are equal."""
    spread = values.std()
    centred: Array = values - values.mean()
    return centred / spread if spread > 0 else centred * 0.0


@dataclass(frozen=True)
class Observation:
    """The score of a candidate, larger is better."""

    candidate: int
    score: float


Longer = tuple[Sequence[Observation], float]
"""Scores of trainings that were longer, and how many times as long as those that the process was fitted to."""


@dataclass(frozen=True)
class _Fit:
    """The process given observations; a score is centre + unit * (standardized score + offset)."""

    mean: Array
    covariance: Array
    noise: float
    centre: float
    unit: float
    offset: float


class Surrogate:
    """The process over some candidates.

    Args:
        x: Features of the candidates, `(n, d)`.
        log_prob: Their log-probabilities in the search's posterior, `(n,)`; what is not in the set must not be in it:
            the standardization is over it.
        weight: w0, of the prior mean; 0 is a flat prior.
        seed: Of draws and of the fit.
    """

    def __init__(self, x: Array, log_prob: Array, weight: float, seed: int) -> None:
        z = standardized(log_prob)
        self.x = np.column_stack([x, z])
        self.mean = weight * z
        self._slope = (_SLOPE * weight) ** 2
        self.seed = seed
        self._fits: dict[tuple[Observation, ...], _Fit] = {}

    def posterior(self, observed: Sequence[Observation], longer: Sequence[Longer] = ()) -> tuple[Array, Array]:
        """Mean `(n,)` and covariance `(n, n)` of the standardized score, noise left out, given observations.

        Args:
            observed: Scores of short trainings.
            longer: Rungs of longer trainings; of one training alone nothing is learned.
        """
        fit = self._fit(observed)
        mean, covariance = fit.mean, fit.covariance
        for rung, times in longer if fit.unit > 0 else ():
            if not rung:
                continue
            at = np.array([o.candidate for o in rung])
            scores = np.array([o.score for o in rung])
            difference = (scores - scores.mean()) / fit.unit - mean[at]
            seen = covariance[np.ix_(at, at)] + fit.noise / times * np.eye(len(at)) + _ANY_LEVEL
            gain = np.linalg.solve(seen, covariance[at]).T
            mean, covariance = mean + gain @ difference, covariance - gain @ covariance[at]
        return mean, covariance

    def predict(self, observed: Sequence[Observation]) -> tuple[Array, Array]:
        """Mean and standard deviation of what a training of each candidate would score, noise included; `(n,)` each.

        Raises:
            ConfigError: Fewer than two observations, which say nothing of the unit of scores.
        """
        if len(observed) < 2:
            raise ConfigError(f"scores can be predicted from at least 2 observations, got {len(observed)}.")
        fit = self._fit(observed)
        sd = np.sqrt(np.clip(np.diag(fit.covariance), 0.0, None) + fit.noise)
        return fit.centre + fit.unit * (fit.mean + fit.offset), fit.unit * sd

    def _fit(self, observed: Sequence[Observation]) -> _Fit:
        key = tuple(observed)
        if key not in self._fits:
            self._fits[key] = self._fitted(observed)
        return self._fits[key]

    def _fitted(self, observed: Sequence[Observation]) -> _Fit:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel

        from nni_bayes_nas.experiment.kernels import Effects, Places, Slope

        broad = Effects(_EFFECTS, float(self.x[:, :-1].sum(1).mean())) + Slope(self._slope)
        smooth = ConstantKernel(1.0, (0.3, 10.0)) * Places(2.0, (0.7, 10.0)) + broad
        process = GaussianProcessRegressor(
            smooth + WhiteKernel(_NOISE, (0.01, 0.3)), n_restarts_optimizer=2, random_state=self.seed
        )
        centre, unit, offset = 0.0, 1.0, 0.0
        with warnings.catch_warnings():
            # With few observations a length often ends at a bound, which is what bounds are for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if observed:
                at = np.array([o.candidate for o in observed])
                # The best candidates come first: that their scores are equal says nothing against them. And a few
                # scores do not tell their own spread: two are always one standard deviation from their mean.
                raw, shrunk = np.array([o.score for o in observed]), len(observed) / (len(observed) + _FEW)
                centre, unit = float(raw.mean()), float(raw.std()) / shrunk
                difference = shrunk * standardized(raw) - self.mean[at]
                offset = float(difference.mean())
                process.fit(self.x[at], difference - offset)
            mean, covariance = process.predict(self.x, return_cov=True)
        noise = float(process.kernel_.k2.noise_level) if observed else _NOISE
        return _Fit(self.mean + mean, covariance - noise * np.eye(len(mean)), noise, centre, unit, offset)

    def thompson(self, observed: Sequence[Observation], n: int, round_: int, without: set[int]) -> list[int]:
        """The best candidates of n draws of the process, distinct, and none of those left out."""
        mean, covariance = self.posterior(observed)
        generator = np.random.default_rng([self.seed, round_])
        chosen: list[int] = []
        for draw in _draws(mean, covariance, n, generator):
            order = np.argsort(-draw, kind="stable")
            found = next((int(i) for i in order if int(i) not in without and int(i) not in chosen), None)
            if found is not None:
                chosen.append(found)
        return chosen

    def expected_improvement(self, observed: Sequence[Observation], n: int, without: set[int]) -> list[int]:
        """The candidates of the largest expected improvement on the best mean so far (Jones et al., 1998)."""
        from scipy.stats import norm

        mean, covariance = self.posterior(observed)
        sd = np.sqrt(np.clip(np.diag(covariance), 1e-12, None))
        best = max((mean[o.candidate] for o in observed), default=mean.max())
        z = (mean - best) / sd
        gain = sd * (z * norm.cdf(z) + norm.pdf(z))
        order = [int(i) for i in np.argsort(-gain, kind="stable") if int(i) not in without]
        return order[:n]

    def probability_best(
        self,
        observed: Sequence[Observation],
        longer: Sequence[Longer] = (),
        draws: int = 1000,
    ) -> Array:
        """How often each candidate is the best one of a draw: the posterior over the best architecture; `(n,)`."""
        mean, covariance = self.posterior(observed, longer)
        generator = np.random.default_rng([self.seed, 2**31])
        best = np.argmax(_draws(mean, covariance, draws, generator), axis=1)
        counts: Array = np.bincount(best, minlength=len(mean)).astype(np.float64)
        return counts / draws


def _draws(mean: Array, covariance: Array, n: int, generator: np.random.Generator) -> Array:
    # Not by eigenvectors: those of equal eigenvalues turn with the last digit, and with them what is proposed.
    jitter = _JITTER * max(float(np.diag(covariance).max()), _JITTER)
    root = np.linalg.cholesky(covariance + jitter * np.eye(len(mean)))
    drawn: Array = mean + generator.standard_normal((n, len(mean))) @ root.T
    return drawn
