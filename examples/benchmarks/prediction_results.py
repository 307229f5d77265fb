"""What `prediction.py` makes of its rows: tests, targets and tables."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from contract import Target, half_width
from scipy.stats import ttest_rel

from nni_bayes_nas.prediction.ranker import kendall

DECODERS = ("seq2seq", "doubly_recurrent")
OURS = "ours"
SEARCH, ALL = "inner search on all data", "all"
# Of as many connections as predicted ones.
EQUAL = ("random", "snip", "adanet", "low_rank")


class Figures:
    """Rows by data set, kind of budget and arm."""

    KINDS = ("n", "5 n", "10 %")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        done = [row for row in rows if "error" not in row]
        self.rows = [row for row in done if "errors_of" not in row]
        self.errors = [row for row in done if "errors_of" in row]
        # Without the dense network nobody knows what a tenth of it is.
        self.data = list(dict.fromkeys(row["data"] for row in self.rows if row["arm"] == "dense"))
        self._kinds: dict[tuple[str, int], list[str]] = {}
        for name in self.data:
            budgets = sorted({row["budget"] for row in self.rows if row["data"] == name})
            dense = next(r["connections"] for r in self.rows if r["data"] == name and r["arm"] == "dense")
            tenth = min(budgets, key=lambda b, dense=dense: abs(b - 0.1 * dense))  # type: ignore[misc]
            rest = [b for b in budgets if b != tenth] or budgets
            for kind, budget in (("n", rest[0]), ("5 n", rest[-1]), ("10 %", tenth)):
                self._kinds.setdefault((name, budget), []).append(kind)

    def by_seed(self, data: str, kind: str, arm: str, name: str = "test_accuracy") -> dict[int, float]:
        """A figure of an arm."""
        return {
            row["seed"]: row[name]
            for row in self.rows
            if (row["data"], row["arm"]) == (data, arm)
            and kind in self._kinds.get((data, row["budget"]), ())
            and name in row
        }

    def mean(self, arm: str, name: str, data: str | None = None, kind: str | None = None) -> float | None:
        """Over seeds, and over data sets and budgets where none is named."""
        kinds, names = ([kind] if kind else self.KINDS), ([data] if data else self.data)
        found = [statistics.fmean(v) for d in names for k in kinds if (v := self.by_seed(d, k, arm, name).values())]
        return statistics.fmean(found) if found else None

    def above(self, one: str, other: str, *, together: bool = False) -> list[dict[str, Any]]:
        """Paired differences of test accuracy by data set and budget, with p of one-sided t-tests.

        Args:
            one: An arm.
            other: Likewise.
            together: Of a seed the mean over the budgets counts: a test for each data set.
        """
        found = []
        for data in self.data:
            for kind in (ALL,) if together else self.KINDS:
                kinds = self.KINDS if together else (kind,)
                pairs = [(self.by_seed(data, k, one), self.by_seed(data, k, other)) for k in kinds]
                seeds = sorted(set.intersection(*(set(side) for pair in pairs for side in pair)))
                if len(seeds) < 2:
                    continue
                ours, theirs = ([statistics.fmean(p[i][s] for p in pairs) for s in seeds] for i in (0, 1))
                gaps = [x - y for x, y in zip(ours, theirs, strict=True)]
                if statistics.pstdev(gaps) > 1e-9:
                    p = float(ttest_rel(ours, theirs, alternative="greater").pvalue)
                else:  # equal gaps have no t, or an infinite one
                    p = float(statistics.fmean(gaps) <= 1e-9)
                head = {"test": f"{one} above {other}", "data": data, "budget_kind": kind, "seeds": len(seeds)}
                found.append({**head, "difference": statistics.fmean(gaps), "half_width": half_width(gaps), "p": p})
        return found


def ours_of(figures: Figures) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """For every data set the decoder of the smaller mean validation loss on those that were not left out with it, in
    units of that at random; and its rows as "ours"."""
    chosen, rows = {}, []
    unit = {data: figures.mean("random", "val_loss", data) or 1.0 for data in figures.data}
    for data in figures.data:
        rest = [name for name in figures.data if kin(name) != kin(data)] or [data]
        of_rest = {
            arm: statistics.fmean(losses)
            for arm in DECODERS
            if (losses := [loss / unit[d] for d in rest if (loss := figures.mean(arm, "val_loss", d)) is not None])
        }
        chosen[data] = min(of_rest, key=of_rest.__getitem__, default=DECODERS[0])
        for row in figures.rows:
            if row["data"] == data and row["arm"].split(",")[0] == chosen[data]:
                rows.append({**row, "arm": row["arm"].replace(chosen[data], OURS, 1)})
    return chosen, rows


def is_made_up(data: str) -> bool:
    """Whether a data set is of the generator."""
    return data.startswith("synthetic")


def kin(data: str) -> str:
    """Equal for data sets that are left out together: of one generator, and of handwritten digits."""
    return "made-up" if is_made_up(data) else "handwritten" if data in ("digits", "mnist_8x8") else data


def targets(figures: Figures, bank: dict[str, Any], tests: list[dict[str, Any]], data_sets: list[str]) -> list[Target]:
    """What is aimed at, of "ours"; of tests with corrected p, which every data set must have."""
    found = [Target("2", "share of parts with a small network as good as dense", bank["share"], 0.8, "higher")]
    for other in ("random", "random, ranked", "random, refined", f"{OURS}, shuffled"):
        mine = [row for row in tests if row["test"] == f"{OURS} above {other}" and row["budget_kind"] == ALL]
        mine = mine if {row["data"] for row in mine} == set(data_sets) else []
        least, largest = (
            choose((row[name] for row in mine), default=None) for choose, name in ((min, "difference"), (max, "p_holm"))
        )
        found.append(Target("3", f"{OURS}: smallest mean difference to {other}", least, 1e-4, "higher"))
        found.append(Target("3", f"{OURS}: largest p (Holm) of being above {other}", largest, 0.05, "lower"))
    for other, kind in itertools.product(("snip", "snip, ranked"), ("n", "10 %")):
        mine = [row for row in figures.above(OURS, other) if row["budget_kind"] == kind]
        all_there = {row["data"] for row in mine} == set(data_sets)
        gap = statistics.fmean(row["difference"] for row in mine) if all_there else None
        found.append(Target("3", f"mean difference to {other} at {kind}", gap, 0.0, "higher"))
    lost = {}
    for data in data_sets:
        a, b = (figures.mean(arm, "test_accuracy", data, "10 %") for arm in (OURS, "dense"))
        lost[data] = a is not None and b is not None and 1 - a / b <= 0.01
    for what, some in (("", lost), ("real ", {d: held for d, held in lost.items() if not is_made_up(d)})):
        share = sum(some.values()) / len(some) if some else None
        found.append(
            Target("3", f"share of {what}data sets with at most 1 % lost to dense at 10 %", share, 0.75, "higher")
        )

    def of_all(arm: str, name: str) -> float | None:
        there = all(figures.mean(arm, name, data) is not None for data in data_sets)
        return figures.mean(arm, name) if there else None

    # Of the first decoder's jobs: the ranker is the same for both.
    found += [
        Target("3", f"Kendall's tau of the ranker, data set left out, {of}", of_all(arm, name), 0.6, "higher")
        for of, arm, name in (
            ("all of it", DECODERS[0], "whole_tau"),
            ("within a baseline", DECODERS[0], "within_tau"),
            ("its parts", OURS, "tau"),
        )
    ]
    fresh = [name for name in figures.data if is_made_up(name)]
    taus = [tau for name in fresh if (tau := figures.mean(DECODERS[0], "whole_tau", name)) is not None]
    what = "Kendall's tau of the ranker, data set left out, all of it, made-up ones"
    found.append(Target("3", what, statistics.fmean(taus) if taus else None, 0.6, "higher"))
    seconds = [figures.mean(OURS, "predict_seconds", data, kind) for data in data_sets for kind in figures.KINDS]
    slowest = max((mean for mean in seconds if mean is not None), default=None)
    what = "seconds of a prediction, mean over seeds, the slowest data set and budget"
    found.append(Target("3", what, slowest, 1.0, "lower"))
    return [*found, Target("3", "minutes of the bank", bank["minutes"], 60.0, "lower")]


def print_tables(figures: Figures, tests: list[dict[str, Any]], bank: dict[str, Any]) -> None:
    """Test accuracy by data set and budget, and what decoders cost."""
    for kind in figures.KINDS:
        print(f"\n{kind:<26}" + "".join(f"{name[:16]:>18}" for name in figures.data))
        for arm in dict.fromkeys(row["arm"] for row in figures.rows):
            values = [list(figures.by_seed(name, kind, arm).values()) for name in figures.data]
            print(f"{arm:<26}" + "".join(f"{_spread(each):>18}" for each in values))
    print()
    for row in tests:
        print(
            f"{row['test']:<52}{row['data']:<18}{row['budget_kind']:<6}{100 * row['difference']:+7.2f} "
            f"+- {100 * (row['half_width'] or 0):.2f}  p {row['p']:.4f}  Holm {row['p_holm']:.4f}"
        )
    print(f"\nbank: {bank['entries']} entries in {bank['minutes']:.1f} minutes, best found by {bank['methods']}")
    print(
        f"as good as dense, by rising budget: {bank['shares_by_budget']}; by seeds alone {bank['share_by_seeds']:.3f}"
    )
    for arm in DECODERS:
        names = ("meta", "fit_seconds", "ranker_seconds", "predict_seconds", "tau")
        numbers = [figures.mean(arm, name) for name in names]
        if None not in numbers:
            meta, fit, ranker, seconds, tau = (float(number or 0) for number in numbers)
            said = f"{meta:.0f} parameters, fit {fit:.0f} s and {ranker:.0f} of the ranker, prediction {seconds:.2f} s"
            print(f"{arm}: {said}, tau {tau:.2f}")
    print(f"ours: {bank.get('ours')}")
    for name in figures.data:
        columns = ("whole_tau", "trees_tau", "short_tau", "within_tau", "own_tau", "between_seeds", "tau")
        taus = [figures.mean(DECODERS[0], column, name) for column in columns]
        if None not in taus:
            whole, trees, short, within, own, seeds, parts = (float(tau or 0) for tau in taus)
            print(
                f"{name}: tau of the ranker {whole:.2f} (trees alone {trees:.2f}, short trainings alone {short:.2f}), "
                f"within a baseline {within:.2f}, what was predicted {own:.2f}; two seeds have {seeds:.2f}, with "
                f"which one more has {of_one_more(seeds):.2f} and nobody is above {reachable(seeds):.2f}; on parts "
                f"{parts:.2f}"
            )
    print_errors(figures)
    if (pays := pays_after(figures, bank)) is not None:
        after = "never pays" if pays[1] is None else f"pays after {pays[1]:.0f} data sets"
        print(f"searches on all data take {pays[0]:.1f} s a data set: the bank {after}")
    for arm in DECODERS:
        own, dense = (figures.mean(arm, f"{name}_seconds") for name in ("alone", "dense"))
        if own is not None and dense is not None:
            print(f"training on all data, {arm}: {own:.2f} s for a network by itself, {dense:.2f} of dense beside it")
    for kind in figures.KINDS:
        counts = {arm: figures.mean(arm, "parameters", kind=kind) for arm in ("dense", *DECODERS, *EQUAL)}
        print(f"parameters at {kind}: " + ", ".join(f"{a} {n:.0f}" for a, n in counts.items() if n is not None))
    print()


def print_errors(figures: Figures) -> None:
    """Of decoders on the parts of data that were left out: how networks differ from those that a search found."""
    for decoder in dict.fromkeys(row["errors_of"] for row in figures.errors):
        mine = [row for row in figures.errors if row["errors_of"] == decoder]
        lost = [row["loss"] - row["loss_found"] for row in mine]
        gain = [row["loss_others"] - row["loss"] for row in mine]
        right = [row["accuracy"] - row["accuracy_found"] for row in mine]
        pairs = [row for row in mine if row["inputs_chance"] is not None and row["layers"] and row["layers_chance"]]
        sets = {name: statistics.fmean(row[name] for row in pairs) for name in ("inputs", "inputs_chance") if pairs}
        sets |= {name: statistics.fmean(row[name][0] for row in pairs) for name in ("layers", "layers_chance") if pairs}
        said = ", ".join(f"{name} {value:.2f}" for name, value in sets.items())
        by = {
            name: kendall(lost, [row[name] for row in mine]) for name in ("objects", "distance", "budget", "features")
        }
        print(
            f"{decoder}, {len(mine)} entries left out: loss {statistics.fmean(lost):+.3f} nats above the one found, "
            f"{statistics.fmean(gain):+.3f} below others; accuracy {100 * statistics.fmean(right):+.1f} points above "
            f"the one found, on objects that chose none; tokens {statistics.fmean(r['length'] for r in mine):+.0f}; "
            f"hidden layers right {statistics.fmean(r['depth'] == r['depth_found'] for r in mine):.0%}; "
            f"{statistics.fmean(r['nats'] for r in mine):.2f} nats a token; F1 (first layer): {said}; tau of what is "
            "lost with " + ", ".join(f"{name} {tau:+.2f}" for name, tau in by.items())
        )


def reachable(between: float) -> float:
    """Kendall's tau of the true order with the mean of two noisy ones, which have `between` with one another.

    Of normal distributions: tau is 2/pi asin of the correlation (Greiner), and that of the truth with the mean of two
    whose correlation is c is sqrt(2 c / (1 + c)) (Spearman and Brown).
    """
    c = max(0.0, math.sin(math.pi * between / 2))
    return 2 / math.pi * math.asin(math.sqrt(2 * c / (1 + c)))


def of_one_more(between: float) -> float:
    """Kendall's tau of a third noisy order with the mean of two, where any two of them have `between`.

    Of normal distributions, as `reachable`: the correlation is c sqrt(2 / (1 + c)).
    """
    c = max(0.0, math.sin(math.pi * between / 2))
    return 2 / math.pi * math.asin(c * math.sqrt(2 / (1 + c)))


def pays_after(figures: Figures, bank: dict[str, Any]) -> tuple[float, float | None] | None:
    """Process seconds of searching a data set with all budgets, and how many of them bank and fit are worth."""
    ours = [row for row in figures.rows if row["arm"] == OURS and "predict_seconds" in row]
    fits = [row["fit_seconds"] + row["ranker_seconds"] for row in ours if "fit_seconds" in row]
    theirs = [row for row in figures.rows if row["arm"] == SEARCH]
    if not fits or not theirs:
        return None
    n = len({(row["data"], row["seed"]) for row in theirs})
    search = sum(row["search_seconds"] for row in theirs) / n
    predict = sum(row["predict_seconds"] for row in ours) / len({(r["data"], r["seed"], r["arm"]) for r in ours})
    if (saved := search - predict) <= 0:
        return search, None
    return search, (bank["seconds"] + statistics.fmean(fits)) / saved


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"
