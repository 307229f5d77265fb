"""Every mend of NNI 3.0, in one place: the file of NNI, what goes wrong, what we do.

NNI's last release is of September 2023: what is wrong there stays wrong. Each mend has a test that fails when it is
no longer needed. ``nni`` itself is imported inside the functions: it costs more than a second.
"""

import base64
import contextlib
import functools
import importlib
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import stopwatch

LOOPBACK_JS = Path(__file__).with_name("loopback.js")
PATIENCE_JS = Path(__file__).with_name("patience.js")

# ---------------------------------------------------------------------------------------------- listening address


def loopback_environment() -> dict[str, str]:
    """The environment under which NNI's manager listens on 127.0.0.1 only.

    nni_node/rest_server/index.js: ``app.listen(port)`` binds to every interface, without a password, and neither the
    YAML nor ``nnictl`` has a key for the address. ``NODE_OPTIONS`` loads ``loopback.js`` before it, and
    ``patience.js``, which gives the tuner's process more than 10 seconds to start. NNI speaks to its own manager by
    ``http://localhost``, which a proxy of the environment would take: ``NO_PROXY`` keeps it out.
    ``NNI_BAYES_NAS_PYTHON`` is the interpreter that ``examples/nnictl/*.yml`` start their trials with.
    """
    option = " ".join(f"--require {_node_quoted(path)}" for path in (LOOPBACK_JS, PATIENCE_JS))
    options = os.environ.get("NODE_OPTIONS", "")
    proxies = [name for name in os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")).split(",") if name]
    proxies += [name for name in ("localhost", "127.0.0.1") if name not in proxies]
    return {
        "NODE_OPTIONS": options if option in options else f"{option} {options}".strip(),
        "NO_PROXY": ",".join(proxies),
        "no_proxy": ",".join(proxies),
        "NNI_BAYES_NAS_PYTHON": sys.executable,
    }


def _node_quoted(path: Path) -> str:
    text = str(path)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if " " in text else text


# -------------------------------------------------------------------------------------------- the tuner's process


def experiment_id() -> str | None:
    """The NNI experiment's id, in the dispatcher, which is not told it: the log folder is ``.../ID/log``."""
    log = os.environ.get("NNI_LOG_DIRECTORY")
    return Path(log).parent.name if log else None


def resumed() -> bool:
    """True in the dispatcher of an experiment that NNI resumed."""
    return os.environ.get("NNI_MODE") == "resume"


def experiment_parameters() -> dict[str, Any]:
    """NNI's own configuration of the experiment, in the dispatcher; an empty dict elsewhere."""
    with contextlib.suppress(ValueError, IndexError):
        found = json.loads(base64.b64decode(sys.argv[sys.argv.index("--exp_params") + 1]))
        return found if isinstance(found, dict) else {}
    return {}


def trials_are_local() -> bool:
    """True in the dispatcher of an experiment whose trials run on this machine, by NNI's local training service."""
    service = experiment_parameters().get("trainingService")
    return isinstance(service, dict) and service.get("platform") == "local" and not service.get("reuseMode")


def dispatcher_code_directory() -> Path | None:
    """``tuner.codeDirectory`` of the experiment, absolute.

    nni/experiment/config/base.py resolves it against the YAML's folder, but hands ``classArgs`` on as they are, and
    the dispatcher runs in its log folder: this is the one base that relative paths in ``classArgs`` can have.
    """
    found = experiment_parameters().get("tuner", {}).get("codeDirectory")
    return Path(found) if found else None


def deliver_recovered_trials(recovered: Callable[[int, Any], None]) -> None:
    """Has the tuner hear of the trials that NNI itself starts again when it resumes an experiment.

    nni_node/core/nnimanager.js (addRecoveredTrialJob) submits every trial that ran at the stop again, under its old
    id. nni/runtime/msg_dispatcher.py then drops the end of such a trial and hands its result to ``import_data``: the
    tuner would queue the trial a second time and never learn that it died. With this, ``recovered(id, parameters)``
    is called for each, before NNI asks for trials, and result and end come as for any other trial.
    """
    from nni.runtime import msg_dispatcher

    def handle(self: Any, data: Any) -> None:
        previous_max = self.recover_parameter_id(data)
        msg_dispatcher._next_parameter_id = previous_max + 1
        self.recovered_max_param_id = -1
        for id_, parameters in self.recovered_trial_params.items():
            msg_dispatcher._trial_params[id_] = parameters
            recovered(id_, parameters)

    msg_dispatcher.MsgDispatcher.handle_add_customized_trial = handle


def stop_at_once() -> None:
    """Has the dispatcher end when it is told to, instead of up to three seconds later; before it is built.

    nni/runtime/msg_dispatcher_base.py joins two threads that look every three seconds whether there is an end.
    """
    from nni.runtime import msg_dispatcher_base

    class Queue(queue.Queue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            return super().get(block, timeout and min(timeout, 0.1))

    msg_dispatcher_base.Queue = Queue


def report_tuner_error(send_trial: Callable[..., None] | None, text: str) -> None:
    """Tells the manager that the tuner failed, so that its status reads ERROR.

    nni/runtime/msg_dispatcher_base.py notes an exception of the tuner but waits for the next command before it acts;
    none comes (nni_node/core/tuner_command_channel.js drops the pings), so that the manager says
    ``TUNER_NO_MORE_TRIAL`` for ever.

    Args:
        send_trial: NNI's ``st_callback``, a method of the dispatcher; None before the first request.
        text: The cause.
    """
    dispatcher = getattr(send_trial, "__self__", None)
    if dispatcher is not None:
        dispatcher.report_error(text)


def end_experiment(timeout: float = 20.0) -> bool:
    """Brings the manager's status to DONE, from the dispatcher, when the plan is finished.

    nni_node/core/nnimanager.js: a tuner that says "no more trials" leaves TUNER_NO_MORE_TRIAL for ever; DONE needs
    ``maxTrialNumber``, which also counts trials that were killed and run again, so that it must not be set before the
    end. At the end every trial that was submitted has ended, and the number of them is what is put there.
    """
    import requests

    base = _manager_url(os.environ.get("NNI_TUNER_COMMAND_CHANNEL", ""))
    if base is None:
        return False
    try:
        with requests.Session() as session:
            session.trust_env = False
            profile = session.get(f"{base}/experiment", timeout=timeout).json()
            # Any number up to this ends it; the web UI shows it as the total.
            submitted = len(session.get(f"{base}/trial-jobs", timeout=timeout).json())
            profile["params"]["maxTrialNumber"] = max(1, submitted)
            url = f"{base}/experiment?update_type=MAX_TRIAL_NUM"
            return session.put(url, json=profile, timeout=timeout).ok
    except (requests.RequestException, ValueError, KeyError):
        return False


# --------------------------------------------------------------------------------------------- the trial's process


def import_nni() -> Any:
    """Imports ``nni`` without pandas, which json_tricks would load (a second of each trial's start) and NNI not use.

    nni/common/serializer.py imports json_tricks, which imports pandas where it is installed. Whoever needs pandas
    imports it afterwards.
    """
    if "nni" in sys.modules or "pandas" in sys.modules:
        return importlib.import_module("nni")
    sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("nni")
    finally:
        del sys.modules["pandas"]


def trial_parameters(timeout: float = 60.0) -> dict[str, Any]:
    """The parameters of this very trial.

    nni_node/training_service/v3/compat.js keeps the parameters of local trials in one queue and hands the first to
    whichever trial asks first, so that trials that start together can swap theirs, and a trial that is killed before
    it asked leaves its own to the next, which shifts those of all later trials by one. The manager's list of trials
    has the right ones: we read them there, and leave the queue alone.

    Raises:
        ConfigError: No NNI experiment started this process.
    """
    job = os.environ.get("NNI_TRIAL_JOB_ID")
    if not job:
        raise ConfigError(
            "`trial` must be started by NNI, not by hand: the environment has no NNI_TRIAL_JOB_ID\n"
            "start an experiment: nni-bayes-nas run CONFIG"
        )
    nni = import_nni()
    base = _manager_url(os.environ.get("NNI_TRIAL_COMMAND_CHANNEL", ""))
    if os.environ.get("NNI_PLATFORM") == "local" and base is not None:
        record = _trial_record(f"{base}/trial-jobs/{job}", timeout)
        if record is not None:
            nni.trial._params = record
            return dict(record["parameters"])
    parameters: Any = nni.get_next_parameter()
    if not parameters:
        raise ConfigError(
            f"a trial needs parameters, NNI has none for its trial {job}\nstart an experiment: nni-bayes-nas run CONFIG"
        )
    return dict(parameters)


def reporter(kind: Literal["intermediate", "final"]) -> Callable[[dict[str, Any]], None]:
    """Reports results of this trial to the manager; to be called before the search begins.

    nni/nas/execution/sequential.py and nni/nas/evaluator/evaluator.py put a channel and parameters of their own in the
    place of the trial's while a one-shot strategy runs, which drops what the search reports: the web UI would show no
    curve. The parameters they leave behind, under which a later result would count as that of trial 0; and where
    searches run side by side, the channel too.
    """
    nni = import_nni()
    from nni.runtime import trial_command_channel as channels

    ours, record = channels.get_default_trial_command_channel(), nni.trial._params

    def report(row: dict[str, Any]) -> None:
        theirs, params = channels.get_default_trial_command_channel(), nni.trial._params
        channels.set_default_trial_command_channel(ours)
        nni.trial._params = record
        try:
            (nni.report_intermediate_result if kind == "intermediate" else nni.report_final_result)(row)
        finally:
            channels.set_default_trial_command_channel(theirs)
            nni.trial._params = params

    return report


def _trial_record(url: str, timeout: float) -> Any:
    import requests

    nni = import_nni()

    end = time.monotonic() + timeout
    with requests.Session() as session:
        session.trust_env = False
        while time.monotonic() < end:
            with contextlib.suppress(requests.RequestException, ValueError):
                values = session.get(url, timeout=20).json().get("hyperParameters")
                if values:
                    return nni.load(values[0])
            # The manager writes the trial into its database just after it has started it.
            time.sleep(0.2)
    return None


def _manager_url(channel: str) -> str | None:
    """The manager's REST address, from the address of a tuner's or a local trial's command channel."""
    parts = urlsplit(channel)
    if not parts.port:
        return None
    segments = parts.path.strip("/").split("/")
    end = "tuner" if segments[-1] == "tuner" else "env"
    prefix = segments[: segments.index(end)] if end in segments else []
    return "/".join([f"http://localhost:{parts.port}", *prefix, "api/v1/nni"])


# ------------------------------------------------------------------------------------------ starting the manager


def start(experiment: Any, action: str, port: int) -> None:
    """Starts the manager of an ``nni.experiment.Experiment`` in the background, bound to loopback.

    - nni/experiment/launcher.py gives the manager three seconds to answer: on a busy machine it needs more.
    - nni/experiment/experiment.py prints addresses of every interface, without the prefix, although only loopback and
      only the prefix answer: NNI's console output is switched off (its log file has it all).
    - ``RunMode.Detach``: the manager outlives a runner that is killed, and its output goes to its log folder.
    - nni/experiment/launcher.py kills its manager on an ``Exception`` only: not on an interrupt.
    """
    from nni.experiment import RunMode, launcher
    from nni.runtime.log import silence_stdout

    silence_stdout()
    before = dict(os.environ)
    check, start_server = launcher._check_rest_server, launcher._start_rest_server
    started: list[Any] = []

    def noted(*args: Any) -> Any:
        started.append(start_server(*args))
        return started[-1]

    experiment._action = action
    try:
        os.environ.update(loopback_environment())
        os.environ[stopwatch.BEGAN] = str(time.time() - stopwatch.process_age())
        launcher._check_rest_server, launcher._start_rest_server = functools.partial(check, retry=60), noted
        experiment.start(port, run_mode=RunMode.Detach)
    except BaseException:
        for manager in started:
            manager.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                manager.wait(10.0)
            manager.kill()
        raise
    finally:
        launcher._check_rest_server, launcher._start_rest_server = check, start_server
        os.environ.clear()
        os.environ.update(before)


def manifest(experiment: str) -> dict[str, Any] | None:
    """What NNI's own list of experiments says of one: port, prefixUrl, pid, logDir."""
    from nni.tools.nnictl.config_utils import Experiments

    found = Experiments().get_all_experiments().get(experiment)
    return dict(found) if isinstance(found, dict) else None
