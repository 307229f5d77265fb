"""The run folder's files, and the processes named in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import environment, processes
from nni_bayes_nas.experiment.record import Record, read_json, refuse_other_run, write_json, write_text


def test_create_and_refuse(tmp_path: Path) -> None:
    config = Config.from_dict({"search": {"epochs": 7}})
    described = environment.describe("the command", tmp_path, 0, 2, 1)
    Record.create(tmp_path / "out", config, described)
    assert load_config(tmp_path / "out" / "config.yaml") == config
    assert read_json(tmp_path / "out" / "environment.json") == described
    assert described["command"] == "the command" and described["packages"]["nni"] == "3.0"
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="must not hold another run"):
        Record.create(tmp_path / "out", Config(), described)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_folder_where_a_run_only_began(tmp_path: Path) -> None:
    """Or where files have such names: neither way of going on is offered, for there is none."""
    write_text(tmp_path / "config.yaml", "seed: 0\n")
    with pytest.raises(ConfigError, match=r"the first files of one(?s:.)*remove them"):
        refuse_other_run(tmp_path)


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    """The lock is that of the process, and ends with it."""
    out = tmp_path / "out"
    code = "from nni_bayes_nas.experiment.processes import sole; from pathlib import Path; import sys\n"
    code += f"with sole(Path({str(out)!r})): print('has it', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "has it\n"
    with pytest.raises(ConfigError, match="another one does in"), processes.sole(out):
        pass
    other.kill()
    other.communicate()
    for _ in range(2):
        with processes.sole(out):
            with pytest.raises(ConfigError, match="one process at a time"), processes.sole(out):
                pass


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="must be a folder"):
        refuse_other_run(tmp_path / "out")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "\ud800")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_collect_metrics_takes_no_row_twice_and_drops_a_cut_line(tmp_path: Path) -> None:
    record = Record.create(tmp_path, Config(), {})
    for name, text in (("b", '{"epoch": 0}\n{"epoch": 1}\n{"epo'), ("a", '{"epoch": 5}\n')):
        record.trial_directory(name).mkdir(parents=True)
        (record.trial_directory(name) / "metrics.jsonl").write_text(text)
    for _ in range(2):
        record.collect_metrics(["b", "a", "not there"])
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert rows == [{"epoch": 0}, {"epoch": 1}, {"epoch": 5}]


def test_trial_error(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert record.trial_error("a") is None
    write_json(record.trial_directory("a") / "error.json", {"type": "ValueError", "message": "two\n lines"})
    assert record.trial_error("a") == "ValueError: two lines"


def test_kill_orphans_kills_only_whom_it_knows(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours, other = subprocess.Popen(sleeper), subprocess.Popen(sleeper)
    try:
        import psutil

        created = psutil.Process(ours.pid).create_time()
        write_json(tmp_path / "trials/ours/pid", {"pid": ours.pid, "created": created})
        # A pid that was reused: the start time does not fit.
        write_json(tmp_path / "trials/other/pid", {"pid": other.pid, "created": created - 100})
        assert processes.kill_orphans(tmp_path) == ["ours"]
        assert ours.wait(10) is not None and other.poll() is None
        assert processes.kill_orphans(tmp_path) == []
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    child = (
        "import time; from nni_bayes_nas.experiment.processes import die_with_parent as d; d();"
        "print(1, flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    import psutil

    orphan = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    assert psutil.wait_procs([orphan], timeout=10)[0]
