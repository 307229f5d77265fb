"""Trials of the bank of tasks: many small searches each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config, DataConfig, PredictConfig, load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.parts import Parts, free_name, unsplit
from nni_bayes_nas.experiment.record import read_rows, write_rows
from nni_bayes_nas.prediction.bank import Entry, budgets_of, entry_of
from nni_bayes_nas.prediction.inner_search import Search
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.sparse_architecture import fewest_connections
from nni_bayes_nas.prediction.sparse_net import dense
from nni_bayes_nas.prediction.tasks import Task
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
        "default", the mean validation accuracy of the best small networks; "tasks"; "entries"; "as_good", how many of
        these are no worse than the dense network by its standard error; "tasks_as_good", of how many tasks one is;
        "methods", how often each found the best one; "seconds" of all searches, an earlier process's too.

    Raises:
        NumericsError: A loss is not finite.
    """
    settings, file = config.predict, directory / FILE
    parts, rows = Parts(config), read_rows(file)
    write_rows(file, rows)  # a line that a kill cut off would swallow the next one
    first, count = int(parameters["first"]), int(parameters["count"])
    how, vocabulary = search_of(settings), vocabulary_of(settings)
    for number, task in enumerate(tasks_of(config, parts, first + count)[first:], first):
        data = parts.data(task)
        for k, budget in enumerate(_budgets(len(task.features), len(task.classes), settings, vocabulary)):
            if any(row["task_number"] == number and row["budget"] == budget for row in rows):
                continue
            started = time.perf_counter()
            entry = entry_of(task, data, budget, how, settings.deepest, config.seed + 1009 * number + 101 * k)
            seconds = round(time.perf_counter() - started, 3)
            # A run that has this bank finds its data by these, whatever it calls them.
            row = {**entry.to_dict(), "data": asdict(parts.sources[task.source])}
            rows.append({**row, "task_number": number, "seconds": seconds})
            write_rows(file, rows)
        report({"default": _accuracy(rows), "epoch": number - first})
    return {"default": _accuracy(rows), **Bank.of(rows).account()}


@dataclass
class Bank:
    """Entries, the data sets of their tasks by name, and the seconds that each took."""

    entries: list[Entry] = field(default_factory=list)
    sources: dict[str, DataConfig] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> Bank:
        """Of the rows of bank.jsonl files; equal names of different data sets are told apart.

        Raises:
            ConfigError: A row is none.
        """
        bank = cls()
        for row in rows:
            entry = Entry.from_dict(row)
            if not isinstance(row.get("data"), dict):
                raise ConfigError(f"a line of a bank must say its data, got {str(row)[:60]!r}.")
            data = Config.from_dict({"data": row["data"]}).data
            name = next((name for name, one in bank.sources.items() if one == data), None)
            if name is None:
                name = entry.task.source if entry.task.source not in bank.sources else free_name(data, bank.sources)
                bank.sources[name] = data
            bank.entries.append(replace(entry, task=replace(entry.task, source=name)))
            bank.seconds.append(float(row.get("seconds", 0.0)))
        return bank

    def account(self) -> dict[str, Any]:
        """Numbers of tasks and entries, of those that are as good as dense, of methods; seconds.

        Of a task the entry of the least loss counts, see `best_of_tasks`.
        """
        best = best_of_tasks(self.entries)
        return {
            "tasks": len(best),
            "entries": len(self.entries),
            "as_good": sum(entry.is_as_good_as_dense for entry in self.entries),
            "tasks_as_good": sum(entry.is_as_good_as_dense for entry in best),
            "methods": dict(sorted(Counter(entry.found[0].method for entry in self.entries).items())),
            "seconds": round(sum(self.seconds), 2),
        }


def best_of_tasks(entries: Iterable[Entry]) -> list[Entry]:
    """Of every task the entry of the least loss: that of some validation objects, where accuracy is that of others."""
    best: dict[Task, Entry] = {}
    for entry in entries:
        kept = best.setdefault(entry.task, entry)
        if entry.found[0].loss < kept.found[0].loss:
            best[entry.task] = entry
    return list(best.values())


def tasks_of(config: Config, parts: Parts, n: int) -> list[Task]:
    """The first n tasks that an earlier bank does not hold."""
    earlier = config.predict.bank
    if earlier is None:
        return parts.tasks(n)
    bank = read_bank([Path(earlier)])
    names = {name: own for name, data in bank.sources.items() for own, one in parts.sources.items() if one == data}
    known = {replace(e.task, source=names[e.task.source]) for e in bank.entries if e.task.source in names}
    return [task for task in parts.tasks(n + len(known)) if task not in known][:n]


def without_leaks(data: DataConfig, bank: Bank) -> Bank:
    """A bank without entries of data that differ from some in nothing but how they are split: their parts may hold
    objects that are these data's own for validation and test.

    Raises:
        ConfigError: Nothing is left.
    """
    leaks = {name for name, one in bank.sources.items() if one != data and unsplit(one) == unsplit(data)}
    if not leaks:
        return bank
    kept = [i for i, entry in enumerate(bank.entries) if entry.task.source not in leaks]
    if not kept:
        raise ConfigError(
            f"`predict.bank` must hold entries of other data, or of these as they are split here, but it has those of "
            f"{', '.join(sorted(leaks))} alone, split in another way\nsplit `data` as that run did"
        )
    sources = {name: one for name, one in bank.sources.items() if name not in leaks}
    return Bank([bank.entries[i] for i in kept], sources, [bank.seconds[i] for i in kept])


def read_bank(paths: Iterable[Path]) -> Bank:
    """The entries of bank.jsonl files, or of all of them in a run folder and in the bank that it went on from.

    Raises:
        ConfigError: One of them cannot be read, or is none.
    """
    rows = []
    for path in paths:
        found = [row for file in _files(path, set()) for row in read_rows(file)]
        if not found:
            raise ConfigError(
                f"`predict.bank` must be a {FILE} with entries, or the folder of a run with some, but {path} has none\n"
                "check the path"
            )
        rows += found
    return Bank.of(rows)


def _files(path: Path, seen: set[Path]) -> list[Path]:
    if not path.is_dir():
        return [path]
    if path.resolve() in seen:  # a bank that went on from itself
        return []
    seen.add(path.resolve())
    own, config = sorted(path.glob(f"trials/bank-*/{FILE}")), path / "config.yaml"
    earlier = load_config(config).predict.bank if config.is_file() else None
    if earlier and not Path(earlier).exists():
        raise ConfigError(
            f"`predict.bank` must have all that it was learned from, but {path} went on from {earlier}, which is not "
            "there\nbring it back, or name the bank.jsonl files of the run"
        )
    return [*(_files(Path(earlier), seen) if earlier else []), *own]


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
    least = fewest_connections(vocabulary.widths[:1], n_classes)
    found = budgets_of(n_features, settings.factors, least)
    if settings.dense_share is not None:
        whole = dense(n_features, n_classes, settings.deepest).n_connections
        found.append(max(least, round(settings.dense_share * whole)))
    return sorted(set(found))


def _accuracy(rows: list[dict[str, Any]]) -> float:
    accuracies = [row["found"][0]["accuracies"] for row in rows]
    return float(sum(sum(each) / len(each) for each in accuracies) / len(accuracies))
