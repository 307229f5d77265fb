"""What ``environment.json`` says: versions, device, git commit, command line."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("nni-bayes-nas", "nni", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy")


def describe(command: str | None, code_directory: Path, gpus: int, concurrency: int, threads: int) -> dict[str, Any]:
    """The environment of a run; imports none of the packages it names.

    ``command`` is None where it is not known: plain nnictl does not tell the tuner.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "code_directory": str(code_directory),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "cpu": {"model": cpu_model(), "cores": os.cpu_count()},
        "gpus": gpus,
        "device": "gpu" if gpus else "cpu",
        "concurrency": concurrency,
        "threads": threads,
        "git_commit": git_commit(code_directory),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Of this machine, as it says itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit(directory: Path) -> str | None:
    """The commit of the code in ``directory``, with ``-dirty`` where files differ from it; None outside git."""
    try:
        command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
