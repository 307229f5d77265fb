"""The plots of a report: the score against size, the curve over λ, learning curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nni_bayes_nas.report.canvas import INK, MUTED, SERIES, epoch_axis, log_axis, place_labels, render, short_count
from nni_bayes_nas.report.read import Row, RunFolder, Score
from nni_bayes_nas.report.tables import distinct, lam, plural, retrained, seeds_text


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Attributes:
        title: Heading.
        svg: The drawing.
        caption: One line: what is seen, and what is not.
    """

    title: str
    svg: str
    caption: str


def accuracy_plot(run: RunFolder) -> Plot | None:
    """Test and validation score against parameters, families over λ joined; `None` if nothing was retrained."""
    score = run.score
    shown = [r for r in run.architectures if _positive(r.get("params")) and _has_score(r, score)]
    if not shown:
        return None
    searches = _search_order(run)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        several = len(searches) > 1
        for index, search in enumerate(searches):
            color = SERIES[index % len(SERIES)]
            family = [r for r in shown if r.get("search") == search and r.get("origin") != "random"]
            name = f"search {search}" if several else "over λ" if _lams(family) else "searched"
            _family(axes, family, score, color, name, labels="all" if not several else "ends" if index == 0 else "none")
        random = [r for r in shown if r.get("origin") == "random"]
        if random:
            gray: Any = {"color": MUTED, "linestyle": "none"}
            _bars(axes, random, score, MUTED, marker="D", size=5.5, label="random, matched size")
            for row in random:
                validation = retrained(row, score.val).mean
                if validation is not None:
                    axes.plot(
                        row["params"], score.factor * validation, marker="D", markersize=4.5, fillstyle="none", **gray
                    )
        axes.plot(
            [], [], marker="o", markersize=5, fillstyle="none", color=INK, linestyle="none", label="hollow: validation"
        )
        axes.set_xlabel("parameters (log scale)")
        axes.set_ylabel(score.axis)
        axes.margins(x=0.1, y=0.1)
        log_axis(axes, "x", [float(r["params"]) for r in shown], short_count)
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        place_labels(axes)

    total = len(run.architectures)
    missing = f" {total - len(shown)} of {total} not retrained (yet)." if total > len(shown) else ""
    numbers = "; numbers at points are λ" if _lams(shown) else ""
    if numbers and len(searches) > 1:
        numbers += " (only the ends of the first search)"
    caption = (
        f"Filled: test {score.title} of the retrained networks, {seeds_text(run)}{numbers}."
        f"{_sampling_error(shown, score)}{missing}"
    )
    return Plot(f"{score.heading} against parameters", render("score", draw, height=4.1), caption)


def _sampling_error(shown: list[Row], score: Score) -> str:
    """What the finite test set adds, as a sentence: sqrt(p (1 - p) / n), one standard error of an accuracy p."""
    n = next((x for row in shown if (x := retrained(row, "test_objects").mean)), None)
    if n is None:
        return ""
    if score.term != "accuracy":
        return f" There are {n:.0f} test objects, whose sampling error is not shown."
    errors = [100 * (p * (1 - p) / n) ** 0.5 for row in shown if (p := retrained(row, score.test).mean) is not None]
    if not errors:
        return ""
    low, high = f"{min(errors):.2g}", f"{max(errors):.2g}"
    span = low if low == high else f"{low} to {high}"
    return f" One standard error of {n:.0f} test objects: {span} points."


def _family(axes: Axes, family: list[Row], score: Score, color: str, name: str, *, labels: str) -> None:
    ordered = sorted(family, key=lambda r: r["lambda"] if isinstance(r.get("lambda"), int | float) else math.inf)
    # Draws of a posterior have no order in which they could be joined.
    over = [row for row in ordered if _number(row.get("lambda"))]
    rest = [row for row in ordered if not _number(row.get("lambda"))]
    _bars(axes, over, score, color, marker="o", size=6.5, label=name, joined=True)
    _bars(axes, rest, score, color, marker="o", size=6.5, label="_" + name if over else name)
    for row in ordered:
        validation = retrained(row, score.val).mean
        if validation is not None:
            axes.plot(row["params"], score.factor * validation, marker="o", markersize=5, fillstyle="none", color=color)
    # Equal networks lie on one point, which gets one label.
    groups = distinct(ordered)
    labeled = {"all": groups, "ends": groups[:: max(len(groups) - 1, 1)], "none": []}[labels]
    for group in labeled:
        lams = _lams(group)
        value = retrained(group[0], score.test).mean
        if value is None:
            value = retrained(group[0], score.val).mean
        if value is None:
            continue
        ends = dict.fromkeys((lams[0], lams[-1])) if lams else {}
        text = "–".join(f"{end:.2g}" for end in ends) or str(group[0].get("origin", ""))
        axes.annotate(
            text,
            (group[0]["params"], score.factor * value),
            xytext=(0, 0),  # place_labels decides
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
        )


def _bars(
    axes: Axes, rows: list[Row], score: Score, color: str, *, marker: str, size: float, label: str, joined: bool = False
) -> None:
    points = [(float(row["params"]), m) for row in rows if (m := retrained(row, score.test)).mean is not None]
    if not points:
        return
    x = [p for p, _ in points]
    y = [score.factor * (m.mean or 0.0) for _, m in points]
    style = "-" if joined and len(points) > 1 else "none"
    axes.plot(x, y, marker=marker, markersize=size, color=color, linestyle=style, linewidth=1.3, label=label)
    spread = [(p, v, score.factor * m.sd) for (p, m), v in zip(points, y, strict=True) if m.sd is not None]
    if spread:
        p, mean, sd = zip(*spread, strict=True)
        axes.errorbar(p, mean, yerr=sd, fmt="none", ecolor=color, elinewidth=1, capsize=2.5)


def curve_plot(run: RunFolder) -> Plot | None:
    """Parameters and expected cost on the grid over λ, in the order and with the values of the summary."""
    curves = {name: rows for name, rows in run.curves.items() if all(_number(r.get("lambda")) for r in rows)}
    if not curves:
        return None
    has_cost = any(_number(row.get("expected_cost")) for rows in curves.values() for row in rows)

    def draw(figure: Figure) -> None:
        panels: list[Axes] = list(figure.subplots(2 if has_cost else 1, 1, sharex=True, squeeze=False)[:, 0])
        for index, (name, rows) in enumerate(curves.items()):
            color = SERIES[index % len(SERIES)]
            for axes, key in zip(panels, ("params", "expected_cost"), strict=False):
                x = [float(r["lambda"]) for r in rows]
                y = [float(r[key]) if _number(r.get(key)) else math.nan for r in rows]
                axes.plot(x, y, marker="o", markersize=2.8, color=color, linewidth=1.1, label=f"search {name}")
            family = [r for r in run.architectures if r.get("search") == name and _number(r.get("lambda"))]
            sized = [r for r in family if _number(r.get("params"))]
            ring: Any = {"marker": "o", "markersize": 8, "fillstyle": "none", "linestyle": "none"}
            # What was retrained at another scale has another size than the curve, which is that of the search.
            if not run.retrain_scale:
                panels[0].plot([r["lambda"] for r in sized], [r["params"] for r in sized], color=color, **ring)
        panels[0].set_ylabel("parameters")
        panels[-1].set_xlabel("λ (log scale)")
        log_axis(panels[0], "x", [float(r["lambda"]) for rows in curves.values() for r in rows], lam)
        for axes, key in zip(panels, ("params", "expected_cost"), strict=False):
            values = [float(r[key]) for rows in curves.values() for r in rows if _number(r.get(key))]
            log_axis(axes, "y", values, short_count)
        if has_cost:
            panels[1].set_ylabel("expected cost")
        if len(curves) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)

    rises = "; ".join(f"{name}: {_rises(rows)}" for name, rows in curves.items())
    costs = {
        str(s["cost"]) + (f", {s['cost_kind']}" if s.get("cost_kind") else "") for s in run.searches if s.get("cost")
    }
    unit = f" Expected cost is that of the mixture ({'; '.join(sorted(costs))})." if costs else ""
    rings = "rings are the architectures of the table"
    if run.retrain_scale:
        rings = (
            "sizes are those at the scale of the search; elsewhere, what was retrained is counted at the scale of the "
            f"retraining (retrain.space: {run.retrain_scale})"
        )
    caption = f"As read off, neither sorted nor smoothed; {rings}. {rises}.{unit} "
    caption += "One line per search." if len(curves) > 1 else "One search: the spread between searches is not seen."
    return Plot("Parameters over λ, as read off", render("curve", draw, height=4.1), caption)


def _rises(rows: list[Row]) -> str:
    sizes = [r["params"] for r in rows if _number(r.get("params"))]
    up = sum(b > a for a, b in itertools.pairwise(sizes))
    return f"parameters grow with λ at {up} of {plural(max(len(sizes) - 1, 0), 'step')}"


# (title, vertical axis, {term: (label, color)}, factor)
_SEARCH_PANELS = (
    (
        "Search: losses",
        "loss (nats per object)",
        {
            "train_loss": ("training", SERIES[0]),
            "structure_loss": ("structure", SERIES[1]),
            "val_loss": ("validation", SERIES[2]),
            "val_nll": ("validation", SERIES[2]),
        },
        1.0,
    ),
    ("Search: validation accuracy", "accuracy (%)", {"val_accuracy": ("supernet", SERIES[0])}, 100.0),
    ("Search: validation R²", "R²", {"val_r2": ("supernet", SERIES[0])}, 1.0),
    ("Search: entropy of the structure", "entropy (nats)", {"entropy": ("entropy", SERIES[0])}, 1.0),
    (
        "Search: expected cost at both ends of λ",
        "expected cost",
        {
            "expected_cost_min_lambda": ("smallest λ", SERIES[0]),
            "expected_cost_max_lambda": ("largest λ", SERIES[1]),
        },
        1.0,
    ),
)
_DASHES = ("-", "--", ":", "-.")


def search_plots(run: RunFolder) -> list[Plot]:
    """Losses, validation accuracy, entropy and expected cost per epoch of every search; unlogged terms are left out."""
    trials = {trial: run.per_epoch(trial) for trial in run.trials("search")}
    plots = []
    over_lambda = not run.architectures or bool(_lams(run.architectures))
    for index, (title, label, terms, factor) in enumerate(_SEARCH_PANELS):
        present = [term for term in terms if any(term in series for series in trials.values())]
        if not present:
            continue
        if label == "expected cost" and not over_lambda:  # both ends are one
            title, present = "Search: expected cost", present[:1]

        def draw(
            figure: Figure,
            present: list[str] = present,
            terms: dict[str, tuple[str, str]] = terms,
            label: str = label,
            factor: float = factor,
        ) -> None:
            axes = figure.add_subplot()
            for dash, (trial, series) in enumerate(trials.items()):
                for term in present:
                    if term in series:
                        epochs, values = series[term]
                        # One legend entry per term; with a single term, one per search.
                        name = trial if len(present) == 1 else terms[term][0]
                        shown = name in axes.get_legend_handles_labels()[1]
                        name = "_" + name if shown else name
                        style = _DASHES[dash % len(_DASHES)]
                        _epochs_line(axes, epochs, [factor * v for v in values], terms[term][1], style, name)
            epoch_axis(axes)
            axes.set_ylabel(label)
            if label == "expected cost":
                log_axis(
                    axes, "y", [v for s in trials.values() for t in present if t in s for v in s[t][1]], short_count
                )
            if len(present) > 1 or len(trials) > 1:
                figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)

        last = max(s[t][0][-1] for s in trials.values() for t in present if t in s)
        caption = f"One value per epoch, up to epoch {last}; {plural(len(trials), 'search', 'searches')}."
        if len(trials) > 1:
            caption += f" Line styles in the order of the searches: {', '.join(trials)}."
        else:
            caption += " One seed: the spread between searches is not seen."
        plots.append(Plot(title, render(f"search-{index}", draw), caption))
    return plots


def retrain_plot(run: RunFolder) -> Plot | None:
    """Validation score per epoch of every retraining, colored by λ; `None` without metrics."""
    score, factor = run.score, run.score.factor
    trials = {t: s[score.val] for t in run.trials("retrain") if score.val in (s := run.per_epoch(t))}
    if not trials:
        return None
    found = {trial: run.architecture_of(trial) for trial in trials}
    lams = sorted({float(a["lambda"]) for a in found.values() if a is not None and _positive(a.get("lambda"))})
    colors = dict(zip(lams, _shades(len(lams)), strict=True))
    others = dict.fromkeys(
        str(a.get("origin")) for a in found.values() if a is not None and a.get("origin") != "random"
    )
    of_origin = {name: SERIES[i % len(SERIES)] for i, name in enumerate(others)}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        named: set[str] = set()
        width = 1.5 if len(trials) < 20 else 0.8
        for trial, (epochs, values) in trials.items():
            row = found[trial]
            value: Any = row.get("lambda") if row is not None else None
            if _positive(value):
                color, name, style = colors[float(value)], f"λ {lam(value)}", "-"
            elif row is not None and row.get("origin") == "random":
                color, name, style = MUTED, "random", ":"
            else:
                name, style = str(row.get("origin")) if row is not None else "other", "-"
                color = of_origin.get(name, SERIES[0])
            _epochs_line(
                axes, epochs, [factor * v for v in values], color, style, "_" + name if name in named else name, width
            )
            named.add(name)
        epoch_axis(axes)
        axes.set_ylabel(score.axis)
        late = [
            v for epochs, values in trials.values() for e, v in zip(epochs, values, strict=True) if e >= epochs[-1] / 4
        ]
        top = max(late)
        axes.set_ylim(
            factor * (min(late) - 0.08 * (top - min(late) + 0.01)), factor * (top + 0.06 * (top - min(late) + 0.01))
        )
        figure.legend(loc="outside upper left", ncols=5, columnspacing=1.0, handlelength=1.2)

    light = ", light = large λ" if lams else ""
    caption = f"One line per trial ({len(trials)}){light}; the first quarter of the epochs may lie below the axis. "
    caption += f"Test {score.title}, read once at the end, is not shown."
    return Plot(f"Retraining: validation {score.title}", render("retrain", draw), caption)


def _shades(n: int) -> list[str]:
    # The middle of the map keeps its distance from a white page and from a dark one.
    return [to_hex(colormaps["plasma"](0.3 + 0.52 * (i / (n - 1) if n > 1 else 0))) for i in range(n)]


def _epochs_line(
    axes: Axes, epochs: list[int], values: list[float], color: str, style: str, label: str, width: float = 1.5
) -> None:
    marker = "o" if len(epochs) < 3 else ""
    axes.plot(epochs, values, color=color, linestyle=style, marker=marker, markersize=4, label=label, linewidth=width)


def _search_order(run: RunFolder) -> list[str]:
    return list(dict.fromkeys(str(r.get("search")) for r in run.architectures))


def _lams(rows: Iterable[Row]) -> list[float]:
    return sorted(float(r["lambda"]) for r in rows if _number(r.get("lambda")))


def _has_score(row: Row, score: Score) -> bool:
    return retrained(row, score.test).n > 0 or retrained(row, score.val).n > 0


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
