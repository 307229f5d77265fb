"""Predicted networks: what they are worth beside others of as many connections, and where the predictions are wrong."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nni_bayes_nas.report.canvas import INK, MUTED, SERIES, log_axis, render, short_count
from nni_bayes_nas.report.figures import Plot
from nni_bayes_nas.report.read import Row, RunFolder
from nni_bayes_nas.report.tables import DASH, count, duration, percent, plural

COLUMNS = ["Budget", "Network", "Connections", "Parameters", "Validation", "Test", "Test loss", "Training"]
TEXT_COLUMNS = ("Network", "Tasks of", "Decoder")
ERROR_COLUMNS = [
    "Decoder",
    "Tasks of",
    "Entries",
    "Depth",
    "Units",
    "Tokens",
    "Layers",
    "Inputs",
    "Nats",
    "Accuracy, %",
    "τ",
]


def _prediction(run: RunFolder) -> Row:
    found = run.summary.get("prediction")
    return found if isinstance(found, dict) else {}


def headline(run: RunFolder) -> list[str]:
    """What was predicted from what; empty for a run that predicts nothing."""
    if not (found := _prediction(run)):
        return []
    bank = found.get("bank") or {}
    parts, entries = plural(_n(bank, "tasks"), "part"), plural(_n(bank, "entries"), "entry", "entries")
    spent = duration(bank.get("seconds"))
    return [
        f"Small networks for {run.summary.get('data', '?')}, predicted from searches on {parts} of data sets: "
        f"{entries}, {spent} of searching."
    ]


def sentences(run: RunFolder) -> list[str]:
    """About the bank, the fits and the time that predictions took."""
    found = _prediction(run)
    bank, said = found.get("bank") or {}, []
    if tasks := _n(bank, "tasks"):
        methods = sorted((bank.get("methods") or {}).items(), key=lambda item: -item[1])
        by = ", ".join(f"{name} ({n})" for name, n in methods)
        said.append(
            f"On {_n(bank, 'tasks_as_good')} of {tasks} parts a small network is no worse than the dense one, by the "
            f"standard error of that one; the best was found by {by}."
        )
    for fit in found.get("fits") or []:
        seconds = [float(one.get("seconds") or 0) for one in fit.get("predictions") or []]
        longest = f"; a prediction takes {max(seconds):.2f} s at most" if seconds else ""
        ranked = f", what ranks its networks in {duration(spent)}" if (spent := fit.get("seconds_ranker")) else ""
        said.append(
            f"{_decoder(fit)}: {count(fit.get('parameters'))} parameters, fitted to "
            f"{plural(_n(fit, 'entries'), 'entry', 'entries')} in {duration(fit.get('seconds_fit'))}{ranked}{longest}."
        )
    for verified in found.get("verified") or []:
        said += [f"Of {verified.get('budget')} connections: {why}" for why in (verified.get("skipped") or {}).values()]
    if cells := found.get("cells"):
        said.append(
            f"Cells were searched on {plural(_n(cells, 'tasks'), 'part')} in {duration(cells.get('seconds'))}, and "
            f"predicted for all data in {float(cells.get('seconds_predict') or 0):.2f} s: the architectures below."
        )
    return said


def table(run: RunFolder) -> list[list[str]]:
    """Rows of `COLUMNS`, by budget."""
    rows = []
    for verified in _prediction(run).get("verified") or []:
        for row in verified.get("rows") or []:
            name = str(row.get("method", "?"))
            rows.append(
                [
                    count(verified.get("budget")),
                    f"predicted, {name}" if row.get("predicted") else name,
                    count(row.get("connections")),
                    count(row.get("parameters")),
                    percent(row.get("val_accuracy")),
                    percent(row.get("test_accuracy")),
                    f"{float(row.get('test_loss') or 0):.3f}",
                    duration(row.get("seconds")),
                ]
            )
    return rows


def error_table(run: RunFolder) -> list[list[str]]:
    """Rows of `ERROR_COLUMNS`: of each decoder and data set, means over the entries that were kept out of the fit."""
    rows = []
    for fit in _prediction(run).get("fits") or []:
        errors = fit.get("errors") or []
        for source in sorted({str(row.get("source")) for row in errors}):
            mine = [row for row in errors if row.get("source") == source]
            right = statistics.fmean(row["depth"] == row["depth_found"] for row in mine)
            taus = [row["tau"] for row in mine if row.get("tau") is not None]
            rows.append(
                [
                    _decoder(fit),
                    source,
                    str(len(mine)),
                    percent(right, 0),
                    f"{_mean(mine, 'units'):.1f} / {_mean(mine, 'units_found'):.1f}",
                    f"{_mean(mine, 'length'):+.1f}",
                    " / ".join(filter(None, (_layers(mine, "layers"), _layers(mine, "layers_chance")))),
                    f"{_mean(mine, 'inputs'):.2f} / {_chance(mine)}",
                    f"{_mean(mine, 'nats'):.2f}",
                    f"{100 * _mean(mine, 'accuracy'):.1f} / {100 * _mean(mine, 'accuracy_found'):.1f}",
                    f"{statistics.fmean(taus):.2f}" if taus else DASH,
                ]
            )
    return rows


def plots(run: RunFolder) -> list[Plot]:
    """Test accuracy against connections; loss of predictions against objects and distance. Empty without any."""
    found = _prediction(run)
    drawn = [_worth(found["verified"])] if found.get("verified") else []
    errors = [(_decoder(fit), row) for fit in found.get("fits") or [] for row in fit.get("errors") or []]
    return [*drawn, *([_errors(errors)] if errors else [])]


def _worth(verified: Sequence[Row]) -> Plot:
    lines: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for each in verified:
        for row in each.get("rows") or []:
            key = str(row.get("method")), bool(row.get("predicted"))
            at = float(row["connections"] if key[0] == "dense" else each["budget"])
            lines.setdefault(key, []).append((at, 100 * float(row["test_accuracy"])))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places: list[float] = []
        ours = [key for key in lines if key[1]]
        others = [key for key in lines if not key[1] and key[0] != "dense"]
        for i, key in enumerate([*ours, *others]):
            x, y = zip(*sorted(set(lines[key])), strict=True)
            style: dict[str, Any] = {
                "linewidth": 2.0,
                "linestyle": "-",
                "marker": "o",
                "color": SERIES[i % len(SERIES)],
            }
            if key in others:
                style |= {"linewidth": 1.1, "linestyle": "--", "marker": "s^vDx*"[(i - len(ours)) % 6]}
            if key[0] == "random":
                style["color"] = MUTED
            axes.plot(x, y, markersize=4, label=f"predicted, {key[0]}" if key in ours else key[0], **style)
            places += x
        for n, accuracy in sorted(set(lines.get(("dense", False), [])))[:1]:
            axes.axhline(accuracy, color=MUTED, linestyle=":", linewidth=1.2, label=f"dense ({short_count(n)})")
        log_axis(axes, "x", places, short_count)
        axes.set_xlabel("connections")
        axes.set_ylabel("test accuracy, %")
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)

    caption = "Of each kind the best of as many tries by validation; test data are read once."
    return Plot("Accuracy by connections", render("prediction", draw, height=4.0), caption)


def _errors(errors: Sequence[tuple[str, Row]]) -> Plot:
    kinds = list(dict.fromkeys(kind for kind, _ in errors))
    panels: list[tuple[str, str, Callable[[float], str]]] = [
        ("objects of the part", "objects", short_count),
        ("distance from the nearest part of the fit", "distance", lambda value: f"{value:.2g}"),
    ]

    def draw(figure: Figure) -> None:
        many: list[Axes] = list(figure.subplots(2, 1, squeeze=False)[:, 0])
        for axes, (title, name, written) in zip(many, panels, strict=True):
            for i, kind in enumerate(kinds):
                mine = [row for own, row in errors if own == kind]
                x = [float(row[name]) for row in mine]
                y = [float(row["loss"]) - float(row["loss_found"]) for row in mine]
                color = SERIES[i % len(SERIES)]
                label = kind if axes is many[0] else None
                axes.plot(x, y, "o", markersize=3.5, color=color, label=label)
            others = [(float(row[name]), float(row["loss_others"]) - float(row["loss_found"])) for _, row in errors]
            label = "other networks of the search, mean" if axes is many[0] else None
            axes.plot(*zip(*others, strict=True), "_", markersize=6, color=MUTED, label=label)
            axes.axhline(0, color=INK, linewidth=0.8)
            axes.set_xlabel(title)
            axes.set_ylabel("loss above found")
            log_axis(axes, "x", [float(row[name]) for _, row in errors], written)
        figure.legend(loc="outside upper left", ncols=2)

    caption = (
        "Parts that were kept out: validation loss (nats) of the best-ranked network, less that of the best found."
    )
    return Plot("Where predictions are wrong", render("prediction-errors", draw, height=4.6), caption)


def _layers(rows: Sequence[Row], name: str) -> str:
    """Mean F1 of connections, of the layers from the first on that all networks have."""
    known = [row[name] for row in rows if row.get(name)]
    n = min(map(len, known), default=0)
    return " ".join(f"{statistics.fmean(each[i] for each in known):.2f}" for i in range(n))


def _chance(rows: Sequence[Row]) -> str:
    known = [float(row["inputs_chance"]) for row in rows if row.get("inputs_chance") is not None]
    return f"{statistics.fmean(known):.2f}" if known else DASH


def _decoder(fit: Row) -> str:
    return str(fit.get("kind", "?")).replace("_", " ")


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.fmean(float(row[name]) for row in rows)


def _n(row: Row, name: str) -> int:
    return int(row.get(name) or 0)
