"""What a search says of its family before anything is retrained, and at which scale sizes are counted."""

from __future__ import annotations

from nni_bayes_nas.report.read import Row, RunFolder
from nni_bayes_nas.report.tables import DASH, count, has_latency, lam, lambda_range, retrained, scored

TEXT_COLUMNS = ("Architecture",)


def known_before(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the family's table: price, scores with the weights of the search, score once retrained.

    A column of which no row has a value is left out; without any of them there is no table.
    """
    score, family = run.score, [row for row in run.architectures if row.get("origin") != "random"]
    cells = {
        "Price": [_price(row) for row in family],
        "Mixture": [scored(row.get(f"mixture_{score.term}"), score.percent) for row in family],
        "One-hot": [scored(row.get(f"one_hot_{score.term}"), score.percent) for row in family],
    }
    known = {name: column for name, column in cells.items() if any(cell != DASH for cell in column)}
    if not known:
        return [], []
    columns = {
        "Architecture": [str(row.get("id", "?")) for row in family],
        "λ": [lam(row.get("lambda")) for row in family],
        "Parameters": [count(row.get("params")) for row in family],
        **known,
    }
    if any(retrained(row, score.val).n for row in family):
        columns["Retrained"] = [scored(retrained(row, score.val), score.percent) for row in family]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def explained(run: RunFolder) -> list[str]:
    """One sentence for each column of that table that needs one."""
    score, shown = run.score, known_before(run)[0]
    sentences = {
        "Price": "Price: the validation loss, in nats, that a unit of cost would save at this λ, −dL/dE[cost]; cost is "
        "0 for the cheapest network of the space and 1 for the dearest; – where λ does not move it."
        + _price_of_penalty(run),
        "Mixture": f"Mixture: validation {score.title} of the supernet at this λ, all operations mixed by their "
        "weights.",
        "One-hot": f"One-hot: validation {score.title} of the derived network alone, with the weights of the search. "
        "It is a hint; the network's own worth is seen once it is retrained.",
        "Retrained": f"Retrained: validation {score.title} after training from scratch.",
    }
    return [sentence for name, sentence in sentences.items() if name in shown]


def found_ranges(run: RunFolder) -> str:
    """The ranges of λ that the searches have found by themselves, or could not find, as sentences; else empty."""
    automatic = run.setting("strategy", "args", "lambda_range") == "auto"
    several = len(run.searches) > 1
    sentences = {True: "Range of λ found by the search itself (lambda_range: auto)"} if automatic else {}
    sentences[False] = (
        "What λ costs was not found (too few steps, or larger networks were no better): it divides the range of sizes "
        "evenly, over the range"
    )
    ranges: dict[bool, list[str]] = {True: [], False: []}
    for search in run.searches:
        if (text := lambda_range(search)) != DASH:
            found = bool(search.get("lambda_found", True))
            ranges[found].append(f"{text} ({search.get('id', '?')})" if several else text)
    said = [f"{said}: {'; '.join(ranges[found])}." for found, said in sentences.items() if ranges[found]]
    return " ".join([*said, *(_cut_off(run) if not automatic else [])])


def _cut_off(run: RunFolder) -> list[str]:
    """Searches whose range of λ, as asked for, leaves out a part of where λ decides; a sentence for each."""
    result = []
    for search in run.searches:
        asked, found = search.get("lambda_range"), search.get("lambda_decides")
        if asked and found and (found[0] < asked[0] * (1 - 1e-6) or found[1] > asked[1] * (1 + 1e-6)):
            result.append(
                f"In search {search.get('id', '?')} λ decides between {lam(found[0])} and {lam(found[1])}: the range "
                f"that was asked for, {lambda_range(search)}, leaves out a part of that (lambda_range: auto takes all)."
            )
    return result


def stopped(run: RunFolder) -> list[str]:
    """A sentence for every search that ended by itself before its last epoch."""
    return [
        f"Search {search.get('id', '?')} ended after {found.get('epoch')} epochs: {found.get('why')}."
        for search in run.searches
        if isinstance(found := search.get("stopped"), dict)
    ]


def scale_note(run: RunFolder) -> str:
    """Which sizes are counted at which scale, where retraining has its own; empty otherwise."""
    if not run.retrain_scale:
        return ""
    return (
        f"Retraining is at another scale than the search (retrain.space: {run.retrain_scale}): retrained networks are "
        "counted at the scale of the retraining, all others at that of the search."
    )


def latency_note(run: RunFolder) -> str:
    """What the column of latencies holds, where there is one; empty otherwise."""
    if not has_latency(run):
        return ""
    at = ", at the scale of the search" if run.retrain_scale else ""
    return f"Latency is the sum of the entries of the latency table{at}; no network was timed."


def _price_of_penalty(run: RunFolder) -> str:
    if run.setting("strategy", "args", "complexity") != "penalty":
        return ""
    weight = run.setting("strategy", "args", "complexity_weight")
    known = "λ itself" if weight in (None, 1) else f"λ times complexity_weight = {weight}"
    return f" Under complexity: penalty it is {known} where sizes move, up to noise."


def _price(row: Row) -> str:
    price = row.get("price")
    # A minus that is as wide as a plus.
    return lam(price).replace("-", "−") if isinstance(price, int | float) else DASH
