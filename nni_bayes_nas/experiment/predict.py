"""The trial that learns from the bank and predicts networks for the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.coercion import closest
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.bank import FILE, read_bank, search_of, tasks_of, vocabulary_of, without_leaks
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.experiment.parts import Parts, whole
from nni_bayes_nas.experiment.record import read_rows, unseen, write_json
from nni_bayes_nas.prediction.analysis import errors_of
from nni_bayes_nas.prediction.bank import Entry, check_bank
from nni_bayes_nas.prediction.predictor import Fitting, Predictor
from nni_bayes_nas.prediction.relevance import MOST_FEATURES
from nni_bayes_nas.prediction.sparse_architecture import fewest_connections
from nni_bayes_nas.prediction.sparse_net import dense
from nni_bayes_nas.prediction.tokens import encode

PREDICTIONS = "predictions.json"


def run_predict(
    config: Config,
    parameters: dict[str, Any],
    directory: Path,
    report: Callable[[dict[str, Any]], None],
    inspect: Callable[[Predictor], None] | None = None,
    predictor: Predictor | None = None,
) -> dict[str, Any]:
    """Fit a meta-model to the bank, look at its errors on tasks that were kept out, predict networks for the data.

    Args:
        config: Sections `data` and `predict` are used.
        parameters: Of the trial; "decoder", its kind, "banks", the names of the trials of the bank, and "seed"; with
            "left_out", the name of a data set, its parts are kept out, and no others: "every" so many shows its errors,
            or none with "errors" false; of data in "unseen" nothing is learned either.
        directory: Where predictor.pt and predictions.json are written.
        report: Called once with what is the result's "default".
        inspect: Called last, with what was fitted.
        predictor: What has learned from these entries already; None: it is made and fitted here.

    Returns:
        "default": the mean accuracy of predictions on the tasks kept out, of networks trained there; without such tasks
        minus the loss of the fit. "bank": see `Bank.account`. "errors": a row for every entry kept out, see
        `errors_of`. "predictions": for every budget its networks, the best-ranked first, without their connections
        (predictions.json has these). Seconds of the fit, of that of the ranker, and of each prediction; "parameters" of
        the meta-model.

    Raises:
        ConfigError: A bank from which nothing can be learned.
        NumericsError: A loss is not finite.
    """
    settings, seed = config.predict, int(parameters["seed"])
    # A trial of the bank that failed may have left some entries, or none.
    files = [file for name in parameters["banks"] if read_rows(file := directory.parent / name / FILE)]
    if parameters["banks"] and not files and not settings.bank:
        raise unseen(f"the searches of the bank left nothing in {directory.parent}: they")
    bank = without_leaks(config.data, read_bank([*([Path(settings.bank)] if settings.bank else []), *files]))
    entries, parts, data = bank.entries, Parts(config, sources=bank.sources), whole(load_data(config.data))
    if (source := parameters.get("left_out")) is not None:
        if source not in bank.sources:
            raise ConfigError(
                f"left_out must name data of the bank, {closest(str(source), bank.sources)}, got {source!r}."
            )
        away = {source, *parameters.get("unseen", ())}
        known = [entry for entry in entries if entry.task.source not in away]
        kept = [entry for entry in entries if entry.task.source == source][:: int(parameters.get("every", 1))]
        kept = kept if parameters.get("errors", True) else []
    else:
        known, kept = apart(entries, settings.held_out, seed)
    cached = {id(entry): parts.data(entry.task) for entry in entries}
    fitted = ranked = 0.0
    if predictor is None:
        whole_ones = [parts.splits(name) for name in bank.sources]
        predictor = Predictor(
            parameters["decoder"],
            # Of whole data sets: a part may have fewer features and classes.
            max_features=max([data.n_features, *(one.train.tensors[0][0].numel() for one in whole_ones)]),
            max_classes=max([data.n_classes, *(one.num_classes for one in whole_ones)]),
            vocabulary=vocabulary_of(settings),
            dim=settings.dim,
            seed=seed,
            rank_steps=settings.rank_steps,
            refine_steps=settings.refine_steps,
        )
        how, started = Fitting(settings.fit_steps, seed=seed), time.perf_counter()
        predictor.fit(known, lambda entry: cached[id(entry)], how, ranker=False)
        fitted, started = time.perf_counter() - started, time.perf_counter()
        predictor.fit_ranker(known, lambda entry: cached[id(entry)])
        ranked = time.perf_counter() - started
    predictor.save(directory / "predictor.pt")
    training = search_of(settings).training
    errors = errors_of(predictor, kept, known, lambda entry: cached[id(entry)], training, seed, settings.draws)
    predictions, short = [], []
    for budget in budgets_for(config, data.n_features, data.n_classes):
        started = time.perf_counter()
        found = predictor.predict(data.parts, budget, data.n_classes, n=settings.draws, seed=seed)
        seconds = round(time.perf_counter() - started, 3)
        rows = [
            {"net": one.net.to_dict(), "log_prob": one.log_prob, "score": one.score, "drawn": one.drawn}
            for one in found
        ]
        predictions.append({"budget": budget, "seconds": seconds, "networks": rows})
        short.append({"budget": budget, "seconds": seconds, "networks": [_short(row) for row in rows]})
    write_json(directory / PREDICTIONS, predictions)
    loss = predictor.loss if predictor.loss is not None else float("nan")
    default = sum(row["accuracy"] for row in errors) / len(errors) if errors else -loss
    report({"default": default, "epoch": 0})
    if inspect is not None:
        inspect(predictor)
    return {
        "default": default,
        "kind": parameters["decoder"],
        "seed": seed,
        "entries": len(known),
        "bank": bank.account(),
        "loss": predictor.loss,
        "seconds_fit": round(fitted, 2),
        "seconds_ranker": round(ranked, 2),
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
    settings = config.predict
    least = fewest_connections(settings.widths[:1], n_classes)
    wanted = [("factors", round(factor * n_features)) for factor in settings.factors]
    if settings.dense_share is not None:
        n = dense(n_features, n_classes, settings.deepest).n_connections
        wanted.append(("dense_share", round(settings.dense_share * n)))
    for name, budget in wanted:
        if budget < least:
            raise ConfigError(
                f"`predict.{name}` must leave at least {least} connections, the smallest network's, got {budget}\n"
                "raise it"
            )
    return sorted({budget for _, budget in wanted})


def check(config: Config, data: DataSplits) -> None:
    """Refuse what would fail later; nothing is trained.

    Raises:
        ConfigError: Data without classes, or of more features than have an order; budgets below the smallest network,
            a bank that is none or says nothing.
        DataError: Data of a bank that are not there any more.
    """
    if data.task != "classification":
        raise ConfigError(f"`predict` is for classes, but data `{config.data.name}` are a {data.task}\nuse run")
    settings = config.predict
    search_of(settings)
    budgets_for(config, whole(data).n_features, data.num_classes)
    drawn = Parts(config)
    of_tasks = {name: drawn.splits(name) for name in drawn.sources} if settings.tasks else {}
    for name, one in {config.data.name: data, **of_tasks}.items():
        if (n := one.train[:1][0].numel()) > MOST_FEATURES:
            raise ConfigError(
                f"`predict` is for at most {MOST_FEATURES} features, but data `{name}` have {n}\n"
                "leave some out, of images by data.image_size"
            )
    for task in tasks_of(config, drawn, settings.tasks) if settings.tasks else ():
        drawn.data(task)
    if settings.bank is None:
        return
    bank, vocabulary = without_leaks(config.data, read_bank([Path(settings.bank)])), vocabulary_of(settings)
    parts = Parts(config, sources=bank.sources)
    for entry in bank.entries:
        parts.data(entry.task)
        for found in entry.found:
            encode(found.net, vocabulary)
    if not settings.tasks:
        check_bank(apart(bank.entries, settings.held_out, config.seed)[0])


def _short(row: dict[str, Any]) -> dict[str, Any]:
    net = row["net"]
    n = sum(map(len, net["edges"]))
    more = {name: row[name] for name in ("log_prob", "score", "drawn")}
    return {"widths": net["widths"], "connections": n, **more}
