"""The command `search`: one search in this process leaves a run folder and a report."""

import json
from pathlib import Path

import pytest

from nni_bayes_nas.cli import main

SMALL = """
space: {name: chain, args: {width: 4, depth: 2}}
data: {limit: 200}
search: {epochs: 2, warmup_epochs: 1, lambdas: 3, random: 1}
"""


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
