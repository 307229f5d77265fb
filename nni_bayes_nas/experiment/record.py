"""The run folder: the contract between running and reporting. Every file is replaced whole, never half-written."""

import contextlib
import json
import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config, config_to_yaml
from nni_bayes_nas.errors import ConfigError

RUN_FILES = ("config.yaml", "environment.json", "summary.json", "state.json")


def unseen(what: str) -> ConfigError:
    """The mistake that what other trials wrote cannot be read: `what` of them, up to "ran where ..."."""
    return ConfigError(f"{what} ran where this folder is not visible\npredict where all trials share a disk")


def write_text(path: Path, text: str) -> None:
    """Replaces the file's content in one step: a reader sees the old text or the new, and so does a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one step.

    Raises:
        ValueError: A number is NaN or infinite, which JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's JSON, or None when the file is not there or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, none if it is not there; a line that a kill cut off is dropped."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces a file of JSON lines in one step."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def holds_run(output: Path) -> bool:
    """True when the folder holds a run, finished or not."""
    return any((output / name).exists() for name in RUN_FILES)


def refuse_other_run(output: Path) -> None:
    """Refuses a folder that holds another run, and a path that is a file.

    Raises:
        ConfigError: With the remedy; nothing is written.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"the output must be a folder, got the file {output}\ngive another --output")
    if holds_run(output) and not (output / "state.json").exists():
        raise ConfigError(
            f"the output folder must not hold another run, {output} holds the first files of one, or of their names\n"
            "remove them if you do not need them, or give another --output"
        )
    if holds_run(output):
        raise ConfigError(
            f"the output folder must not hold another run, {output} does\ngo on with it by --resume, or give --output"
        )


def require_writable(folder: Path, what: str) -> None:
    """Refuses a folder in which `what` cannot be written.

    Raises:
        ConfigError: With the remedy.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"`{folder}` must be writable: {what} goes there\nchange its permissions, or copy it")


class Record:
    """One run folder, written by the tuner's process alone.

    Args:
        output: The run folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    @classmethod
    def create(cls, output: Path, config: Config, environment: dict[str, Any]) -> "Record":
        """Begins a run.

        Raises:
            ConfigError: The folder holds another run; nothing is written.
        """
        refuse_other_run(output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "trials").mkdir(exist_ok=True)
        record = cls(output)
        write_json(output / "environment.json", environment)
        write_text(output / "config.yaml", config_to_yaml(config))
        write_text(output / "metrics.jsonl", "")
        return record

    @property
    def state(self) -> dict[str, Any]:
        """The tuner's own state, or an empty dict."""
        return read_json(self.output / "state.json") or {}

    @property
    def summary(self) -> dict[str, Any]:
        """The summary, or an empty dict."""
        return read_json(self.output / "summary.json") or {}

    def write_state(self, state: dict[str, Any]) -> None:
        """Replaces ``state.json``."""
        write_json(self.output / "state.json", state)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replaces ``summary.json``."""
        write_json(self.output / "summary.json", summary)

    def trial_directory(self, name: str) -> Path:
        """``OUT/trials/NAME``."""
        return self.output / "trials" / name

    def trial_error(self, name: str) -> str | None:
        """The cause that a dead trial left behind, in one line, or None."""
        error = read_json(self.trial_directory(name) / "error.json")
        if not isinstance(error, dict):
            return None
        return " ".join(f"{error.get('type')}: {error.get('message')}".split())

    def collect_metrics(self, names: list[str]) -> None:
        """Rewrites ``OUT/metrics.jsonl`` from the rows of those trials, in that order.

        Rows are taken from the trials' files each time, so that a trial that was killed and went on from its
        checkpoint leaves no row twice; a line that a kill cut off is dropped.
        """
        rows = [row for name in names for row in read_rows(self.trial_directory(name) / "metrics.jsonl")]
        write_rows(self.output / "metrics.jsonl", rows)


def write_error(directory: Path, error: BaseException, message: str) -> None:
    """``error.json``, and the traceback on standard error: why a trial, or one of several trainings in it, failed."""
    traceback.print_exception(error)
    text = "".join(traceback.format_exception(error))
    write_json(directory / "error.json", {"type": type(error).__name__, "message": message, "traceback": text})
