"""A trial from its parameters to its result, without a manager."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, NumericsError, RunError
from nni_bayes_nas.experiment import trial
from nni_bayes_nas.experiment.record import read_json

HERE = Path(__file__).parent


def parameters(tmp_path: Path, kind: str) -> dict[str, Any]:
    return {
        "trial": "t", "kind": kind, "seed": 0, "output": str(tmp_path), "config": Config().to_dict(), "threads": 1,
        "code_directory": str(HERE),
    }  # fmt: skip


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a function as a kind of trial in a module that can be imported."""
    import sys
    import types

    def install(function: Any) -> str:
        module = types.ModuleType("kinds_of_the_test")
        module.function = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "kinds_of_the_test", module)
        return "kinds_of_the_test:function"

    for name in trial.THREAD_VARIABLES:
        monkeypatch.setenv(name, "9")
    return install


def test_a_result_is_given_again_not_computed_again(tmp_path: Path, kind: Any) -> None:
    calls: list[Any] = []

    def function(config: Config, values: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
        calls.append((config, directory))
        return {"default": 1.0, "pair": (1, 2)}

    values = parameters(tmp_path, kind(function))
    first = trial.run(values, tmp_path)
    assert first == trial.run(values, tmp_path) == {"default": 1.0, "pair": [1, 2]}
    assert calls == [(Config(), tmp_path)]
    # Another seed is another trial, whatever the folder says.
    trial.run({**values, "seed": 1}, tmp_path)
    assert len(calls) == 2


def test_threads_are_set_before_the_function_is_imported(tmp_path: Path, kind: Any) -> None:
    import os

    values = parameters(tmp_path, kind(lambda *_: {"default": float(os.environ["OMP_NUM_THREADS"])}))
    assert trial.run({**values, "threads": 2}, tmp_path)["default"] == 2.0


def test_subnormal_numbers_are_zero_in_a_trial_and_its_threads(tmp_path: Path, kind: Any) -> None:
    # What a prior drives to zero passes through them, and processors may be 70 times slower there.
    small = torch.full((4096,), 1e-40)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor knows no such mode")
    torch.set_flush_denormal(False)
    assert (small * 1).count_nonzero() == 4096

    def function(*_: Any) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(lambda: (small * 1).count_nonzero())
        return {"default": float((small * 1).count_nonzero() + later.result())}

    assert trial.run(parameters(tmp_path, kind(function)), tmp_path)["default"] == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_steps_look_for_no_library(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of an optimizer asks whether there is one, by NVML, whose library is looked for on every path."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    looked: list[Any] = []

    def missing(self: Any, name: str, *_: Any, **__: Any) -> None:
        looked.append(name)
        raise OSError

    monkeypatch.setattr("ctypes.CDLL.__init__", missing)

    def function(*_: Any) -> dict[str, Any]:
        looked.clear()
        torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).step()
        return {"default": float(len(looked))}

    assert function()["default"] > 0 and "nvidia-ml" in looked[0]
    assert trial.run(parameters(tmp_path, kind(function)), tmp_path)["default"] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_is_named(tmp_path: Path, kind: Any, bad: float) -> None:
    with pytest.raises(NumericsError, match=r"t\.terms\[1\]\.loss"):
        trial.run(parameters(tmp_path, kind(lambda *_: {"default": 1.0, "terms": [{}, {"loss": bad}]})), tmp_path)
    assert read_json(tmp_path / "result.json") is None


def test_a_result_needs_a_default(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(RunError, match="default"):
        trial.run(parameters(tmp_path, kind(lambda *_: {"accuracy": 1.0})), tmp_path)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean `search`"):
        trial.run(parameters(tmp_path, "serach"), tmp_path)


def test_started_by_hand() -> None:
    import os
    import subprocess
    import sys

    env = {key: value for key, value in os.environ.items() if not key.startswith("NNI_")}
    done = subprocess.run([sys.executable, "-m", "nni_bayes_nas", "trial"], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "started by NNI, not by hand" in done.stderr
    assert "nni-bayes-nas run" in done.stderr
    assert len(done.stderr.splitlines()) <= 3 and done.stdout == ""


def test_a_trial_that_lightning_ends_on_a_signal_has_failed(
    tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    def function(*_: Any) -> dict[str, Any]:
        raise SIGTERMException

    values = parameters(tmp_path, kind(function))
    monkeypatch.setattr(trial.signal, "signal", lambda *_: None)
    monkeypatch.setattr(trial.processes, "die_with_parent", lambda: None)
    monkeypatch.setattr(trial.nni_compat, "trial_parameters", lambda: values)
    assert trial.main() == 143
    error = read_json(tmp_path / "trials" / "t" / "error.json")
    assert error["message"] == "stopped by SIGTERM"
