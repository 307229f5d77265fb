"""The benchmarks: their arithmetic on known answers, their jobs, and each script at its smallest size."""

import argparse
import importlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import build_space, drop_training_parts

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"
MODULES = ("contract", "front", "baselines", "workers", "control_results", "control_figure", "judged", "refinement")
SCRIPTS = ("complexity_control", "seed_table", "mnist_full", "nasbench201", "own_table", "robustness", "cifar10_cells")
FAKE: Any = SimpleNamespace(shape=(3, 64, 64), num_classes=10)
SPACE = {"stem": 8, "width": 4, "n_cells": 2, "n_nodes": 2}


def clean() -> None:
    for name in (*MODULES, *SCRIPTS):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module", autouse=True)
def script_folder() -> Iterator[None]:
    """The scripts find each other as they do when one of them is started: by their folder on the path."""
    sys.path.insert(0, str(FOLDER))
    clean()
    yield
    sys.path.remove(str(FOLDER))
    clean()


def module(name: str) -> Any:
    return importlib.import_module(name)


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
    assert not (tmp_path / "work").exists()


# -- the scripts -------------------------------------------------------------------------------------------------------


def command(name: str, output: Path, seeds: int = 1, *more: str) -> list[str]:
    options = ["--preset", "smoke", "--seeds", str(seeds), "--output", str(output)]
    return [sys.executable, str(FOLDER / f"{name}.py"), *options, *more]


def run(name: str, output: Path, seeds: int = 1, *more: str) -> tuple[str, dict[str, Any]]:
    done = subprocess.run(command(name, output, seeds, *more), text=True, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(output.read_text())
    assert {"schema", "benchmark", "preset", "command", "environment", "seconds", "rows", "targets"} <= set(result)
    assert (result["benchmark"], result["preset"], result["complete"]) == (name, "smoke", True)
    for target in result["targets"]:
        assert set(target) == {"name", "what", "value", "limit", "better", "holds"}
    return done.stdout, result


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


OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def table(path: Path) -> None:
    """All cells of NAS-Bench-201, their accuracy by count of convolutions."""
    lines = ["arch,params_M,c10_val_12,c10_test_200"]
    for a, b, c, d, e, f in itertools.product(OPERATIONS, repeat=6):
        size = sum({"nor_conv_3x3": 9, "nor_conv_1x1": 1}.get(op, 0) for op in (a, b, c, d, e, f))
        lines.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|,{size / 10},{50 + size / 2},{70 + size / 3}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_nasbench201(tmp_path: Path) -> None:
    table(tmp_path / "table.csv")
    output, options = tmp_path / "nb.json", ("--table", str(tmp_path / "table.csv"))
    said, result = run("nasbench201", output, 1, *options)
    arms = module("nasbench201").arms()
    rows = {row["arm"]: row for row in result["rows"]}
    assert set(arms) < set(rows) and "3x3 everywhere" in said and rows["3x3 everywhere"]["accuracy"] == 88.0
    for arm in arms:
        row = rows[arm]
        assert 70 <= row["accuracy"] <= 88 and 1 <= row["rank"] <= 15_625 and -1 <= row["spearman"] <= 1
        guarded = "auxiliary" in arms[arm]["args"]
        assert row["entropy"] <= 6 * math.log(4 if guarded else 5) + 1e-6
        assert ("none" in row["arch"]) <= (not guarded)
    for arm in ("refined", "refined, flat prior", "refined, parameters as prior"):
        row = rows[arm]
        assert row["predicted"] == 2 and 0 <= row["covered"] <= 2 and "none" not in row["arch"]
        assert all(0.5 <= p <= 1 and 0 <= share <= 1 and n > 0 for p, share, n in row["pairs"])
    # Its 16 candidates have at most one edge without a convolution, or one of 1x1.
    assert rows["refined, parameters as prior"]["accuracy"] >= 85.0
    assert run("nasbench201", output, 1, *options)[1]["rows"] == result["rows"]
    text = (tmp_path / "table.csv").read_text(encoding="utf-8")
    (tmp_path / "less.csv").write_text(text.replace("params_M", "size"), encoding="utf-8")
    for name, why in (("x.csv", "there is none at"), ("less.csv", "got 'params_M'")):
        wrong = command("nasbench201", output, 1, "--table", str(tmp_path / name))
        refused = subprocess.run(wrong, text=True, capture_output=True, check=False)
        assert refused.returncode == 2 and why in refused.stderr


@pytest.mark.slow
def test_own_table(tmp_path: Path) -> None:
    output = tmp_path / "own.json"
    said, result = run("own_table", output, 1)
    lines = (tmp_path / "own.csv").read_text(encoding="utf-8").splitlines()
    # Two nodes that keep two of two and of three edges, with two operations.
    assert len(lines) == 1 + 4 * 12 and lines[0] == "arch,params,val_accuracy,test_accuracy,test_accuracy_sd,seeds"
    known = {line.split(",")[0]: float(line.split(",")[3]) for line in lines[1:]}
    best = max(known.values())
    for row in result["rows"]:
        if "arch" in row:
            assert row["accuracy"] == known[row["arch"]]
            assert row["regret"] == pytest.approx(best - row["accuracy"], abs=1e-3)
    arms = {row["arm"] for row in result["rows"]}
    assert {"refined", "refined, flat prior", "refined, parameters as prior", "most parameters"} < arms
    assert "mean of all cells" in said and {target["name"] for target in result["targets"]} == {"2c"}
    before = (tmp_path / "own.jobs.jsonl").read_text(encoding="utf-8")
    assert run("own_table", output, 1)[1]["rows"] == result["rows"]
    assert (tmp_path / "own.jobs.jsonl").read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_robustness(tmp_path: Path) -> None:
    said, result = run("robustness", tmp_path / "robustness.json", 2)
    rows = [row for row in result["rows"] if "arm" in row]
    arms = ("DARTS", "Dirichlet", "Gumbel", "random cells")
    assert sorted(row["arm"] for row in rows) == [arm for arm in arms for _ in (0, 1)]
    for row in rows:
        assert all(p <= f + 1e-9 for p, f in zip(row["pgd"], row["fgsm"], strict=True)) and len(row["damaged"]) == 4
        assert ("gap" in row) == (row["arm"] != "random cells")
    tests = [row for row in result["rows"] if "test" in row and "p" in row]
    assert len(tests) == 4 and all(row["p"] <= row["p_holm"] <= min(1.0, 4 * row["p"]) for row in tests)
    assert "edges missing" in said and "pgd" in said


def test_holms_correction_by_hand() -> None:
    """Two seeds of two arms: the smallest p times four, the others no less than the one before."""
    rows = []
    for seed in range(4):
        for arm, shift in (("DARTS", 0.0), ("Dirichlet", 0.1)):
            values = [0.5 + shift + 0.01 * seed * (1 + shift), 0.4 + shift * (-1) ** seed]
            gap = 0.3 - shift + 0.001 * seed * (1 + shift)
            rows.append({"arm": arm, "seed": seed, "fgsm": values, "damaged": [0.5] * 3, "gap": gap})
    tests = {row["test"]: row for row in module("robustness").compared(rows)}
    assert tests["edges missing"]["p"] == 1.0 and tests["FGSM at .2"]["p"] == pytest.approx(0.5)
    ordered = sorted(tests.values(), key=lambda row: row["p"])
    assert ordered[0]["p_holm"] == pytest.approx(4 * ordered[0]["p"]) and ordered[0]["p"] < 1e-3
    assert ordered[1]["p_holm"] == pytest.approx(max(3 * ordered[1]["p"], ordered[0]["p_holm"]))
    assert [row["p_holm"] for row in ordered] == sorted(row["p_holm"] for row in ordered)
    assert module("robustness").compared(rows[:2]) == []


@pytest.mark.slow
def test_cifar10_cells_on_an_image_folder(tmp_path: Path) -> None:
    """The way of the preset for ImageNet, on images made here."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(150):
            pixels = generator.integers(0, 128, (20, 24, 3)) + (128 if name == "b" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    options = ("--data", "image_folder", "--root", str(tmp_path / "images"))
    said, result = run("cifar10_cells", tmp_path / "cells.json", 1, *options)
    rows = result["rows"]
    assert [row["arm"] for row in rows].count("random") == 5 and [row["arm"] for row in rows].count("searched") == 1
    assert all(row["test_accuracy"] >= 0 and row["params"] > 0 for row in rows) and "random" in said
    assert run("cifar10_cells", tmp_path / "cells.json", 1, *options)[1]["rows"] == rows


@pytest.mark.slow
def test_the_presets_for_gpus_are_configurations() -> None:
    script = module("cifar10_cells")
    for preset, data in (("gpu", "cifar10"), ("imagenet", "image_folder")):
        options = argparse.Namespace(preset=preset, data=data, root="data")
        search = script.search(options, script.FIRST_SEED)
        assert Config.from_dict(search.config).search.random == 5 and search.keep
        space = build_space(Config.from_dict(search.config), FAKE, 0)
        choices = {k: u.values[:1] if getattr(u, "n_chosen", 0) else u.values[4] for k, u in space.simplify().items()}
        trained = script.training(options, "x", 0, choices)
        retrain = Config.from_dict(trained.config).retrain
        assert retrain.epochs >= 250 and retrain.space["n_cells"] == 14
        network = Architecture(choices).build(build_space(Config.from_dict(trained.config), FAKE, 0, retraining=True))
        drop_training_parts(network)
        assert abs(count_parameters(network) / script.PRESETS[preset].size - 1) < 0.1


def test_welchs_interval_by_hand() -> None:
    found = module("cifar10_cells").difference([1.0, 3.0], [0.0, 0.0, 0.0])
    # Standard error 1 with one degree of freedom: the quantile is 12.706.
    assert found["mean"] == 2.0 and found["half_width"] == pytest.approx(12.7062, rel=1e-4)
    assert module("cifar10_cells").difference([1.0], [0.0, 1.0]) is None
