"""The benchmarks: their arithmetic on known answers, their jobs, and each script at its smallest size."""

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import FOLDER, command, module, run, script_folder  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.experiment.environment import cpu_model, git_commit

SPACE = {"stem": 8, "width": 4, "n_cells": 2, "n_nodes": 2}


# -- fronts ------------------------------------------------------------------------------------------------------------


def box() -> Any:
    return module("front").Reference(100, 10_000, 0.5)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(100, 1.0)], 1.0),  # the smallest size without an error: the whole box
        ([(10_000, 1.0)], 0.0),  # the reference size adds nothing
        ([(100, 0.5)], 0.0),  # nor does the reference accuracy
        ([(100, 0.4), (1_000, 1.0)], 0.5),  # half of the log axis
        ([(100, 0.75), (1_000, 1.0)], 0.75),
        ([(100, 0.75), (1_000, 0.7)], 0.5),  # dominated
        ([(10, 1.0)], 1.0),  # smaller than the box
        ([(20_000, 1.0)], 0.0),  # larger than the box
        ([], 0.0),
    ],
)
def test_hypervolume(points: list[tuple[float, float]], expected: float) -> None:
    front = module("front")
    assert front.hypervolume([front.Point(*p) for p in points], box()) == pytest.approx(expected)


networks = st.lists(
    st.tuples(st.integers(50, 20_000), st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=8,
    unique_by=lambda n: n[0],
)


@given(networks)
def test_fronts_chosen_by_validation_cannot_beat_hindsight(drawn: list[tuple[int, float, float]]) -> None:
    front = module("front")
    points = [front.Point(size, accuracy) for size, accuracy, _ in drawn]
    full = front.hypervolume(points, box())
    assert front.chosen_hypervolume(points, [v for _, _, v in drawn], box()) <= full + 1e-9
    assert front.chosen_hypervolume(points, [p.accuracy for p in points], box()) == pytest.approx(full, abs=1e-9)
    assert front.hypervolume(points[1:], box()) <= full + 1e-9


def test_strata_share_the_log_axis() -> None:
    slices = module("front").strata(100, 10_000, 4)
    assert [round(low) for low, _ in slices] == [100, 316, 1000, 3162]
    assert slices[-1][1] > 10_000


def test_paired_difference() -> None:
    difference = module("front").paired([3.0, 5.0, 7.0], [1.0, 1.0, 1.0])
    assert (difference.mean, difference.sd, difference.n) == (4.0, 2.0, 3)
    assert difference.se == pytest.approx(2 / math.sqrt(3))


def test_mean_front_needs_all_seeds() -> None:
    front, figure = module("front"), module("control_figure")
    seeds = [[front.Point(100, 0.8)], [front.Point(200, 0.6), front.Point(300, 0.9)]]
    values = figure.mean_front(seeds, [100, 250, 300])
    assert math.isnan(values[0]) and values[1:].tolist() == pytest.approx([0.7, 0.85])


# -- baselines ---------------------------------------------------------------------------------------------------------


def test_random_architectures_fill_the_strata() -> None:
    """Every round visits each stratum once, a longer list begins with the shorter one, none comes twice."""
    cells = module("baselines").Cells(SPACE)
    slices = module("front").strata(*cells.bounds, 4)
    drawn = cells.random(8, 4, seed=3)
    sizes = [cells.params(choices) for choices in drawn]
    for four in (sizes[:4], sizes[4:]):
        assert all(sum(low <= size < high for size in four) == 1 for low, high in slices)
    assert cells.random(4, 4, seed=3) == drawn[:4] and cells.random(4, 4, seed=4) != drawn[:4]
    assert len({Architecture(choices).key for choices in drawn}) == 8


def test_widths_of_the_fixed_cell_have_the_sizes_of_the_strata() -> None:
    baselines = module("baselines")
    cells = baselines.Cells({**SPACE, "width": 12})
    fixed = cells.uniform(baselines.FIXED_OPERATION)
    for width, (low, high) in zip(cells.widths(3), module("front").strata(*cells.bounds, 3), strict=True):
        assert low < cells.params(fixed, width) < high


def test_too_many_random_architectures_are_refused() -> None:
    cells = module("baselines").Cells({**SPACE, "n_cells": 1, "n_nodes": 1})
    with pytest.raises(ValueError, match="no more than"):
        cells.random(1000, 2, seed=0)


# -- what follows from outcomes ----------------------------------------------------------------------------------------


def test_trainings_are_filled_up_evenly() -> None:
    control = module("complexity_control")
    assert control.fill(20, 20) == [] and control.fill(25, 20) == []
    assert control.fill(3, 5) == [(0, 1), (2, 1)]
    assert control.fill(2, 5) == [(0, 1), (1, 1), (0, 2)]
    assert control.evenly(22, 8) == [0, 3, 6, 9, 12, 15, 18, 21] and control.middles(22, 4) == [3, 8, 13, 18]
    assert control.within(10.0, [4, 4, 4]) == 2 and control.within(1.0, [4]) == 1


def test_decay_counts_standard_errors() -> None:
    results = module("control_results")
    epochs = [{"val_accuracy_lambda0": a, "val_accuracy_lambda1": b} for a, b in ((0.5, 0.9), (0.9, 0.9), (0.87, 0.95))]
    # One binomial standard error of 0.9 with 100 objects is 0.03.
    assert results.decay({"epochs": epochs}, 100) == pytest.approx([1.0, 0.0])


def test_sizes_that_grow_are_found() -> None:
    results = module("control_results")
    assert results.growth([5, 5, 3, 1]) == 0 and results.growth([5, 3, 4, 1]) == 1 and results.growth([5]) == 0
    assert results.coarse(list(range(22))) == [0, 3, 6, 9, 12, 15, 18, 21] and results.coarse([4, 2]) == [4, 2]


def test_checkpoints_of_the_schedule() -> None:
    table = module("seed_table")
    assert table.checkpoints(100) == [29, 49, 69, 99] and table.checkpoints(10) == [2, 4, 6, 9]


def test_a_target_holds_by_its_direction() -> None:
    target = module("contract").Target
    assert target("a", "", 1.0, 1.0, "lower").holds and target("a", "", 1.0, 1.0, "higher").holds
    assert not target("a", "", 1.1, 1.0, "lower").holds and not target("a", "", None, 1.0, "lower").holds


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_finished_jobs_are_remembered(tmp_path: Path) -> None:
    """By all that decides their outcome, and without the line that a kill cut off."""
    workers = module("workers")
    job = workers.Job("one", "search", {"seed": 1}, {"seed": 0}, order=(1,))
    store = workers.Store(tmp_path / "out.json")
    store.add(job, {"seconds": 1.0})
    with store.path.open("a") as file:
        file.write('{"key": "cut')
    again = workers.Store(tmp_path / "out.json")
    again.add(workers.Job("two", "search", {"seed": 2}, {"seed": 0}), {"seconds": 1.0})
    assert [row["name"] for row in workers.Store(tmp_path / "out.json").rows.values()] == ["one", "two"]
    assert workers.Job("renamed", "search", {"seed": 1}, {"seed": 0}).key == job.key
    assert workers.Job("one", "search", {"seed": 1}, {"seed": 1}).key != job.key
    # A default that is spelled out changes nothing; another value does.
    spelled = {"seed": 1, "strategy": {"args": {"complexity": "target"}}}
    assert workers.Job("one", "search", spelled, {"seed": 0}).key == job.key
    trained = workers.Job("one", "retrain", spelled, {"seed": 0, "trial": "one"}).key
    spelled["strategy"] = {"args": {"complexity": "penalty"}}
    assert workers.Job("two", "retrain", spelled, {"seed": 0, "trial": "two"}).key == trained
    assert workers.Job("two", "retrain", {**spelled, "retrain": {"epochs": 3}}, {"seed": 0}).key != trained
    assert workers.Job("one", "search", spelled, {"seed": 0}).key != job.key


def test_where_the_data_lie_is_no_part_of_a_job() -> None:
    """A benchmark goes on wherever it has them: jobs of one machine serve another."""
    workers = module("workers")

    def key(root: str, **more: Any) -> str:
        section = {"name": "mnist", "root": root, **more}
        config = {"data": section, "predict": {"sources": [section]}}
        keys = [workers.Job("x", kind, config, {"seed": 0}).key for kind in ("search", "bank")]
        return " ".join(keys)

    assert key("/a") == key("/b", download=True)
    one, other = key("/a").split(), key("/a", val_fraction=0.3).split()
    assert one[0] != other[0] and one[1] != other[1]


@pytest.mark.slow
def test_jobs_follow_fail_and_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_jobs.py").write_text(
        "import os, pathlib\n"
        "def work(config, parameters, directory, report):\n"
        "    with open(parameters['log'], 'a') as file: file.write(parameters['task'] + '\\n')\n"
        "    if parameters['task'] == 'bad' and not pathlib.Path(parameters['log']).with_name('mended').exists():\n"
        "        raise ValueError('broken')\n"
        "    return {'default': 1.0, 'threads': os.environ['OMP_NUM_THREADS']}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workers, log = module("workers"), tmp_path / "log"

    def job(name: str) -> Any:
        return workers.Job(name, "toy_jobs:work", {}, {"task": name, "log": str(log)}, order=(len(name),))

    def run() -> dict[str, Any]:
        store = workers.Store(tmp_path / "out.json")
        with workers.Workers(store, tmp_path / "work", log=lambda line: None) as pool:
            outcomes: dict[str, Any] = pool.run(
                [job("a"), job("bad")], lambda done, _: [job("follows")] if done.name == "a" else []
            )
        return outcomes

    first = run()
    assert first["bad"] == {"error": "ValueError: broken"} and first["a"]["result"]["threads"] == "1"
    (tmp_path / "mended").touch()
    second = run()
    assert set(second) == {"a", "bad", "follows"} and "error" not in second["bad"]
    assert sorted(log.read_text().split()) == ["a", "bad", "bad", "follows"]
    # By which code, on which machine.
    (made,) = module("contract")._made(tmp_path / "out.json")
    assert made == {"commit": git_commit(FOLDER), "cpu": cpu_model(), "jobs": 3}
    assert not (tmp_path / "work").exists()


# -- the scripts -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_complexity_control(tmp_path: Path) -> None:
    output = tmp_path / "control.json"
    _, result = run("complexity_control", output)
    assert {target["name"].split()[0] for target in result["targets"]} == {"3a", "3b", "3c", "3d", "3e"}
    assert all(target["value"] is not None for target in result["targets"])
    fronts = {row["arm"]: row for row in result["rows"] if row["kind"] == "front"}
    assert set(fronts) == set(module("control_results").ARMS)
    assert fronts["hyper"]["trainings"] == fronts["random"]["trainings"] == 4
    searches = [row for row in result["rows"] if row["kind"] == "search"]
    assert len(searches) == 6 and len({row["steps"] for row in searches}) == 1
    assert all(row["optimizer_steps_after_search"] == 0 for row in searches)
    assert output.with_suffix(".png").stat().st_size > 10_000
    again, repeated = run("complexity_control", output)
    assert "score" not in again, "what is finished is not run again"
    assert repeated["rows"] == result["rows"]


@pytest.mark.slow
def test_seed_table_goes_on_after_a_kill(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    jobs = output.with_suffix(".jobs.jsonl")
    process = subprocess.Popen(command("seed_table", output), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (jobs.exists() and jobs.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = jobs.read_text().splitlines()[:2]
    said, result = run("seed_table", output)
    assert jobs.read_text().splitlines()[:2] == finished
    assert len({json.loads(line)["key"] for line in jobs.read_text().splitlines()}) == 10
    assert len(result["rows"]) == 16 and all(len(row["precision"]) == 4 for row in result["rows"])
    assert said.count("DARTS + L1") == 8 and "99.24" in said
    assert result["targets"][0]["holds"]


@pytest.mark.slow
def test_mnist_full(tmp_path: Path) -> None:
    _, result = run("mnist_full", tmp_path / "full.json")
    sizes = {row["network"]: row["params"] for row in result["rows"]}
    assert sizes["small"] <= 0.25 * sizes["large"]
    assert {target["name"].split()[0] for target in result["targets"]} == {"5"}


@pytest.mark.slow
def test_replicas(tmp_path: Path) -> None:
    said, result = run("replicas", tmp_path / "replicas.json", seeds=2)
    (row,) = result["rows"]
    assert set(row["seconds"]) == set(row["scores"]) == {"side by side", "two groups", "one by one", "two at a time"}
    assert all(len(scores) == 2 for scores in row["scores"].values()) and min(row["seconds"].values()) > 0
    # The same seeds by themselves, twice.
    assert row["scores"]["one by one"] == pytest.approx(row["scores"]["two at a time"], abs=0.05)
    assert "side by side / one by one" in said and "two groups / one by one" in said
    assert run("replicas", tmp_path / "replicas.json", seeds=2)[1]["rows"] == [row]
    refused = subprocess.run(command("replicas", tmp_path / "x.json"), text=True, capture_output=True, check=False)
    assert refused.returncode == 1 and "at least 2 searches" in refused.stderr
