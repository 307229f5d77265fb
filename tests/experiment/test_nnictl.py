"""Plain nnictl with examples/nnictl/digits.yml, in a clone, called from another folder."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from .conftest import HERE, TOY, Pipeline

pytestmark = [pytest.mark.nni, pytest.mark.slow]

ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent


def status(port: int) -> str | None:
    try:
        return str(requests.get(f"http://localhost:{port}/secret/api/v1/nni/check-status", timeout=5).json()["status"])
    except requests.RequestException:
        return None


def test_create_stop_resume(pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    undisturbed = pipeline()
    undisturbed.run()

    run = pipeline()
    clone = tmp_path / "clone"
    (clone / "examples" / "configs").mkdir(parents=True)
    shutil.copytree(ROOT / "examples" / "nnictl", clone / "examples" / "nnictl")
    # The shipped YAML as it is; the toy in place of the digits, for time, with a trial that is not done at the stop.
    gate = tmp_path / "gate"
    held = {**TOY["data"]["args"], "held": ["retrain-s0-rand0-seed0"], "gate": str(gate)}
    (clone / "examples" / "configs" / "demo-digits.yaml").write_text(yaml.safe_dump({**TOY, "data": {"args": held}}))
    shutil.copy(HERE / "toy_pipeline.py", clone / "examples" / "nnictl")
    (clone / ".venv").symlink_to(BIN.parent)
    run.output = clone / "runs" / "nnictl-digits"

    def nnictl(*arguments: str, tries: int = 1) -> str:
        line = f'eval "$({BIN}/nni-bayes-nas nnictl-env)" && {BIN}/nnictl {" ".join(arguments)}'
        done = subprocess.run(["bash", "-c", line], cwd="/", env=run.env, capture_output=True, text=True, timeout=120)
        if tries > 1 and done.returncode != 0 and "Create experiment failed" in done.stdout + done.stderr:
            return nnictl(*arguments, tries=tries - 1)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    port = ["--port", str(run.port), "--url_prefix", "secret"]
    # NNI gives its manager three seconds to answer, which a loaded machine may need.
    nnictl("create", "--config", str(clone / "examples/nnictl/digits.yml"), *port, tries=3)
    try:
        assert_closed_to_strangers(run.port)
        assert requests.get(f"http://127.0.0.1:{run.port}/api/v1/nni/check-status", timeout=5).status_code == 404
        run.until(lambda: any(e["status"] == "done" for n, e in run.ledger.items() if n.startswith("retrain")), 200)
        id_ = run.summary["experiment"]["id"]
        nnictl("stop", id_)
        assert status(run.port) is None
        finished = {name for name, entry in run.ledger.items() if entry["status"] == "done"}
        assert finished and "retrain-s0-rand0-seed0" in run.ledger.keys() - finished
        gate.touch()
        # nnictl resume has no --url_prefix: the address is loopback only, all the same.
        nnictl("resume", id_, "--port", str(run.port))
        url = f"http://localhost:{run.port}/api/v1/nni/check-status"
        run.until(lambda: requests.get(url, timeout=5).json()["status"] == "DONE", 240)
    finally:
        nnictl("stop", "--all")
    assert run.summary["status"] == "done" and (run.output / "report.html").exists()
    assert run.architectures() == undisturbed.architectures()
    records = run.records_in(Path(run.env["HOME"]) / "nni-experiments")
    # A trial that the stop met between its result and its end sends that result again; nothing else comes twice.
    assert all(value == values[0] for key, values in records.items() if key.endswith("FINAL") for value in values)
    assert all(len((run.output / "trials" / name / "starts.jsonl").read_text().splitlines()) == 1 for name in finished)


def assert_closed_to_strangers(port: int) -> None:
    """The port listens on loopback, and on nothing else; a machine with other addresses is asked by them, too."""
    listening = {c.laddr.ip for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}
    found = [a.address for all_ in psutil.net_if_addrs().values() for a in all_ if a.family == socket.AF_INET]
    for address in [address for address in found if not address.startswith("127.")]:
        with socket.socket() as probe:
            probe.settimeout(5)
            assert probe.connect_ex((address, port)) != 0, f"{address} lets strangers in"
