"""The command `search`: the searches of a run in this process, without NNI's manager."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, StoppedError
from nni_bayes_nas.experiment import environment, processes
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.check import check_same, require_cuda
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain
from nni_bayes_nas.experiment.record import Record, refuse_other_run
from nni_bayes_nas.experiment.replicas import run_searches
from nni_bayes_nas.experiment.resources import Resources
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.experiment.stopwatch import RunClock, process_age
from nni_bayes_nas.experiment.summary import summarize
from nni_bayes_nas.experiment.tasks import task_of
from nni_bayes_nas.experiment.trial import set_torch

_SEARCHES = {"search": run_search, "searches": run_searches}


def search_in_process(config: Config, output: Path, resume: bool, command: str) -> None:
    """The command `search`: the plan's searches one after another in this process, without NNI's manager.

    Writes the same run folder as `run`, without retrained networks.

    Args:
        config: The configuration.
        output: The run folder.
        resume: Go on with the run that the folder holds.
        command: The command line, for `environment.json`.

    Raises:
        ConfigError: The user's mistake; nothing was written.
        StoppedError: SIGINT or SIGTERM stopped the search; the summary says `failed` and names it.
        Exception: Whatever a search raises; the summary says `failed` and names it.
    """
    if config.experiment.plan in ("compression", "architecture_prediction"):
        # Plans of other commands, without a search: what is checked and kept is that of this one.
        config = replace(config, experiment=replace(config.experiment, plan="search_and_retrain"))
    if resume:
        _check_resumable(config, output)
    else:
        refuse_other_run(output)
    resources = Resources.choose(config.experiment)
    # Before anything is computed: threads that have begun keep the mode that they have.
    set_torch(resources.threads * resources.concurrency)
    require_cuda(config)
    config = validate(config)
    with processes.sole(output):
        _search(config, output, resume, command, resources)


def _search(config: Config, output: Path, resume: bool, command: str, resources: Resources) -> None:
    if resume:
        record = Record(output)
    else:
        described = environment.describe(command, Path.cwd(), resources.gpus, 1, torch.get_num_threads())
        record = Record.create(output, config, described)
    clock = RunClock(1, process_age(), record.state.get("times"))
    ledger = Ledger(SearchAndRetrain(config), 0, record.state.get("ledger"))
    ledger.recover()
    if record.summary.get("status") == "done":
        return
    try:
        for spec in [ledger.spec(name) for name in ledger.names("waiting")]:
            if spec is None or spec.kind not in _SEARCHES:
                continue
            ledger.running(spec.name)
            sent = clock.now()
            clock.update(phase="trials", running=1)
            _write(record, config, ledger, clock, "running")
            directory = record.trial_directory(spec.name)
            directory.mkdir(parents=True, exist_ok=True)
            report = partial(_print_row, title=task_of(config.data).title)
            result = _SEARCHES[spec.kind](config, {"trial": spec.name, **spec.parameters}, directory, report)
            clock.update(running=0)
            ledger.done(spec.name, result, seconds=clock.now() - sent)
            record.collect_metrics(ledger.folders())
        _write(record, config, ledger, clock, "done")
    except BaseException as error:
        # A signal included; what ran is left as running, from where --resume goes on.
        number = processes.stopping_signal(error)
        if number is not None:
            _write(record, config, ledger, clock, "failed", f"stopped by {number.name}")
            raise StoppedError(number, "go on from the last epoch: the same command with --resume") from error
        _write(record, config, ledger, clock, "failed", ": ".join(filter(None, (type(error).__name__, str(error)))))
        raise


def _check_resumable(config: Config, output: Path) -> None:
    """Refuses a folder without a run, one of the command `run`, and one of another configuration.

    Raises:
        ConfigError: With the remedy.
    """
    state = Record(output).state
    if not state:
        raise ConfigError(f"--resume needs the folder of a run, {output} holds none\nrun it without --resume")
    if state.get("experiment"):
        raise ConfigError(
            f"`search --resume` needs a folder that `search` wrote, {output} is of NNI experiment "
            f"{state['experiment']}\n"
            f"go on with it: nni-bayes-nas run {output}/config.yaml --output {output} --resume"
        )
    check_same(config, output, "search")


def _write(
    record: Record, config: Config, ledger: Ledger, clock: RunClock, status: str, cause: str | None = None
) -> None:
    clock.update()
    record.write_state({"schema": 1, "experiment": None, "ledger": ledger.entries, "times": clock.state})
    record.write_summary(summarize(config, ledger, experiment=None, status=status, cause=cause, clock=clock))


def _print_row(row: dict[str, Any], title: str = "score") -> None:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("default", "epoch"))
    print(f"epoch {row['epoch']}: validation {title} {row['default']:.4f}, {shown}", flush=True)
