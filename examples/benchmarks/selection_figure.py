"""The picture of `selection.py`: accuracy by what is frozen or zeroed, and by process time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from figures import COLOURS, Line, finish, grid_of, write
from selection_arms import (
    CRITERIA,
    FROZEN,
    FULL,
    KEEP_BY,
    OF_THE_CNN,
    OTHERS,
    OTHERS_FROZEN,
    PAPER_CRITERIA,
    PAPER_FROZEN,
    PUBLISHED_FROZEN,
    PUBLISHED_ZEROED,
    STOPPED,
    TIMED,
    ZEROED,
    is_timed,
    of_others,
)

Mean = Callable[..., float | None]


def draw(rows: list[dict[str, Any]], mean: Mean, path: Path) -> None:
    """Write the figure.

    Args:
        rows: Of `selection.py`.
        mean: Mean over seeds by group, arm and name of a figure, which is the test accuracy unless given.
        path: Of the file.
    """
    figure, grid = grid_of(5, 4, width=3.8)
    panels = iter(grid.flat)
    curves, named = [("criteria", "weight", "mlp-200, weights"), ("criteria", "neuron", "mlp-200, neurons")], set[str]()
    curves += [(f"criteria, {name}", "weight", f"{name}, weights") for name in OTHERS]
    for group, granularity, words in curves:
        axes, shares = next(panels), OTHERS_FROZEN.get(group.removeprefix("criteria, "), FROZEN)
        for colour, criterion in zip(COLOURS, OF_THE_CNN if "cnn" in group else CRITERIA, strict=False):
            values = [mean(group, f"{granularity} {criterion} {share:g}") for share in shares]
            # Colours mean the same in all of these panels, and legends would hide points.
            Line("" if criterion in named else criterion, _percent(shares), values, colour).draw(axes)
            named.add(criterion)
        _level(axes, mean(group, FULL), "full training" if axes is grid[0, 0] else None)
        finish(axes, f"{words} frozen after a fifth", "frozen, %", "test accuracy, %")
    axes, arms = next(panels), {0.0: FULL, **{share: "" for share in PAPER_FROZEN}, 1.0: STOPPED}
    for colour, criterion in zip(COLOURS, PAPER_CRITERIA, strict=False):
        values = [mean("paper", arm or f"{criterion} {share:g}") for share, arm in arms.items()]
        Line(criterion, _percent(arms), values, colour).draw(axes)
        _published(axes, criterion, PUBLISHED_FROZEN[criterion], colour)
    finish(axes, "the paper's setting, frozen", "frozen, %", "test accuracy, %")
    axes = next(panels)
    for colour, (by, theirs) in zip(COLOURS, PUBLISHED_ZEROED.items(), strict=False):
        values = [mean("paper", f"zeroed by {by} {share:g}") for share in theirs]
        Line(by, _percent(theirs), values, colour).draw(axes)
        _published(axes, by, theirs, colour)
    finish(axes, "the paper's setting, zeroed", "zeroed, %", "test accuracy, %")
    zeroed = [("zeroed", "", "criteria", ZEROED, "mlp-200, ")]
    zeroed += [
        (f"criteria, {name}", "zeroed by ", f"criteria, {name}", of_others(name), f"{name}, ") for name in OTHERS
    ]
    for group, prefix, of_full, shares, words in zeroed:
        axes = next(panels)
        for colour, by in zip(COLOURS, KEEP_BY, strict=False):
            Line(by, _percent(shares), [mean(group, f"{prefix}{by} {share:g}") for share in shares], colour).draw(axes)
        _level(axes, mean(of_full, FULL))
        finish(axes, f"{words}zeroed after a fifth", "zeroed, %", "test accuracy, %")
    for group in TIMED:
        timed = [arm for arm in _arms(rows, group) if is_timed(group, arm)]
        _by_time(next(panels), mean, group, timed, "test_accuracy", "test accuracy, %")
    for name, words in (("accuracy", "test accuracy, %"), ("nll", "test NLL, nats"), ("ece", "test ECE")):
        _by_time(next(panels), mean, "optimizers", _arms(rows, "optimizers"), f"test_{name}", words)
    for axes in panels:
        axes.set_visible(False)
    write(figure, path)


def _arms(rows: list[dict[str, Any]], group: str) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows if row.get("group") == group))


def _percent(shares: Iterable[float]) -> list[float]:
    return [100 * share for share in shares]


def _level(axes: Any, value: float | None, label: str | None = "full training") -> None:
    if value is not None:
        axes.axhline(value, color="black", lw=0.8, label=label)


def _published(axes: Any, name: str, curve: Mapping[float, float], colour: str) -> None:
    Line(f"{name}, published", _percent(curve), list(curve.values()), colour, "--").draw(axes)


def _by_time(axes: Any, mean: Mean, group: str, arms: list[str], name: str, words: str) -> None:
    """A point for every arm, of a sampler of its averaged draws; hollow with a selection, of the other's colour."""
    colours: dict[str, str] = {}
    hollow = any(arm.endswith(", selected") for arm in arms)
    for arm in arms:
        seconds, value = mean(group, arm, "process_seconds"), mean(group, arm, f"averaged_{name}")
        value = mean(group, arm, name) if value is None else value
        colour = colours.setdefault(arm.removesuffix(", selected"), COLOURS[len(colours) % len(COLOURS)])
        if seconds is not None and value is not None:
            selected = arm.endswith(", selected")
            face, label = ("none", None) if selected else (colour, arm)
            axes.scatter(seconds, value, s=22, facecolors=face, edgecolors=colour, label=label)
    finish(axes, f"{group}, with selection hollow" if hollow else group, "process seconds", words)
