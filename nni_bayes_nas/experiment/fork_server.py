"""A process that has imported torch and Lightning once, and forks a process for every trial that asks for one.

NNI starts each trial as a process of its own, whose imports take longer than many a training of a small network. The
tuner starts the server; the trial command hands it its environment, folder and standard streams, waits for the fork
and ends as that does. Where nobody answers, the trial command runs the trial itself.

On Linux and the CPU only: CUDA does not survive a fork. The server runs no trial and calls nothing of what it imports,
so that it has no state that forks would share, and no threads but those that a library of linear algebra begins when it
is imported, and begins anew in a fork. NNI, which reads the environment when it is imported, is imported by the fork. A
fork is killed when the trial command dies, or the server; the server when the tuner dies.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.experiment import processes, stopwatch
from nni_bayes_nas.experiment.resources import THREAD_VARIABLES

# All that trials of ours import of others, but for NNI; a data set's own comes on top.
MODULES = ("torch", "pytorch_lightning", "torchmetrics.classification", "scipy.stats", "requests")
MODULES_OF_DATA = {
    **dict.fromkeys(("digits", "diabetes"), "sklearn.datasets"),
    **dict.fromkeys(("mnist", "fashion_mnist", "cifar10", "cifar100"), "torchvision.datasets"),
}
# Seconds until a trial that waits for the server's imports begins by itself; for the request, once it may come.
_PATIENCE, _REQUEST_LIMIT = 60.0, 10.0
_READY = b"+"
_NUMBER = struct.Struct("!i")
_PEER = struct.Struct("3i")


def address(experiment: str) -> str:
    """The socket's name, in Linux' abstract namespace: it vanishes with the server."""
    return f"\0nni-bayes-nas/{os.getuid()}/{experiment}"


def start(experiment: str, data: DataConfig, threads: int, log: Path) -> subprocess.Popen[bytes] | None:
    """Starts the server of an experiment, from the thread whose end shall be its own; None where it cannot be.

    Args:
        experiment: NNI's id.
        data: Says which modules the data set needs.
        threads: Per trial; libraries read their number when they are imported.
        log: Takes what the server says. An error there is no reason to worry: trials then run by themselves.
    """
    if sys.platform != "linux":
        return None
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):  # a kernel before 5.3
        return None
    env = {key: value for key, value in os.environ.items() if not key.startswith("NNI_")}
    env.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    modules = [*MODULES, *filter(None, [MODULES_OF_DATA.get(data.name)])]
    command = [sys.executable, "-P", "-m", "nni_bayes_nas.experiment.fork_server", experiment, *modules]
    try:
        with log.open("wb") as output:
            return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    except OSError:
        return None


def ask() -> int | None:
    """Has the server run the trial that this process was started for; its exit code, or None where nobody answers."""
    experiment = os.environ.get("NNI_EXP_ID")
    if sys.platform != "linux" or not experiment or os.environ.get("NNI_PLATFORM") != "local":
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(address(experiment))
            if not _same_user(connection) or connection.recv(1) != _READY:
                return None
        except OSError:
            return None
        # From here on a fork may run: the trial must not begin a second time in this process.
        try:
            began = str(time.time() - stopwatch.process_age())
            request = {"env": {**os.environ, stopwatch.TRIAL_BEGAN: began}, "cwd": os.getcwd()}
            text = json.dumps(request).encode()
            socket.send_fds(connection, [_NUMBER.pack(len(text))], [0, 1, 2])
            connection.sendall(text)
            pid = _NUMBER.unpack(_receive(connection, _NUMBER.size))[0]
            signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
            connection.settimeout(None)
            code = int(_NUMBER.unpack(_receive(connection, _NUMBER.size))[0])
        except OSError as error:
            print(f"the fork server of the run is gone, and with it this trial: {error}", file=sys.stderr)
            return 1
    return code if code >= 0 else 128 - code


class _Server:
    """Waits for requests, for the ends of forks, and for the ends of those who asked for them."""

    def __init__(self, listener: socket.socket, run: Callable[[], int]) -> None:
        self.listener, self.run = listener, run
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        self.forks: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> None:
        """For ever."""
        while True:
            for key, _ in self.selector.select():
                key.data()

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        files: list[int] = []
        try:
            if not _same_user(connection):
                raise OSError("another user asked")
            connection.settimeout(_REQUEST_LIMIT)
            connection.sendall(_READY)
            size, files, _, _ = socket.recv_fds(connection, _NUMBER.size, 3)
            if len(size) < _NUMBER.size or len(files) != 3:
                raise OSError("the trial's process has not waited")
            request = json.loads(_receive(connection, _NUMBER.unpack(size)[0]))
            pid = os.fork()
        except (OSError, ValueError) as error:
            print(f"request dropped: {error}", file=sys.stderr, flush=True)
            connection.close()
            for file in files:
                os.close(file)
            return
        if pid == 0:
            self._become(connection, request, files)
        for file in files:
            os.close(file)
        end = os.pidfd_open(pid)
        self.forks[pid] = end, connection
        self.selector.register(end, selectors.EVENT_READ, lambda: self._ended(pid))
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._abandoned(pid))
        with contextlib.suppress(OSError):
            connection.sendall(_NUMBER.pack(pid))

    def _become(self, connection: socket.socket, request: dict[str, Any], files: list[int]) -> None:
        """In the fork: the trial's process, from its environment to its end."""
        code = 1
        try:
            processes.die_with_parent()
            self.selector.close()
            self.listener.close()
            connection.close()
            for end, other in self.forks.values():
                os.close(end)
                other.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            code = self.run()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _abandoned(self, pid: int) -> None:
        """Who asked has died, or was killed by NNI: the trial must not go on."""
        if pid not in self.forks:  # it ended in the same moment
            return
        _, connection = self.forks[pid]
        self.selector.unregister(connection)
        os.kill(pid, signal.SIGKILL)

    def _ended(self, pid: int) -> None:
        end, connection = self.forks.pop(pid)
        self.selector.unregister(end)
        with contextlib.suppress(KeyError):  # abandoned before
            self.selector.unregister(connection)
        os.close(end)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):
            connection.sendall(_NUMBER.pack(code))
        connection.close()


def serve(experiment: str, modules: list[str], run: Callable[[], int]) -> None:
    """Imports the modules, then forks for whoever asks, until this process is killed.

    Args:
        experiment: NNI's id.
        modules: What cannot be imported is left to the trials, which say so.
        run: What a fork runs; gives its exit code.
    """
    processes.die_with_parent()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address(experiment))
        # Who asks during the imports waits for their end: it would import the same.
        listener.listen(128)
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy the pages that it looks at
        _Server(listener, run).serve()


def _same_user(connection: socket.socket) -> bool:
    """Whether the other end runs as this user: names of abstract sockets are open to all."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(peer)[1]) == os.getuid()


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly that many bytes.

    Raises:
        OSError: The other end is gone.
    """
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise OSError("no answer")
        parts += part
    return parts


def _run_trial() -> int:
    from nni_bayes_nas.experiment.trial import run_here

    return run_here()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:], _run_trial)
