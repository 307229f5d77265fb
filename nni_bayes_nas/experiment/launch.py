"""NNI's manager as a process: started, found again, asked, stopped."""

import contextlib
import errno
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment import nni_compat, nvml, processes
from nni_bayes_nas.experiment.record import read_json
from nni_bayes_nas.experiment.resources import Resources

TUNER = "nni_bayes_nas.experiment.tuner.PlanTuner"


@dataclass
class Manager:
    """A running NNI manager, of our own start or found again."""

    id: str
    port: int
    prefix: str
    process: psutil.Process
    child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The web UI's address; whatever is outside the secret prefix answers 404."""
        return f"http://127.0.0.1:{self.port}/{self.prefix}/oview"

    def alive(self) -> bool:
        """True while the process runs."""
        if self.child is not None:
            return self.child.poll() is None
        try:
            return bool(self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def has_dispatcher(self) -> bool:
        """True while the manager has a dispatcher among its children, or cannot be asked."""
        try:
            children = self.process.children(recursive=True)
        except psutil.Error:
            return True
        for child in children:
            with contextlib.suppress(psutil.Error):
                if any("--exp_params" in word for word in child.cmdline()):
                    return True
        return False

    def status(self, timeout: float = 10.0) -> dict[str, Any] | None:
        """NNI's status (``status``, ``errors``), or None when the manager does not answer."""
        import requests

        parts = (f"http://localhost:{self.port}", self.prefix, "api/v1/nni/check-status")
        url = "/".join(part for part in parts if part)
        try:
            with requests.Session() as session:
                session.trust_env = False
                answer = session.get(url, timeout=timeout).json()
        except (requests.RequestException, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def stop(self, output: Path, timeout: float = 75.0) -> None:
        """Stops manager, dispatcher and trials; kills what is left after ``timeout`` seconds."""
        family = [self.process]
        with contextlib.suppress(psutil.Error):
            family += self.process.children(recursive=True)
        # As `nnictl stop` does: the manager ends the dispatcher, then the trials, then itself.
        with contextlib.suppress(psutil.Error):
            self.process.terminate()
        end = time.monotonic() + timeout
        while self.alive() and time.monotonic() < end:
            time.sleep(0.2)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # A manager that was killed leaves its dispatcher, and on some systems its trials, to nobody.
        if state := run_state(output, self.id):
            processes.kill(state.get("dispatcher"))
            processes.kill_orphans(output)
        if self.child is not None:
            self.child.wait()


def start(config: Config, output: Path, resources: Resources, command: str | None, code_directory: Path) -> Manager:
    """Starts a new experiment.

    Raises:
        RunError: The manager did not come up.
    """
    from nni.experiment import Experiment

    experiment = Experiment(experiment_config(config, output, resources, command, code_directory))
    return _launch(experiment, "create", config.experiment.port, output)


def resume(output: Path, id_: str, port: int) -> Manager:
    """Resumes an experiment whose manager is gone; NNI takes its configuration from its own database.

    Raises:
        ConfigError: NNI's database of the run is gone.
        RunError: The manager did not come up.
    """
    from nni.experiment import Experiment
    from nni.experiment.launcher import get_stopped_experiment_config

    folder = experiments_folder(output, id_)
    if not (folder / id_ / "db" / "nni.sqlite").exists():
        raise ConfigError(
            f"--resume needs NNI's database of experiment {id_}, it is not under {folder}\nrun into a new folder"
        )
    experiment = Experiment(get_stopped_experiment_config(id_, folder), id=id_)
    return _launch(experiment, "resume", port, output)


def attach(id_: str) -> Manager | None:
    """The manager of an experiment, if it still runs."""
    known = nni_compat.manifest(id_)
    if known is None or not known.get("pid"):
        return None
    try:
        process = psutil.Process(int(known["pid"]))
        # A pid may have been reused: only a manager has the experiment's id on its command line.
        if id_ not in process.cmdline():
            return None
    except psutil.Error:
        return None
    manager = Manager(id_, int(known["port"]), str(known.get("prefixUrl") or "").strip("/"), process)
    return manager if manager.alive() else None


def experiments_folder(output: Path, id_: str) -> Path:
    """Where NNI keeps that experiment: ``OUT/nni``, or what its manifest says if plain nnictl started it."""
    if (output / "nni" / id_).exists():
        return output / "nni"
    known = nni_compat.manifest(id_)
    return Path(str(known["logDir"])) if known and known.get("logDir") else output / "nni"


def experiment_config(
    config: Config, output: Path, resources: Resources, command: str | None, code_directory: Path
) -> Any:
    """The ``nni.experiment.ExperimentConfig`` of a run.

    ``maxTrialNumber`` stays unset: it also counts the trials that were killed and run again.
    """
    from nni.experiment.config import CustomAlgorithmConfig, ExperimentConfig

    nni_config = ExperimentConfig("local")
    nni_config.experiment_name = config.experiment.name
    nni_config.search_space = {}
    # -P: the folder the trial starts in must not shadow installed packages; its modules come last in line.
    nni_config.trial_command = f"{shlex.quote(sys.executable)} -P -m nni_bayes_nas trial"
    nni_config.trial_code_directory = str(code_directory)
    nni_config.trial_concurrency = resources.concurrency
    if config.experiment.trial_timeout is not None:
        nni_config.max_trial_duration = f"{max(1, round(config.experiment.trial_timeout))}s"
    nni_config.experiment_working_directory = str(output / "nni")
    nni_config.tuner = CustomAlgorithmConfig(
        class_name=TUNER,
        code_directory=str(code_directory),
        class_args={
            "config": config.to_dict(),
            "output": str(output),
            "command": command,
            "code_directory": str(code_directory),
            "gpus": resources.gpus,
        },
    )
    for key, value in nvml.gpu_schedule(resources.gpus, config.experiment.device).items():
        setattr(nni_config if key == "trial_gpu_number" else nni_config.training_service, key, value)
    return nni_config


def check_port(port: int) -> None:
    """Refuses a port that is in use.

    Raises:
        ConfigError: Names a free one.
    """
    problem = _port_problem(port)
    if problem is None:
        return
    free = next((other for other in [*range(max(port + 1, 1024), min(port + 200, 65536)), 0] if _is_free(other)), 0)
    raise ConfigError(
        f"`experiment.port` {port} {problem}\nport {free} is free: --set experiment.port={free}"
        if free
        else f"`experiment.port` {port} {problem}\ngive another one by --set experiment.port=N"
    )


def last_words(output: Path, id_: str) -> str:
    """The last exception in the error output of manager and dispatcher, or its last line, in one line."""
    log = experiments_folder(output, id_) / id_ / "log" / "nnictl_stderr.log"
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    said = [line for line in text.splitlines() if line.strip() and not line.startswith("---") and id_ not in line]
    start = next((i for i in reversed(range(len(said))) if re.match(r"[\w.]*(Error|Exception)\b.*:", said[i])), -1)
    return " ".join(" ".join(said[start:]).split())[:400] if said else ""


def _launch(experiment: Any, action: str, port: int, output: Path) -> Manager:
    experiment.url_prefix = secrets.token_urlsafe(12).replace("-", "x").replace("_", "y")
    try:
        nni_compat.start(experiment, action, port)
    except Exception as error:
        words = last_words(output, experiment.id)
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"NNI's manager did not start: {cause}" + (f"; {words}" if words else "")) from error
    child = experiment._proc
    return Manager(experiment.id, port, experiment.url_prefix, psutil.Process(child.pid), child)


def _port_problem(port: int) -> str | None:
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return "is in use"
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError as error:
            return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
    return None


def _is_free(port: int) -> bool:
    return port != 0 and _port_problem(port) is None


def run_state(output: Path, id_: str | None = None) -> dict[str, Any]:
    """The tuner's state of a run, or an empty dict; with `id_` where it is of another experiment too."""
    state: dict[str, Any] = read_json(output / "state.json") or {}
    return state if id_ is None or state.get("experiment") == id_ else {}
