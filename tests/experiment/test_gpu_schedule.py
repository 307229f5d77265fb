"""NNI's real scheduler with NVML stubbed: each trial has a GPU of its own, and none waits for ever."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import TOY, Pipeline

pytestmark = [pytest.mark.nni, pytest.mark.slow]

STUB = Path(__file__).parent / "stub_nvml"


@pytest.mark.parametrize("gpus", [1, 2])
def test_each_trial_has_a_gpu_of_its_own(gpus: int, pipeline: Callable[..., Pipeline]) -> None:
    # One GPU is a case of its own: NNI 3.0 never schedules a trial that asks for the only one.
    values = {**TOY, "experiment": {"plan": "toy_pipeline:ToyPlan", "device": "gpu", "concurrency": 4}}
    run = pipeline(values, {"PYTHONPATH": str(STUB), "STUB_GPUS": str(gpus)})
    run.env.pop("CUDA_VISIBLE_DEVICES", None)
    run.run(timeout=300)
    spans = []
    for folder in (run.output / "trials").iterdir():
        (start,) = read(folder / "starts.jsonl")
        (end,) = read(folder / "ends.jsonl")
        spans.append((start["begin"], end["end"], start["gpu"]))
    assert len(spans) == 5
    assert {gpu for _, _, gpu in spans} == {str(index) for index in range(gpus)}
    overlaps = 0
    for i, (begin, end, gpu) in enumerate(spans):
        for other_begin, other_end, other_gpu in spans[i + 1 :]:
            if begin < other_end and other_begin < end:
                overlaps += 1
                assert gpu != other_gpu
        at_a_time = sum(other_begin <= begin < other_end for other_begin, other_end, _ in spans)
        assert at_a_time <= gpus
    assert (overlaps > 0) == (gpus > 1)


def test_the_same_configuration_runs_on_the_cpu(pipeline: Callable[..., Pipeline]) -> None:
    values = {**TOY, "experiment": {"plan": "toy_pipeline:ToyPlan", "device": "auto"}}
    run = pipeline(values, {"PYTHONPATH": str(STUB)})
    run.run(timeout=300)
    assert run.json("environment.json")["device"] == "cpu"
    assert run.summary["status"] == "done"


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]
