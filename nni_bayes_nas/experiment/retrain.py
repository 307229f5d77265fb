"""Training of one architecture from scratch, and its one look at the test data."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment import evaluator as evaluation
from nni_bayes_nas.experiment.build import build_space
from nni_bayes_nas.experiment.data import batches, load_data


def run_retrain(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train an architecture on the training set; goes on from the checkpoint in `directory`, if there is one.

    Args:
        config: The configuration.
        parameters: Of the trial; "choices", "seed" and "lambda" are used.
        directory: Where checkpoint, metrics, architecture.json and model.pt (a state dict) are written.
        report: Called after every epoch with the intermediate result.

    Returns:
        The trial's result; test data are read once, after training.

    Raises:
        NumericsError: If the loss is not finite.
    """
    started = time.perf_counter()
    seed, settings = int(parameters["seed"]), config.retrain
    data = load_data(config.data)
    device = evaluation.pick_device(config.experiment.device)
    architecture = Architecture(parameters["choices"])
    network = architecture.build(build_space(config, data, seed))
    (directory / "architecture.json").write_text(architecture.to_json(), encoding="utf-8")
    module = evaluation.ClassificationModule(
        num_classes=data.num_classes,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    module.set_model(network)

    def intermediate(terms: dict[str, Any]) -> None:
        report({"default": terms["val_accuracy"], "epoch": terms["epoch"]})

    log = evaluation.EpochLog(directory, "retrain", intermediate)
    trainer = evaluation.trainer(
        directory, settings.epochs, device, [evaluation.SeedEpochs(seed), log], clip=settings.gradient_clip
    )
    trainer.fit(
        module,
        batches(data.train, settings.batch_size, seed=seed),
        batches(data.val, 256, seed=None),
        **evaluation.resume_arguments(directory),
    )
    val = trainer.validate(module, batches(data.val, 256, seed=None), verbose=False)[0]
    test = trainer.test(module, batches(data.test, 256, seed=None), verbose=False)[0]
    torch.save(network.state_dict(), directory / "model.pt")
    return {
        "default": val["val_accuracy"],
        "val_accuracy": val["val_accuracy"],
        "test_accuracy": test["test_accuracy"],
        "params": count_parameters(network),
        "macs": count_macs(network, data.shape),
        "lambda": parameters.get("lambda"),
        "seconds": round(time.perf_counter() - started, 2),
        "seed": seed,
        "device": device,
    }
