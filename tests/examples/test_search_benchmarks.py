"""The benchmarks of searches that a table or attacks judge, and of cells that are retrained in a stack."""

import argparse
import itertools
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmark_scripts import command, module, run, script_folder  # noqa: F401
from PIL import Image

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import build_space, drop_training_parts

FAKE: Any = SimpleNamespace(shape=(3, 64, 64), num_classes=10)
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
    # The best of eleven are better than random cells are in the mean, 75.
    for name in ("NNI's evolution, 12 epochs", "NNI's TPE, 12 epochs"):
        assert 75 < rows[name]["accuracy"] <= 88 and "none" not in rows[name]["arch"]
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
    arms = ("DARTS", "Dirichlet", "Gumbel", "random cells", "softmax, guarded")
    assert sorted(row["arm"] for row in rows) == [arm for arm in arms for _ in (0, 1)]
    for row in rows:
        # Of the 16 objects under FGSM PGD meets the first 8.
        assert all(8 * p <= 16 * f + 1e-9 for p, f in zip(row["pgd"], row["fgsm"], strict=True))
        assert len(row["damaged"]) == 5
        assert row["val"] >= 50 or row["more_epochs"] == 2
        assert ("gap" in row) == (row["arm"] != "random cells")
        for name in ("one_hot_attacked", "tuned_attacked", "tuned_damaged"):
            assert (len(row[name]) == 6) if "gap" in row else (name not in row)
    tests = [row for row in result["rows"] if "test" in row and "p" in row]
    assert len(tests) == 4 and all(row["p"] <= row["p_holm"] <= min(1.0, 4 * row["p"]) for row in tests)
    assert "edges missing" in said and "pgd" in said and "tuned_attacked" in said
    searched = [row for row in rows if "gap" in row]
    # Without damage the network is the one that is attacked; with it edges are missing.
    assert all(row["tuned_damaged"][0] == row["tuned_attacked"][0] for row in searched)
    assert any(row["tuned_damaged"][5] != row["tuned_damaged"][0] for row in searched)
    # An epoch of training more changes what the attack meets.
    assert any(row["tuned_attacked"] != row["one_hot_attacked"] for row in searched)


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
    assert [row["arm"] for row in rows].count("refined") == 1
    assert all(row["test_accuracy"] >= 0 and row["params"] > 0 for row in rows) and "random" in said
    assert run("cifar10_cells", tmp_path / "cells.json", 1, *options)[1]["rows"] == rows


@pytest.mark.slow
def test_the_presets_for_gpus_are_configurations() -> None:
    script = module("cifar10_cells")
    for preset, data in (("gpu", "cifar10"), ("imagenet", "image_folder")):
        options = argparse.Namespace(preset=preset, data=data, root="data")
        search = script.search(options, script.FIRST_SEED)
        assert Config.from_dict(search.config).search.epochs >= 25 and search.keep
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
