"""The Gaussian process over architectures: its prior, what it learns, what it proposes."""

import itertools

import numpy as np
import pytest

from nni_bayes_nas.bayes import law
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.kernels import Effects, Places, Slope
from nni_bayes_nas.experiment.surrogate import Observation, Surrogate, features, standardized

UNITS = [law.Choice(f"e{i}", ("skip", "conv1", "conv3")) for i in range(4)]
CELLS = [{f"e{i}": op for i, op in enumerate(ops)} for ops in itertools.product(("skip", "conv1", "conv3"), repeat=4)]
X = features(UNITS, CELLS)
# What a search learns: convolutions are good. What is true: but for the first edge, which should be a skip connection.
LOG_PROB = np.array([sum({"skip": 0, "conv1": 1, "conv3": 2}[op] for op in c.values()) for c in CELLS], dtype=float)
TRUTH = LOG_PROB + np.array([4.0 if c["e0"] == "skip" else 0.0 for c in CELLS])


def test_distances_count_differences():
    distance = ((X[:, None] - X[None]) ** 2).sum(-1) / 2
    expected = [[sum(a[k] != b[k] for k in a) for b in CELLS] for a in CELLS]
    assert np.array_equal(distance, np.array(expected))


def test_without_observations_the_mean_is_that_of_the_search():
    mean, covariance = Surrogate(X, LOG_PROB, 1.0, 0).posterior([])
    assert mean == pytest.approx(standardized(LOG_PROB)) and np.all(np.diag(covariance) > 0)
    flat, _ = Surrogate(X, LOG_PROB, 0.0, 0).posterior([])
    assert flat == pytest.approx(0)


def observe(surrogate, rounds, each, noise=0.3, how="thompson"):
    generator = np.random.default_rng(0)
    observed: list[Observation] = []
    for r in range(rounds):
        without = {o.candidate for o in observed}
        if how == "thompson":
            new = surrogate.thompson(observed, each, r, without)
        else:
            new = surrogate.expected_improvement(observed, each, without)
        assert len(set(new)) == len(new) == each and not set(new) & without
        observed += [Observation(i, TRUTH[i] + noise * generator.standard_normal()) for i in new]
    return observed


@pytest.mark.parametrize("how", ["thompson", "improvement"])
def test_it_finds_what_the_search_does_not_know(how):
    surrogate = Surrogate(X, LOG_PROB, 1.0, 0)
    observed = observe(surrogate, 6, 3, how=how)
    mean, _ = surrogate.posterior(observed)
    assert CELLS[int(np.argmax(LOG_PROB))]["e0"] == "conv3"
    assert CELLS[int(np.argmax(mean))] == {"e0": "skip", "e1": "conv3", "e2": "conv3", "e3": "conv3"}


def test_the_prior_of_the_search_helps():
    """Most where little has been seen."""
    regrets = {}
    for weight in (1.0, 0.0):
        found = []
        for seed in range(5):
            surrogate = Surrogate(X, LOG_PROB, weight, seed)
            mean, _ = surrogate.posterior(observe(surrogate, 1, 2))
            found.append(TRUTH.max() - TRUTH[int(np.argmax(mean))])
        regrets[weight] = np.mean(found)
    assert regrets[1.0] < regrets[0.0]


def test_an_option_that_no_training_has_had_is_tried():
    """The search is sure of an option that is not the best one; every option of every edge has its trial."""
    sure = LOG_PROB + np.array([4.0 if c["e0"] == "conv3" else 0.0 for c in CELLS])
    surrogate = Surrogate(X, sure, 1.0, 0)
    seen = observe(surrogate, 6, 2)
    assert X[[o.candidate for o in seen]].sum(0).min() >= 1
    mean, _ = surrogate.posterior(seen)
    assert CELLS[int(np.argmax(mean))]["e0"] == "skip"


def test_probabilities_of_the_best_are_probabilities_and_sharpen():
    surrogate = Surrogate(X, LOG_PROB, 1.0, 0)
    entropies = []
    for observed in ([], observe(surrogate, 6, 3)):
        p = surrogate.probability_best(observed)
        assert p.sum() == pytest.approx(1) and p.min() >= 0
        entropies.append(-(p[p > 0] * np.log(p[p > 0])).sum())
    assert entropies[1] < entropies[0]


def test_equal_seeds_give_equal_proposals():
    first, second = (Surrogate(X, LOG_PROB, 1.0, 3).thompson([], 5, 0, set()) for _ in range(2))
    assert first == second != Surrogate(X, LOG_PROB, 1.0, 4).thompson([], 5, 0, set())


def test_no_more_proposals_than_candidates():
    surrogate = Surrogate(X[:3], LOG_PROB[:3], 1.0, 0)
    assert sorted(surrogate.thompson([], 5, 0, set())) == [0, 1, 2]
    assert surrogate.thompson([], 2, 0, {0, 1, 2}) == []


def test_equal_scores_and_probabilities_do_no_harm():
    surrogate = Surrogate(X, np.zeros(len(X)), 1.0, 0)
    mean, covariance = surrogate.posterior([Observation(0, 1.0), Observation(1, 1.0)])
    assert np.isfinite(mean).all() and np.isfinite(covariance).all()


def test_predictions_are_in_the_unit_of_the_scores():
    """The same process in another unit; and what comes next lies where it says."""
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(X))
    true = X @ generator.normal(size=X.shape[1])
    scores = true + 0.1 * generator.normal(size=len(X))
    ours = Surrogate(X, LOG_PROB, 0.5, 0)
    seen = [Observation(int(c), float(scores[c])) for c in chosen[:14]]
    mean, sd = ours.predict(seen)
    far = [Observation(o.candidate, 100.0 - 3.0 * -o.score) for o in seen]
    other_mean, other_sd = Surrogate(X, LOG_PROB, 0.5, 0).predict(far)
    np.testing.assert_allclose(other_mean, 100.0 + 3.0 * mean, rtol=1e-6)
    np.testing.assert_allclose(other_sd, 3.0 * sd, rtol=1e-6)
    left = chosen[14:]
    assert np.mean(np.abs(scores[left] - mean[left]) < 1.645 * sd[left]) > 0.7
    assert np.corrcoef(mean[left], scores[left])[0, 1] > 0.5
    with pytest.raises(ConfigError, match="at least 2 observations, got 1"):
        ours.predict(seen[:1])


def test_intervals_hold_what_they_say_in_the_mean():
    """90 % ones of new trainings, with noise, after 14; over 20 functions that are sums of effects."""
    held = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(len(X))
        scores = X @ generator.normal(size=X.shape[1]) + 0.3 * generator.normal(size=len(X))
        seen = [Observation(int(c), float(scores[c])) for c in chosen[:14]]
        mean, sd = Surrogate(X, LOG_PROB, 0.5, 0).predict(seen)
        left = chosen[14:]
        held.append(np.mean(np.abs(scores[left] - mean[left]) < 1.645 * sd[left]))
    assert 0.83 < np.mean(held) < 0.95


def test_a_fit_is_remembered(monkeypatch):
    ours, seen = Surrogate(X, LOG_PROB, 1.0, 0), [Observation(0, 1.0), Observation(3, 0.5)]
    fits = []
    monkeypatch.setattr(ours, "_fitted", lambda observed, real=ours._fitted: fits.append(1) or real(observed))
    ours.posterior(seen), ours.thompson(seen, 2, 0, set()), ours.posterior(list(seen))
    assert len(fits) == 1


def test_proposals_do_not_hang_on_the_last_digit():
    """Many candidates are alike before anything is observed: eigenvectors of equal eigenvalues would turn."""
    ours, seen = Surrogate(X, LOG_PROB, 1.0, 0), [Observation(0, 1.0), Observation(3, 0.5), Observation(9, 0.2)]
    moved = [Observation(o.candidate, o.score * (1 + 1e-12)) for o in seen]
    for known, other in (([], []), (seen, moved)):
        again = Surrogate(X, LOG_PROB * (1 + 1e-13), 1.0, 0)
        assert ours.thompson(known, 5, 0, set()) == again.thompson(other, 5, 0, set())


def test_how_far_the_search_is_believed_is_learned():
    """Scores that rise with the prior's opinion, or fall: the mean of what was not seen follows."""
    generator = np.random.default_rng(1)
    chosen = [int(c) for c in generator.permutation(len(X))[:20]]
    left = [c for c in range(len(X)) if c not in chosen]
    slopes = []
    for sign in (1.0, -1.0):
        scores = sign * LOG_PROB + 0.1 * generator.normal(size=len(X))
        mean, _ = Surrogate(X, LOG_PROB, 1.0, 0).posterior([Observation(c, float(scores[c])) for c in chosen])
        slopes.append(np.polyfit(LOG_PROB[left], mean[left], 1)[0])
    assert slopes[0] > 0.5 > 0 > slopes[1]


def test_covariances_are_what_they_say():
    x = np.column_stack([X[:6], LOG_PROB[:6]])
    places, slope, effects = Places(2.0), Slope(0.25), Effects(6.0, 4)
    # Cells 0 and 1 share three of four options.
    assert effects(x)[0, 0] == effects.diag(x)[0] == 6.0 and effects(x, x[:2])[0, 1] == 4.5
    np.testing.assert_allclose(places(x), np.exp(-((X[:6, None] - X[None, :6]) ** 2).sum(-1) / 8.0))
    np.testing.assert_allclose(slope(x, x[:2]), 0.25 * np.outer(LOG_PROB[:6], LOG_PROB[:2]))
    np.testing.assert_allclose(slope.diag(x), np.diag(slope(x)))
    value, gradient = (places + slope)(x, eval_gradient=True)
    eps = 1e-5
    moved = [(Places(2.0 * np.exp(e)) + slope)(x) for e in (eps, -eps)]
    np.testing.assert_allclose(gradient[..., 0], (moved[0] - moved[1]) / (2 * eps), atol=1e-8)
    assert np.array_equal(value, (places + slope)(x)) and not slope.is_stationary()


def test_longer_trainings_update_what_short_ones_have_said():
    """By hand, for two of them: the difference of a pair alone is seen, with so much less noise; its level is not."""
    surrogate = Surrogate(X, LOG_PROB, 1.0, 0)
    seen = [Observation(0, 1.0), Observation(1, 2.0), Observation(2, 0.5), Observation(3, 1.5)]
    mean, covariance = surrogate.posterior(seen)
    fit = surrogate._fit(seen)
    for level in (0.0, 100.0):
        longer = [Observation(1, 3.0 + level), Observation(4, 4.0 + level)]
        after, narrower = surrogate.posterior(seen, [(longer, 4.0)])
        c = np.zeros(len(X))
        c[1], c[4] = -1.0, 1.0
        variance = c @ covariance @ c + 2 * fit.noise / 4.0
        moved = mean + covariance @ c / variance * (1.0 / fit.unit - c @ mean)
        np.testing.assert_allclose(after, moved, atol=2e-3)
        expected = covariance - np.outer(covariance @ c, covariance @ c) / variance
        np.testing.assert_allclose(narrower, expected, atol=2e-3)
    alone, same = surrogate.posterior(seen, [([Observation(4, 9.0)], 4.0), ([], 8.0)])
    rungs = [([Observation(1, 3.0), Observation(4, 4.0)], 4.0), ([Observation(4, 9.0), Observation(1, 9.5)], 16.0)]
    for one, other in zip(surrogate.posterior(seen, rungs), surrogate.posterior(seen, rungs[::-1]), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
    np.testing.assert_allclose(alone, mean, atol=2e-3)
    np.testing.assert_allclose(same, covariance, atol=2e-3)
