"""What an NNI trial runs: one trial of the plan, from its parameters to exactly one final result."""

import hashlib
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import NumericsError, RunError
from nni_bayes_nas.experiment import fork_server, nni_compat, processes, stopwatch
from nni_bayes_nas.experiment.record import read_json, write_error, write_json
from nni_bayes_nas.experiment.resources import THREAD_VARIABLES
from nni_bayes_nas.experiment.stopwatch import Stopwatch
from nni_bayes_nas.registry import resolve

Report = Callable[[dict[str, Any]], None]
Kind = Callable[[Config, dict[str, Any], Path, Report], dict[str, Any]]

# Registered here and nowhere else; a plan of the user's own may name its kinds as package.module:function.
KINDS: dict[str, tuple[str, str]] = {
    "bank": ("nni_bayes_nas.experiment.bank:run_bank", "searches of small networks on parts of data sets"),
    "cells": ("nni_bayes_nas.experiment.cells:run_cells", "searches of cells on parts of data sets"),
    "predict": ("nni_bayes_nas.experiment.predict:run_predict", "a meta-model, and its networks for the data"),
    "predict_cells": ("nni_bayes_nas.experiment.cells:run_predict_cells", "a meta-model of cells, and its cells"),
    "verify": ("nni_bayes_nas.experiment.verify:run_verify", "predicted networks and others on all data"),
    "compress": ("nni_bayes_nas.experiment.compress:run_compress", "weights as functions of lambda, and pruning"),
    "search": ("nni_bayes_nas.experiment.search:run_search", "one differentiable search"),
    "searches": ("nni_bayes_nas.experiment.replicas:run_searches", "several differentiable searches side by side"),
    "retrains": ("nni_bayes_nas.experiment.replicas:run_retrains", "one architecture, trained several times at once"),
    "probe": ("nni_bayes_nas.experiment.retrain:run_probe", "one architecture, trained for a short time"),
    "retrain": ("nni_bayes_nas.experiment.retrain:run_retrain", "one architecture, trained from scratch"),
}


def main() -> int:
    """Runs the trial that NNI started this process for, in a fork of the run's server if it has one.

    Returns the exit code.
    """
    # NNI stops a trial by SIGINT. Lightning would catch it and hand back a half-trained network as if it were done.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    processes.die_with_parent()
    code = fork_server.ask()
    return run_here() if code is None else code


def run_here() -> int:
    """Runs the trial of this environment in this process; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    processes.die_with_parent()
    watch = Stopwatch()
    watch.add({"start": stopwatch.since(stopwatch.TRIAL_BEGAN)})
    with watch.stage("start"):
        parameters = nni_compat.trial_parameters()
        report_final = nni_compat.reporter("final")
    directory = Path(parameters["output"]) / "trials" / parameters["trial"]
    directory.mkdir(parents=True, exist_ok=True)
    processes.claim(directory)
    (directory / "error.json").unlink(missing_ok=True)
    try:
        result = run(parameters, directory, watch)
    except (Exception, SystemExit) as error:
        # Lightning turns a SIGTERM into an exit with code 0, which NNI would take for success.
        number = processes.stopping_signal(error)
        message = str(error) if number is None else f"stopped by {number.name}"
        write_error(directory, error, message)
        return 1 if number is None else 128 + number
    result["stage_seconds"] = watch.account(stopwatch.since(stopwatch.TRIAL_BEGAN))
    report_final(result)
    return 0


def run(parameters: dict[str, Any], directory: Path, watch: Stopwatch | None = None) -> dict[str, Any]:
    """Runs the kind's function, or gives back the result that an earlier process of this trial left.

    Args:
        parameters: As the tuner sent them.
        directory: ``OUT/trials/NAME``.
        watch: Takes the seconds of imports, of the function's own stages (``stage_seconds`` of its result, which are
            no part of what is given back) and of saving.

    Raises:
        RunError: The function gave no dict with a ``default``.
        NumericsError: A term of a result is NaN or infinite.
    """
    watch = watch or Stopwatch()
    identity = fingerprint(parameters)
    earlier = read_json(directory / "result.json")
    # A manager that was killed between a trial's result and its end starts the trial again.
    if isinstance(earlier, dict) and earlier.get("fingerprint") == identity:
        return dict(earlier["result"])
    set_threads(parameters["threads"])
    code_directory = parameters["code_directory"]
    if code_directory not in sys.path:
        sys.path.append(code_directory)
    config = Config.from_dict(parameters["config"])
    with watch.stage("imports"):
        function: Kind = resolve("kind of trial", parameters["kind"], KINDS)
    if "torch" in sys.modules:
        set_torch(parameters["threads"])
    with watch.stage("imports"):
        report = _reporter()
    result = finite(function(config, parameters, directory, report), parameters["trial"])
    if not isinstance(result, dict) or "default" not in result:
        raise RunError(f"`{parameters['kind']}` must give a dict with a `default`, got {type(result).__name__}")
    watch.add(result.pop("stage_seconds", {}))
    with watch.stage("saving"):
        write_json(directory / "result.json", {"fingerprint": identity, "result": result})
    return result


def fingerprint(parameters: dict[str, Any]) -> str:
    """What tells the results of one trial from those of another: all that decides the result, and no paths."""
    kept = {key: parameters[key] for key in parameters if key not in ("output", "code_directory")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def set_threads(threads: int) -> None:
    """Fixes the threads of what is imported later: on the CPU their number changes the last bits of a sum."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)


def set_torch(threads: int) -> None:
    """Fixes torch's threads, and takes out what makes steps slow; to be called when Lightning has been imported.

    A prior or decay drives weights and their moments below 1e-38, where a product takes some processors 70 times as
    long: this thread and those that begin later take such numbers for 0. And Lightning has torch ask NVML for GPUs,
    whose library every step of an optimizer looks for anew where there are none.
    """
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def finite(value: Any, where: str) -> Any:
    """``value``, if JSON can hold it: NNI's manager does not survive a NaN in a result when it is resumed.

    Raises:
        NumericsError: Names the term.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise NumericsError(f"a result must be finite, `{where}` is {value}\nlower the learning rate or check the data")
    if isinstance(value, dict):
        return {str(key): finite(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return value


def _reporter() -> Report:
    send = nni_compat.reporter("intermediate")

    def report(row: dict[str, Any]) -> None:
        send(finite(row, "intermediate result"))

    return report
