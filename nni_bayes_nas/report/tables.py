"""Facts of a run in words and in rows: pure functions from a run folder to text."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from dataclasses import dataclass
from typing import Any

from nni_bayes_nas.report.read import Row, RunFolder

DASH = "–"


@dataclass(frozen=True)
class Measure:
    """Mean and sample standard deviation of one number over seeds.

    Attributes:
        mean: The mean, `None` without values.
        sd: The standard deviation with n - 1 in the denominator, `None` with fewer than two values.
        n: How many values.
    """

    mean: float | None
    sd: float | None
    n: int


def measure(values: list[Any]) -> Measure:
    """Mean and sd of the finite numbers among the values.

    >>> measure([0.5, 0.7]).n, measure([0.5]).sd
    (2, None)
    """
    numbers = [float(x) for x in values if isinstance(x, int | float) and math.isfinite(x)]
    if not numbers:
        return Measure(None, None, 0)
    return Measure(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def retrained(architecture: Row, key: str) -> Measure:
    """One number (`test_accuracy`, `val_r2`, `seconds`, ...) of an architecture over its retrainings."""
    return measure([row.get(key) for row in architecture.get("retrain") or [] if isinstance(row, dict)])


def percent(value: Measure | float | None, digits: int = 2) -> str:
    """A share as per cent, with ± sd where there is one.

    >>> percent(0.98333), percent(None), percent(Measure(0.9, 0.01, 3))
    ('98.33 %', '–', '90.00 ± 1.00 %')
    """
    if not isinstance(value, Measure):
        value = measure([value])
    if value.mean is None:
        return DASH
    sd = "" if value.sd is None else f" ± {100 * value.sd:.{digits}f}"
    return f"{100 * value.mean:.{digits}f}{sd} %"


def scored(value: Measure | float | None, share: bool) -> str:
    """A score: as per cent if it is a share, else with four significant digits, with ± sd where there is one.

    >>> scored(0.98333, True), scored(-0.0344, False), scored(Measure(57.21, 0.5, 3), False)
    ('98.33 %', '−0.0344', '57.21 ± 0.5')
    """
    if share:
        return percent(value)
    if not isinstance(value, Measure):
        value = measure([value])
    if value.mean is None:
        return DASH
    sd = "" if value.sd is None else f" ± {value.sd:.2g}"
    return f"{value.mean:.4g}".replace("-", "−") + sd


def count(value: Any) -> str:
    """A count in full below a million, then with three significant digits.

    >>> count(40122), count(1834000), count(None)
    ('40,122', '1.83 M', '–')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    for scale, unit in ((1e9, " G"), (1e6, " M")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}" if abs(value) < 1000 * scale else f"{value / scale:,.0f}{unit}"
    return f"{value:,.0f}"


def macs(value: Any) -> str:
    """Multiply-accumulates per object: in millions from 100,000 on, with three significant digits.

    >>> macs(923691), macs(1834000), macs(4500)
    ('0.924 M', '1.83 M', '4,500')
    """
    if isinstance(value, int | float) and 1e5 <= value < 1e6:
        return f"{value / 1e6:.3g} M"
    return count(value)


def lam(value: Any) -> str:
    """λ with three significant digits."""
    return f"{value:.3g}" if isinstance(value, int | float) else DASH


def lambda_range(search: Row) -> str:
    """The range of λ of one search.

    >>> lambda_range({"lambda_range": [0.001, 1.0]}), lambda_range({})
    ('0.001 to 1', '–')
    """
    ends = search.get("lambda_range")
    if not isinstance(ends, list) or len(ends) != 2:
        return DASH
    return " to ".join(lam(end) for end in ends)


def duration(seconds: Any) -> str:
    """A time span in the two largest units.

    >>> duration(81.2), duration(7300), duration(4.21)
    ('1 min 21 s', '2 h 1 min', '4.2 s')
    """
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def number(value: Any) -> str:
    """Any scalar as text: four significant digits for floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def plural(n: int, noun: str, many: str | None = None) -> str:
    """`1 trial`, `2 trials`."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def canonical(architecture: Row) -> str:
    """The choices as text that is equal for equal choices."""
    return json.dumps(architecture.get("choices") or {}, sort_keys=True, default=str)


def distinct(architectures: list[Row]) -> list[list[Row]]:
    """Architectures grouped by equal choices, in the order of their first occurrence."""
    groups: dict[str, list[Row]] = {}
    for row in architectures:
        groups.setdefault(canonical(row), []).append(row)
    return list(groups.values())


def origin_text(group: list[Row]) -> str:
    """Where the architectures of one group came from: `λ = 0.001, 0.01`, `mean`, `random`."""
    lams = [lam(row["lambda"]) for row in group if isinstance(row.get("lambda"), int | float)]
    others = list(dict.fromkeys(str(row.get("origin", "?")) for row in group if row.get("lambda") is None))
    return " · ".join((["λ = " + ", ".join(dict.fromkeys(lams))] if lams else []) + others)


def trial_seconds(run: RunFolder) -> float:
    """Seconds of all finished trials together; a retraining that several architectures share counts once."""
    total = sum(float(row.get("seconds") or 0) for row in run.searches)
    seen: set[str] = set()
    for architecture in run.architectures:
        for row in architecture.get("retrain") or []:
            key = str(row.get("trial") or f"{canonical(architecture)} {row.get('seed')}")
            if key not in seen:
                seen.add(key)
                total += float(row.get("seconds") or 0)
    if run.summary.get("prediction"):  # whose trials are no rows of the summary
        measured = (run.summary.get("wall_clock") or {}).get("trials") or {}
        total = sum(float(row.get("seconds") or 0) for row in measured.values())
    return total


def retrain_seeds(run: RunFolder) -> list[int]:
    """How many retrainings each architecture has, as the sorted distinct counts without zero."""
    return sorted({n for row in run.architectures if (n := len(row.get("retrain") or []))})


def seeds_text(run: RunFolder) -> str:
    """The number of retraining seeds in words, for captions."""
    counts = retrain_seeds(run)
    if not counts:
        return "nothing retrained yet"
    if counts == [1]:
        return "one retraining seed, so no spread is known"
    few = "" if counts[0] >= 3 else "; fewer than 3 seeds cannot carry a comparison"
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean ± sd over {span} retraining seeds{few}"


def headline(run: RunFolder) -> list[str]:
    """What was searched, on which data, with what result, as sentences."""
    summary = run.summary
    searches = run.searches
    strategies = list(dict.fromkeys(str(s.get("strategy", "?")) for s in searches))
    strategy = ", ".join(strategies) or str(run.setting("strategy", "name") or "unknown strategy")
    planned, variants = run.setting("search", "searches"), run.setting("search", "variants")
    if isinstance(planned, int) and isinstance(variants, list):
        planned *= max(1, len(variants))
    searched = plural(len(searches), "finished search", "finished searches")
    if isinstance(planned, int) and planned > len(searches):
        searched += f" of {planned} planned"
    sentences = [
        f"Space {summary.get('space', '?')}, data {summary.get('data', '?')}, strategy {strategy}: {searched}"
        + _epochs(run, "search")
        + "."
    ]
    family = [row for row in run.architectures if row.get("origin") != "random"]
    if family:
        lams = [row["lambda"] for row in family if isinstance(row.get("lambda"), int | float)]
        at = f" at λ from {lam(min(lams))} to {lam(max(lams))}" if lams else ""
        sizes = [row["params"] for row in family if isinstance(row.get("params"), int | float)]
        size = f", {count(min(sizes))} to {count(max(sizes))} parameters" if sizes else ""
        if sizes and min(sizes) == max(sizes):
            size = f", {count(sizes[0])} parameters"
        different = f"{len(distinct(family))} distinct" if len(family) > 1 else "one network"
        trained = _epochs(run, "retrain", ", retrained for") if retrain_seeds(run) else ""
        sentences.append(
            f"{plural(len(family), 'architecture')} read off without further training{at} ({different}{size}){trained}."
        )
    random = [row for row in run.architectures if row.get("origin") == "random"]
    if random:
        sentences.append(f"{plural(len(random), 'random architecture')} of matched size as the baseline.")
    best = best_by_validation(run)
    if best is not None:
        score = run.score
        name = f"Best by validation {score.title}: {best.get('id', '?')}, {count(best.get('params'))} parameters"
        sentences.append(f"{name}, test {score.title} {scored(retrained(best, score.test), score.percent)}.")
    return sentences


def _epochs(run: RunFolder, section: str, text: str = "") -> str:
    epochs = run.setting(section, "epochs")
    return f"{text or ','} {plural(epochs, 'epoch')}" if isinstance(epochs, int) else text and ""


def best_by_validation(run: RunFolder) -> Row | None:
    """The searched architecture with the highest mean validation score; test data play no part in the choice."""
    family = [row for row in run.architectures if row.get("origin") != "random"]
    found = [(m, row) for row in family if (m := retrained(row, run.score.val).mean) is not None]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    """The headline's numbers: (label, value, remark)."""
    experiment = run.summary.get("experiment") or {}
    done, failed = experiment.get("trials_succeeded"), experiment.get("trials_failed")
    best = best_by_validation(run)
    rows = [
        ("Status", str(run.summary.get("status", "unknown")), f"NNI experiment {experiment.get('id') or 'none'}"),
        ("Trials done", number(done), f"{number(failed)} failed"),
        ("Trial time", duration(trial_seconds(run)), "sum over finished trials"),
    ]
    if best is not None:
        tested = scored(retrained(best, run.score.test), run.score.percent)
        rows.append((f"Test {run.score.title}", tested, f"{best.get('id', '?')}, best by validation"))
    sizes = [r["params"] for r in run.architectures if r.get("origin") == "lambda" and r.get("params")]
    if sizes and min(sizes) > 0:
        rows.append(
            (
                "Size range over λ",
                f"{max(sizes) / min(sizes):.2g} ×",
                f"{count(min(sizes))} to {count(max(sizes))} parameters",
            )
        )
    return rows


def architecture_columns(run: RunFolder) -> list[str]:
    """Headings of the table of all architectures; what is measured beside the score has columns of its own."""
    known = ["Architecture", "λ", "Origin", "Parameters", "MACs", *(["Latency (ms)"] if has_latency(run) else [])]
    known += ["log p (nats)", "Validation", "Test"]
    return [*known, *(heading for _, heading, _ in run.score.beside), "Seeds", "Time", "Trials"]


def has_latency(run: RunFolder) -> bool:
    """Whether the search knew latencies: whether it had a table of them."""
    return any("latency" in row for row in run.architectures)


def architecture_rows(run: RunFolder) -> list[list[str]]:
    """The table of all architectures, one row each in the summary's order, cells as in `architecture_columns`."""
    rows, score, timed = [], run.score, has_latency(run)
    for row in run.architectures:
        results = [r for r in row.get("retrain") or [] if isinstance(r, dict)]
        seconds = [float(r["seconds"]) for r in results if isinstance(r.get("seconds"), int | float)]
        log_prob = measure([row.get("log_prob")]).mean
        rows.append(
            [
                str(row.get("id", "?")),
                lam(row.get("lambda")),
                str(row.get("origin", "?")),
                count(row.get("params")),
                macs(row.get("macs")),
                *([number(row.get("latency"))] if timed else []),
                f"{log_prob:.2f}".replace("-", "−") if log_prob is not None else DASH,
                scored(retrained(row, score.val), score.percent),
                scored(retrained(row, score.test), score.percent),
                *(scored(retrained(row, key), share) for key, _, share in score.beside),
                ", ".join(str(r.get("seed", "?")) for r in results) or DASH,
                duration(sum(seconds)) if seconds else DASH,
                ", ".join(str(r.get("trial") or "?") for r in results) or DASH,
            ]
        )
    return rows


SEARCH_COLUMNS = (
    "Search",
    "Strategy",
    "Seed",
    "Steps",
    "Steps after search",
    "Validation",
    "Time",
    "λ range",
    "Cost",
    "Last terms",
)


def search_rows(run: RunFolder) -> list[list[str]]:
    """The table of the finished searches, cells as in `SEARCH_COLUMNS`."""
    rows = []
    for row in run.searches:
        cost = " ".join(str(row[key]) for key in ("cost", "cost_kind") if row.get(key))
        terms = row.get("terms") if isinstance(row.get("terms"), dict) else {}
        changes: Row = row["changes"] if isinstance(row.get("changes"), dict) else {}
        rows.append(
            [
                str(row.get("id", "?")),
                ", ".join([str(row.get("strategy", "?")), *(f"{path} {value}" for path, value in changes.items())]),
                number(row.get("seed")),
                number(row.get("steps")),
                number(row.get("optimizer_steps_after_search")),
                scored(row.get(run.score.val), run.score.percent),
                duration(row.get("seconds")),
                lambda_range(row),
                cost or DASH,
                ", ".join(f"{key} {number(value)}" for key, value in (terms or {}).items()) or DASH,
            ]
        )
    return rows


def repeat_commands(run: RunFolder) -> list[tuple[str, str]]:
    """Commands that repeat the run: (what, command)."""
    commands = []
    if value := run.environment.get("command"):
        commands.append(("The command line of this run", str(value)))
    # As seen from where the run was started, which is where modules of one's own and relative paths are found.
    path, start = run.path.resolve(), str(run.environment.get("code_directory") or "")
    path = path.relative_to(start) if start and path.parent.is_relative_to(start) else path
    folder, again = (shlex.quote(str(name)) for name in (path, f"{path}-again"))
    commands.append(
        (
            "The same configuration in a new folder (seeds included), from where this run was started",
            f"nni-bayes-nas run {folder}/config.yaml --output {again}",
        )
    )
    commands.append(("This report, from the folder alone", f"nni-bayes-nas report {folder}"))
    return commands


def seed_rows(run: RunFolder) -> list[tuple[str, str]]:
    """Every seed that the run used: (what, seeds)."""
    repeats = {str(r.get("seed")) for a in run.architectures for r in a.get("retrain") or [] if isinstance(r, dict)}
    return [
        ("Experiment seed", number(run.summary.get("seed"))),
        ("Search seeds", ", ".join(number(s.get("seed")) for s in run.searches) or DASH),
        ("Retraining seeds", ", ".join(sorted(repeats, key=lambda s: (len(s), s))) or DASH),
    ]


def environment_rows(run: RunFolder) -> list[tuple[str, str]]:
    """`environment.json` as flat rows (dotted key, value); nested objects and lists of them are unfolded."""

    def flatten(value: Any, path: str) -> list[tuple[str, str]]:
        if isinstance(value, dict):
            return [row for key, item in value.items() for row in flatten(item, f"{path}.{key}" if path else str(key))]
        if isinstance(value, list):
            if any(isinstance(item, dict) for item in value):
                return [row for i, item in enumerate(value) for row in flatten(item, f"{path}.{i}")]
            return [(path, ", ".join(map(str, value)) or "none")]
        return [(path, DASH if value is None else str(value))]

    return flatten(run.environment, "")
