"""Short trainings that refine the posterior of a search, and what that knows: for `nasbench201.py` and `own_table.py`.

The plan `posterior_refinement` proposes, as it does in an experiment; its trials run as jobs of the benchmark. Beside
the posterior of the search it starts from two priors that need no search:

    flat            as many architectures at random, all as probable
    parameters      those of most parameters, more probable by their square root
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from judged import Judge, refined_row
from scipy.stats import norm, spearmanr
from workers import Job, Outcome

from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.packed import pack, unpack
from nni_bayes_nas.experiment.plans.posterior_refinement import PosteriorRefinement, rung_word
from nni_bayes_nas.experiment.surrogate import Observation, Surrogate, features

Given = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]
PRIORS = ("posterior", "flat", "parameters")
# Observations from which on predictions of the next ones are judged, and pairs of cells whose order is.
_ENOUGH, _PAIRS = 4, 2_000


def candidates(
    prior: str,
    result: dict[str, Any],
    seed: int,
    n: int,
    size: Callable[[dict[str, Any]], float],
    key: Callable[[dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """The `n` most probable architectures of a prior and their log-probabilities, from the result of a search.

    Args:
        prior: One of `PRIORS`.
        result: Of the search.
        seed: Of what is drawn.
        n: At most.
        size: Parameters of an architecture, in any unit.
        key: Equal for architectures that are one network, which is a candidate once, as in a search's own.
    """
    if prior == "posterior":
        return unpack(result["candidates"])[:n]
    units = ArchitecturePosterior.from_dict(result["posterior"]).units
    parts = itertools.product(*map(law.enumerate_choices, units))
    every = [{label: choice for part in each for label, choice in part.items()} for each in parts]
    random.Random(seed).shuffle(every)
    every = list({key(choices): choices for choices in every}.values())
    if prior == "flat":
        return [{"choices": choices, "log_prob": 0.0} for choices in every[:n]]
    every.sort(key=size, reverse=True)
    return [{"choices": choices, "log_prob": math.sqrt(size(choices))} for choices in every[:n]]


class Refinement:
    """One refinement: its plan, and what is known so far.

    Args:
        name: Of its jobs.
        config: Of its short trainings, plain types; or what gives it for the choices of a cell.
        refine: Section `refine` of the plan.
        seed: Of the plan.
        result: Of the search, its candidates, packed, those of the prior.
        order: Of its jobs.
    """

    def __init__(
        self,
        name: str,
        config: Given,
        refine: dict[str, Any],
        seed: int,
        result: dict[str, Any],
        order: tuple[int, ...],
    ) -> None:
        self.name, self.config, self.order = name, config, order
        whole = {
            "seed": seed,
            "refine": refine,
            "search": {"random": 0},
            "experiment": {"plan": "posterior_refinement"},
        }
        self.plan = PosteriorRefinement(Config.from_dict(whole))
        self.rows, self.units = unpack(result["candidates"]), ArchitecturePosterior.from_dict(result["posterior"]).units
        self.results: dict[str, Any] = {"search-s0": result}
        self.failed: set[str] = set()
        self._seconds: list[float] = []
        self._order_of_probes: list[int] = []
        self._begun: set[str] = set()

    def jobs(self) -> list[Job]:
        """The trainings that can begin now."""
        found = []
        for spec in self.plan.trials(self.results, self.failed):
            if spec.kind != "probe" or spec.name in self._begun:
                continue
            self._begun.add(spec.name)
            if spec.name.startswith("probe"):
                self._order_of_probes.append(spec.parameters["candidate"])
            # Its number is left out: refinements that propose one cell share its training.
            parameters = {name: value for name, value in spec.parameters.items() if name != "candidate"}
            config = self.config(parameters["choices"]) if callable(self.config) else self.config
            job = Job(f"{self.name}/{spec.name}", "probe", config, {**parameters, "trial": spec.name}, self.order)
            found.append(job)
        return found

    def done(self, job: Job, outcome: Outcome) -> list[Job]:
        """Take in an outcome; gives what follows from it."""
        name = job.name.split("/")[1]
        if "error" in outcome:
            self.failed.add(name)
        else:
            self.results[name] = outcome["result"]
            self._seconds.append(outcome["seconds"])
        return self.jobs()

    @property
    def seconds(self) -> float:
        """Of all its trainings: the same in whatever order they ended, as when they are read from a file."""
        return math.fsum(self._seconds)

    @property
    def choices(self) -> dict[str, Any] | None:
        """Of the architecture that comes out, once it is known."""
        specs = [spec for spec in self.plan.trials(self.results, self.failed) if spec.kind == "retrain"]
        return specs[0].parameters["choices"] if specs else None

    def knowledge(self, accuracy: Callable[[dict[str, Any]], float], seed: int) -> dict[str, Any]:
        """How far the process can be believed.

        Args:
            accuracy: Of an architecture by its choices, in %; what nobody has looked at before.
            seed: Of the pairs.

        Returns:
            "covered" of "predicted": short trainings within the 90 % interval that was predicted before them;
            "pairs": of pairs of candidates, by the probability that the process gives to the better one of its own
            view, [probability, share that is better by accuracy, pairs]; "spearman" of its mean with accuracy.
        """
        surrogate = Surrogate(
            features(self.units, [row["choices"] for row in self.rows]),
            np.array([row["log_prob"] for row in self.rows]),
            self.plan.refine.prior_weight,
            self.plan.seed,
        )
        seen = [
            Observation(c, -self.results[f"probe-s0-c{c}"]["val_loss"])
            for c in self._order_of_probes
            if f"probe-s0-c{c}" in self.results
        ]
        covered = predicted = 0
        for at in range(_ENOUGH, len(seen)):
            mean, sd = surrogate.predict(seen[:at])
            one = seen[at]
            predicted += 1
            covered += abs(one.score - mean[one.candidate]) <= norm.ppf(0.95) * sd[one.candidate]
        refine, longer = self.plan.refine, []
        for number, (_, epochs) in enumerate(refine.rungs, 1):
            named = [(c, f"{rung_word(number)}-s0-c{c}") for c in range(len(self.rows))]
            rung = [Observation(c, -self.results[name]["val_loss"]) for c, name in named if name in self.results]
            longer.append((rung, epochs / refine.epochs))
        mean, covariance = surrogate.posterior(seen, longer)
        accuracies = np.array([accuracy(row["choices"]) for row in self.rows])
        generator = np.random.default_rng(seed)
        a, b = generator.integers(len(self.rows), size=(2, _PAIRS))
        differs = (a != b) & (accuracies[a] != accuracies[b])
        a, b = a[differs], b[differs]
        sd = np.sqrt(np.clip(covariance[a, a] + covariance[b, b] - 2 * covariance[a, b], 1e-12, None))
        p = norm.cdf((mean[a] - mean[b]) / sd)
        right = np.where(p >= 0.5, accuracies[a] > accuracies[b], accuracies[b] > accuracies[a])
        return {
            "covered": int(covered),
            "predicted": predicted,
            "pairs": _reliability(np.maximum(p, 1 - p), right),
            "spearman": float(spearmanr(mean, accuracies).statistic) if np.ptp(mean) > 0 < np.ptp(accuracies) else None,
        }


class Refinements:
    """Those of several searches, from every prior; `follow` is what `Workers.run` asks.

    Args:
        seed_of: Seeds of the searches, by the names of their jobs.
        config: Of the short trainings, see `Refinement`.
        refine: Section `refine` of the plan.
        size: Parameters of an architecture, in any unit.
        key: Equal for architectures that are one network.
        priors: Of `PRIORS`.
    """

    def __init__(
        self,
        seed_of: dict[str, int],
        config: Given,
        refine: dict[str, Any],
        size: Callable[[dict[str, Any]], float],
        key: Callable[[dict[str, Any]], str],
        priors: Sequence[str] = PRIORS,
    ) -> None:
        self.seed_of, self.config, self.refine, self.size, self.key = seed_of, config, refine, size, key
        self.priors = priors
        self.found: dict[tuple[str, int], Refinement] = {}
        self._by_name: dict[str, Refinement] = {}

    def follow(self, finished: Job, outcome: Outcome) -> list[Job]:
        """What can begin once a job has ended."""
        if finished.name in self.seed_of and "result" in outcome:
            seed, result, jobs = self.seed_of[finished.name], outcome["result"], []
            for prior in self.priors:
                rows = candidates(prior, result, seed, self.refine["candidates"], self.size, self.key)
                name, known = f"s{seed}-refined-{prior}", {**result, "candidates": pack(rows)}
                one = Refinement(name, self.config, self.refine, seed, known, (2, seed))
                self.found[prior, seed] = self._by_name[name] = one
                jobs += one.jobs()
            return jobs
        chain = self._by_name.get(finished.name.split("/")[0])
        return chain.done(finished, outcome) if chain else []

    def rows(self, arms: dict[str, str], searched: dict[int, float], judge: Judge) -> list[dict[str, Any]]:
        """One for each: names of the arms by prior, and the seconds of the searches by seed."""
        return [
            refined_row(arms[prior], seed, one, searched[seed] if prior == "posterior" else 0.0, judge)
            for (prior, seed), one in self.found.items()
        ]


def _reliability(p: Any, right: Any) -> list[list[float]]:
    """[mean probability, share that is right, number] in five bins from 1/2 to 1."""
    bins: Iterable[int] = range(5)
    at = np.minimum(((p - 0.5) * 10).astype(int), 4)
    found = [(at == i) for i in bins]
    return [[float(p[m].mean()), float(right[m].mean()), int(m.sum())] for m in found if m.any()]
