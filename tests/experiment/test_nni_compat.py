"""The mends of NNI. Each test of a trap fails when NNI no longer sets it, and the mend can go."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nni
import nni_node
import pytest

from nni_bayes_nas.experiment import nni_compat, nvml

NODE = Path(nni_node.__path__[0])
STUB = Path(__file__).parent / "stub_nvml"


def source(path: str) -> str:
    return (NODE / path).read_text()


def test_nni_is_the_version_that_is_mended() -> None:
    assert nni.__version__ == "3.0"


# ---- traps that are still set


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("rest_server/index.js", "app.listen(this.port);"),
        ("common/trial_keeper/task_scheduler/scheduler.js", "if (gpuNumber >= this.gpus.length)"),
        ("training_service/v3/compat.js", "this.v3.sendParameter(trialId, this.parameters.shift())"),
        ("core/nnimanager.js", "job.status === 'WAITING' || job.status === 'RUNNING'"),
        ("core/nnimanager.js", "this.currSubmittedTrialNum >= this.maxTrialNum"),
        ("core/tuner_command_channel.js", "if (commandType === 'PI') {"),
        ("core/tuner_command_channel.js", "}, 10000);"),
        ("core/nnimanager.js", "this.pollInterval = 0.5;"),
    ],
)
def test_the_trap_in_the_manager_is_still_there(path: str, text: str) -> None:
    assert text in source(path)


def test_the_traps_in_the_dispatcher_are_still_there() -> None:
    from nni.runtime import msg_dispatcher

    text = Path(msg_dispatcher.__file__).read_text()
    assert "The end of the recovered trial is ignored" in text
    assert "_pack_parameter(ids[0], '')" in text


def test_the_dispatchers_threads_end_when_they_are_told_to() -> None:
    """In a process of its own: the mend is of the module."""
    code = """if True:
        import sys, threading, time
        from nni.runtime.msg_dispatcher_base import MsgDispatcherBase
        if sys.argv[1] == "mended":
            from nni_bayes_nas.experiment.nni_compat import stop_at_once
            stop_at_once()
        dispatcher = MsgDispatcherBase.__new__(MsgDispatcherBase)
        dispatcher.stopping, dispatcher.worker_exceptions = False, []
        from nni.runtime import msg_dispatcher_base
        queue = msg_dispatcher_base.Queue()
        thread = threading.Thread(target=dispatcher.command_queue_worker, args=[queue])
        thread.start()
        time.sleep(0.2)
        began = time.monotonic()
        dispatcher.stopping = True
        thread.join()
        print(time.monotonic() - began)
    """
    mended, trap = (
        float(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("mended", "trap")
    )
    assert mended < 0.5 and trap > 2


def test_a_search_reports_through_the_trials_own_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    from nni.runtime import trial_command_channel as channels

    class Channel:
        def __init__(self) -> None:
            self.rows: list[object] = []

        def send_metric(self, **metric: object) -> None:
            self.rows.append(metric["value"])

    ours, theirs = Channel(), Channel()
    monkeypatch.setattr(channels, "_channel", ours)
    report = nni_compat.reporter("intermediate")
    # As nni/nas/execution/sequential.py does while a strategy runs.
    channels.set_default_trial_command_channel(theirs)  # type: ignore[arg-type]
    report({"default": 1.0})
    assert ours.rows == [{"default": 1.0}] and theirs.rows == []
    assert channels.get_default_trial_command_channel() is theirs  # type: ignore[comparison-overlap]


def test_nni_needs_pandas_only_through_json_tricks() -> None:
    code = (
        "import sys; from nni_bayes_nas.experiment.nni_compat import import_nni as i; n = i();"
        "assert 'pandas' not in sys.modules; print(n.__version__);"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "3.0", done.stderr
    plain = "import sys, nni; print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True).stdout.strip() == "True"


# ---- listening address


def test_loopback_binds_to_loopback(tmp_path: Path) -> None:
    script = tmp_path / "listen.js"
    script.write_text(
        "const net = require('net'); const http = require('http');\n"
        "const all = [s => s.listen(0), s => s.listen('0'), s => s.listen(0, () => 0), s => s.listen({port: 0}),\n"
        "  s => s.listen(0, undefined, () => 0), s => s.listen(0, '127.0.0.2')];\n"
        "for (const listen of all) { const s = http.createServer();\n"
        "  s.on('listening', () => { console.log(s.address().address); s.close(); }); listen(s); }\n"
    )
    env = {**os.environ, **nni_compat.loopback_environment()}
    done = subprocess.run([str(NODE / "node"), str(script)], env=env, capture_output=True, text=True, timeout=30)
    assert sorted(done.stdout.split()) == ["127.0.0.1"] * 5 + ["127.0.0.2"], done.stderr


def test_the_managers_times_are_mended(tmp_path: Path) -> None:
    """What node makes of files of those names, in the folder of that name and in another."""
    (tmp_path / "core").mkdir()
    poll = "const o = {m() { this.pollInterval = 0.5; return this.pollInterval; }}; console.log(o.m());"
    wait = "const f = (_, n) => n;\nconst n = f(() => {\n}, 10000);\nconsole.log(n, 'in 10 seconds');"
    texts = {"core/nnimanager.js": poll, "core/tuner_command_channel.js": wait, "nnimanager.js": poll}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    script = "for (const name of process.argv.slice(1)) require(name);"
    env = {**os.environ, **nni_compat.loopback_environment()}
    command = [str(NODE / "node"), "-e", script, *(str(tmp_path / name) for name in texts)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\n") == ["0.05", "50000 in 50 seconds", "0.5", ""], done.stderr


def test_loopback_environment_keeps_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_OPTIONS", "--max-http-header-size=9999")
    monkeypatch.setenv("NO_PROXY", "example.org")
    first = nni_compat.loopback_environment()
    assert first["NODE_OPTIONS"].startswith("--require ") and first["NODE_OPTIONS"].endswith("=9999")
    assert first["NO_PROXY"] == "example.org,localhost,127.0.0.1"
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    assert nni_compat.loopback_environment() == first


# ---- GPUs


@pytest.mark.parametrize(
    ("count", "hidden", "expected"),
    [
        *[(0, None, 0), (2, None, 2), (2, "1", 1), (2, "0,5", 1), (2, "", 0)],
        *[
            (2, "GPU-aa,GPU-bb", 2),
            (2, "GPU-bb-1", 1),
            (2, "GPU-zz", 0),
            (2, "GPU-", 0),
            (2, "-1", 0),
            (2, "MIG-aa", 1),
        ],
    ],
)
def test_visible_gpus(count: int, hidden: str | None, expected: int) -> None:
    env = {**os.environ, "PYTHONPATH": str(STUB), "STUB_GPUS": str(count)}
    env.pop("CUDA_VISIBLE_DEVICES", None)
    if hidden is not None:
        env["CUDA_VISIBLE_DEVICES"] = hidden
    code = "from nni_bayes_nas.experiment.nvml import visible_gpus as v; print(v())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr


def test_the_stub_answers_what_nnis_collector_asks() -> None:
    from nni.tools.nni_manager_scripts import collect_gpu_info

    asked = set(re.findall(r"\bnvml\w+", Path(collect_gpu_info.__file__).read_text()))
    assert asked <= set(re.findall(r"def (nvml\w+)", (STUB / "pynvml.py").read_text()))
    env = {**os.environ, "PYTHONPATH": str(STUB), "STUB_GPUS": "2"}
    command = [sys.executable, "-m", "nni.tools.nni_manager_scripts.collect_gpu_info", "--detail"]
    info = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert info["success"] and info["gpuNumber"] == 2 and "failures" not in info


def test_gpu_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert nvml.gpu_schedule(0, "auto") == nvml.gpu_schedule(2, "cpu") == {}
    assert nvml.gpu_schedule(2, "auto") == {"trial_gpu_number": 1, "use_active_gpu": True}
    assert nvml.gpu_schedule(1, "gpu")["max_trial_number_per_gpu"] == 2
    monkeypatch.setattr(nvml, "_gpu_uuids", lambda: ["GPU-aa-0", "GPU-bb-1", "GPU-cc-2", "GPU-dd-3"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert nvml.gpu_schedule(2, "auto")["gpu_indices"] == [1, 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-dd-3,GPU-bb")
    assert nvml.gpu_schedule(2, "auto")["gpu_indices"] == [3, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aa,MIG-bb")
    assert nvml.gpu_schedule(2, "auto") == {}


# ---- addresses


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("ws://localhost:8080/tuner", "http://localhost:8080/api/v1/nni"),
        ("ws://localhost:8080/secret/tuner", "http://localhost:8080/secret/api/v1/nni"),
        ("http://localhost:8080/env/local-env/ab12", "http://localhost:8080/api/v1/nni"),
        ("http://localhost:81/a/b/env/local-env/ab12", "http://localhost:81/a/b/api/v1/nni"),
        ("", None),
    ],
)
def test_manager_url(channel: str, expected: str | None) -> None:
    assert nni_compat._manager_url(channel) == expected


def test_experiment_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNI_LOG_DIRECTORY", raising=False)
    assert nni_compat.experiment_id() is None
    monkeypatch.setenv("NNI_LOG_DIRECTORY", "/somewhere/nni/abc123/log")
    assert nni_compat.experiment_id() == "abc123"
