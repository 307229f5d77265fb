"""Weights as functions of lambda: accuracy against compression, the evidence, and a table of what was read off."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nni_bayes_nas.report.canvas import MUTED, SERIES, epoch_axis, log_axis, render
from nni_bayes_nas.report.figures import Plot
from nni_bayes_nas.report.read import Row, RunFolder
from nni_bayes_nas.report.tables import DASH, Measure, count, lam, measure, percent, plural

COLUMNS = ["Trained", "λ", "Seeds", "J", "E log p", "KL", "Loss of J", "Validation", "Test", "Predictive", "NLL", "ECE"]
COLUMNS += ["|z| > 1", "Bytes"]
TEXT_COLUMNS = ("Trained",)


class Key(NamedTuple):
    """How something was trained, and the lambda at which it was read off; whether it was trained on from there."""

    hypernet: str
    prior: str
    lam: float
    on: bool = False

    @property
    def direct(self) -> Key:
        """That of a direct run at this lambda."""
        return self._replace(hypernet="constant")

    @property
    def trained(self) -> str:
        """In words; the prior where there are several."""
        kind = "direct" if self == self.direct else self.hypernet
        words = f"{kind}, {self.prior}".removesuffix(", ").replace("_", " ")
        return f"{words}, trained on" if self.on else words


def networks(run: RunFolder) -> dict[Key, list[Row]]:
    """What was read off; a row for every repeat."""
    found: dict[Key, list[Row]] = {}
    every = run.summary.get("compression") or []
    several = len({trained.get("prior") for trained in every}) > 1
    for trained in every:
        prior = str(trained.get("prior")) if several else ""
        for row in trained.get("rows") or []:
            key = Key(str(trained.get("hypernet", "?")), prior, float(row["lambda"]))
            found.setdefault(key, []).append(row)
            if row.get("posterior_finetuned"):
                found.setdefault(key._replace(on=True), []).append(row["posterior_finetuned"])
    return found


def table(run: RunFolder) -> list[list[str]]:
    """Rows of `COLUMNS`: means and standard deviations over the repeats."""
    rows, found = [], networks(run)
    for key, members in found.items():
        predictive = [row.get("predictive") or {} for row in members]
        numbers = [_rounded(measure([row.get(name) for row in members])) for name in _EVIDENCE]
        rows.append(
            [
                key.trained,
                lam(key.lam),
                str(len(members)),
                *numbers,
                DASH if key == key.direct else _loss(members, found.get(key.direct)),
                percent(measure([row.get("val_accuracy") for row in members])),
                percent(measure([row.get("test_accuracy") for row in members])),
                percent(measure([row.get("accuracy") for row in predictive])),
                _decimals(measure([row.get("nll") for row in predictive])),
                _decimals(measure([row.get("ece") for row in predictive])),
                count(measure([row.get("z_above_1") for row in members]).mean),
                count(measure([(row.get("bits") or {}).get("total", math.nan) / 8 for row in members]).mean),
            ]
        )
    return rows


def curve_table(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: test accuracy at every compression, after the fine-tuning where there was one."""
    found = networks(run)
    if not found:
        return [], []
    points = next(iter(found.values()))[0].get("curve") or []
    columns = ["Trained", "λ", *(f"{point['compression']:.3g} ×" for point in points)]
    rows = []
    for key, members in found.items():
        cells = [key.trained, lam(key.lam)]
        for i in range(len(points)):
            cut = [row["curve"][i] for row in members if i < len(row.get("curve") or [])]
            plain = percent(measure([point.get("test_accuracy") for point in cut]))
            tuned = measure([(point.get("finetuned") or {}).get("test_accuracy") for point in cut])
            cells.append(plain if tuned.mean is None else f"{plain} → {percent(tuned)}")
        rows.append(cells)
    return columns, rows


def plots(run: RunFolder) -> list[Plot]:
    """Test error against compression; the objective and its parts against lambda. Empty without a compression."""
    found = networks(run)
    return [_curve(found), _evidence(found, run)] if found else []


def headline(run: RunFolder) -> list[str]:
    """What is compressed, on which data; empty for a run that compresses nothing."""
    if run.setting("experiment", "plan") != "compression":
        return []
    network, weights, priors = (run.setting("compress", name) for name in ("network", "weights", "priors"))
    trained = plural(len(run.summary.get("compression") or []), "finished training")
    words = ", ".join(str(prior).replace("_", " ") for prior in priors or ["?"])
    said = f", prior {words}" if weights == "variational" else ""
    return [f"Network {network}, data {run.summary.get('data', '?')}, {weights} weights{said}: {trained}."]


def learning_plots(run: RunFolder) -> list[Plot]:
    """Validation accuracy by epoch of every training, at the λ that it looks at."""
    trials = {trial: run.per_epoch(trial) for trial in run.trials("compress")}
    terms = [term for series in trials.values() for term in series if term.startswith("val_accuracy/")]
    if not terms:
        return []
    lams = sorted({term.partition("/")[2] for term in terms}, key=float)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for dash, series in enumerate(trials.values()):
            for i, value in enumerate(lams):
                if f"val_accuracy/{value}" in series:
                    epochs, values = series[f"val_accuracy/{value}"]
                    color, name = SERIES[i % len(SERIES)], f"λ = {value}"
                    label = None if name in axes.get_legend_handles_labels()[1] else name
                    style = ("-", "--", ":", "-.")[dash % 4]
                    axes.plot(epochs, [100 * v for v in values], style, color=color, linewidth=1.1, label=label)
        epoch_axis(axes)
        axes.set_ylabel("validation accuracy, %")
        figure.legend(loc="outside upper left", ncols=4)

    caption = f"Networks of the means at some λ; one style of line for each training: {', '.join(trials)}."
    return [Plot("Validation accuracy in training", render("compress-learning", draw), caption)]


def sentence(run: RunFolder) -> str:
    """What was trained, and how long it took."""
    trained = run.summary.get("compression") or []
    direct = [float(row.get("training_seconds") or 0) for row in trained if row.get("hypernet") == "constant"]
    others = [float(row.get("training_seconds") or 0) for row in trained if row.get("hypernet") != "constant"]
    said = []
    if others:
        said.append(f"{plural(len(others), 'hypernetwork')} in {sum(others) / len(others):.0f} s of training each")
    if direct:
        said.append(f"{plural(len(direct), 'direct run')} in {sum(direct) / len(direct):.0f} s each")
    return f"{' and '.join(said)}." if said else ""


_EVIDENCE = {"objective": "J", "expected_log_likelihood": "E log p", "kl": "KL"}


def _curve(found: dict[Key, list[Row]]) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        lams = sorted({key.lam for key in found})
        names = dict.fromkeys(key.trained for key in sorted(found, key=lambda key: key == key.direct))
        styles = {name: ("-", "--", ":", "-.")[i % 4] for i, name in enumerate(names)}
        every: list[float] = []
        errors: list[float] = []
        for key, members in found.items():
            points = members[0].get("curve") or []
            x = [float(point["compression"]) for point in points]
            y = [_error([row["curve"][i].get("test_accuracy") for row in members]) for i in range(len(points))]
            color = SERIES[lams.index(key.lam) % len(SERIES)]
            label = f"λ = {lam(key.lam)}, {key.trained}"
            axes.plot(x, y, styles[key.trained], marker="o", markersize=3, color=color, linewidth=1.2, label=label)
            after = [[row["curve"][i].get("finetuned") or {} for row in members] for i in range(len(points))]
            tuned = [_error([one.get("test_accuracy") for one in rows]) for rows in after]
            axes.plot(x, tuned, linestyle="none", marker="^", markersize=4, color=color, fillstyle="none")
            every += x
            errors += [value for value in (*y, *tuned) if not math.isnan(value)]
        axes.set_xlabel("compression, weights / weights left")
        axes.set_ylabel("test error, %")
        log_axis(axes, "x", every, lambda v: f"{v:.3g}")
        log_axis(axes, "y", errors, lambda v: f"{v:.3g}")
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)

    caption = "Networks of the means, the least relevant weights left out; triangles: after the fine-tuning."
    return Plot("Test error against compression", render("compression", draw, height=4.2), caption)


def _evidence(found: dict[Key, list[Row]], run: RunFolder) -> Plot:
    lines: dict[str, dict[float, list[Row]]] = {}
    for key, rows in found.items():
        lines.setdefault(key.trained, {})[key.lam] = rows
    direct = {key.trained for key in found if key == key.direct}

    def draw(figure: Figure) -> None:
        panels: list[Axes] = list(figure.subplots(3, 1, sharex=True, squeeze=False)[:, 0])
        for axes, (name, title) in zip(panels, _EVIDENCE.items(), strict=True):
            for i, (label, mine) in enumerate(lines.items()):
                x = sorted(mine)
                means = [measure([row.get(name) for row in mine[value]]).mean for value in x]
                y = [math.nan if mean is None else mean for mean in means]
                style: Any = {"linestyle": "none", "marker": "s"} if label in direct else {"marker": "o"}
                color = MUTED if direct == {label} else SERIES[i % len(SERIES)]
                axes.plot(x, y, color=color, markersize=3.5, linewidth=1.2, label=label, **style)
            axes.set_ylabel(title)
        panels[-1].set_xlabel("λ")
        log_axis(panels[-1], "x", [key.lam for key in found], lam)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)

    # Of searches too, whose prior is the strategy's.
    priors = {trained.get("prior") for trained in run.summary.get("compression") or []}
    weights = run.setting("compress", "weights")
    caption = "J = E log p(D | w) − λ KL(q ‖ p) on the training set, in nats, and its parts."
    if direct:
        caption += " J of a direct run less that of a hypernetwork is what it loses by serving every λ"
        caption += ", and by having had fewer steps at each, where both took as many."
    if any("structure_kl" in row for rows in found.values() for row in rows):
        caption += " Of networks that were read off with their architecture, J takes −λ log p(architecture) too."
    if "scaled" in priors:
        caption += " Of the prior “scaled”, N(0, s²/λ), J = E log p − KL."
    if weights == "point":
        caption += " Weights are points: KL stands for −log p(w) up to a constant."
    elif "log_uniform" in priors:
        caption += " The prior log-uniform is improper: its J is no evidence, not even at λ = 1."
    return Plot("The objective over λ", render("evidence", draw, height=5.2), caption)


def _loss(members: list[Row], direct: list[Row] | None) -> str:
    """J of the direct runs at this lambda less that of a hypernetwork: what it loses by serving every lambda."""
    means = [measure([row.get("objective") for row in rows or []]).mean for rows in (direct, members)]
    if None in means:
        return DASH
    return f"{float(means[0] or 0) - float(means[1] or 0):+,.0f}".replace("-", "−")


def _error(accuracies: list[Any]) -> float:
    mean = measure(accuracies).mean
    return math.nan if mean is None else 100 * (1 - mean)


def _rounded(value: Measure) -> str:
    if value.mean is None:
        return DASH
    sd = "" if value.sd is None else f" ± {value.sd:,.0f}"
    return f"{value.mean:,.0f}{sd}".replace("-", "−")


def _decimals(value: Measure) -> str:
    if value.mean is None:
        return DASH
    return f"{value.mean:.4f}" + ("" if value.sd is None else f" ± {value.sd:.4f}")
