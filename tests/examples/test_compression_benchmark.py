"""The benchmark of compression: what it reads off rows, its presets, and the whole at its smallest size."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import module, run, script_folder  # noqa: F401 (a fixture)

from nni_bayes_nas.config import Config


def row(lam: float, seed: int, val: list[float], test: list[float], arm: str = "a") -> dict[str, Any]:
    fractions = (0.0, 0.5, 0.9)
    points = zip(fractions, val, test, strict=True)
    curve = [{"fraction": f, "kept": 10, "val": v, "test": t, "tuned_test": t - 1} for f, v, t in points]
    return {"arm": arm, "hypernet": "constant", "lambda": lam, "seed": seed, "curve": curve, "kept": 100 * (1 + seed)}


ROWS = [
    row(0.1, 0, [2.0, 3.0, 9.0], [2.0, 3.0, 7.0]),
    row(0.1, 1, [2.0, 3.0, 9.0], [3.0, 4.0, 9.0]),
    row(1.0, 0, [3.0, 3.0, 4.0], [3.0, 3.5, 8.0]),
    {"arm": "a", "hypernet": "constant", "lambda": 1.0, "seed": 1, "error": "out of memory"},
]


def test_lambda_is_chosen_by_validation() -> None:
    curves = module("compression_rows").Curves(ROWS, "a")
    assert curves.best(0.0) == (0.1, 2.5)
    # On test data .1 would have been as good.
    assert curves.best(0.9) == (1.0, 8.0)
    assert curves.best(0.7) is None and curves.lambdas == [0.1, 1.0]
    assert curves.mean_of(0.1, "kept") == 150 and curves.mean_of(0.1, "objective") is None
    assert module("compression_rows").Curves(ROWS, "a", "mlp").best(0.0) is None


def test_what_can_go_ends_before_the_first_share_that_costs_more() -> None:
    curves = module("compression_rows").Curves(ROWS, "a")
    assert curves.removable(0.1, 1.0) == 0.5 and curves.removable(0.1, 0.9) == 0.0
    assert curves.removable(0.1, 6.0) == 0.9
    # Lambda 1 has 3 whole, 3.5 and 8, and the best whole network 2.5: what is lost is lost of the best, or of its own.
    assert curves.removable(1.0, 0.5) == 0.0 and curves.removable(1.0, 1.0) == 0.5
    assert curves.removable(1.0, 0.5, own=True) == 0.5 and curves.removable(1.0, 0.4, own=True) == 0.0


def evidence_row(arm: str, kind: str, lam: float, seed: int, j: float) -> dict[str, Any]:
    figures = {"objective": j, "expected_log_likelihood": j + 5, "kl": 5.0}
    return {**row(lam, seed, [2.0, 3.0, 9.0], [2.0, 3.0, 7.0], arm), "hypernet": kind, **figures}


def test_the_gap_of_amortization_is_to_the_largest_bound_that_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 0 has it by a direct run, seed 1 by what was trained on from a hypernetwork; other priors do not count."""
    rows = [
        evidence_row("fixed", "constant", 1.0, 0, -100.0),
        evidence_row("fixed", "mlp", 1.0, 0, -130.0),
        evidence_row("fixed", "constant", 1.0, 1, -120.0),
        evidence_row("fixed", "mlp", 1.0, 1, -125.0),
        evidence_row("fixed, trained on by its bound", "mlp", 1.0, 1, -110.0),
        evidence_row("ard", "constant", 1.0, 0, -10.0),
        {"arm": "fixed", "hypernet": "mlp", "lambda": None, "seed": 2, "error": "out of memory"},
    ]
    found = module("compression_rows").gaps
    assert found(rows, "fixed", "mlp") == {1.0: 22.5} and found(rows, "fixed", "constant") == {1.0: 5.0}
    assert found(rows, "ard", "constant") == {1.0: 0.0}
    script = module("compression")
    script.print_evidence(rows[:-1])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fixed") and "mlp" in line)
    assert line.split()[2:8] == ["1", "-128", "-122", "5", "22", "18"] and line.split()[8] == "18"
    module("compression_figure").draw("evidence", rows[:-1], tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").stat().st_size > 10_000


def test_the_claim_of_the_seed_is_judged_by_its_least_lambda() -> None:
    script, arms = module("compression"), module("compression_arms")
    shares = {0.0: 0.5, 0.1: 0.5}
    rows = []
    for lam in arms.SEED_LAMBDAS:
        errors = [2.0, 2.5, 2.9 if shares.get(lam) is None else 20.0]
        rows.append(row(lam, 0, errors, errors, "seed, hypernetwork"))
    assert [target.value for target in script.seed_targets(rows)][:4] == [0.9, 0.5, 0.9, 0.5]
    assert all(target.holds for target in script.seed_targets(rows)[:4])
    assert [target.holds for target in script.seed_targets(rows[:2])][:4] == [False, True, False, True]
    # It also says that at 0 and .1 so much cannot go.
    for one in rows[:2]:
        one["curve"] = rows[2]["curve"]
    assert [target.holds for target in script.seed_targets(rows)][:4] == [True, False, True, False]
    # What was trained on is judged by itself.
    assert [target.value for target in script.seed_targets(rows)][4:] == [None] * 4
    further = [{**one, "arm": one["arm"] + module("compression_rows").FURTHER} for one in rows]
    assert [target.value for target in script.seed_targets(further)] == [None] * 4 + [0.9] * 4


def test_kept_weights_must_fall_with_every_seed() -> None:
    script, arms = module("compression_targets"), module("compression_arms")
    rows = []
    for seed in (0, 1):
        for i, lam in enumerate(arms.LAMBDAS):
            rows.append({**row(lam, seed, [2.0] * 3, [2.0] * 3, script.HYPER), "kept": 4.0 ** (5 - i)})
    curves = module("compression_rows").Curves(rows, script.HYPER)
    found = list(script._fewer(curves, arms.LAMBDAS, "x"))
    assert [target.value for target in found] == [0.25, 256.0] and all(target.holds for target in found)
    rows[-1]["kept"] = rows[-2]["kept"]
    assert not next(iter(script._fewer(curves, arms.LAMBDAS, "x"))).holds
    for one in rows:
        one["kept"] = 0.0  # nothing is left: no ratio, and no error
    assert not all(target.holds for target in script._fewer(curves, arms.LAMBDAS, "x"))


def test_costs_are_those_of_equal_steps() -> None:
    script, rows_of = module("compression_targets"), module("compression_rows").Curves
    rows = [
        {**row(1.0, 0, [2.0] * 3, [2.0] * 3, script.DIRECT), "epochs": 40},
        {**row(1.0, 0, [2.0] * 3, [2.0] * 3, script.HYPER), "epochs": 60},
        {"arm": "cost", "hypernet": None, "ratios": {"1": 1.1, "2": 1.2, "4": 0.9}, "ratio_of_epochs": 1.05},
    ]
    step, whole = script._cost(rows, rows_of(rows, script.DIRECT), rows_of(rows, script.HYPER))
    assert step.value == 1.2 and whole.value == pytest.approx(1.05 * 60 / (5 * 40))


def test_the_published_table_is_copied_right() -> None:
    """Sums of every arm's entries, in %, from the table of the report."""
    sums = {arm: round(sum(map(sum, by.values())), 1) for arm, by in module("compression_arms").PUBLISHED.items()}
    theirs = {"constant": (1376.7, 1654.8, 1657.3), "linear": (1250.1, 1642.1, 1716.3)}
    theirs["piecewise_linear"] = (1352.0, 1620.1, 1652.9)
    assert sums == {
        (arm, kind): value
        for kind, row in theirs.items()
        for arm, value in zip(("base", "rep", "var"), row, strict=True)
    }


def test_what_was_trained_on_has_a_row_of_its_own() -> None:
    script, jobs = module("compression_rows"), module("workers")
    point = {"fraction": 0.0, "kept": 5, "val_accuracy": 0.9, "test_accuracy": 0.8}
    numbers = {"expected_log_likelihood": -2.0, "kl": 1.0, "test_nll": 0.5, "test_ece": 0.1, "curve": [point]}
    found = {"lambda": 0.5, "objective": -3.0, **numbers, "posterior_finetuned": {"objective": -2.5, **numbers}}
    job = jobs.Job("x", "compress", {"compress": {"epochs": 2}}, {"hypernet": "mlp", "seed": 0, "lambda": None})
    rows = script.run_rows("a", job, {"result": {"compression": [found], "training_seconds": 1.0}, "seconds": 2.0})
    assert [row["arm"] for row in rows] == ["a", "a" + script.FURTHER]
    assert [row["objective"] for row in rows] == [-3.0, -2.5] and {row["lambda"] for row in rows} == {0.5}
    assert rows[0]["curve"][0]["test"] == 20.0


def test_results_have_no_numbers_that_json_lacks() -> None:
    value = {"a": [1.5, float("nan"), {"b": float("-inf")}], "c": "inf"}
    assert module("contract").finite(value) == {"a": [1.5, None, {"b": None}], "c": "inf"}


@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu", "seed", "authors", "evidence", "cnn", "cnn-gpu"])
def test_presets_are_configurations_with_a_figure(preset: str, tmp_path: Path) -> None:
    arms = module("compression_arms")
    options = argparse.Namespace(preset=preset, seeds=arms.SEEDS[preset], data="digits", root=None)
    jobs = arms.jobs(options)
    assert len({job.key for job in jobs.values()}) == len({job.name for job in jobs.values()}) == len(jobs)
    configs = [Config.from_dict(job.config) for job in list(jobs.values())[:: max(1, len(jobs) // 20)]]
    assert all((config.experiment.device == "gpu") == ("gpu" in preset) for config in configs)
    hyper = [seed for _, kind, _, seed in jobs if kind == "piecewise_linear"]
    assert len(set(hyper)) == (20 if preset == "authors" else 0 if preset == "seed" else options.seeds)
    arm = arms.PRESETS[preset].arms[0].name
    module("compression_figure").draw(preset, [{**ROWS[0], "arm": arm}], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_compression(tmp_path: Path) -> None:
    said, result = run("compression", tmp_path / "compression.json")
    every = result["rows"]
    (cost,) = (row for row in every if row["arm"] == "cost")
    assert set(cost["ratios"]) == {"1", "2", "4"} and min(cost["ratios"].values()) > 0
    rows = [row for row in every if row["arm"] != "cost"]
    assert {row["arm"] for row in rows} >= {"300-100, direct", "300-100, hypernetwork", "784-50-10, dense"}
    assert all(len(row["curve"]) == (1 if row["arm"] == "300-100, wide" else 5) for row in rows)
    assert all(row["training_seconds"] > 0 for row in rows)
    assert len([row for row in rows if row["arm"] == "300-100, wide"]) == 6
    assert "300-100, hypernetwork, piecewise_linear" in said and (tmp_path / "compression.png").is_file()
    assert run("compression", tmp_path / "compression.json")[1]["rows"] == every
