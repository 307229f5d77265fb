"""The NNI tuner that executes a plan and writes the run folder: the whole pipeline is one NNI experiment.

Trials that must wait for results are sent later, through NNI's ``st_callback``. The state is keyed by the plan's own
trial names, never by NNI's ids, which repeat after a resume.
"""

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from nni.tuner import Tuner

from nni_bayes_nas.config import Config, config_to_yaml, load_config, located
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment import environment, fork_server, nni_compat, processes
from nni_bayes_nas.experiment.check import refuse_difference
from nni_bayes_nas.experiment.plan import Ledger, TrialSpec
from nni_bayes_nas.experiment.record import Record, write_text
from nni_bayes_nas.experiment.resources import Resources
from nni_bayes_nas.experiment.stopwatch import BEGAN, RunClock, since
from nni_bayes_nas.experiment.summary import summarize
from nni_bayes_nas.experiment.trial import KINDS
from nni_bayes_nas.registry import PLANS, resolve

P = ParamSpec("P")
R = TypeVar("R")

# Seconds between a trial's end and the moment it counts as dead for want of a result; the two travel separately.
RESULT_GRACE = 15.0
DEATH_GRACE = 3.0


@dataclass
class _Run:
    """One NNI trial that executes one of the plan's; sent at and ended after seconds of the run's clock."""

    name: str
    sent: float
    seconds: float | None = None
    result: dict[str, Any] | None = None
    job: str | None = None
    ended: bool = False
    succeeded: bool = False


def _guarded(method: Callable[P, R]) -> Callable[P, R]:
    """Takes the lock (NNI calls from two threads, our timers from others); an exception ends the run by name."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tuner: Any = args[0]
        with tuner._lock:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                tuner._broke_down(error)
                raise

    return call


class PlanTuner(Tuner):  # type: ignore[misc]
    """Executes ``experiment.plan`` of a configuration as an NNI experiment.

    Args:
        config: The configuration as a dict, or the path of its YAML file.
        output: The run folder.
        command: The command line that started it all, for ``environment.json``; None where plain nnictl did.
        code_directory: The folder of the user's own modules; ``codeDirectory`` of the experiment if None. Relative
            paths in ``config`` and ``output`` count from ``codeDirectory``, which NNI resolves against the YAML's
            folder, whatever the folder where ``nnictl`` is called.
        gpus: How many the trials have; None where plain nnictl does not say.

    Raises:
        ConfigError: The configuration is wrong or not that of the run that is resumed, or ``output`` holds another run:
            nothing is written.
    """

    def __init__(
        self,
        config: dict[str, Any] | str,
        output: str,
        command: str | None = None,
        code_directory: str | None = None,
        gpus: int | None = None,
    ) -> None:
        super().__init__()
        self._lock = threading.RLock()
        base = nni_compat.dispatcher_code_directory() or Path.cwd()
        self.output = (base / Path(output).expanduser()).resolve()
        self.code_directory = (base / Path(code_directory or ".").expanduser()).resolve()
        if str(self.code_directory) not in sys.path:
            sys.path.append(str(self.code_directory))
        path = None if isinstance(config, dict) else base / Path(config).expanduser()
        self.config = load_config(path) if path is not None else Config.from_dict(config)  # type: ignore[arg-type]
        self.config = located(self.config, self.code_directory)
        plan = resolve("plan", self.config.experiment.plan, PLANS)(self.config)
        self.resources = Resources.choose(self.config.experiment, gpus)
        self._send: Callable[[int, dict[str, Any]], None] | None = None
        self._free: list[int] = []
        self._runs: dict[int, _Run] = {}
        self._over = False
        entries, times = None, None
        if nni_compat.resumed():
            self.record = Record(self.output)
            state = self.record.state
            if "ledger" not in state:
                raise ConfigError(f"--resume needs the folder of a run, {self.output} holds none\nrun it without")
            if (given := state.get("config")) is not None:  # a YAML that plain nnictl names may have been edited
                refuse_difference(
                    given, self.config.to_dict(), "put it back, or make it another run with another output"
                )
            processes.kill(state.get("dispatcher"))
            processes.kill_orphans(self.output)
            entries, times = state["ledger"], state.get("times")
        else:
            described = environment.describe(
                command, self.code_directory, self.resources.gpus, self.resources.concurrency, self.resources.threads
            )
            self.record = Record.create(self.output, self.config, described)
        self.clock = RunClock(self.resources.concurrency, since(BEGAN), times)
        self.ledger = Ledger(plan, self.config.experiment.retries, entries)
        self.ledger.recover()
        if self.ledger.verdict() is not None:
            # Whoever resumes a run that could not finish has mended its cause; else it would fail again at once.
            self.ledger.revive()
        nni_compat.deliver_recovered_trials(self.recovered)
        nni_compat.stop_at_once()
        self._write("running")
        self._start_fork_server()

    def _start_fork_server(self) -> None:
        """Where trials of ours run here and on the CPU; in the main thread, whose end is the server's."""
        experiment, settings = nni_compat.experiment_id(), self.config.experiment
        specs = map(self.ledger.spec, self.ledger.order())
        ours = any(spec is not None and spec.kind in KINDS for spec in specs)
        if experiment and ours and settings.fork and self.resources.gpus == 0 and nni_compat.trials_are_local():
            log = Path(os.environ["NNI_LOG_DIRECTORY"], "fork_server.log")
            fork_server.start(experiment, self.config.data, self.resources.threads, log)

    # ---- what NNI calls

    @_guarded
    def generate_multiple_parameters(
        self, parameter_id_list: list[int], st_callback: Any = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Gives as many trials as may start now; the ids left over are kept for later ones."""
        self._send = st_callback
        if not self._over:
            self.clock.update(phase="trials")
        specs = [] if self._over else self.ledger.take(len(parameter_id_list))
        ids = parameter_id_list[: len(specs)]
        self._free.extend(parameter_id_list[len(specs) :])
        batch = [self._start(id_, spec) for id_, spec in zip(ids, specs, strict=True)]
        self._advance()
        return batch

    @_guarded
    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Notes a final result; it counts once the trial has ended, or at once if it was given up before."""
        run = self._runs.get(parameter_id)
        if run is None or not isinstance(value, dict):
            return
        run.result, run.job = _plain(value), kwargs.get("trial_job_id")
        self._settle(run)

    @_guarded
    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Notes a trial's end; without its result it is given some seconds, then counts as dead."""
        run = self._runs.get(parameter_id)
        if run is None:
            return
        run.ended, run.succeeded = True, success
        run.seconds = self.clock.now() - run.sent
        self._count_running()
        if run.result is None:
            self._later(RESULT_GRACE if success else DEATH_GRACE, run)
        self._settle(run)

    @_guarded
    def import_data(self, data: list[dict[str, Any]]) -> None:
        """Takes the results that NNI's database holds when an experiment is resumed."""
        for entry in data:
            parameters, value = entry.get("parameter"), entry.get("value")
            if isinstance(parameters, dict) and isinstance(value, dict):
                self.ledger.done(parameters["trial"], _plain(value), entry.get("trialJobId"))
        self._write("running")

    @_guarded
    def recovered(self, parameter_id: int, parameters: Any) -> None:
        """Takes over a trial that NNI itself starts again when it resumes an experiment."""
        if isinstance(parameters, dict) and "trial" in parameters:
            self._runs[parameter_id] = _Run(parameters["trial"], self.clock.now())
            self.ledger.running(parameters["trial"])
            self._count_running()

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Nothing: the search space is the supernet's, inside the search trial."""

    def load_checkpoint(self) -> None:
        """Nothing: the constructor has read ``state.json``, which is written at every event, not only at a stop."""

    def save_checkpoint(self) -> None:
        """Nothing: see ``load_checkpoint``."""

    # ---- what happens

    def _start(self, id_: int, spec: TrialSpec) -> dict[str, Any]:
        self._runs[id_] = _Run(spec.name, self.clock.now())
        self._count_running()
        return {
            "trial": spec.name,
            "kind": spec.kind,
            **spec.parameters,
            "output": str(self.output),
            "config": self.config.to_dict(),
            "threads": self.resources.threads,
            "code_directory": str(self.code_directory),
        }

    def _count_running(self) -> None:
        self.clock.update(running=sum(not run.ended for run in self._runs.values()))

    def _settle(self, run: _Run) -> None:
        """Acts when both the result and the end are in."""
        if run.result is None or not run.ended:
            return
        # Defaults of the space's and the strategy's arguments are known only where torch is imported: in a trial.
        if (effective := run.result.get("config")) is not None:
            write_text(self.output / "config.yaml", config_to_yaml(Config.from_dict(effective)))
        self.ledger.done(run.name, run.result, run.job, run.seconds)
        self._advance()

    def _later(self, seconds: float, run: _Run) -> None:
        timer = threading.Timer(seconds, self._give_up, [run])
        timer.daemon = True
        timer.start()

    @_guarded
    def _give_up(self, run: _Run) -> None:
        if run.result is not None:
            return
        cause = self.record.trial_error(run.name)
        if cause is None and run.succeeded:
            cause = "the trial ended without a result"
        elif cause is None:
            limit = self.config.experiment.trial_timeout
            cause = "the trial's process was killed" + (f", or ran past {limit:g} s" if limit is not None else "")
        self.ledger.died(run.name, cause, run.job)
        self._advance()

    def _advance(self) -> None:
        """Sends what may start now, writes the run folder, and ends the experiment when the plan is at its end."""
        if self._over:
            return
        verdict = self.ledger.verdict()
        if verdict is None:
            for spec in self.ledger.take(len(self._free)):
                assert self._send is not None
                id_ = self._free.pop(0)
                self._send(id_, self._start(id_, spec))
        ended = self.ledger.names("done") + self.ledger.names("failed")
        self.record.collect_metrics(self.ledger.folders(ended))
        if verdict is not None:
            raise RunError(f"the plan cannot finish: {verdict}")
        if not self.ledger.finished:
            self._write("running")
            return
        self._over = True
        self.clock.update(phase="report")
        self._write("done")
        make_report(self.output)
        nni_compat.end_experiment()
        # Last: whoever sees this stops the manager, and with it this process.
        self._write("done", finished=True)

    def _broke_down(self, error: Exception) -> None:
        """Names the cause in the run folder and to the manager, once."""
        if self._over:
            return
        self._over = True
        text = "".join(traceback.format_exception(error))
        write_text(self.output / "tuner_error.log", text)
        cause = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        try:
            self._write("failed", cause=cause)
            make_report(self.output)
            self._write("failed", cause=cause, finished=True)
        finally:
            nni_compat.report_tuner_error(self._send, text)

    def _write(self, status: str, cause: str | None = None, finished: bool = False) -> None:
        experiment = nni_compat.experiment_id()
        self.clock.update()
        self.record.write_state(
            {
                "schema": 1,
                "experiment": experiment,
                "dispatcher": processes.identity(),
                "code_directory": str(self.code_directory),
                "config": self.config.to_dict(),
                "finished": finished,
                "ledger": self.ledger.entries,
                "times": self.clock.state,
            }
        )
        self.record.write_summary(
            summarize(self.config, self.ledger, experiment=experiment, status=status, cause=cause, clock=self.clock)
        )


def make_report(output: Path, timeout: float = 300.0) -> bool:
    """Makes ``report.html`` in a process of its own; what goes wrong is left in ``report.log``."""
    command = [sys.executable, "-P", "-m", "nni_bayes_nas", "report", str(output)]
    # The dispatcher's environment names NNI's channels; the report has nothing to do with them.
    env = {key: value for key, value in os.environ.items() if not key.startswith("NNI_")}
    try:
        done = subprocess.run(
            command, cwd=output, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
        text, good = done.stdout, done.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        text, good = str(error), False
    if not good:
        write_text(output / "report.log", text)
    return good and (output / "report.html").exists()


def _plain(value: Any) -> Any:
    """NNI loads JSON objects as ordered dicts of its own."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
