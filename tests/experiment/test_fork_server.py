"""The fork server: what a fork is given, how it ends, and what ends it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.experiment import fork_server, stopwatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets and pidfd are Linux'")

# What a fork runs here: says what it is, then does as ITS_END says.
SERVER = """
import json, os, sys, time
from nni_bayes_nas.experiment import fork_server, stopwatch

def run():
    about = {"pid": os.getpid(), "cwd": os.getcwd(), "env": dict(os.environ), "imported": "decimal" in sys.modules}
    about["age"] = stopwatch.since(stopwatch.TRIAL_BEGAN)
    with open("about.json.part", "w") as file:
        json.dump(about, file)
    os.rename("about.json.part", "about.json")
    print("said", flush=True)
    end = os.environ["ITS_END"]
    if end == "raise":
        raise ValueError("as told")
    if end == "sleep":
        time.sleep(600)
    return int(end)

fork_server.serve(sys.argv[1], ["decimal", "no_such_module"], run)
"""
# As `trial.main`.
ASK = """
import signal
from nni_bayes_nas.experiment import fork_server
signal.signal(signal.SIGINT, signal.SIG_DFL)
code = fork_server.ask()
raise SystemExit(77 if code is None else code)
"""


class Trials:
    """A server, and processes that ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.experiment = f"test-{os.getpid()}-{folder.name}"
        self.server = subprocess.Popen([sys.executable, "-c", SERVER, self.experiment])
        self.asking: list[subprocess.Popen[str]] = []

    def ask(self, name: str, end: str, **env: str) -> subprocess.Popen[str]:
        folder = self.folder / name
        folder.mkdir()
        given = {"NNI_EXP_ID": self.experiment, "NNI_PLATFORM": "local", "ITS_END": end, "NAME": name, **env}
        self.asking.append(
            subprocess.Popen(
                [sys.executable, "-c", ASK], cwd=folder, env={**os.environ, **given}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return self.asking[-1]

    def about(self, name: str) -> dict[str, Any]:
        path = self.folder / name / "about.json"
        until(path.exists)
        return dict(json.loads(path.read_text()))


def until(condition: Callable[[], Any], timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Trials]:
    made = Trials(tmp_path)
    probe = made.ask("probe", "0")
    probe.communicate(timeout=60)
    if probe.returncode == 77:  # it was quicker than the server
        until(lambda: made.ask(f"probe{len(made.asking)}", "0").wait() == 0)
    yield made
    for process in [made.server, *made.asking]:
        process.kill()
        process.communicate()


def test_a_fork_is_the_process_that_asked(trials: Trials) -> None:
    processes = {name: trials.ask(name, end) for name, end in (("a", "0"), ("b", "3"), ("c", "raise"))}
    output = {name: process.communicate(timeout=30) for name, process in processes.items()}
    assert {name: process.returncode for name, process in processes.items()} == {"a": 0, "b": 3, "c": 1}
    assert all(said == "said\n" for said, _ in output.values())
    assert "ValueError: as told" in output["c"][1] and output["a"][1] == output["b"][1] == ""
    for name in processes:
        about = trials.about(name)
        assert about["cwd"] == str(trials.folder / name) and about["env"]["NAME"] == name
        assert about["imported"] and about["pid"] not in (processes[name].pid, trials.server.pid)
        assert 0 < about["age"] < 30 and stopwatch.TRIAL_BEGAN in about["env"]
    assert trials.server.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_fork_dies_with_the_process_that_asked(trials: Trials, number: signal.Signals) -> None:
    asking, other = trials.ask("a", "sleep"), trials.ask("b", "sleep")
    pid, spared = trials.about("a")["pid"], trials.about("b")["pid"]
    asking.send_signal(number)
    until(lambda: gone(pid))
    assert not gone(spared) and other.poll() is None
    assert trials.ask("c", "4").wait(30) == 4, "the server goes on"


def test_the_server_survives_those_who_do_not_wait(trials: Trials) -> None:
    for said in (b"", b"xx", b"\0\0\0\4{}"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(fork_server.address(trials.experiment))
            connection.sendall(said)
    # Both ends at once: the fork's and that of who asked for it.
    for i in range(5):
        asking = trials.ask(f"sleeping{i}", "sleep")
        pid = trials.about(f"sleeping{i}")["pid"]
        trials.server.send_signal(signal.SIGSTOP)
        asking.kill()
        os.kill(pid, signal.SIGKILL)
        asking.wait()
        until(lambda pid=pid: gone(pid))
        trials.server.send_signal(signal.SIGCONT)
    assert trials.ask("after", "4").wait(30) == 4


def test_who_asked_ends_as_the_fork_did(trials: Trials) -> None:
    killed, asked_to_end = trials.ask("a", "sleep"), trials.ask("b", "sleep")
    os.kill(trials.about("a")["pid"], signal.SIGKILL)
    assert killed.wait(30) == 128 + signal.SIGKILL
    trials.about("b")
    time.sleep(0.2)  # the pid travels after the fork
    asked_to_end.terminate()
    assert asked_to_end.wait(30) == 128 + signal.SIGTERM


def test_without_a_server_the_trial_runs_by_itself(trials: Trials) -> None:
    sleeping = trials.ask("a", "sleep")
    pid = trials.about("a")["pid"]
    trials.server.kill()
    _, error = sleeping.communicate(timeout=30)
    assert sleeping.returncode == 1 and "fork server" in error, "what began there must not begin again"
    until(lambda: gone(pid))
    assert trials.ask("b", "0").wait(30) == 77
    assert trials.ask("c", "0", NNI_PLATFORM="remote").wait(30) == 77


def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    experiment = f"test-{os.getpid()}-{tmp_path.name}"
    code = (
        "import sys, time; from pathlib import Path; from nni_bayes_nas.config import DataConfig\n"
        "from nni_bayes_nas.experiment import fork_server\n"
        f"server = fork_server.start({experiment!r}, DataConfig(), 1, Path({str(tmp_path / 'log')!r}))\n"
        "print(server.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        until(lambda: any(fork_server.address(experiment)[1:] in line for line in sockets()))
        assert server.environ()["OMP_NUM_THREADS"] == "1" and not [k for k in server.environ() if k.startswith("NNI_")]
        parent.kill()
        until(lambda: gone(server.pid))


def sockets() -> list[str]:
    return Path("/proc/net/unix").read_text().splitlines()


def test_what_is_imported_is_there() -> None:
    import importlib

    for module in (*fork_server.MODULES, *set(fork_server.MODULES_OF_DATA.values())):
        assert importlib.import_module(module)
    from nni_bayes_nas.registry import DATA_SETS

    assert set(fork_server.MODULES_OF_DATA) <= set(DATA_SETS) and DataConfig().name in fork_server.MODULES_OF_DATA


def test_imports_leave_one_thread_and_no_gpu() -> None:
    """A fork has only the thread that forked: locks that others hold stay locked. CUDA does not survive a fork."""
    code = (
        "import importlib, os, sys\n"
        f"for name in {(*fork_server.MODULES, 'sklearn.datasets')!r}: importlib.import_module(name)\n"
        "import torch; print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized(), 'nni' in sys.modules)"
    )
    env = {**os.environ, **dict.fromkeys(fork_server.THREAD_VARIABLES, "1")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "False"]
