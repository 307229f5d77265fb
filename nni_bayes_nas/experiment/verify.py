"""The trial that trains predicted networks on all data, and others of as many connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.bank import vocabulary_of
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.parts import whole
from nni_bayes_nas.experiment.predict import PREDICTIONS
from nni_bayes_nas.experiment.record import read_json, write_json
from nni_bayes_nas.prediction.baselines import baseline
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.training import Trained, WholeData, best, train_net


def run_verify(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train the best-ranked networks of a budget, and as many tries of each baseline; validation chooses one of each.

    Args:
        config: Sections `data` and `predict` are used.
        parameters: Of the trial; "budget", "predictions", the names of the trials that predicted, and "seed".
        directory: Where network.json and network.pt (weights, and what the data were standardized by) of the best
            predicted network are written.
        report: Called after every kind of network.

    Returns:
        "default", the validation accuracy of the best predicted network; "budget"; "rows": "method", what was chosen
        by validation and its one look at the test data, and "tries".

    Raises:
        NumericsError: A loss is not finite.
    """
    started, settings, seed = time.perf_counter(), config.predict, int(parameters["seed"])
    splits = load_data(config.data)
    data, budget, how = whole(splits), int(parameters["budget"]), Training(settings.train_steps)
    rows: list[dict[str, Any]] = []
    kept: Trained | None = None
    default = 0.0
    for name in parameters["predictions"]:
        nets = predicted(directory.parent / name, budget)[: settings.verify]
        tried = [train_net(net, data, how, seed + i) for i, net in enumerate(nets)]
        if kept is None or best(tried).val_loss < kept.val_loss:
            kept = best(tried)
        rows.append(_row(name.partition("-")[2].replace("_", " "), tried, data, predicted=True))
        default = max(default, rows[-1]["val_accuracy"])
        report({"default": default, "epoch": len(rows) - 1})
    for kind in settings.baselines:
        found = baseline(
            kind,
            data,
            budget,
            how,
            tries=settings.verify,
            vocabulary=vocabulary_of(settings),
            deepest=tuple(settings.deepest),
            seed=seed,
        )
        rows.append(_row(kind.replace("_", " "), found, data, predicted=False))
        report({"default": default, "epoch": len(rows) - 1})
    if kept is not None and kept.net is not None:
        write_json(directory / "network.json", kept.net.to_dict())
        held = {"state": kept.module.state_dict(), "mean": splits.mean, "sd": splits.sd}
        torch.save(held, directory / "network.pt")
    seconds = round(time.perf_counter() - started, 2)
    return {"default": default, "budget": budget, "rows": rows, "seed": seed, "seconds": seconds}


def predicted(folder: Path, budget: int) -> list[SparseArchitecture]:
    """Networks of a budget that a trial predicted, the best-ranked first."""
    found = next(one for one in read_json(folder / PREDICTIONS) if one["budget"] == budget)
    return [SparseArchitecture.from_dict(row["net"]) for row in found["networks"]]


def _row(method: str, tried: Sequence[Trained], data: WholeData, *, predicted: bool) -> dict[str, Any]:
    return {"method": method, "predicted": predicted, **best(tried).row(data), "tries": len(tried)}
