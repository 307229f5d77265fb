"""What ``run`` refuses before anything is spent: rule, value, remedy, and nothing written."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nni_bayes_nas.config import Config, config_to_yaml
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment import launch, nni_compat, nvml, processes, runner
from nni_bayes_nas.experiment.record import read_json, write_json, write_text
from nni_bayes_nas.experiment.resources import Resources
from nni_bayes_nas.experiment.runner import run

from .conftest import free_port


def config(**experiment: Any) -> Config:
    return Config.from_dict({"experiment": {"device": "cpu", "port": free_port(), **experiment}})


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def refused(tmp_path: Path, match: str, configuration: Config, **options: Any) -> None:
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=match) as caught:
        run(configuration, tmp_path / "out", command="cmd", code_directory=tmp_path, **options)
    assert len(str(caught.value).splitlines()) <= 3
    assert before == sorted(str(path) for path in tmp_path.rglob("*"))


def test_port_in_use(tmp_path: Path, taken: int) -> None:
    refused(tmp_path, rf"{taken} is in use\nport \d+ is free", config(port=taken))


def test_the_port_that_is_named_is_free(taken: int) -> None:
    with pytest.raises(ConfigError) as caught:
        launch.check_port(taken)
    launch.check_port(int(str(caught.value).rsplit("=", 1)[1]))


def test_another_run(tmp_path: Path) -> None:
    write_json(tmp_path / "out/summary.json", {})
    refused(tmp_path, "must not hold another run", config())


def test_resume_of_nothing(tmp_path: Path) -> None:
    refused(tmp_path, "--resume needs the folder of a run", config(), resume=True)


def test_resume_with_another_configuration(tmp_path: Path) -> None:
    write_text(tmp_path / "out/config.yaml", config_to_yaml(config()))
    write_json(tmp_path / "out/state.json", {"experiment": "abc"})
    other = Config.from_dict({"search": {"epochs": 77}, "experiment": {"device": "cpu"}})
    refused(tmp_path, "`search.epochs` was 30, got 77", other, resume=True)


def test_resume_without_nnis_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_compat, "manifest", lambda id_: None)
    write_text(tmp_path / "out/config.yaml", config_to_yaml(config()))
    write_json(tmp_path / "out/state.json", {"experiment": "abc"})
    refused(tmp_path, "NNI's database of experiment abc", config(), resume=True)


def test_a_folder_in_which_another_runner_works(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with processes.sole(tmp_path / "out"):
        refused(tmp_path, "another one does", config())


def test_what_is_anothers_is_left_alone(tmp_path: Path) -> None:
    """A manager that finds another experiment in its folder neither stops its processes nor marks it as failed."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    who = {"pid": other.pid, "created": psutil.Process(other.pid).create_time()}
    write_json(tmp_path / "state.json", {"experiment": "theirs", "dispatcher": who})
    write_json(tmp_path / "summary.json", {"status": "running"})
    write_json(tmp_path / "trials/search-s0/pid", who)

    def manager(id_: str) -> launch.Manager:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return launch.Manager(id_, free_port(), "", psutil.Process(child.pid), child)

    manager("ours").stop(tmp_path)
    runner._mark_failed(tmp_path, "ours", "x")
    assert other.poll() is None and read_json(tmp_path / "summary.json") == {"status": "running"}
    manager("theirs").stop(tmp_path)
    runner._mark_failed(tmp_path, "theirs", "x")
    assert other.poll() is not None and read_json(tmp_path / "summary.json") == {"status": "failed", "cause": "x"}


def test_resume_of_a_finished_run_stops_the_manager_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the runner died before the end, nobody else would."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    left = launch.Manager("abc", free_port(), "", psutil.Process(child.pid), child)
    monkeypatch.setattr(launch, "attach", lambda id_: left if id_ == "abc" else None)
    write_text(tmp_path / "out/config.yaml", config_to_yaml(config()))
    write_json(tmp_path / "out/state.json", {"experiment": "abc", "finished": True})
    write_json(tmp_path / "out/summary.json", {"status": "done"})
    write_text(tmp_path / "out/report.html", "x")
    assert run(config(), tmp_path / "out", resume=True) == 0
    assert child.poll() is not None


def test_nobody_who_reads_is_no_reason_to_leave_a_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = launch.Manager("abc", free_port(), "", psutil.Process(child.pid), child)
    monkeypatch.setattr(launch, "start", lambda *args: started)
    monkeypatch.setattr(runner, "checked", lambda config: config)

    def broken(*args: Any) -> None:
        raise BrokenPipeError("nobody reads")

    monkeypatch.setattr(runner, "_watch", broken)
    with pytest.raises(RunError, match=r"BrokenPipeError: nobody reads; go on with: .* --resume"):
        run(config(), tmp_path / "out")
    assert child.poll() is not None


def test_gpu_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "visible_gpus", lambda: 0)
    refused(tmp_path, "`experiment.device` gpu needs a GPU", config(device="gpu"))


def test_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "visible_gpus", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(tmp_path, "needs a GPU that torch can use", config(device="gpu"))


def test_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_bayes_nas.experiment.resources._cores", lambda: 8)
    monkeypatch.setattr(nvml, "visible_gpus", lambda: 3)
    choose = Resources.choose
    assert choose(config(device="auto").experiment) == Resources(gpus=3, concurrency=3, threads=2)
    assert choose(config(device="auto", concurrency=9).experiment).concurrency == 3
    assert choose(config().experiment) == Resources(gpus=0, concurrency=2, threads=4)
    assert choose(config(concurrency=16).experiment) == Resources(gpus=0, concurrency=16, threads=1)
    monkeypatch.setattr(nvml, "visible_gpus", lambda: 0)
    assert choose(config(device="auto", threads=5).experiment) == Resources(gpus=0, concurrency=2, threads=5)


def test_what_does_not_come_about_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_gpu_uuids", lambda: ["GPU-aa-0"])
    monkeypatch.delenv("SDK_PROCESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")

    def notes(**experiment: Any) -> list[str]:
        settings = config(**experiment).experiment
        return Resources.choose(settings).notes(settings)

    assert notes(device="auto") == ["CUDA_VISIBLE_DEVICES=5 names none of 1 GPU(s): the run is on the CPU"]
    assert notes() == notes(concurrency=4) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert notes(device="auto", concurrency=4) == ["experiment.concurrency 4 is more than 1 GPU(s) can have: 1"]
    assert notes(device="auto", concurrency=1) == notes(device="auto") == []


def test_small_networks_are_predicted_on_the_cpu() -> None:
    """As many trials at a time as there are cores, on machines with a GPU too; cells are searched there."""

    def device(**sections: Any) -> str:
        return runner.on_its_device(Config.from_dict(sections)).experiment.device

    plan = {"plan": "architecture_prediction"}
    assert device(experiment=plan) == "cpu" and device() == "auto"
    assert device(experiment=plan, predict={"cells": 3}) == "auto"
    assert device(experiment={**plan, "device": "gpu"}) == "gpu"


def test_mig_devices_are_used_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_gpu_uuids", lambda: ["GPU-aa-0", "GPU-bb-1"])
    monkeypatch.delenv("SDK_PROCESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aa,MIG-bb")
    assert Resources.choose(config(device="auto", concurrency=2).experiment).concurrency == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb,GPU-aa")
    assert Resources.choose(config(device="auto").experiment).concurrency == 2


def test_a_manager_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        began = time.monotonic()
        launch.Manager("id", 1, "prefix", psutil.Process(child.pid), child).stop(tmp_path, timeout=1.0)
        assert time.monotonic() - began < 10
        assert child.poll() == -signal.SIGKILL


STOPPED_WHILE_LOADING = """
import signal
import sys
from nni_bayes_nas.cli import main


def load():
    signal.raise_signal(signal.SIGINT)
    return [], []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
STOPPED_WHILE_STARTING = """
import signal
import sys
from nni.experiment import launcher
from nni_bayes_nas.cli import main

check = launcher._check_rest_server


def interrupted(*args, **options):
    signal.raise_signal(signal.SIGINT)
    check(*args, **options)


launcher._check_rest_server = interrupted
sys.exit(main(sys.argv[1:]))
"""


def stopped(folder: Path, script: str, text: str) -> str:
    """What a run says whose process gets SIGINT at some time before it has begun."""
    write_text(folder / "stopped.py", script)
    write_text(folder / "c.yaml", text)
    command = [sys.executable, "stopped.py", "run", "c.yaml", "--output", "out"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


def test_a_stop_while_data_are_loaded_is_no_mistake_in_them(tmp_path: Path) -> None:
    said = stopped(tmp_path, STOPPED_WHILE_LOADING, "data: {name: 'stopped:load'}\nexperiment: {device: cpu}\n")
    assert said == "error: stopped before the experiment began; start it again"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.nni
def test_a_stop_while_the_manager_starts_leaves_none(tmp_path: Path) -> None:
    text = f"search: {{epochs: 4}}\nexperiment: {{device: cpu, port: {free_port()}}}\n"
    assert "stopped before the experiment began" in stopped(tmp_path, STOPPED_WHILE_STARTING, text)
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]


def test_what_a_death_may_cost() -> None:
    # In the worst case the manager is asked for its status just before we see the death.
    worst = 2 * runner.POLL + max(runner.STATUS_LIMIT, runner.DEATH_LIMIT) + runner.DEATH_STOP_LIMIT
    assert worst <= 50
