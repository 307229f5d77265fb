"""The benchmark of one lambda for structure and weights: what it reads off rows."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import module, run, script_folder  # noqa: F401 (a fixture)

from nni_bayes_nas.config import Config


def row(arm: str, params: int, val: float, test: float, **more: Any) -> dict[str, Any]:
    head = {"arm": arm, "seed": 0, "cell": 0, "lambda": 0.1, "fraction": 0.0}
    return {**head, "params": params, "val_accuracy": val, "test_accuracy": test, **more}


ROWS = [
    row("reference", 1000, 98.0, 97.0),
    row("structure", 500, 97.8, 97.0),
    row("structure", 100, 97.6, 96.9, cell=1),
    row("weights", 250, 97.7, 96.5, fraction=0.75),
    row("joint", 100, 97.9, 96.6, fraction=0.9),
    row("joint", 50, 97.5, 96.5, fraction=0.95),
]


def test_the_smallest_network_that_validation_allows_counts() -> None:
    script = module("joint_tables")
    assert script.best(ROWS, "structure")["compression"] == pytest.approx(2)
    assert script.best(ROWS, "weights")["compression"] == pytest.approx(4)
    joint = script.best(ROWS, "joint")
    assert joint["compression"] == pytest.approx(10) and joint["test"] == pytest.approx(0.4)
    assert [target.value for target in script.targets(ROWS)] == pytest.approx([5.0, 2.5, 0.4])
    assert [target.holds for target in script.targets(ROWS)] == [True, True, False]
    assert [target.value for target in script.targets(ROWS[:1])] == [None, None, None]


def test_weights_that_are_zero_as_they_are_read_off_do_not_count_as_left() -> None:
    """Of 100 weights and 20 other parameters ten are zero already; then half are left."""
    script = module("joint")
    point = {"val_accuracy": 0.9, "test_accuracy": 0.8}
    curve = [
        {"fraction": 0.0, "kept": 90, "compression": 100 / 90, **point},
        {"fraction": 0.5, "kept": 50, "compression": 2.0, **point},
    ]
    found = {"lambda": 0.3, "curve": curve, "test_nll": 0.1, "test_ece": 0.01, "predictive": {"nll": 0.1}}
    rows = script._curve({"arm": "joint"}, {**found, "z_above_1": 40}, 120)
    assert [one["params"] for one in rows] == [110, 70] and rows[0]["z_above_1"] == 60


def test_separate_networks_are_paired_with_lambda_by_size() -> None:
    script = module("joint_tables")
    rows = [
        row("separate", params, 90.0, 90.0, cell=cell, **{"lambda": lam})
        for cell, params in ((0, 100), (1, 900), (2, 500))
        for lam in (0.1, 1.0, 3.0)
    ]
    assert [(one["cell"], one["lambda"]) for one in script.paired(rows)] == [(0, 3.0), (1, 0.1), (2, 1.0)]


def test_validation_chooses_what_is_drawn() -> None:
    names = ("compression", "val", "test")
    points = [dict(zip(names, row, strict=True)) for row in ((1, 0.2, 9), (2, 0.0, 8), (4, 0.1, 7), (8, 0.5, 0))]
    front = module("joint_figure").chosen(points)
    assert [point["compression"] for point in front] == [8, 4, 2]  # whole it is worse, though larger


@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu", "alone"])
def test_presets_are_configurations(preset: str) -> None:
    script = module("joint")
    runs = script.Runs(argparse.Namespace(preset=preset, seeds=2, data="digits", root=None))
    references = 1 if preset == "smoke" else 3
    beside = 0 if preset == "alone" else 5
    assert len({job.key for job in runs.first}) == 2 * (3 + references + beside)
    outcome = {"result": {"architectures": [{"choices": script.largest()}] * 2}}
    follow = [job.name for job in runs.follow(runs.first[0], outcome)]
    assert follow == [
        f"{name}{i}" for i in (0, 1) for name in ("train-s0-structure", "compress-s0-separate")[: 1 + (beside > 0)]
    ]
    for seed in range(2 if beside else 0):
        sizes = [runs.sizes["random", seed, i] for i in range(5)]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[-1]
    if preset != "smoke":  # other validation objects with every seed, the same ones in all arms
        assert all(f"s{job.config['data']['val_split']}-" in job.name for job in runs.first)
    for job in runs.first:
        trained_on = (job.config.get("compress") or {}).get("posterior_finetune_epochs")
        assert (trained_on is not None) == (job.name.endswith("-joint") and preset != "alone")
        assert Config.from_dict(job.config).experiment.device == ("gpu" if preset == "gpu" else "cpu")


def test_seconds_are_of_all_that_an_arm_takes() -> None:
    """The search counts for its cells and what is cut of them, once for a seed, a run of many lambda once, and a cell
    that was found twice, which is trained once, once."""
    script = module("joint_tables")
    rows: list[dict[str, Any]] = [{"arm": "search", "seed": seed, "job": "s", "seconds": 100.0} for seed in (0, 1)]
    for seed in (0, 1):
        for cell, job in ((0, "a"), (1, "b"), (2, "b")):
            for lam in (0.1, 1.0):
                head = {"arm": "separate", "seed": seed, "cell": cell, "job": job}
                rows.append({**head, "lambda": lam, "seconds": 10.0 + seed})
        rows.append({"arm": "joint", "seed": seed, "cell": 0, "job": "j", "lambda": 0.1, "seconds": 50.0})
    assert script.seconds(rows, "separate") == pytest.approx(121) and script.seconds(rows, "joint") == 50


@pytest.mark.slow
def test_one_lambda_for_structure_and_weights(tmp_path: Path) -> None:
    said, result = run("joint", tmp_path / "joint.json")
    arms = {row["arm"] for row in result["rows"]}
    assert arms == {
        *("reference", "structure", "weights", "random", "separate", "joint", "search"),
        "joint, trained on",
    }
    joint, further = ([row for row in result["rows"] if row["arm"] == arm] for arm in ("joint", "joint, trained on"))
    assert len(joint) == len(further) == 10 and {row["steps_after_search"] for row in joint} == {0}
    # The same networks, with time of their own.
    assert [row["params"] for row in joint if row["fraction"] == 0] == [
        row["params"] for row in further if row["fraction"] == 0
    ]
    assert 0 < joint[0]["seconds"] < further[0]["seconds"]
    assert (tmp_path / "joint.png").stat().st_size > 20_000
    assert all(target["value"] is not None for target in result["targets"][:2]) and "read off without a step" in said
