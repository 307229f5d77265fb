"""The pictures of `compression.py`: errors by what is left out, and the evidence by lambda."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression_arms import AUTHORS, EVIDENCE_KINDS, EVIDENCE_PRIORS, PUBLISHED, SHARES
from compression_rows import FURTHER, Curves
from figures import COLOURS, Line, finish, grid_of, write

KINDS = {"constant": "direct", "linear": "linear", "piecewise_linear": "piecewise linear"}


def draw(preset: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Write the figure of a preset."""
    make = {"evidence": _evidence, "authors": _authors, "seed": _seed}.get(preset, _errors)
    write(make(rows), path)


def _errors(rows: list[dict[str, Any]]) -> Any:
    """A column for every arm: test error by compression, as left by pruning (dashed) and trained further."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure, grid = grid_of(1, len(arms))
    for axes, arm in zip(grid[0], arms, strict=True):
        curves = Curves(rows, arm)
        times = [1 / (1 - f) for f in curves.fractions]
        for colour, lam in zip(COLOURS, curves.lambdas, strict=False):
            for name, style, suffix in (("test", "--", ""), ("tuned_test", "-", ", trained further")):
                errors = [curves.mean(lam, f, name) for f in curves.fractions]
                Line(f"λ = {lam:g}{suffix}", times, errors, colour, style).draw(axes)
        axes.set_xscale("log")
        axes.set_xticks(times, [f"{t:.3g}" for t in times])
        axes.minorticks_off()
        axes.set_ylim(*_limits(curves))
        finish(axes, arm, "weights / weights that are left", "test error, %")
    return figure


def _limits(curves: Curves) -> tuple[float, float]:
    """From the best error on, four times as high: what is worse is useless."""
    errors = [point["test"] for row in curves.rows for point in row["curve"]] or [1.0]
    return 0.8 * min(errors), max(4 * min(errors), min(errors) + 2)


def _seed(rows: list[dict[str, Any]]) -> Any:
    """Test accuracy by the share that is left out: direct runs, the hypernetwork, and trained on by their bound."""
    panels = (
        ("direct", "seed, direct"),
        ("direct, trained on", f"seed, direct{FURTHER}"),
        ("hypernetwork", "seed, hypernetwork"),
        ("hypernetwork, trained on at its λ", f"seed, hypernetwork{FURTHER}"),
    )
    figure, grid = grid_of(1, len(panels))
    for axes, (title, arm) in zip(grid[0], panels, strict=True):
        curves = Curves(rows, arm)
        for colour, lam in zip(COLOURS, curves.lambdas, strict=False):
            shares = [100 * f for f in curves.fractions]
            Line(f"λ = {lam:g}", shares, _accuracies(curves, lam, curves.fractions, "test"), colour).draw(axes)
        axes.set_ylim(50, 100)
        finish(axes, title, "weights left out, %", "test accuracy, %")
    return figure


def _authors(rows: list[dict[str, Any]]) -> Any:
    """Test accuracy by share at every lambda of the published table: theirs (dashed), run again, and ours."""
    lams = sorted(PUBLISHED["base", "constant"])
    figure, grid = grid_of(2, len(lams))
    shares = [100 * f for f in SHARES]
    for panels, kind in zip(grid, ("constant", "piecewise_linear"), strict=True):
        for axes, lam in zip(panels, lams, strict=True):
            for colour, arm in zip(COLOURS, (*AUTHORS, "ours"), strict=False):
                curves = Curves(rows, arm if kind == "constant" else f"{arm}, hypernetwork", kind)
                Line(arm, shares, _accuracies(curves, lam, SHARES, "test"), colour).draw(axes)
                if (arm, kind) in PUBLISHED:
                    Line(f"{arm}, published", shares, PUBLISHED[arm, kind][lam], colour, "--").draw(axes)
            axes.set_ylim(40, 100)
            finish(axes, f"{KINDS[kind]}, λ = {lam:g}", "weights left out, %", "test accuracy, %")
    return figure


def _evidence(rows: list[dict[str, Any]]) -> Any:
    """A column for every prior: J and its parts, the gap of amortization, and the weights that are kept.

    The gap is what a network gains of J that is trained on from there at its lambda alone; of a direct run it says how
    far that is from its end.
    """
    figure, grid = grid_of(5, len(EVIDENCE_PRIORS), height=2.4)
    for column, prior in enumerate(EVIDENCE_PRIORS):
        for colour, kind in zip(("black", *COLOURS), ("constant", *EVIDENCE_KINDS), strict=False):
            curves, further = Curves(rows, prior, kind), Curves(rows, prior + FURTHER, kind)
            lams = curves.lambdas
            of_j = [curves.mean_of(lam, "objective") for lam in lams]
            then = [further.mean_of(lam, "objective") for lam in lams]
            gaps = [None if a is None or b is None else a - b for a, b in zip(then, of_j, strict=True)]
            label = {"constant": "direct"}.get(kind, kind)
            Line(label, lams, of_j, colour).draw(grid[0][column])
            for row, name in ((1, "expected_log_likelihood"), (2, "kl"), (4, "kept")):
                Line(label, lams, [curves.mean_of(lam, name) for lam in lams], colour).draw(grid[row][column])
            Line(label, lams, gaps, colour).draw(grid[3][column])
        names = ("J, nats", "E log p, nats", "KL, nats", "J trained on at λ - J, nats", "weights above one sd")
        for axes, name in zip(grid[:, column], names, strict=True):
            axes.set_xscale("log")
            finish(axes, prior, "λ", name)
        grid[2][column].set_yscale("log")
        grid[3][column].axhline(0, color="black", lw=0.8)
        grid[4][column].set_yscale("log")
    return figure


def _accuracies(curves: Curves, lam: float, fractions: Sequence[float], name: str) -> list[float | None]:
    errors = [curves.mean(lam, fraction, name) for fraction in fractions]
    return [None if error is None else 100 - error for error in errors]
