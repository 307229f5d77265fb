"""The tuner, called as NNI's dispatcher calls it."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment import nvml, processes
from nni_bayes_nas.experiment import tuner as module
from nni_bayes_nas.experiment.record import read_json, write_json
from nni_bayes_nas.experiment.tuner import PlanTuner
from nni_bayes_nas.report.read import read_run
from nni_bayes_nas.report.tables import DASH, environment_rows, repeat_commands

from .test_plan import found, trained


class Dispatcher:
    """Stands where NNI's MsgDispatcher stands: gives out ids, keeps what is sent and what is reported."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []
        self.errors: list[str] = []
        self.next = 0

    def send_trial_callback(self, id_: int, parameters: dict[str, Any]) -> None:
        self.sent.append((id_, parameters["trial"]))

    def report_error(self, text: str) -> None:
        self.errors.append(text)

    def request(self, tuner: PlanTuner, n: int) -> None:
        ids = list(range(self.next, self.next + n))
        self.next += n
        sets = tuner.generate_multiple_parameters(ids, st_callback=self.send_trial_callback)
        self.sent += [(id_, parameters["trial"]) for id_, parameters in zip(ids, sets, strict=False)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """No report, no grace: their own tests run them for real."""
    reports: list[Path] = []
    monkeypatch.setattr(module, "make_report", reports.append)
    monkeypatch.setattr(module, "RESULT_GRACE", 0.0)
    monkeypatch.setattr(module, "DEATH_GRACE", 0.0)
    monkeypatch.setattr(PlanTuner, "_later", lambda self, seconds, run: self._give_up(run))
    yield reports


def make(tmp_path: Path, **experiment: Any) -> tuple[PlanTuner, Dispatcher]:
    config = Config.from_dict({"experiment": {"device": "cpu", **experiment}})
    return PlanTuner(config.to_dict(), str(tmp_path / "out"), "cmd", str(tmp_path)), Dispatcher()


def end(tuner: PlanTuner, id_: int, result: dict[str, Any], ended_first: bool = False) -> None:
    calls = [
        lambda: tuner.receive_trial_result(id_, "", result, trial_job_id=f"job{id_}"),
        lambda: tuner.trial_end(id_, True),
    ]
    for call in reversed(calls) if ended_first else calls:
        call()


def test_the_whole_pipeline(tmp_path: Path, quick: list[Path]) -> None:
    tuner, nni = make(tmp_path)
    nni.request(tuner, 2)
    assert nni.sent == [(0, "search-s0")]
    tuner.receive_trial_result(0, "", found([1, 2, 3]), trial_job_id="j")
    assert nni.sent == [(0, "search-s0")], "the result alone is not the end"
    tuner.trial_end(0, True)
    assert nni.sent[1:] == [(1, "retrain-s0-lam0-seed0")], "the id that was left over"
    nni.request(tuner, 1)
    for id_ in (1, 2):
        end(tuner, id_, trained(0.5))
        nni.request(tuner, 1)
    end(tuner, 3, trained(0.5))
    assert [name for _, name in nni.sent[1:]] == [f"retrain-s0-lam{i}-seed0" for i in range(3)]
    summary = read_json(tmp_path / "out/summary.json")
    assert summary["status"] == "done" and summary["experiment"] == {
        "id": None,
        "trials_succeeded": 4,
        "trials_failed": 0,
    }
    assert read_json(tmp_path / "out/state.json")["finished"]
    assert quick == [tmp_path / "out"]
    nni.request(tuner, 1)
    assert len(nni.sent) == 4 and not nni.errors


def test_parameters(tmp_path: Path) -> None:
    tuner, nni = make(tmp_path, threads=3)
    (sent,) = tuner.generate_multiple_parameters([0, 1], st_callback=nni.send_trial_callback)
    assert sent == {
        "trial": "search-s0", "kind": "search", "seed": 0, "output": str(tmp_path / "out"), "threads": 3,
        "config": tuner.config.to_dict(), "code_directory": str(tmp_path),
    }  # fmt: skip
    json.dumps(sent)


def test_a_death_names_its_cause_and_is_retried_once(tmp_path: Path) -> None:
    tuner, nni = make(tmp_path)
    nni.request(tuner, 1)
    tuner.trial_end(0, False)
    assert read_json(tmp_path / "out/state.json")["ledger"]["search-s0"]["cause"] == "the trial's process was killed"
    nni.request(tuner, 1)
    assert [name for _, name in nni.sent] == ["search-s0", "search-s0"]
    write_json(tmp_path / "out/trials/search-s0/error.json", {"type": "ValueError", "message": "no data"})
    with pytest.raises(RunError, match="ValueError: no data"):
        tuner.trial_end(1, False)
    summary = read_json(tmp_path / "out/summary.json")
    assert summary["status"] == "failed" and "ValueError: no data" in summary["cause"]
    assert summary["failures"] == [{"trial": "search-s0", "attempts": 2, "cause": "ValueError: no data"}]
    assert "RunError" in (tmp_path / "out/tuner_error.log").read_text()
    assert len(nni.errors) == 1, "the manager's status reads ERROR"


def test_a_good_end_without_a_result_is_a_death(tmp_path: Path) -> None:
    tuner, nni = make(tmp_path)
    nni.request(tuner, 2)
    tuner.trial_end(0, True)
    assert [name for _, name in nni.sent] == ["search-s0", "search-s0"]
    assert tuner.ledger.entries["search-s0"]["cause"] == "the trial ended without a result"


def test_an_exception_in_the_plan_ends_the_run_by_name(tmp_path: Path) -> None:
    tuner, nni = make(tmp_path)
    nni.request(tuner, 1)
    with pytest.raises(KeyError):
        end(tuner, 0, {"default": 1.0})
    assert "architectures" in read_json(tmp_path / "out/summary.json")["cause"]
    assert nni.errors and "KeyError" in (tmp_path / "out/tuner_error.log").read_text()


def test_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    make(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="another run"):
        make(tmp_path)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that only NNI's database holds, a trial that NNI starts again, and the rest: each runs once."""
    tuner, nni = make(tmp_path)
    nni.request(tuner, 1)
    end(tuner, 0, found([1, 2, 3, 4]), ended_first=False)
    nni.request(tuner, 3)
    assert len(tuner.ledger.names("running")) == 3
    monkeypatch.setenv("NNI_MODE", "resume")
    again, nni = make(tmp_path)
    assert again.ledger.names("running") == []
    names = [f"retrain-s0-lam{i}-seed0" for i in range(4)]
    again.import_data(
        [
            {"parameter": {"trial": "search-s0"}, "value": found([9])},
            {"parameter": {"trial": names[1]}, "value": trained(0.7), "trialJobId": "j1"},
        ]
    )
    again.recovered(5, {"trial": names[0]})
    nni.next = 6
    nni.request(again, 2)
    assert [name for _, name in nni.sent] == names[2:]
    for id_ in (5, 6, 7):
        end(again, id_, trained(0.5), ended_first=True) if id_ != 5 else end(again, id_, trained(0.5))
    assert read_json(tmp_path / "out/summary.json")["status"] == "done"
    assert again.ledger.results[names[1]]["val_accuracy"] == 0.7
    assert len(again.ledger.results["search-s0"]["architectures"]) == 4


def test_resume_of_a_plan_that_could_not_finish_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner, nni = make(tmp_path, retries=0)
    nni.request(tuner, 1)
    with pytest.raises(RunError):
        tuner.trial_end(0, False)
    monkeypatch.setenv("NNI_MODE", "resume")
    again, nni = make(tmp_path, retries=0)
    nni.request(again, 1)
    assert nni.sent == [(0, "search-s0")]
    assert again.ledger.entries["search-s0"]["attempts"] == 1


def test_resume_by_another_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain nnictl resumes by the YAML as it is then; the trials that are done are of the one before."""
    values = {"experiment": {"device": "cpu", "port": 8123}}
    PlanTuner(values, str(tmp_path / "out"))
    monkeypatch.setenv("NNI_MODE", "resume")
    monkeypatch.setattr(processes, "kill", lambda who: False)  # the dispatcher before was this process
    with pytest.raises(ConfigError, match=r"`retrain\.epochs` was \d+, got 77\nput it back"):
        PlanTuner({**values, "retrain": {"epochs": 77}}, str(tmp_path / "out"))
    PlanTuner({"experiment": {"device": "cpu", "port": 8124}}, str(tmp_path / "out"))


def test_the_gpus_of_the_run_are_those_of_its_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the dispatcher NNI hides all of them, and with them what the user hides: NVML's say nothing there."""
    monkeypatch.setattr("nni_bayes_nas.experiment.nvml._gpu_uuids", lambda: ["GPU-aa-0", "GPU-bb-1"])
    monkeypatch.setenv("SDK_PROCESS", "dispatcher")
    for given, device in ((0, "cpu"), (2, "gpu")):
        PlanTuner({}, str(tmp_path / device), gpus=given)
        found = read_json(tmp_path / device / "environment.json")
        assert (found["gpus"], found["device"]) == (given, device)


def test_resume_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNI_MODE", "resume")
    with pytest.raises(ConfigError, match="holds none"):
        make(tmp_path)
    assert not (tmp_path / "out").exists()


def test_relative_paths_count_from_the_code_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/nnictl/*.yml: classArgs reach the tuner unresolved, and the dispatcher runs in its log folder."""
    import base64

    (tmp_path / "yaml").mkdir()
    (tmp_path / "c.yaml").write_text("seed: 5\nexperiment: {device: cpu}\n")
    encoded = base64.b64encode(json.dumps({"tuner": {"codeDirectory": str(tmp_path / "yaml")}}).encode()).decode()
    monkeypatch.setattr("sys.argv", ["nni", "--exp_params", encoded])
    tuner = PlanTuner("../c.yaml", "../runs/x")
    assert tuner.config.seed == 5 and tuner.output == tmp_path / "runs/x"
    assert tuner.code_directory == tmp_path / "yaml"


def test_plain_nnictl_tells_no_command(tmp_path: Path) -> None:
    PlanTuner(Config.from_dict({"experiment": {"device": "cpu"}}).to_dict(), str(tmp_path / "out"))
    assert read_json(tmp_path / "out/environment.json")["command"] is None
    run = read_run(tmp_path / "out")
    assert all("new folder" in what or "report" in what.lower() for what, _ in repeat_commands(run))
    assert ("command", DASH) in environment_rows(run)


@pytest.mark.parametrize(
    ("experiment", "local", "gpus", "expected"),
    [
        ({}, True, 0, 1),
        ({"fork": False}, True, 0, 0),
        ({"plan": "toy_pipeline:ToyPlan"}, True, 0, 0),
        ({}, False, 0, 0),
        ({"device": "auto"}, True, 2, 0),
    ],
)
def test_when_a_fork_server_is_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    experiment: dict[str, Any],
    local: bool,
    gpus: int,
    expected: int,
) -> None:
    """For trials of ours, on this machine and its CPU."""
    started: list[tuple[Any, ...]] = []
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("NNI_LOG_DIRECTORY", str(tmp_path / "abc" / "log"))
    monkeypatch.setattr(module.nni_compat, "trials_are_local", lambda: local)
    monkeypatch.setattr(nvml, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(module.fork_server, "start", lambda *arguments: started.append(arguments))
    make(tmp_path, **{"threads": 3, **experiment})
    assert len(started) == expected
    for id_, data, threads, log in started:
        assert (id_, data.name, threads) == ("abc", "digits", 3) and log == tmp_path / "abc" / "log" / "fork_server.log"


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({"platform": "local"}, True),
        ({"platform": "local", "reuseMode": True}, False),
        ({"platform": "remote"}, False),
        ([{"platform": "local"}], False),
        (None, False),
    ],
)
def test_whether_trials_are_local(monkeypatch: pytest.MonkeyPatch, service: Any, expected: bool) -> None:
    text = json.dumps({} if service is None else {"trainingService": service})
    monkeypatch.setattr("sys.argv", ["nni", "--exp_params", base64.b64encode(text.encode()).decode()])
    assert module.nni_compat.trials_are_local() == expected
