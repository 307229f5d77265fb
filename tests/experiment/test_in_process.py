"""The command `search`: one search in this process leaves a run folder and a report."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_bayes_nas.cli import main
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import in_process
from nni_bayes_nas.experiment.record import read_json, write_json

SMALL = """
space: {name: chain, args: {width: 4, depth: 2}}
data: {limit: 200}
search: {epochs: 2, warmup_epochs: 1, lambdas: 3, random: 1}
"""


def test_what_a_thread_takes_for_zero_is_set_before_there_are_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at a configuration computes, and threads that have begun keep their mode."""

    def looked(config: Config) -> None:
        raise ConfigError(f"{int((torch.full((8,), 1e-40) * 1).count_nonzero())} left")

    monkeypatch.setattr(in_process, "validate", looked)
    with pytest.raises(ConfigError, match=r"^0 left"):
        in_process.search_in_process(Config(), tmp_path / "run", False, "search")


def test_search_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    assert main(["search", "small.yaml", "--seed", "3"]) == 0
    output = tmp_path / "runs" / "small"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["status"] == "done" and summary["experiment"]["id"] is None
    assert [row["lambda"] for row in summary["architectures"] if row["origin"] == "lambda"] == [
        pytest.approx(lam) for lam in (1e-3, 1e-3**0.5, 1.0)
    ]
    assert summary["searches"][0]["seed"] == 3 and summary["searches"][0]["optimizer_steps_after_search"] == 0
    assert len(summary["curves"]["s0"]) == 33
    assert (output / "report.html").stat().st_size > 10_000
    assert "width: 4" in (output / "config.yaml").read_text()

    before = (output / "summary.json").read_bytes()
    assert main(["search", "small.yaml", "--seed", "3"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (output / "summary.json").read_bytes() == before
    assert main(["search", "small.yaml", "--seed", "3", "--resume"]) == 0
    assert json.loads((output / "summary.json").read_text()) == summary


def test_a_search_is_checked_whatever_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of files for other commands too."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    for plan in ("search_and_retrain", "compression", "architecture_prediction"):
        more = ["--set", f"experiment.plan={plan}", "--set", "space.args.num_classes=3"]
        assert main(["search", "small.yaml", *more]) == 2
        assert "10" in capsys.readouterr().err and not Path("runs").exists()


def test_interrupted_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    output = tmp_path / "runs" / "small"
    seen: list[str] = []

    def interrupt(row: dict[str, Any], title: str) -> None:
        seen.append(read_json(output / "summary.json")["status"])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "_print_row", interrupt)
        with pytest.raises(OSError, match="no space left"):
            main(["search", "small.yaml"])
    assert seen == ["running"]
    summary = read_json(output / "summary.json")
    assert summary["status"] == "failed" and summary["cause"] == "OSError: no space left"

    capsys.readouterr()
    assert main(["search", "small.yaml", "--seed", "9", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "`seed` was 0, got 9" in error and "nni-bayes-nas search" in error
    assert main(["search", "small.yaml", "--resume"]) == 0
    assert read_json(output / "summary.json")["status"] == "done"
    ledger = read_json(output / "state.json")["ledger"]
    assert ledger["search-s0"]["status"] == "done" and ledger["search-s0"]["attempts"] == 1
    assert {entry["status"] for name, entry in ledger.items() if name.startswith("retrain")} == {"waiting"}


def test_resume_of_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    write_json(tmp_path / "out" / "state.json", {"experiment": "abc", "ledger": {}})
    assert main(["search", "small.yaml", "--output", "out", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "NNI experiment abc" in error and "nni-bayes-nas run" in error and len(error.splitlines()) <= 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["state.json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_search_and_is_named(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "small.yaml").write_text(SMALL.replace("epochs: 2", "epochs: 500"))
    program = "from nni_bayes_nas.cli import main; raise SystemExit(main(['search', 'small.yaml', '--output', 'out']))"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell lets what it starts in the background ignore SIGINT, these tests too, and they their children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("epoch 0")
        process.send_signal(number)
        _, error = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert f"error: stopped by {number.name}" in error and "--resume" in error
    summary = read_json(tmp_path / "out" / "summary.json")
    assert (summary["status"], summary["cause"]) == ("failed", f"stopped by {number.name}")
