"""Read a run folder as the run left it: whole, still growing, or broken off."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nni_bayes_nas.errors import ConfigError

Row = dict[str, Any]

_RETRAIN_NAME = re.compile(r"^retrain-(?P<search>.+)-(?P<kind>[a-z]+?)(?P<index>\d*)-seed(?P<seed>\d+)$")


@dataclass(frozen=True)
class Score:
    """The number by which networks are compared, as `summary.json` names it; accuracy in folders that do not say.

    Attributes:
        term: "accuracy", "r2".
        title: In words: "accuracy", "R²".
        percent: Whether it is a share, shown as per cent.
        beside: Further columns of the table: (key of a retraining, heading, whether it is a share).
    """

    term: str = "accuracy"
    title: str = "accuracy"
    percent: bool = True
    beside: tuple[tuple[str, str, bool], ...] = ()

    @property
    def val(self) -> str:
        """Key of the value on the validation data."""
        return f"val_{self.term}"

    @property
    def test(self) -> str:
        """Key of the value on the test data."""
        return f"test_{self.term}"

    @property
    def factor(self) -> float:
        """What values are multiplied with to be drawn."""
        return 100.0 if self.percent else 1.0

    @property
    def axis(self) -> str:
        """Label of an axis."""
        return f"{self.title} (%)" if self.percent else self.title

    @property
    def heading(self) -> str:
        """The title at the beginning of a line."""
        return self.title[:1].upper() + self.title[1:]


@dataclass(frozen=True)
class RunFolder:
    """What one run folder holds.

    Attributes:
        path: The folder.
        summary: `summary.json`.
        config: `config.yaml` as plain types; empty if the file is missing.
        config_text: `config.yaml` as written, `None` if missing.
        environment: `environment.json`; empty if missing.
        metrics: Rows of every trial by trial name, in the order in which they were written.
        posteriors: `posterior.json` by trial name.
        evaluation: `evaluation.json`, what the command `evaluate` wrote; empty if missing.
    """

    path: Path
    summary: Row
    config: Row = field(default_factory=dict)
    config_text: str | None = None
    environment: Row = field(default_factory=dict)
    metrics: dict[str, list[Row]] = field(default_factory=dict)
    posteriors: dict[str, Row] = field(default_factory=dict)
    evaluation: Row = field(default_factory=dict)

    @property
    def score(self) -> Score:
        """What the run's networks are compared by."""
        said = self.summary.get("score")
        if not isinstance(said, dict) or not isinstance(said.get("term"), str):
            return Score()
        term, title = said["term"], str(said.get("title", said["term"]))
        beside = [tuple(item) for item in said.get("beside") or [] if isinstance(item, list) and len(item) == 3]
        return Score(term, title, bool(said.get("percent")), tuple((str(k), str(t), bool(p)) for k, t, p in beside))

    @property
    def searches(self) -> list[Row]:
        """The finished searches."""
        return _rows(self.summary.get("searches"))

    @property
    def architectures(self) -> list[Row]:
        """The architectures in the summary's order."""
        return _rows(self.summary.get("architectures"))

    @property
    def curves(self) -> dict[str, list[Row]]:
        """Search id -> rows of the grid over λ as the summary has them; searches without a curve are left out."""
        curves = self.summary.get("curves") or {}
        return {str(name): _rows(rows) for name, rows in curves.items() if rows}

    @property
    def failures(self) -> list[Row]:
        """The trials that were given up."""
        return _rows(self.summary.get("failures"))

    def setting(self, *path: str) -> Any:
        """The value at a path of the configuration, `None` if it is not there."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def retrain_scale(self) -> str:
        """Arguments of the space that retraining changes, in words; empty where it is at the scale of the search."""
        changed = self.setting("retrain", "space")
        return ", ".join(f"{k} {v}" for k, v in changed.items()) if isinstance(changed, dict) else ""

    def per_epoch(self, trial: str) -> dict[str, tuple[list[int], list[float]]]:
        """Term -> (epochs, values) of one trial; where an epoch was repeated after a resume, its last row counts."""
        terms: dict[str, dict[int, float]] = {}
        for row in self.metrics.get(trial, []):
            values, epoch = row.get("terms"), row.get("epoch")
            if not isinstance(values, dict) or not isinstance(epoch, int):
                continue
            for name, value in values.items():
                if isinstance(value, int | float):
                    terms.setdefault(str(name), {})[epoch] = float(value)
        return {name: (sorted(seen), [seen[epoch] for epoch in sorted(seen)]) for name, seen in terms.items()}

    def trials(self, stage: str) -> list[str]:
        """Names of the trials that left metrics of this stage, sorted so that 10 follows 9."""
        names = [name for name, rows in self.metrics.items() if any(row.get("stage") == stage for row in rows)]
        return sorted(names, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])

    def architecture_of(self, trial: str) -> Row | None:
        """The architecture that a retrain trial trained, found by the plan's name of the trial."""
        match = _RETRAIN_NAME.match(trial)
        if match is None:
            return None
        random = match["kind"] == "rand"
        family = [
            row
            for row in self.architectures
            if row.get("search") == match["search"] and (row.get("origin") == "random") == random
        ]
        index = int(match["index"] or 0)
        return family[index] if index < len(family) else None


def read_run(folder: Path) -> RunFolder:
    """Read a run folder; only `summary.json` has to be there.

    Raises:
        ConfigError: The folder or its summary is missing, or a file in it cannot be read.
    """
    if not (folder / "summary.json").is_file():
        raise ConfigError(
            f"A report needs a run folder with summary.json, got {str(folder)!r}.\n"
            "Give the folder that --output of `nni-bayes-nas run` named."
        )
    summary = _json(folder / "summary.json")
    config_file, environment_file = folder / "config.yaml", folder / "environment.json"
    config_text = config_file.read_text(encoding="utf-8") if config_file.is_file() else None
    try:
        config = yaml.safe_load(config_text) if config_text else {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config.yaml of a run folder must be YAML, {str(config_file)!r} is not: {error}") from error
    return RunFolder(
        path=folder,
        summary=summary,
        config=config if isinstance(config, dict) else {},
        config_text=config_text,
        environment=_json(environment_file) if environment_file.is_file() else {},
        metrics=_read_metrics(folder),
        posteriors={path.parent.name: _json(path) for path in sorted(folder.glob("trials/*/posterior.json"))},
        evaluation=_json(folder / "evaluation.json") if (folder / "evaluation.json").is_file() else {},
    )


def _json(path: Path) -> Row:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path.name} of a run folder must be JSON, {str(path)!r} is not: {error}.\n"
            "Resume the run with --resume, which writes it anew."
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path.name} of a run folder must hold an object, {str(path)!r} holds {type(value).__name__}."
        )
    return value


def _read_metrics(folder: Path) -> dict[str, list[Row]]:
    # A trial's own file is complete; the folder's may be a copy of it or lag behind.
    metrics: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("trials/*/metrics.jsonl")):
        rows = _json_lines(path)
        if rows:
            metrics[path.parent.name] = rows
    own = set(metrics)
    if (folder / "metrics.jsonl").is_file():
        for row in _json_lines(folder / "metrics.jsonl"):
            trial = str(row.get("trial", "?"))
            if trial not in own:
                metrics.setdefault(trial, []).append(row)
    return metrics


def _json_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            # The last line of a running or killed trial may be torn.
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _rows(value: Any) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
