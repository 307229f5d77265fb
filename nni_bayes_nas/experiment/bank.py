"""Trials of the bank of tasks: many small searches each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config, PredictConfig
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.parts import Parts
from nni_bayes_nas.experiment.record import read_rows, write_rows
from nni_bayes_nas.prediction.bank import Entry, budgets_of, entry_of
from nni_bayes_nas.prediction.inner_search import Search
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.sparse_architecture import fewest_connections
from nni_bayes_nas.prediction.tokens import Vocabulary

FILE = "bank.jsonl"


def run_bank(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Search on some tasks, with every budget; a trial that was killed goes on after the last entry that it wrote.

    Args:
        config: Sections `data` and `predict` are used.
        parameters: Of the trial; "first" and "count" of its tasks.
        directory: Where bank.jsonl is written, an entry a line.
        report: Called after every task with the mean accuracy so far.

    Returns:
        "default", the mean validation accuracy of the best small networks; "entries"; "as_good", how many of these are
        no worse than the dense network by its standard error; "tasks_as_good", of how many tasks one is; "methods", how
        often each found the best one; "seconds" of all searches, an earlier process's too.

    Raises:
        NumericsError: A loss is not finite.
    """
    settings, file = config.predict, directory / FILE
    parts, rows = Parts(config), read_rows(file)
    write_rows(file, rows)  # a line that a kill cut off would swallow the next one
    first, count = int(parameters["first"]), int(parameters["count"])
    how, vocabulary = search_of(settings), vocabulary_of(settings)
    for number, task in enumerate(parts.tasks(first + count)[first:], first):
        data = parts.data(task)
        for k, budget in enumerate(_budgets(len(task.features), len(task.classes), settings, vocabulary)):
            if any(row["task_number"] == number and row["budget"] == budget for row in rows):
                continue
            started = time.perf_counter()
            entry = entry_of(task, data, budget, how, settings.deepest, config.seed + 1009 * number + 101 * k)
            seconds = round(time.perf_counter() - started, 3)
            rows.append({**entry.to_dict(), "task_number": number, "seconds": seconds})
            write_rows(file, rows)
        report({"default": _accuracy(rows), "epoch": number - first})
    entries = [Entry.from_dict(row) for row in rows]
    return {
        "default": _accuracy(rows),
        "entries": len(rows),
        "as_good": sum(entry.is_as_good_as_dense for entry in entries),
        "tasks_as_good": len({entry.task for entry in entries if entry.is_as_good_as_dense}),
        "methods": dict(Counter(entry.found[0].method for entry in entries)),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }


def read_bank(files: Iterable[Path]) -> list[Entry]:
    """The entries of bank.jsonl files.

    Raises:
        ConfigError: One of them cannot be read, or is none.
    """
    entries = []
    for file in files:
        rows = read_rows(file)
        if not rows:
            raise ConfigError(f"`predict.bank` must be a bank.jsonl with entries, but {file} has none\ncheck the path")
        entries += [Entry.from_dict(row) for row in rows]
    return entries


def vocabulary_of(settings: PredictConfig) -> Vocabulary:
    """Of the depths and widths of the configuration."""
    return Vocabulary(settings.max_depth, tuple(settings.widths))


def search_of(settings: PredictConfig) -> Search:
    """The inner search of the configuration."""
    return Search(
        methods=tuple(settings.methods),
        candidates=settings.candidates,
        top=settings.top,
        repeats=settings.repeats,
        others=settings.others,
        training=Training(settings.steps),
        vocabulary=vocabulary_of(settings),
    )


def _budgets(n_features: int, n_classes: int, settings: PredictConfig, vocabulary: Vocabulary) -> list[int]:
    return budgets_of(n_features, settings.factors, fewest_connections(vocabulary.widths[:1], n_classes))


def _accuracy(rows: list[dict[str, Any]]) -> float:
    accuracies = [row["found"][0]["accuracies"] for row in rows]
    return float(sum(sum(each) / len(each) for each in accuracies) / len(accuracies))
