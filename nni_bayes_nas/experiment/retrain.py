"""Training of one architecture from scratch, and its one look at the test data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment import evaluator as evaluation
from nni_bayes_nas.experiment.augment import Augment, augmentation
from nni_bayes_nas.experiment.build import build_network, drop_training_parts
from nni_bayes_nas.experiment.callbacks import EpochLog, SeedEpochs
from nni_bayes_nas.experiment.data import DataSplits, batches, load_data_on
from nni_bayes_nas.experiment.retrained import save
from nni_bayes_nas.experiment.selection import freeze_report_of, selective
from nni_bayes_nas.experiment.stopwatch import Stopwatch
from nni_bayes_nas.experiment.tasks import evaluation_module, task_of
from nni_bayes_nas.layers.replicas import Replica, Stacked
from nni_bayes_nas.lockstep import Member


class TrainingProgress(Callback):
    """Tells the network at every epoch how much of the training is over, if it has a method `set_progress`.

    Args:
        network: The network.
        epochs: Of the whole training.
    """

    def __init__(self, network: Any, epochs: int) -> None:
        self.network = network
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """0 in the first epoch, (epochs - 1) / epochs in the last, as in DARTS (Liu, Simonyan & Yang, 2019)."""
        if hasattr(self.network, "set_progress"):
            self.network.set_progress(trainer.current_epoch / self.epochs)


def run_retrain(
    config: Config,
    parameters: dict[str, Any],
    directory: Path,
    report: Callable[[dict[str, Any]], None],
    meeting: tuple[Member, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train an architecture on the training set; goes on from the checkpoint in `directory`, if there is one.

    The network is that of `retrain.space`; an auxiliary classifier is gone before anything is counted or saved.

    Args:
        config: The configuration.
        parameters: Of the trial; "choices", "seed" and "lambda" are used.
        directory: Where checkpoint, metrics, architecture.json, data.json and model.pt (see `save`) are written.
        report: Called after every epoch with the intermediate result.
        meeting: Of retrainings side by side: which member this one is, and what all of them share.

    Returns:
        The trial's result; test data are read once, after training.

    Raises:
        NumericsError: If the loss is not finite.
    """
    started, watch = time.perf_counter(), Stopwatch()
    trained = _train(config, parameters, directory, report, watch, meeting)
    data, network = trained.data, trained.network
    drop_training_parts(network)
    val = trained.validate()
    with watch.stage("test"):
        test = trained.trainer.test(trained.module, batches(data.test, 256, seed=None), verbose=False)[0]
    with watch.stage("saving"):
        save(network, data, directory)
    with watch.stage("counting"):
        size = {"params": count_parameters(network), "macs": count_macs(network, data.shape)}
    return {
        **task_of(data).result({**val, **test}),
        **size,
        "lambda": parameters.get("lambda"),
        "seconds": round(time.perf_counter() - started, 2),
        "seed": int(parameters["seed"]),
        "test_objects": len(data.test),
        "device": trained.device,
        "stage_seconds": watch.seconds,
        **freeze_report_of(trained.trainer),
    }


def run_probe(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train an architecture for a short time: an opinion on it; the test data are not looked at, nothing is kept.

    Args:
        config: The configuration.
        parameters: Of the trial; "choices", "seed" and "epochs" are used.
        directory: Where checkpoint and metrics are written.
        report: Called after every epoch with the intermediate result.

    Returns:
        "default", the validation score; "val_loss"; "seconds".

    Raises:
        NumericsError: If the loss is not finite.
    """
    started, watch = time.perf_counter(), Stopwatch()
    short = replace(config, retrain=replace(config.retrain, epochs=int(parameters["epochs"]), selection=None))
    trained = _train(short, parameters, directory, report, watch, None)
    val = trained.validate()
    return {
        "default": val[task_of(trained.data).val_score],
        "val_loss": val["val_loss"],
        "epochs": int(parameters["epochs"]),
        "seconds": round(time.perf_counter() - started, 2),
        "seed": int(parameters["seed"]),
        "stage_seconds": watch.seconds,
    }


@dataclass(frozen=True)
class _Trained:
    """A network at the end of its training."""

    data: DataSplits
    network: Any
    module: Any
    trainer: pl.Trainer
    device: str
    watch: Stopwatch

    def validate(self) -> Mapping[str, float]:
        """Terms of the validation data."""
        with self.watch.stage("validation"):
            return self.trainer.validate(self.module, batches(self.data.val, 256, seed=None), verbose=False)[0]


def _train(
    config: Config,
    parameters: dict[str, Any],
    directory: Path,
    report: Callable[[dict[str, Any]], None],
    watch: Stopwatch,
    meeting: tuple[Member, dict[str, Any]] | None,
) -> _Trained:
    seed, settings = int(parameters["seed"]), config.retrain
    device = evaluation.pick_device(config.experiment.device)
    with watch.stage("data"):
        data = load_data_on(device, config.data, meeting and meeting[1])
    architecture = Architecture(parameters["choices"])
    with watch.stage("building"):
        network = build_network(config, data, seed, architecture, training=True)
    (directory / "architecture.json").write_text(architecture.to_json(), encoding="utf-8")
    task = task_of(data)
    module = evaluation_module(
        data, settings, label_smoothing=settings.label_smoothing, auxiliary_weight=settings.auxiliary_weight
    )
    module.set_model(network)
    if meeting is not None:
        module.replica = Replica(meeting[0], meeting[1].setdefault("stacked", Stacked()))

    def intermediate(terms: dict[str, Any]) -> None:
        report({"default": terms[task.val_score], "epoch": terms["epoch"]})

    log = EpochLog(directory, "retrain", intermediate, watch=watch)
    callbacks = [SeedEpochs(seed), TrainingProgress(network, settings.epochs), log]
    augment = augmentation(settings)
    if augment is not None:
        callbacks.append(Augment(augment))
    chosen = selective(config, seed)
    if chosen is not None:
        callbacks.append(chosen)
    trainer = evaluation.trainer(
        directory,
        settings.epochs,
        device,
        callbacks,
        precision=settings.precision,
        clip=settings.gradient_clip,
        watch=watch,
    )
    with watch.stage("building"), module.replica.attached(network, lambda: (1, {})):
        trainer.fit(
            module,
            batches(data.train, settings.batch_size, seed=seed),
            batches(data.val, 256, seed=None),
            **evaluation.resume_arguments(directory),
        )
    return _Trained(data, network, module, trainer, device, watch)
