"""The command ``run``: checks everything, starts the NNI experiment, watches it, and says how it went."""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from nni_bayes_nas.config import Config, located
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment import launch, processes
from nni_bayes_nas.experiment.check import check_same, checked
from nni_bayes_nas.experiment.compressed import with_architecture
from nni_bayes_nas.experiment.launch import Manager, run_state
from nni_bayes_nas.experiment.progress import Progress
from nni_bayes_nas.experiment.record import Record, refuse_other_run
from nni_bayes_nas.experiment.resources import Resources

# Seconds: the dispatcher's start-up on a busy machine; from its death, as we see it, until we act; the manager's time
# to stop after that; its time to answer. The last three and two polls, less than 60 in all, are what a death may cost.
STARTUP_LIMIT = 55.0
DEATH_LIMIT = 5.0
DEATH_STOP_LIMIT = 40.0
STATUS_LIMIT = 5.0
POLL = 0.5


class _Stopped(BaseException):
    """The user, or the system, asked the run to stop; no Exception: checks take these for mistakes in what they try."""


def run(
    config: Config,
    output: str | Path,
    resume: bool = False,
    command: str | None = None,
    code_directory: str | Path | None = None,
) -> int:
    """Runs an experiment to its end and returns the exit code 0.

    Args:
        config: The configuration.
        output: The run folder.
        resume: Go on with the run that the folder holds.
        command: The command line, for ``environment.json`` and for what is said at the end.
        code_directory: The folder of the user's own modules (default: where the command was started).

    Raises:
        ConfigError: The user's mistake; nothing was written.
        RunError: The run could not go on; the message names the cause.
    """
    output = Path(output).resolve()
    code_directory = Path(code_directory or Path.cwd()).resolve()
    config = located(on_its_device(with_architecture(config)), code_directory)  # the folder is all that `export` needs
    with _signals(), contextlib.ExitStack() as kept:
        manager = None
        try:
            if resume:
                manager, before = _resume(config, output, kept)
                if manager is None:
                    return _finish(output)
            else:
                refuse_other_run(output)
                resources = Resources.choose(config.experiment)
                for note in resources.notes(config.experiment):
                    print(f"note: {note}", file=sys.stderr, flush=True)
                launch.check_port(config.experiment.port)
                config = checked(config)
                before = None
                kept.enter_context(processes.sole(output))
                refuse_other_run(output)  # what another process has left meanwhile
                manager = launch.start(config, output, resources, command, code_directory)
            print(f"experiment {manager.id}, web UI: {manager.url}", flush=True)
            _watch(manager, output, before)
        except _Stopped:
            if manager is None and not resume:
                raise RunError("stopped before the experiment began; start it again") from None
            print("stopping the experiment ...", file=sys.stderr, flush=True)
            if manager is not None:
                manager.stop(output)
            raise RunError(f"stopped; go on with: {_resume_command(command, output)}") from None
        except RunError as error:
            if manager is not None:
                manager.stop(output, DEATH_STOP_LIMIT)
                _mark_failed(output, manager.id, str(error))
                raise RunError(f"{error}; go on with: {_resume_command(command, output)}") from error
            raise
        except BaseException as error:  # also nobody who reads what is said: the manager would go on without us
            if manager is not None:
                manager.stop(output)
            if isinstance(error, OSError):
                said = f"stopped by {type(error).__name__}: {error}; go on with: {_resume_command(command, output)}"
                raise RunError(said) from error
            raise
        began = time.monotonic()
        manager.stop(output)
        _add_stop(output, time.monotonic() - began)
        return _finish(output)


def on_its_device(config: Config) -> Config:
    """Networks of few connections are trained on the CPU, where GPUs would only hold up trials side by side."""
    small = config.experiment.plan == "architecture_prediction" and not config.predict.cells
    if not small or config.experiment.device != "auto":
        return config
    return replace(config, experiment=replace(config.experiment, device="cpu"))


def _resume(config: Config, output: Path, kept: contextlib.ExitStack) -> tuple[Manager | None, dict[str, Any] | None]:
    """The manager of the run, found or started anew, and the dispatcher that is no longer the one to watch."""
    state = run_state(output)
    id_ = state.get("experiment")
    if not id_:
        raise ConfigError(f"--resume needs the folder of a run, {output} holds none\nrun it without --resume")
    check_same(config, output, "run")
    if state.get("finished") and Record(output).summary.get("status") == "done":
        if (left := launch.attach(id_)) is not None:  # by a runner that died before the end
            left.stop(output)
        print("the run is finished: nothing to resume", flush=True)
        return None, None
    Resources.choose(config.experiment)
    manager = launch.attach(id_)
    if manager is not None:
        if processes.find(state.get("dispatcher")) is not None and not state.get("finished"):
            print("the run is still going on: watching it", flush=True)
            return manager, None
    kept.enter_context(processes.sole(output))
    if manager is not None:
        # The manager outlived its dispatcher: it can do nothing more.
        manager.stop(output)
    launch.check_port(config.experiment.port)
    processes.kill(state.get("dispatcher"))
    processes.kill_orphans(output)
    return launch.resume(output, id_, config.experiment.port), state.get("dispatcher")


def _watch(manager: Manager, output: Path, before: dict[str, Any] | None) -> None:
    """Waits for the end of the experiment, and says what happens meanwhile.

    Raises:
        RunError: Manager, dispatcher or plan came to a bad end.
    """
    began = time.monotonic()
    asked, lost = 0.0, None
    error: str | None = None
    with Progress(output) as progress:
        while True:
            now = time.monotonic()
            state = run_state(output, manager.id)
            dispatcher = state.get("dispatcher")
            ours = dispatcher is not None and dispatcher != before
            if ours:
                progress.update(state)
            if ours and state.get("finished"):
                summary = Record(output).summary
                if summary.get("status") == "failed":
                    raise RunError(str(summary.get("cause")))
                return
            if not manager.alive():
                raise RunError(f"NNI's manager died{_said(manager, output)}")
            if not ours and (now - began > STARTUP_LIMIT or (now - began > 5.0 and not manager.has_dispatcher())):
                raise RunError(f"NNI's dispatcher did not start{_said(manager, output)}")
            if error is None and now - asked > 5.0:
                asked = now
                answer = manager.status(STATUS_LIMIT) or {}
                # A tuner that is at its end still writes the report: the summary says how it ended.
                if answer.get("status") == "ERROR" and not (state and _ending(output)):
                    error = "; ".join(answer.get("errors", [])) + _said(manager, output)
            if error is None and ours and processes.find(dispatcher) is None:
                error = f"NNI's dispatcher died{_said(manager, output)}"
            if error is not None:
                lost = lost or now
                if now - lost >= DEATH_LIMIT:
                    raise RunError(error)
            time.sleep(POLL)


def _ending(output: Path) -> bool:
    return Record(output).summary.get("status") in ("done", "failed")


def _said(manager: Manager, output: Path) -> str:
    words = launch.last_words(output, manager.id)
    log = launch.experiments_folder(output, manager.id) / manager.id / "log"
    return f": {words} (logs: {log})" if words else f" (logs: {log})"


def _mark_failed(output: Path, id_: str, cause: str) -> None:
    """Says ``failed`` in the summary of a run whose tuner could not say so itself."""
    record = Record(output)
    summary = record.summary
    if summary.get("status") == "running" and run_state(output, id_):
        record.write_summary({**summary, "status": "failed", "cause": cause})


def _add_stop(output: Path, seconds: float) -> None:
    """Adds the phase that the tuner cannot know: NNI's manager, and the tuner with it, have been stopped."""
    record = Record(output)
    summary = record.summary
    if times := summary.get("wall_clock"):
        times["phases"]["stop"] = round(times["phases"].get("stop", 0.0) + seconds, 3)
        times["seconds"] = round(sum(times["phases"].values()), 3)
        record.write_summary(summary)


def _finish(output: Path) -> int:
    """Makes the report if the tuner could not, prints the table; returns 0."""
    from nni_bayes_nas.experiment.tuner import make_report

    summary = Record(output).summary
    report = output / "report.html"
    if not report.exists() and not make_report(output):
        raise RunError(f"the run is done, but its report could not be made: see {output / 'report.log'}")
    for row in summary.get("failures", []):
        print(f"left out: {row['trial']} died {row['attempts']} times ({row['cause']})")
    columns = {"lambda": ".4g", "params": ",d", "test_score_mean": ".4f"}
    rows = [
        (row["id"], *(_number(row.get(key), form) for key, form in columns.items()))
        for row in summary.get("architectures", [])
    ]
    if rows:
        header = ("architecture", "lambda", "parameters", f"test {(summary.get('score') or {}).get('title', 'score')}")
        widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
        for line in [header, *rows]:
            print("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"report: {report}")
    return 0


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _resume_command(command: str | None, output: Path) -> str:
    if command is None:
        command = shlex.join(["nni-bayes-nas", "run", str(output / "config.yaml"), "--output", str(output)])
    return command if "--resume" in command else f"{command} --resume"


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into ``_Stopped``; later ones wait until the experiment has stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        raise _Stopped

    try:
        earlier = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever called us handles signals
        yield
        return
    try:
        yield
    finally:
        for name, handler in earlier.items():
            signal.signal(name, handler)
