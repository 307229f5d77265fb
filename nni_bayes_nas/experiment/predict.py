"""The trial that learns from the bank and predicts networks for the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.bank import FILE, read_bank, search_of, vocabulary_of
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.experiment.parts import Parts, sources_of, whole
from nni_bayes_nas.experiment.record import write_json
from nni_bayes_nas.prediction.analysis import errors_of
from nni_bayes_nas.prediction.bank import Entry, budgets_of
from nni_bayes_nas.prediction.predictor import Fitting, Predictor
from nni_bayes_nas.prediction.sparse_architecture import fewest_connections
from nni_bayes_nas.prediction.sparse_net import dense

PREDICTIONS = "predictions.json"


def run_predict(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Fit a meta-model to the bank, look at its errors on tasks that were kept out, predict networks for the data.

    Args:
        config: Sections `data` and `predict` are used.
        parameters: Of the trial; "decoder", its kind, "banks", the names of the trials of the bank, and "seed"; with
            "left_out", the name of a data set, its parts are kept out, and no others.
        directory: Where predictor.pt and predictions.json are written.
        report: Called once with what is the result's "default".

    Returns:
        "default": the mean accuracy of predictions on the tasks kept out, of networks trained there; without such tasks
        minus the loss of the fit. "errors": a row for every entry kept out, see `errors_of`. "predictions": for every
        budget its networks, the best-ranked first, without their connections (predictions.json has these). Seconds of
        the fit, and of each prediction; "parameters" of the meta-model.

    Raises:
        ConfigError: A bank from which nothing can be learned.
        NumericsError: A loss is not finite.
    """
    settings, seed = config.predict, int(parameters["seed"])
    files = [directory.parent / name / FILE for name in parameters["banks"]]
    entries = read_bank([*([Path(settings.bank)] if settings.bank else []), *files])
    parts, data = Parts(config), whole(load_data(config.data))
    if (source := parameters.get("left_out")) is not None:
        known = [entry for entry in entries if entry.task.source != source]
        kept = [entry for entry in entries if entry.task.source == source]
    else:
        known, kept = apart(entries, settings.held_out, seed)
    # A bank of an earlier run may have tasks of data sets that this one does not name.
    here = [entry for entry in kept if entry.task.source in parts.sources]
    missing = sorted({entry.task.source for entry in known} - set(parts.sources))
    if missing:
        raise ConfigError(f"`predict.sources` must name the data sets of the bank, `{missing[0]}` is missing\nadd it")
    predictor = Predictor(
        parameters["decoder"],
        max_features=max([data.n_features, *(len(entry.order) for entry in entries)]),
        max_classes=max([data.n_classes, *(len(entry.task.classes) for entry in entries)]),
        vocabulary=vocabulary_of(settings),
        dim=settings.dim,
        seed=seed,
    )
    cached = {id(entry): parts.data(entry.task) for entry in (*known, *here)}
    started = time.perf_counter()
    losses = predictor.fit(known, lambda entry: cached[id(entry)], Fitting(settings.fit_steps, seed=seed))
    fitted = time.perf_counter() - started
    predictor.save(directory / "predictor.pt")
    how = search_of(settings).training
    errors = errors_of(predictor, here, known, lambda entry: cached[id(entry)], how, seed)
    predictions, short = [], []
    for budget in budgets_for(config, data.n_features, data.n_classes):
        started = time.perf_counter()
        found = predictor.predict(data.parts, budget, data.n_classes, n=settings.draws, seed=seed)
        seconds = round(time.perf_counter() - started, 3)
        rows = [{"net": one.net.to_dict(), "log_prob": one.log_prob, "score": one.score} for one in found]
        predictions.append({"budget": budget, "seconds": seconds, "networks": rows})
        short.append({"budget": budget, "seconds": seconds, "networks": [_short(row) for row in rows]})
    write_json(directory / PREDICTIONS, predictions)
    default = sum(row["accuracy"] for row in errors) / len(errors) if errors else -losses[-1]
    report({"default": default, "epoch": 0})
    return {
        "default": default,
        "kind": parameters["decoder"],
        "seed": seed,
        "entries": len(known),
        "loss": losses[-1],
        "seconds_fit": round(fitted, 2),
        "parameters": sum(p.numel() for p in predictor.model.parameters()),
        "errors": errors,
        "predictions": short,
    }


def apart(entries: Sequence[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Entries to learn from, and those of a share of the tasks, which are kept out with all their budgets."""
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(seed)).tolist()
    out = {tasks[i] for i in order[: min(round(share * len(tasks)), len(tasks) - 1)]}
    return [e for e in entries if e.task not in out], [e for e in entries if e.task in out]


def budgets_for(config: Config, n_features: int, n_classes: int) -> list[int]:
    """Connections that networks for the data may have, rising.

    Raises:
        ConfigError: Fewer than the smallest network has.
    """
    settings, found = config.predict, set[int]()
    least = fewest_connections(settings.widths[:1], n_classes)
    found.update(budgets_of(n_features, settings.factors, least))
    if settings.dense_share is not None:
        share = round(settings.dense_share * dense(n_features, n_classes, settings.deepest).n_connections)
        if share < least:
            raise ConfigError(
                f"`predict.dense_share` must leave at least {least} connections, the smallest network's, got {share}\n"
                "raise it"
            )
        found.add(share)
    return sorted(found)


def check(config: Config, data: DataSplits) -> None:
    """Refuse what would fail later; nothing is trained.

    Raises:
        ConfigError: Data without classes, a bank that is none, widths that the words cannot say, no images for cells.
    """
    if data.task != "classification":
        raise ConfigError(f"`predict` is for classes, but data `{config.data.name}` are a {data.task}\nuse run")
    settings = config.predict
    search_of(settings)
    budgets_for(config, whole(data).n_features, data.num_classes)
    parts = Parts(config)
    parts.tasks(settings.tasks)
    if settings.bank is not None:
        unknown = {entry.task.source for entry in read_bank([Path(settings.bank)])} - set(sources_of(config))
        if unknown:
            raise ConfigError(
                f"`predict.sources` must name the data sets of `predict.bank`, `{min(unknown)}` is missing\nadd it"
            )


def _short(row: dict[str, Any]) -> dict[str, Any]:
    net = row["net"]
    n = sum(map(len, net["edges"]))
    return {"widths": net["widths"], "connections": n, "log_prob": row["log_prob"], "score": row["score"]}
