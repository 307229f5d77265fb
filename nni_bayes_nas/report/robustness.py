"""What `evaluate` found: scores of probabilities, attacks, damage and ensembles, as a figure and in rows."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nni_bayes_nas.report.canvas import MUTED, SERIES, render
from nni_bayes_nas.report.figures import Plot
from nni_bayes_nas.report.read import Row, RunFolder
from nni_bayes_nas.report.tables import DASH, measure, percent, plural

SCORE_COLUMNS = ["Network", "Seeds", "Accuracy", "NLL", "ECE", "Brier", "NLL less that of the best member"]
TEXT_COLUMNS = ("Network", "Ensemble", "Architecture")
_ATTACKS = {"fgsm": "FGSM", "pgd": "PGD", "square": "black box", "noise": "noise"}
_DRAWN = 4


def _by_architecture(run: RunFolder) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in run.evaluation.get("networks") or []:
        found.setdefault(str(row.get("architecture", "?")), []).append(row)
    return found


def _settings(run: RunFolder) -> Row:
    settings = run.evaluation.get("settings")
    return settings if isinstance(settings, dict) else {}


def _objects(run: RunFolder) -> str:
    asked, there = _settings(run).get("objects") or 0, run.evaluation.get("test_objects") or 0
    return f"All {there}" if asked >= there else f"{asked} of {there}"


def score_rows(run: RunFolder) -> list[list[str]]:
    """Scores of every ensemble, in the order of the file; the first is the best network alone."""
    rows = []
    for one in run.evaluation.get("ensembles") or []:
        scores = one.get("scores") or {}
        n = one.get("networks") or 1
        name = str(one.get("name", "?")) + (f" ({plural(n, 'network')})" if n > 1 else "")
        seeds = str(len(one.get("seeds") or []))
        numbers = [f"{scores[key]:.4f}" if key in scores else DASH for key in ("nll", "ece", "brier")]
        rows.append([name, seeds, percent(scores.get("accuracy")), *numbers, _difference(one)])
    return rows


def _difference(row: Row) -> str:
    found = row.get("difference")
    if not isinstance(found, dict):
        return DASH
    mean, low, high = (f"{found[key]:+.4f}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean} ({low} … {high})"


def attack_table(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: accuracy of every architecture, clean, attacked and damaged; mean and sd over repeats."""
    networks, settings = _by_architecture(run), _settings(run)
    if not networks:
        return [], []
    first = next(iter(networks.values()))[0]
    kinds = [kind for kind in _ATTACKS if kind in (first.get("attacked") or {})]
    epsilons, damages = settings.get("epsilons") or [], settings.get("damages") or []
    columns = ["Architecture", "NLL", "ECE", "Clean"]
    columns += [f"{_ATTACKS[kind]} {epsilon:g}" for kind in kinds for epsilon in epsilons]
    columns += [f"{100 * share:g} % of edges missing" for share in damages]
    rows = []
    for name, members in networks.items():
        cells = [name]
        for key in ("nll", "ece"):
            mean = measure([(row.get("scores") or {}).get(key) for row in members]).mean
            cells.append(DASH if mean is None else f"{mean:.3f}")
        cells.append(percent(measure([row.get("clean") for row in members]), 1))
        for kind in kinds:
            cells += [_at(members, ("attacked", kind), i) for i in range(len(epsilons))]
        cells += [_at(members, ("damaged",), i) for i in range(len(damages))]
        rows.append(cells)
    return columns, rows


def _at(members: list[Row], path: tuple[str, ...], i: int) -> str:
    values = []
    for row in members:
        found: Any = row
        for key in path:
            found = (found or {}).get(key)
        values.append(found[i] if isinstance(found, list) and i < len(found) else None)
    return percent(measure(values), 1)


def notes(run: RunFolder) -> list[str]:
    """How the table came about, and what to make of it."""
    settings = _settings(run)
    if not settings or not settings.get("epsilons"):
        return []
    what = {
        "fgsm": "FGSM is one step along the sign of the gradient. ",
        "pgd": f"PGD is {settings.get('steps')} such steps with {settings.get('restarts')} starts. ",
        "square": f"The black box sees outputs alone, with {settings.get('queries')} queries. ",
    }
    said = [
        f"{_objects(run)} test objects, drawn at random; epsilon is the largest change {_of(run)}, or the sd of the "
        "noise. "
        + "".join(text for name, text in what.items() if name in settings.get("attacks", _ATTACKS))
        + "Networks are trained without attacks: this compares architectures, and makes none of them safe."
    ]
    masked = [name for name, rows in _by_architecture(run).items() if any(row.get("masked") for row in rows)]
    if masked:
        said.append(
            "Do not trust PGD here: the black box is clearly stronger, so that gradients are masked: "
            f"{', '.join(masked)}."
        )
    return said


def _of(run: RunFolder, short: bool = False) -> str:
    """What epsilon changes: evaluations from before this was written down are of images."""
    if (run.evaluation or {}).get("images", True):
        return "of a pixel" if short else "of a pixel, of 1 for all"
    return "of a feature, in its sd"


def attack_plot(run: RunFolder) -> Plot | None:
    """Accuracy under PGD against epsilon, of the largest networks and the random ones; None without an evaluation."""
    epsilons = [float(e) for e in _settings(run).get("epsilons") or []]
    networks = {
        name: rows
        for name, rows in _by_architecture(run).items()
        if all("pgd" in (r.get("attacked") or {}) for r in rows)
    }
    if not epsilons or not networks:
        return None
    random = {str(row.get("id")) for row in run.architectures if row.get("origin") == "random"}
    searched = [name for name in networks if name not in random]

    def line(axes: Axes, name: str, **style: Any) -> None:
        rows = networks[name]
        clean = measure([row.get("clean") for row in rows]).mean or 0.0
        values = [measure([row["attacked"]["pgd"][i] for row in rows]).mean or 0.0 for i in range(len(epsilons))]
        order = sorted(zip([0.0, *epsilons], [clean, *values], strict=True))
        axes.plot([e for e, _ in order], [100 * v for _, v in order], marker="o", markersize=4, **style)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for i, name in enumerate(n for n in networks if n in random):
            line(axes, name, color=MUTED, linewidth=0.9, label="random" if i == 0 else None)
        for i, name in enumerate(searched[:_DRAWN]):
            line(axes, name, color=SERIES[i % len(SERIES)], linewidth=1.4, label=name)
        axes.set_xlabel(f"epsilon, largest change {_of(run, short=True)}")
        axes.set_ylabel("accuracy under PGD, %")
        axes.set_ylim(-3, 103)
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)

    more = f" The first {_DRAWN} of {len(searched)} searched ones." if len(searched) > _DRAWN else ""
    caption = f"Test objects that are still classified right after the strongest of the PGD steps.{more}"
    return Plot("Accuracy under attack", render("attack", draw, height=3.9), caption)
