"""Runs of the command line in processes of their own, under a home folder of their own, with a real NNI manager."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

HERE = Path(__file__).parent

TOY: dict[str, Any] = {
    "data": {"args": {"sleep": 0.3}},
    "search": {"epochs": 5, "warmup_epochs": 1, "lambdas": 4, "random": 1},
    "retrain": {"epochs": 3},
    "experiment": {"plan": "toy_pipeline:ToyPlan", "device": "cpu", "concurrency": 2},
}


class Pipeline:
    """One run folder and the processes around it."""

    def __init__(self, folder: Path, values: dict[str, Any], env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.port = free_port()
        self.values = {**values, "experiment": {**values.get("experiment", {}), "port": self.port}}
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(self.values))
        (folder / "home").mkdir(exist_ok=True)
        # NNI's list of experiments is per home folder; matplotlib's font cache need not be.
        cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        self.env = {**os.environ, "HOME": str(folder / "home"), "XDG_CACHE_HOME": cache, **(env or {})}
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "nni_bayes_nas", "run", str(self.config), "--output", str(self.output)]
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=HERE, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def wait(self, timeout: float = 240) -> tuple[int, str, str]:
        assert self.process is not None
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def run(self, *arguments: str, timeout: float = 240) -> str:
        """Runs to the end, which must be good; returns what was printed."""
        self.start(*arguments)
        code, out, err = self.wait(timeout)
        assert code == 0, f"{out}\n{err}"
        return out

    def json(self, path: str) -> Any:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.output / path).read_text())
        return None

    @property
    def summary(self) -> dict[str, Any]:
        return self.json("summary.json") or {}

    @property
    def ledger(self) -> dict[str, Any]:
        return (self.json("state.json") or {}).get("ledger", {})

    def epochs(self, name: str) -> int:
        """How many epochs of a trial are on file."""
        with contextlib.suppress(OSError):
            rows = (self.output / "trials" / name / "metrics.jsonl").read_text().splitlines()
            return len({json.loads(row)["epoch"] for row in rows})
        return 0

    def losses(self, name: str) -> list[Any]:
        rows = map(json.loads, (self.output / "trials" / name / "metrics.jsonl").read_text().splitlines())
        return [(row["epoch"], row["step"], row["terms"]) for row in rows if "terms" in row]

    def architectures(self) -> list[Any]:
        keys = ("id", "lambda", "origin", "choices", "params", "test_accuracy_mean")
        return [[row[key] for key in keys] for row in self.summary["architectures"]]

    def until(self, condition: Callable[[], Any], timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"waited {timeout} s in vain: {self.ledger}"
            time.sleep(0.05)

    def pid(self, who: str) -> int:
        """``runner``, ``manager``, ``dispatcher`` or the name of a trial."""
        if who == "runner":
            assert self.process is not None
            return self.process.pid
        if who == "manager":
            experiments = json.loads((self.folder / "home/nni-experiments/.experiment").read_text())
            return int(experiments[self.summary["experiment"]["id"]]["pid"])
        if who == "dispatcher":
            return int(self.json("state.json")["dispatcher"]["pid"])
        return int(self.json(f"trials/{who}/pid")["pid"])

    def left(self) -> list[psutil.Process]:
        """The processes of this run that still live, by their home folder."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == self.env["HOME"] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def records(self) -> dict[str, list[Any]]:
        """From NNI's database: the jobs, the epochs reported, and the final results of each of the plan's trials."""
        return self.records_in(self.output / "nni")

    def records_in(self, folder: Path) -> dict[str, list[Any]]:
        (path,) = [path for path in folder.glob("*/db/nni.sqlite") if "_latest" not in str(path)]
        with contextlib.closing(sqlite3.connect(path)) as database:
            events = database.execute("select trialJobId, data from TrialJobEvent where data != ''").fetchall()
            metrics = database.execute("select trialJobId, type, data from MetricData order by timestamp").fetchall()
        names = {job: json.loads(data)["parameters"]["trial"] for job, data in events if job and "parameters" in data}
        found: dict[str, list[Any]] = {}
        for job, kind, data in metrics:
            value = json.loads(data)
            value = json.loads(value) if isinstance(value, str) else value
            found.setdefault(f"{names[job]} {kind}", []).append(value.get("epoch") if kind == "PERIODICAL" else value)
        found["jobs"] = sorted(names.items())
        return found

    def clean(self) -> None:
        for process in self.left():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Makes pipelines in folders of their own; whatever still runs at the end is killed."""
    made: list[Pipeline] = []

    def make(values: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> Pipeline:
        folder = tmp_path / f"run{len(made)}"
        folder.mkdir()
        made.append(Pipeline(folder, TOY if values is None else values, env))
        return made[-1]

    yield make
    for one in made:
        one.clean()


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes a run folder as the tuner does, without a search and without NNI."""
    from nni_bayes_nas.config import Config
    from nni_bayes_nas.experiment.plan import Ledger
    from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain
    from nni_bayes_nas.experiment.record import Record
    from nni_bayes_nas.experiment.retrain import run_retrain
    from nni_bayes_nas.experiment.summary import summarize

    def make(folder: Path, values: dict[str, Any], rows: list[dict[str, Any]], retrain: str = "retrain-") -> Path:
        """A run whose one search found these architectures; retrained are those whose trials' names begin so."""
        config = Config.from_dict(values)
        record = Record.create(folder, config, {})
        ledger = Ledger(SearchAndRetrain(config), 0)
        ledger.running("search-s0")
        ledger.done("search-s0", {"default": 0.5, "search": {"seed": config.seed}, "architectures": rows})
        for name in [name for name in ledger.names("waiting") if name.startswith(retrain)]:
            spec = ledger.spec(name)
            assert spec is not None
            directory = record.trial_directory(name)
            directory.mkdir(parents=True)
            ledger.running(name)
            ledger.done(name, run_retrain(config, {"trial": name, **spec.parameters}, directory, lambda row: None))
        record.write_summary(summarize(config, ledger, experiment="abc", status="done"))
        return folder

    return make
