"""A plan and trials of the tests' own: the pipeline of the main job in seconds, without torch.

``data.args``: ``sleep`` seconds an epoch; ``die``: {trial name: how often it raises}; ``silent``: trials that end well
without a result; ``held``: trials that go no further before the file ``gate`` is there.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.plan import Result, TrialSpec
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain
from nni_bayes_nas.experiment.record import read_json, write_json


class ToyPlan(SearchAndRetrain):
    """SearchAndRetrain, with trials of this module."""

    def trials(self, results: dict[str, Result], failed: set[str]) -> list[TrialSpec]:
        specs = super().trials(results, failed)
        return [dataclasses.replace(spec, kind=f"toy_pipeline:{spec.kind}") for spec in specs]


def search(config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict], None]) -> dict:
    """Chains hashes for so many epochs; the choices at each lambda follow from the last."""
    loss = _epochs(config, parameters, directory, report, config.search.epochs, "search")
    n = config.search.lambdas
    rows = []
    for index in range(n):
        lam = 10.0 ** (-4 + 4 * index / (n - 1))
        # Neighbors share their choices: three lambdas give two distinct architectures.
        choices = {"op": (index + 1) // 2, "hash": loss}
        size = {"params": 1000 - 100 * ((index + 1) // 2), "macs": 5000}
        rows.append({"lambda": lam, "origin": "lambda", "choices": choices, "log_prob": -1.0, **size})
    random = [
        {
            "lambda": None,
            "origin": "random",
            "choices": {"op": 9 + i},
            "log_prob": None,
            "params": 900,
            "macs": 1,
            "matches": 0,
        }
        for i in range(config.search.random)
    ]
    about = {"id": "s0", "strategy": "toy", "seed": parameters["seed"], "seconds": 0.1, "steps": 1, "val_accuracy": 0.5}
    return {"default": 0.5, "search": about, "architectures": rows, "random": random, "curve": []}


def retrain(config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict], None]) -> dict:
    """Chains hashes too."""
    loss = _epochs(config, parameters, directory, report, config.retrain.epochs, "retrain")
    size = {"params": parameters["params"], "macs": parameters["macs"]}
    return {"default": loss, "val_accuracy": loss, "test_accuracy": loss, "seconds": 0.1, "lambda": 0.1, **size}


def _epochs(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict], None], epochs: int, stage: str
) -> float:
    name, args = parameters["trial"], config.data.args
    state = read_json(directory / "checkpoint.json") or {"epoch": 0, "loss": 0.0, "rows": []}
    row = {"begin": time.time(), "epoch": state["epoch"], "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with (directory / "starts.jsonl").open("a") as file:
        file.write(
            json.dumps({**row, "threads": os.environ.get("OMP_NUM_THREADS"), "torch": "torch" in sys.modules}) + "\n"
        )
    deaths = len((directory / "starts.jsonl").read_text().splitlines())
    if deaths <= args.get("die", {}).get(name, 0):
        raise ValueError(f"told to die in {name}")
    if name in args.get("silent", []):
        os._exit(0)
    while name in args.get("held", []) and not Path(args["gate"]).exists():
        time.sleep(0.05)
    while state["epoch"] < epochs:
        epoch = state["epoch"]
        time.sleep(args.get("sleep", 0.05))
        seed = f"{parameters['seed']} {epoch} {state['loss']}".encode()
        loss = int(hashlib.sha256(seed).hexdigest()[:8], 16) / 2**32
        rows = [
            *state["rows"],
            {"stage": stage, "trial": name, "epoch": epoch, "step": epoch, "terms": {"train_loss": loss}},
        ]
        state = {"epoch": epoch + 1, "loss": loss, "rows": rows}
        (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        write_json(directory / "checkpoint.json", state)
        report({"default": loss, "epoch": epoch})
    with (directory / "ends.jsonl").open("a") as file:
        file.write(json.dumps({"end": time.time()}) + "\n")
    return float(state["loss"])
