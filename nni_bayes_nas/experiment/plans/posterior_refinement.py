"""Searches, short trainings that refine their posteriors, and retraining of what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.packed import pack, unpack
from nni_bayes_nas.experiment.plan import Ledger, Result, TrialSpec
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain
from nni_bayes_nas.experiment.surrogate import Longer, Observation, Surrogate, features

_SHOWN = 20


@dataclass(frozen=True)
class _Rung:
    """Longer trainings: how they are called, how long they are, of which candidates, and the scores so far."""

    word: str
    epochs: int
    candidates: list[int]
    scores: list[Observation]


def rung_word(number: int) -> str:
    """What the trials of a rung are called by, the first of which is 1."""
    return "final" if number == 1 else f"final{number}"


class PosteriorRefinement(SearchAndRetrain):
    """The plan: the posterior of a search is the prior of a Gaussian process that short trainings update.

    Trials: ``search-s0`` ... as in ``search_and_retrain``; for each search that is done ``probe-s0-c17`` ... (17: the
    candidate), in rounds, each of which waits for the one before; then, rung by rung, ``final-s0-c17`` ...,
    ``final2-s0-c17`` ..., the best ones trained longer; then what the process, having seen all, thinks best of the last
    rung is retrained, beside what was derived from the posterior of the search.

    What is proposed depends on all scores so far. A result that comes in late, of a trial that was given up, may change
    the rounds after it; names bear their candidate, so that no result is ever taken for that of another architecture,
    and what was trained already counts.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.refine = config.refine
        self.seed = config.seed
        self._failed: set[str] = set()
        self._known: dict[tuple[Any, ...], list[int]] = {}
        self._surrogates: dict[int, tuple[Result, Surrogate]] = {}
        self._unpacked: dict[str, list[dict[str, Any]]] = {}

    def trials(self, results: dict[str, Result], failed: set[str]) -> list[TrialSpec]:
        """Searches, the rounds of probes that are known so far, finalists, retrain trials."""
        self._failed = failed
        specs = [self._search(group) for group in self.groups]
        for i in range(len(self.searches)):
            raw = super()._result(results, i)
            if raw is not None:
                specs.extend(self._probes(raw, results, i))
        retrains = super().trials(results, failed)[len(self.groups) :]
        return [*specs, *retrains]

    def verdict(self, results: dict[str, Result], failed: set[str]) -> str | None:
        """As of ``search_and_retrain``; the end, too, where no short training of any search came out."""
        self._failed = failed
        ends = []
        for i in range(len(self.searches)):
            raw = super()._result(results, i)
            if raw is not None:
                observed, done = self._observed(raw, results, i)
                ends.append(done and not observed)
        if ends and all(ends) and len(ends) + self._n_failed(results) == len(self.searches):
            return "every short training failed"
        waiting = any(
            super(PosteriorRefinement, self)._result(results, i) is not None and self._result(results, i) is None
            for i in range(len(self.searches))
        )
        return None if waiting else super().verdict(results, failed)

    def summary(self, results: dict[str, Result], failed: set[str], ledger: Ledger) -> dict[str, Any]:
        """As of ``search_and_retrain``, and under "refinement" what was tried and what is believed of it."""
        self._failed = failed
        part = super().summary(results, failed, ledger)
        refinement = {}
        for i in range(len(self.searches)):
            raw = super()._result(results, i)
            if raw is not None:
                refinement[f"s{i}"] = self._account(raw, results, i)
        return {**part, "refinement": refinement}

    # -- one search ------------------------------------------------------------------------------------------------

    def _search(self, group: range) -> TrialSpec:
        spec = super()._search(group)
        wanted = {"candidates": self.refine.candidates}
        if self.refine.max_params is not None:
            wanted["max_params"] = self.refine.max_params
        return TrialSpec(spec.name, spec.kind, {**spec.parameters, **wanted}, spec.folders)

    def _result(self, results: dict[str, Result], i: int) -> Result | None:
        """What a search gave, the refined architecture before the others; None until it is known."""
        raw = super()._result(results, i)
        if raw is None:
            return None
        observed, done = self._observed(raw, results, i)
        rungs, complete = self._rungs(raw, results, i)
        if not (done and complete):
            return None
        if not observed:  # what the search derived is left
            return raw
        best = self._best(raw, i, observed, rungs)
        stem = f"retrain-s{i}-c{best}"
        row = {**self._candidates(raw)[best], "lambda": None, "origin": "refined", "stem": stem}
        return {**raw, "architectures": [row, *raw["architectures"]]}

    def _best(self, raw: Result, i: int, observed: list[Observation], rungs: list[_Rung]) -> int:
        """Of the last rung what the process thinks best that has seen all; without any, the best score."""
        last = next((rung.scores for rung in reversed(rungs) if rung.scores), None)
        if last is None:
            return max(observed, key=lambda o: o.score).candidate
        mean, _ = self._surrogate(raw, i).posterior(observed, self._longer(rungs))
        return max(last, key=lambda o: (mean[o.candidate], o.score)).candidate

    def _longer(self, rungs: list[_Rung]) -> list[Longer]:
        """As the process takes them."""
        return [(rung.scores, rung.epochs / self.refine.epochs) for rung in rungs]

    def _candidates(self, raw: Result) -> list[dict[str, Any]]:
        text = raw["candidates"]
        if isinstance(text, list):  # of a run before they were packed
            return text
        if text not in self._unpacked:
            self._unpacked[text] = unpack(text)
        return self._unpacked[text]

    def _surrogate(self, raw: Result, i: int) -> Surrogate:
        known = self._surrogates.get(i)
        if known is None or known[0] is not raw:  # it remembers what it was fitted to
            self._surrogates[i] = raw, self._made(raw, i)
        return self._surrogates[i][1]

    def _made(self, raw: Result, i: int) -> Surrogate:
        units = ArchitecturePosterior.from_dict(raw["posterior"]).units
        rows = self._candidates(raw)
        x = features(units, [row["choices"] for row in rows])
        log_prob = np.array([row["log_prob"] for row in rows])
        return Surrogate(x, log_prob, self.refine.prior_weight, self.seed + i)

    def _rounds(self, raw: Result, results: dict[str, Result], i: int) -> list[list[int]]:
        """Candidates by round, as far as they are known: a round is proposed when the one before has ended."""
        rounds: list[list[int]] = []
        total = min(self.refine.evaluations, len(self._candidates(raw)))
        while sum(map(len, rounds)) < total:
            if rounds and not self._ended(rounds, results, i):
                break
            observed = self._scores(rounds, results, i)
            n = min(self.refine.parallel, total - sum(map(len, rounds)))
            key = (i, len(rounds), tuple((o.candidate, o.score) for o in observed))
            if key not in self._known:
                surrogate = self._surrogate(raw, i)
                without = {c for one in rounds for c in one}
                if self.refine.acquisition == "thompson":
                    self._known[key] = surrogate.thompson(observed, n, len(rounds), without)
                else:
                    self._known[key] = surrogate.expected_improvement(observed, n, without)
            rounds.append(self._known[key])
        return rounds

    def _name(self, word: str, i: int, candidate: int) -> str:
        return f"{word}-s{i}-c{candidate}"

    def _n_failed(self, results: dict[str, Result]) -> int:
        """Searches that gave nothing and never will."""
        failed = [group for group in self.groups if self._search(group).name in self._failed]
        return sum(super(PosteriorRefinement, self)._result(results, i) is None for group in failed for i in group)

    def _ended(self, rounds: list[list[int]], results: dict[str, Result], i: int) -> bool:
        names = [self._name("probe", i, c) for one in rounds for c in one]
        return all(name in results or name in self._failed for name in names)

    def _scores(self, rounds: list[list[int]], results: dict[str, Result], i: int) -> list[Observation]:
        chosen = [c for one in rounds for c in one]
        named = [(c, self._name("probe", i, c)) for c in chosen]
        return [Observation(c, -results[name]["val_loss"]) for c, name in named if name in results]

    def _others(self, word: str, chosen: list[int], raw: Result, results: dict[str, Result], i: int) -> list[int]:
        """Candidates that have a trial of a kind behind them, beside those that are chosen now."""
        ended = [
            c for c in range(len(self._candidates(raw))) if self._name(word, i, c) in (results.keys() | self._failed)
        ]
        return [c for c in ended if c not in chosen]

    def _observed(self, raw: Result, results: dict[str, Result], i: int) -> tuple[list[Observation], bool]:
        """All scores of short trainings so far, and whether there will be no more."""
        rounds = self._rounds(raw, results, i)
        total = min(self.refine.evaluations, len(self._candidates(raw)))
        done = sum(map(len, rounds)) == total and self._ended(rounds, results, i)
        others = self._others("probe", [c for one in rounds for c in one], raw, results, i)
        return self._scores([*rounds, others], results, i), done

    def _rungs(self, raw: Result, results: dict[str, Result], i: int) -> tuple[list[_Rung], bool]:
        """The rungs of longer trainings that have begun, and whether there will be no more scores.

        One begins when the one before has ended, the first when the short trainings have.
        """
        observed, done = self._observed(raw, results, i)
        rungs: list[_Rung] = []
        tried = observed
        for number, (n, epochs) in enumerate(self.refine.rungs, 1):
            word = rung_word(number)
            # What ended before a late result opened the rung before again stays.
            begins = done and bool(tried)
            chosen = self._chosen(raw, i, observed, rungs, tried, n) if begins else []
            every = [*chosen, *self._others(word, chosen, raw, results, i)]
            done = done and all(self._name(word, i, c) in (results.keys() | self._failed) for c in chosen)
            named = [(c, self._name(word, i, c)) for c in every]
            tried = [Observation(c, -results[name]["val_loss"]) for c, name in named if name in results]
            rungs.append(_Rung(word, epochs, every, tried))
        return rungs, done

    def _chosen(
        self, raw: Result, i: int, observed: list[Observation], rungs: list[_Rung], tried: list[Observation], n: int
    ) -> list[int]:
        """Of what the rung before trained, the best score, and what the process thinks best; `n` in all."""
        mean, _ = self._surrogate(raw, i).posterior(observed, self._longer(rungs))
        ordered = sorted({o.candidate for o in tried}, key=lambda c: (-mean[c], c))
        if n > 1:
            best = max(tried, key=lambda o: o.score).candidate
            ordered = [best, *(c for c in ordered if c != best)]
        return ordered[:n]

    def _probes(self, raw: Result, results: dict[str, Result], i: int) -> list[TrialSpec]:
        """The trainings of a search's candidates, short and longer ones, as far as they are known."""
        chosen = [c for one in self._rounds(raw, results, i) for c in one]
        every = [*chosen, *self._others("probe", chosen, raw, results, i)]
        specs = [self._spec("probe", i, c, raw, self.refine.epochs) for c in every]
        for rung in self._rungs(raw, results, i)[0]:
            specs += [self._spec(rung.word, i, c, raw, rung.epochs) for c in rung.candidates]
        return specs

    def _spec(self, word: str, i: int, candidate: int, raw: Result, epochs: int) -> TrialSpec:
        row = self._candidates(raw)[candidate]
        parameters = {"choices": row["choices"], "seed": self.seed + i, "epochs": epochs, "candidate": candidate}
        return TrialSpec(self._name(word, i, candidate), "probe", parameters)

    def _account(self, raw: Result, results: dict[str, Result], i: int) -> dict[str, Any]:
        observed, done = self._observed(raw, results, i)
        rungs, _ = self._rungs(raw, results, i)
        rows = self._candidates(raw)
        part: dict[str, Any] = {
            "probes": [{"candidate": o.candidate, "val_loss": -o.score, **rows[o.candidate]} for o in observed],
            "finals": [
                {"candidate": o.candidate, "val_loss": -o.score, "epochs": rung.epochs}
                for rung in rungs
                for o in rung.scores
            ],
        }
        if done and observed:
            surrogate, longer = self._surrogate(raw, i), self._longer(rungs)
            mean, covariance = surrogate.posterior(observed, longer)
            best = surrogate.probability_best(observed, longer)
            sd = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
            # Of all candidates, in the order of the search's result; see `posterior_file.refined_posterior`.
            part["candidates"] = pack([{"choices": row["choices"]} for row in rows])
            part["process"] = {
                name: [round(float(v), 4) for v in values]
                for name, values in (("mean", mean), ("sd", sd), ("probability_best", best))
            }
            order = sorted(range(len(rows)), key=lambda c: (-best[c], -mean[c], c))[:_SHOWN]
            part["posterior"] = [
                {
                    "candidate": c,
                    "choices": rows[c]["choices"],
                    "mean": round(float(mean[c]), 4),
                    "sd": round(float(sd[c]), 4),
                    "probability_best": round(float(best[c]), 4),
                }
                for c in order
            ]
        return part
