"""Who runs: processes known by pid and start time, so that a reused pid is never taken for ours."""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.record import read_json, write_json

_PR_SET_PDEATHSIG = 1


def identity() -> dict[str, Any]:
    """This process, as ``alive`` and ``kill`` know it."""
    return {"pid": os.getpid(), "created": psutil.Process().create_time()}


def find(who: dict[str, Any] | None) -> psutil.Process | None:
    """The process that ``identity`` described, or None when it has ended."""
    if not who:
        return None
    try:
        process = psutil.Process(int(who["pid"]))
        if abs(process.create_time() - float(who["created"])) > 0.5 or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process
    except psutil.Error:
        return None


def kill(who: dict[str, Any] | None) -> bool:
    """Kills that process and its children; False when it had ended."""
    process = find(who)
    if process is None or process.pid == os.getpid():
        return False
    family = [process]
    with contextlib.suppress(psutil.Error):
        family += process.children(recursive=True)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(family, timeout=10)
    return True


@contextlib.contextmanager
def sole(output: Path) -> Iterator[None]:
    """Inside the block no other process works in the run folder, which is made if it is not there.

    By a lock of the folder, which ends with this process, however that ends. Disks that cannot lock keep nobody out.

    Raises:
        ConfigError: Another process has it.
    """
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    f"one process at a time may work in a run folder, but another one does in {output}\n"
                    "wait for it or stop it, or give another --output"
                ) from None
        yield
    finally:
        os.close(descriptor)


def claim(directory: Path) -> None:
    """Makes this process the owner of a trial's folder; an earlier owner that still runs is killed."""
    earlier = read_json(directory / "pid")
    if earlier is not None:
        kill(earlier)
    write_json(directory / "pid", identity())


def kill_orphans(output: Path) -> list[str]:
    """Kills the trials of a run whose manager is gone; returns their names."""
    return [path.parent.name for path in sorted(output.glob("trials/*/pid")) if kill(read_json(path))]


def stopping_signal(error: BaseException | None) -> signal.Signals | None:
    """The signal behind an exit: Lightning turns SIGINT and SIGTERM into a SystemExit; None for an error."""
    if isinstance(error, Exception):
        return None
    while error is not None:
        # Lightning's exception, which is not imported here: this module is used before torch may be.
        if type(error).__name__ == "SIGTERMException":
            return signal.SIGTERM
        if isinstance(error, KeyboardInterrupt):
            return signal.SIGINT
        error = error.__cause__ or error.__context__
    return None


def die_with_parent() -> None:
    """Has Linux kill this process when the one that started it dies; elsewhere ``kill_orphans`` is all there is."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
