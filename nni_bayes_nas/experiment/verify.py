"""The trial that trains predicted networks on all data, and others of as many connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.config import Config, PredictConfig
from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.experiment.bank import vocabulary_of
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.parts import scale, whole
from nni_bayes_nas.experiment.predict import PREDICTIONS
from nni_bayes_nas.experiment.record import read_json, unseen, write_json
from nni_bayes_nas.prediction.baselines import Baseline, baseline
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.training import Trained, WholeData, best, train_nets


def run_verify(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train the best-ranked networks of a budget, and as many tries of each baseline; validation chooses one of each.

    Args:
        config: Sections `data` and `predict` are used.
        parameters: Of the trial; "budget", "predictions", the names of the trials that predicted, and "seed"; with
            "dense" false the dense network, the same for every budget, is left out.
        directory: Where network.json and network.pt of the best predicted network are written: its weights, and the
            mean and sd of the stored numbers of an object that it wants standardized.
        report: Called after every kind of network.

    Returns:
        "default", the validation accuracy of the best predicted network; "budget"; "rows": "method", what was chosen
        by validation and its one look at the test data, and "tries"; "skipped": why there is no network of a kind.

    Raises:
        NumericsError: A loss is not finite.
    """
    started, settings, seed = time.perf_counter(), config.predict, int(parameters["seed"])
    splits = load_data(config.data)
    data, budget, how = whole(splits), int(parameters["budget"]), Training(settings.train_steps)
    tried = {
        name: train_nets(predicted(directory.parent / name, budget)[: settings.verify], data, how, seed)
        for name in parameters["predictions"]
    }
    kept = best([one for each in tried.values() for one in each])
    assert kept.net is not None
    write_json(directory / "network.json", kept.net.to_dict())
    mean, sd = scale(splits)
    torch.save({"state": kept.module.state_dict(), "mean": mean, "sd": sd}, directory / "network.pt")
    rows = [_row(name.partition("-")[2].replace("_", " "), each, data, predicted=True) for name, each in tried.items()]
    report({"default": kept.val_accuracy, "epoch": 0})
    skipped = {}
    for kind in settings.baselines:
        if kind == "dense" and not parameters.get("dense", True):
            continue
        try:
            found = beside(kind, settings, data, budget, seed)
        except (ConfigError, NumericsError) as error:
            # Not every kind of network is as small as a sparse one can be, and one that diverges is not the others.
            skipped[kind] = str(error)
            continue
        rows.append(_row(kind.replace("_", " "), found, data, predicted=False))
        report({"default": kept.val_accuracy, "epoch": len(rows)})
    seconds = round(time.perf_counter() - started, 2)
    return {
        "default": kept.val_accuracy,
        "budget": budget,
        "rows": rows,
        "skipped": skipped,
        "seed": seed,
        "seconds": seconds,
    }


def beside(kind: Baseline, settings: PredictConfig, data: WholeData, budget: int, seed: int) -> list[Trained]:
    """`baseline` as section `predict` has it."""
    return baseline(
        kind,
        data,
        budget,
        Training(settings.train_steps),
        tries=settings.verify,
        vocabulary=vocabulary_of(settings),
        deepest=tuple(settings.deepest),
        seed=seed,
    )


def predicted(folder: Path, budget: int) -> list[SparseArchitecture]:
    """Networks of a budget that a trial predicted, the best-ranked first.

    Raises:
        ConfigError: Its file is not there.
    """
    if not (folder / PREDICTIONS).is_file():
        raise unseen(f"{folder / PREDICTIONS} is not there: the trial that predicted")
    found = next(one for one in read_json(folder / PREDICTIONS) if one["budget"] == budget)
    return [SparseArchitecture.from_dict(row["net"]) for row in found["networks"]]


def _row(method: str, tried: Sequence[Trained], data: WholeData, *, predicted: bool) -> dict[str, Any]:
    return {"method": method, "predicted": predicted, **best(tried).row(data), "tries": len(tried)}
