"""The pictures of `compression.py`: errors by what is left out, and the evidence by lambda."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression_arms import AUTHORS, EVIDENCE_KINDS, EVIDENCE_PRIORS, PUBLISHED, SHARES
from compression_rows import FURTHER, Curves, gaps
from figures import COLOURS, Line, finish, grid_of, write

_COLUMNS, _LEFT = 4, "weights / weights that are left"
KINDS = {"constant": "direct", "piecewise_linear": "piecewise linear", "low_rank": "low rank"}


def draw(preset: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Write the figure of a preset."""
    make = {"evidence": _evidence, "authors": _authors, "seed": _seed}.get(preset, _errors)
    write(make(rows), path)


def _errors(rows: list[dict[str, Any]]) -> Any:
    """A panel for every arm: test error by compression, as left by pruning (dashed) and trained further; of an arm that
    is not cut the weights that could go, by lambda."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    n_rows = -(-len(arms) // _COLUMNS)
    figure, grid = grid_of(n_rows, min(len(arms), _COLUMNS))
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    for axes, arm in zip(grid.flat, arms, strict=False):
        curves = Curves(rows, arm)
        if len(curves.fractions) < 2:
            kept = [curves.mean_of(lam, "kept") for lam in curves.lambdas]
            Line("", curves.lambdas, kept, COLOURS[0]).draw(axes)
            axes.set_xscale("log")
            axes.set_yscale("log")
            finish(axes, arm, "λ", "weights above one sd")
            continue
        times, tuned = [1 / (1 - f) for f in curves.fractions], False
        what = "decay" if arm.endswith("dense") else "λ"
        for colour, lam in zip(COLOURS, curves.lambdas, strict=False):
            raw, trained = ([curves.mean(lam, f, name) for f in curves.fractions] for name in ("test", "tuned_test"))
            tuned = tuned or any(error is not None for error in trained)
            Line(f"{what} = {lam:g}", times, raw, colour, "--").draw(axes)
            Line("", times, trained, colour).draw(axes)
        axes.set_xscale("log")
        axes.set_xticks(times, [f"{t:.3g}" for t in times])
        axes.minorticks_off()
        axes.set_ylim(*_limits(curves))
        finish(axes, f"{arm}\nfull lines: trained further" if tuned else arm, _LEFT, "test error, %")
    return figure


def _limits(curves: Curves) -> tuple[float, float]:
    """From the best error on, four times as high: what is worse is useless."""
    errors = [point["test"] for row in curves.rows for point in row["curve"]] or [1.0]
    return 0.8 * min(errors), min(100.0, max(4 * min(errors), min(errors) + 2))


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
            finish(axes, f"{KINDS.get(kind, kind)}, λ = {lam:g}", "weights left out, %", "test accuracy, %")
    return figure


def _evidence(rows: list[dict[str, Any]]) -> Any:
    """A column for every prior: J and its parts, the gap of amortization, and the weights that are kept.

    The gap is that to the largest J that is known at this lambda, of all kinds, and of what was trained on from there.
    """
    figure, grid = grid_of(5, len(EVIDENCE_PRIORS), height=2.4)
    for column, prior in enumerate(EVIDENCE_PRIORS):
        for colour, kind in zip(("black", *COLOURS), ("constant", *EVIDENCE_KINDS), strict=False):
            curves, apart = Curves(rows, prior, kind), gaps(rows, prior, kind)
            lams = curves.lambdas
            of_j = [curves.mean_of(lam, "objective") for lam in lams]
            # One legend for all: colours are the same everywhere.
            label = KINDS.get(kind, kind) if column == 0 else ""
            Line(label, lams, of_j, colour).draw(grid[0][column])
            for row, name in ((1, "expected_log_likelihood"), (2, "kl"), (4, "kept")):
                Line("", lams, [curves.mean_of(lam, name) for lam in lams], colour).draw(grid[row][column])
            Line("", lams, [apart.get(lam) for lam in lams], colour).draw(grid[3][column])
        names = ("J, nats", "E log p, nats", "KL, nats", "largest J known - J, nats", "weights above one sd")
        for axes, name in zip(grid[:, column], names, strict=True):
            axes.set_xscale("log")
            finish(axes, prior.replace("_", " ") + (" (improper)" if prior == "log_uniform" else ""), "λ", name)
        grid[2][column].set_yscale("log")
        grid[3][column].set_yscale("symlog", linthresh=10)
        grid[3][column].set_ylim(bottom=0)
        grid[4][column].set_yscale("log")
    return figure


def _accuracies(curves: Curves, lam: float, fractions: Sequence[float], name: str) -> list[float | None]:
    errors = [curves.mean(lam, fraction, name) for fraction in fractions]
    return [None if error is None else 100 - error for error in errors]
