"""The posterior of a search in plain words: what is decided, what is open, which architectures are probable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.report.posterior_map import posterior_maps
from nni_bayes_nas.report.read import Row, RunFolder
from nni_bayes_nas.report.tables import count, plural, retrained, scored

CHOICE_COLUMNS = ["Choice", "Leading option", "Probability", "Next option", "Its probability", ""]
TOP_COLUMNS = ["Probability", "Differs from the most probable one in"]
REFINED_COLUMNS = ["Best with probability", "Predicted score", "Loss, short training", "Loss, longer one", "Choices"]
TEXT_COLUMNS = ("Choice", "Leading option", "Next option", "", "Differs from the most probable one in", "Choices")
_DECIDED = 0.9
_SHOWN = 5


@dataclass(frozen=True)
class Posterior:
    """What the page says of one search.

    Attributes:
        trial: Of the search.
        sentences: In plain words.
        drawings: Probability of every option, choices in rows; one for each set of options.
        choices: Rows of `CHOICE_COLUMNS`.
        top: Rows of `TOP_COLUMNS`.
    """

    trial: str
    sentences: list[str]
    drawings: list[Markup]
    choices: list[list[str]]
    top: list[list[str]]


def posteriors(run: RunFolder) -> list[Posterior]:
    """One for each search that left a posterior; of one that depends on lambda three, from end to end."""
    found = []
    for trial, read in sorted(run.posteriors.items()):
        rows = read.get("by_lambda") or []
        shown = [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})] if rows else []
        found += [_described(f"{trial}, λ = {row['lambda']:.3g}", row) for row in shown] or [_described(trial, read)]
    return found


def _described(trial: str, read: Row) -> Posterior:
    # It needs torch, which a report of other runs does without.
    from nni_bayes_nas.bayes.posterior import ArchitecturePosterior

    q = ArchitecturePosterior.from_dict(read)
    inclusion = dict(sorted(q.inclusion().items()))
    rows = [_choice(label, options) for label, options in inclusion.items()]
    decided = [row for row in rows if row[-1] == "decided"]
    left = math.exp(min(q.entropy(), 60.0))
    try:
        ranked = q.top_k(min(_SHOWN, round(math.exp(min(q.log_count, 20.0)))))
    except ConfigError:  # a choice of too many parts to rank
        ranked = []
    sentences = [
        f"Entropy {q.entropy():.2f} of at most {q.log_count:.2f} nats: as uncertain as {_about(left)} equally probable "
        f"architectures, of {_about(math.exp(min(q.log_count, 700.0)))} that the space has.",
        f"Decided, with a probability of at least {100 * _DECIDED:.0f} %: {len(decided)} of "
        f"{plural(len(rows), 'choice')}.",
    ]
    if ranked:
        derived = q.log_prob(q.derived())
        sentences.append(
            f"The most probable architecture has {_share(math.exp(ranked[0].log_prob))}; what is read off the mean has "
            f"{_share(math.exp(derived))}."
        )
    if merged := read.get("networks"):
        first = merged["most_probable"][0]
        sentences.append(
            f"Counting architectures that compute the same as one, there are {_about(merged['count'])} networks; the "
            f"most probable one, of {plural(first['forms'], 'form')}, has {_share(first['probability'])}."
        )
    top = [[_share(math.exp(one.log_prob)), _difference(one.choices, ranked[0].choices)] for one in ranked]
    return Posterior(trial, sentences, [Markup(m) for m in posterior_maps(trial, inclusion)], rows, top)


def _choice(label: str, options: dict[str, float]) -> list[str]:
    ordered = sorted(options.items(), key=lambda item: -item[1])
    (first, p), (second, q) = ordered[0], ordered[1] if len(ordered) > 1 else ("", 0.0)
    # An edge that is hardly ever kept is decided too.
    # Of a choice that keeps several the least sure one counts.
    total = sum(options.values())
    last = ordered[min(len(ordered), max(1, round(total))) - 1][1]
    decided = last >= _DECIDED or total <= 1 - _DECIDED
    return [label, str(first), _share(p), str(second), _share(q), "decided" if decided else "open"]


def _difference(choices: dict[str, Any], best: dict[str, Any]) -> str:
    found = [f"{label}: {_text(choice)}" for label, choice in choices.items() if choice != best.get(label)]
    return ", ".join(found) or "–"


def _text(choice: Any) -> str:
    return ", ".join(map(str, choice)) if isinstance(choice, list) else str(choice)


def _share(p: float) -> str:
    return f"{100 * p:.1f} %" if p >= 1e-3 else f"{100 * p:.1e} %"


def _about(n: float) -> str:
    return f"{n:,.0f}" if n < 1e6 else f"{n:.1e}"


def refinements(run: RunFolder) -> list[tuple[str, str, list[list[str]]]]:
    """For each search whose posterior was refined: its id, a sentence, and rows of `REFINED_COLUMNS`."""
    found = []
    for search, account in sorted((run.summary.get("refinement") or {}).items()):
        short = {row["candidate"]: f"{row['val_loss']:.4f}" for row in account.get("probes") or []}
        finals, longer = account.get("finals") or [], {}
        for row in finals:  # rung by rung, the longest last
            after = f" ({plural(row['epochs'], 'epoch')})" if "epochs" in row else ""
            longer[row["candidate"]] = f"{row['val_loss']:.4f}{after}"
        rows = []
        for row in account.get("posterior") or []:
            cells = [_share(row["probability_best"]), f"{row['mean']:.2f} ± {row['sd']:.2f}".replace("-", "−")]
            cells += [losses.get(row["candidate"], "–") for losses in (short, longer)]
            rows.append([*cells, _difference(row["choices"], {})])
        sentence = (
            f"{plural(len(short), 'short training')} and {plural(len(finals), 'longer one')} have updated the "
            "posterior of the search, the prior mean of a Gaussian process. Scores are in standard deviations of what "
            "was seen, larger is better; the probability is that of a draw of the process in which it is the best."
        )
        found.append((str(search), sentence, rows))
    return found


def smallest_good(run: RunFolder) -> str:
    """The smallest network within one standard error of the best one, by validation; "" where nobody can tell.

    The standard error is that of the best one's mean over its repeats.
    """
    score = run.score
    rows = [row for row in run.architectures if retrained(row, score.val).n > 1 and row.get("params")]
    if len(rows) < 2:
        return ""
    best = max(rows, key=lambda row: retrained(row, score.val).mean or -math.inf)
    value = retrained(best, score.val)
    mean, error = value.mean or 0.0, (value.sd or 0.0) / math.sqrt(value.n)
    near = [row for row in rows if (retrained(row, score.val).mean or -math.inf) >= mean - error]
    smallest = min(near, key=lambda row: row["params"])
    if smallest is best:
        return f"No smaller network is within one standard error of the best one, {best['id']}, by validation."
    return (
        f"Smallest network within one standard error of the best ({best['id']}, validation {score.title} "
        f"{scored(value, score.percent)}): {smallest['id']}, {count(smallest['params'])} instead of "
        f"{count(best['params'])} parameters, {scored(retrained(smallest, score.val), score.percent)}."
    )
