"""Trials of the second head: cells searched on parts of data sets, and cells predicted for the data."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.config import Config, DataConfig
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.build import build_network
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.experiment.parts import Parts
from nni_bayes_nas.experiment.record import read_rows, unseen, write_json, write_rows
from nni_bayes_nas.experiment.replicas import run_searches
from nni_bayes_nas.prediction.cells import CellPredictor, Example, looked_at
from nni_bayes_nas.prediction.encoder import Condition, condition_of
from nni_bayes_nas.prediction.tasks import Task, objects_of

FILE = "cells.jsonl"
_PART_OF = "nni_bayes_nas.experiment.parts:part_of"


def run_cells(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Search cells on some tasks, `predict.cell_replicas` times each, side by side; goes on where it was killed.

    Args:
        config: Space, strategy and search are those of every task.
        parameters: Of the trial; "first" and "count" of its tasks.
        directory: Where cells.jsonl is written, and the folders of the searches.
        report: Called after every epoch.

    Returns:
        "default", the mean of the searches; "tasks"; "seconds", an earlier process's too.

    Raises:
        Exception: That of the first search of a task, where none came to its end.
    """
    file, rows = directory / FILE, read_rows(directory / FILE)
    write_rows(file, rows)
    first, count = int(parameters["first"]), int(parameters["count"])
    done = {row["number"] for row in rows}
    for number, task in enumerate(Parts(config, images=True).tasks(first + count)[first:], first):
        if number in done:
            continue
        started = time.perf_counter()
        part = on_part(config, task)
        seeds = {f"task{number}-r{i}": config.seed + 97 * number + i for i in range(config.predict.cell_replicas)}
        found = run_searches(part, {"seeds": seeds}, directory / "searches", report)
        rows.append(
            {
                "number": number,
                "task": asdict(task),
                "default": found["default"],
                "searches": [
                    [{"lambda": row.get("lambda"), "choices": row["choices"]} for row in result["architectures"]]
                    for result in found["searches"].values()
                ],
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        write_rows(file, rows)
    return {
        "default": statistics.fmean(row["default"] for row in rows),
        "tasks": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }


def on_part(config: Config, task: Task) -> Config:
    """The configuration of a search on a task."""
    source = asdict(Parts(config).sources[task.source])
    return replace(
        config,
        data=DataConfig(_PART_OF, args={"source": source, "task": asdict(task)}, val_fraction=config.data.val_fraction),
        search=replace(config.search, searches=1, replicas=1, random=0, samples=0, variants=[]),
    )


def run_predict_cells(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Learn which cells searches chose on parts, and predict those of the data.

    Args:
        config: The configuration.
        parameters: Of the trial; "banks", the names of the trials that searched cells, and "seed".
        directory: Where cells.json, what was predicted, is written.
        report: Called once.

    Returns:
        As of a search: "architectures", the most probable cells at every lambda, each once, at the first one of the
        "lambdas" that it is predicted for; their "origin" is predicted; "default"
        is minus the loss of the fit, in nats for each example. "seconds_predict": of the prediction alone.

    Raises:
        ConfigError: Every search chose the same cell.
        NumericsError: A loss is not finite.
    """
    started, seed = time.perf_counter(), int(parameters["seed"])
    rows = [row for name in parameters["banks"] for row in read_rows(directory.parent / name / FILE)]
    if not rows:
        raise unseen(f"the searches of cells left nothing in {directory.parent}: they")
    parts, data = Parts(config, images=True), load_data(config.data)
    sizes = {
        "max_features": max(looked_at(parts.splits(name).train[:1][0]).shape[1] for name in [*parts.names()]),
        "max_classes": max(parts.splits(name).num_classes for name in parts.names()),
    }
    own = looked_at(data.train[:1][0]).shape[1]
    sizes = {
        "max_features": max(own, sizes["max_features"]),
        "max_classes": max(data.num_classes, sizes["max_classes"]),
    }
    examples = [example for row in rows for example in _examples(row, parts, sizes)]
    model = CellPredictor(examples, **sizes, dim=config.predict.dim, seed=seed)
    loss = model.fit(examples, config.predict.fit_steps, seed=seed)[-1]
    fitted = time.perf_counter()
    x, y = data.train[:]
    condition = _condition(looked_at(x), y, data.num_classes, sizes)
    lams = list(dict.fromkeys(one.lam for one in examples))
    found: dict[str, dict[str, Any]] = {}
    for lam in lams:
        for choices, log_prob in model.predict(condition, lam, config.predict.cell_draws, key_for(examples)):
            cell = Architecture(choices).canonical()
            row = {"choices": cell, "lambda": lam, "log_prob": log_prob, "origin": "predicted"}
            found.setdefault(json.dumps(cell), {**row, "lambdas": []})["lambdas"].append(lam)
    predicted = time.perf_counter() - fitted
    architectures = [{**row, **_size(config, data, row["choices"], seed)} for row in found.values()]
    write_json(directory / "cells.json", architectures)
    report({"default": -loss, "epoch": 0})
    seconds = round(time.perf_counter() - started, 2)
    return {
        "default": -loss,
        "search": {
            "strategy": "cells of parts of data sets",
            "seed": seed,
            "seconds": seconds,
            "examples": len(examples),
        },
        "architectures": architectures,
        "random": [],
        "curve": [],
        "seconds_predict": round(predicted, 3),
    }


def key_for(examples: Iterable[Example]) -> Callable[[dict[str, Any]], str | None]:
    """What tells cells apart; None of one that takes an input twice, if no search found such."""
    known = any(Architecture(choices).takes_an_input_twice for one in examples for choices in one.choices)

    def key(choices: dict[str, Any]) -> str | None:
        cell = Architecture(choices)
        return None if cell.takes_an_input_twice and not known else cell.key

    return key


def check(config: Config) -> None:
    """Refuse what a search of cells would fail by.

    Raises:
        ConfigError: No images, or batches that are larger than a part.
    """
    settings, parts = config.predict, Parts(config, images=True)
    if len(load_data(config.data).shape) != 3:
        raise ConfigError(f"`predict.cells` must be 0 for data that are no images, got {settings.cells}\nset it to 0")
    if "num_classes" in config.space.args:
        raise ConfigError(
            "`space.args.num_classes` must be left to the data where parts have some of the classes, got "
            f"{config.space.args['num_classes']}\nremove it"
        )
    args = config.strategy.args
    if args.get("axis") == "literal" or args.get("lambda_range") == "auto":
        raise ConfigError(
            "`predict.cells` must know lambda before the searches, on a logarithmic axis, got axis "
            f"{args.get('axis', 'log')!r} and lambda_range {args.get('lambda_range')!r}\ngive numbers above 0"
        )
    tasks = parts.tasks(settings.cells)
    sizes = [len(objects_of(task, parts.splits(task.source).train.tensors[1])[0]) for task in tasks]
    least = round(min(sizes) * (1 - config.data.val_fraction))
    if config.search.batch_size > least // 2:
        raise ConfigError(
            f"`search.batch_size` must be at most {least // 2}, half of the training objects of the smallest part, got "
            f"{config.search.batch_size}\nlower it, or raise predict.least_objects"
        )


def _examples(row: dict[str, Any], parts: Parts, sizes: dict[str, int]) -> list[Example]:
    """Of a task, one for every lambda."""
    task = Task.from_dict(row["task"])
    x, y = parts.splits(task.source).train[:]
    at, labels, _, _ = objects_of(task, y)
    # As they are looked at when cells for all data are asked for: standardized as the whole data set is.
    condition = _condition(looked_at(x[at]), labels, len(task.classes), sizes)
    found = []
    for each in zip(*row["searches"], strict=True):
        choices = tuple(Architecture(one["choices"]).canonical() for one in each)
        found.append(Example(condition, each[0]["lambda"], choices))
    return found


def _condition(x: Any, y: Any, n_classes: int, sizes: dict[str, int]) -> Condition:
    # Cells have no budget of connections.
    features, classes = sizes["max_features"], sizes["max_classes"]
    return condition_of(x, y, 1, n_classes=n_classes, max_features=features, max_classes=classes)


def _size(config: Config, data: DataSplits, choices: dict[str, Any], seed: int) -> dict[str, Any]:
    network = build_network(config, data, seed, Architecture(choices))
    return {"params": count_parameters(network), "macs": count_macs(network, data.shape)}
