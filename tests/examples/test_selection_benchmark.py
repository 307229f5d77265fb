"""The benchmark of selection: what it compares and how, its arms, and the whole at its smallest size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmark_scripts import fake_mnist, module, run, script_folder  # noqa: F401 (a fixture)

from nni_bayes_nas.optim import SelectiveOptimization


def row(arm: str, seed: int, accuracy: float, seconds: float = 1.0, group: str = "cnn") -> dict[str, Any]:
    figures = {"test_accuracy": accuracy, "val_accuracy": accuracy, "process_seconds": seconds}
    return {"group": group, "arm": arm, "seed": seed, **figures}


def test_differences_are_paired_by_seed() -> None:
    script = module("selection")
    table = script.Table([row("full", 0, 0.99, 6.0), row("full", 1, 0.98, 8.0), row("automatic", 1, 0.97, 2.0)])
    assert table.difference("cnn", "full", "automatic") == {"mean": pytest.approx(1.0), "half_width": None, "n": 1}
    assert table.speed("cnn", "automatic") == 4.0 and table.speed("mlp-200", "full") is None
    # Differences 1 and 3: standard error 1, one degree of freedom.
    found = script.paired({0: 1.0, 1: 3.0, 2: 9.0}, {0: 0.0, 1: 0.0})
    assert found["mean"] == 2.0 and found["half_width"] == pytest.approx(12.7062, rel=1e-4) and found["n"] == 2


def test_the_criterion_is_chosen_by_validation() -> None:
    script = module("selection")
    rows = [row("weight gain 0.8", 0, 0.9, group="criteria"), row("weight random 0.8", 0, 0.5, group="criteria")]
    rows.append({**row("weight snr 0.8", 0, 0.95, group="criteria"), "val_accuracy": 0.8})
    table = script.Table([*rows, {"group": "criteria", "arm": "full", "seed": 0, "error": "out of memory"}])
    found = [target for target in script.targets(table) if target.name == "2c"]
    assert found[0].value == pytest.approx(40.0) and "weight gain 0.8" in found[0].what and found[0].holds
    assert "output active" in found[1].what and [t.holds for t in script.targets(table)].count(True) == 1


def test_other_seeds_choose() -> None:
    """Of seed 2 the others prefer a, by .05 in the mean; of 0 and 1, of which one has a bad one, b."""
    script = module("selection")
    val = {"a": (0.9, 0.9, 0.5), "b": (0.85, 0.85, 0.95)}
    rows = [
        {**row(arm, seed, 0.01 * (seed + 10 * (arm == "b"))), "val_accuracy": accuracy}
        for arm, accuracies in val.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    words, found = script.preferred_elsewhere(script.Table(rows), "cnn", ["a", "b", "not run"])
    assert words == "b (2), a (1)" and found == {0: pytest.approx(10), 1: pytest.approx(11), 2: pytest.approx(2)}
    assert script.preferred_elsewhere(script.Table([rows[0], rows[3]]), "cnn", ["a", "b"])[0] == "a"
    assert script.preferred_elsewhere(script.Table([]), "cnn", ["a", "b"]) == ("", {})


def test_rates_are_chosen_by_validation_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of each arm by itself; where a training failed nothing is chosen, for what comes later depends on it."""
    import argparse

    script = module("selection")
    options = argparse.Namespace(
        preset="smoke", seeds=2, data="digits", root=None, output=tmp_path / "x.json", workers=1
    )
    runs, best, started = script.Runs(options, None), {"a": 0.05, "b": 0.2}, list[Any]()

    def run(jobs: dict) -> None:
        started.extend(jobs.values())
        for (group, arm, seed), job in jobs.items():
            off = abs(job.parameters["rate"] - best[arm[0]])
            figures = {"val_accuracy": 0.9 - off + 0.1 * seed, "test_accuracy": off, "process_seconds": 1.0}
            runs.outcomes[group, arm, seed] = {"result": {"default": 0.0, **figures}}

    monkeypatch.setattr(runs, "run", run)
    found = runs.with_rates({("cnn", arm): {"rate": 0.1, "network": "cnn"} for arm in "ab"})
    assert {key: one["rate"] for key, one in found.items()} == pytest.approx({("cnn", "a"): 0.05, ("cnn", "b"): 0.2})
    # Three rates, and one beyond the edge at which the best of these is: of a lower ones, of b higher ones.
    assert len(runs.outcomes) == 2 * 4 * 2 and ("cnn", "b, 0.5 x rate", 1) in runs.outcomes
    assert ("cnn", "a, 0.25 x rate", 0) in runs.outcomes and ("cnn", "b, 4 x rate", 0) in runs.outcomes
    assert not any(job.parameters["test"] for job in started)
    runs.outcomes["cnn", "a, 2 x rate", 1] = {"error": "out of memory"}
    with pytest.raises(script.Failed, match="cnn-a, 2 x rate-1 failed: run it again"):
        runs.check(runs.outcomes)


def test_optimizers_are_compared_with_themselves() -> None:
    script = module("selection")
    rows = [row("adam", 0, 0.98, group="optimizers"), row("adam, selected", 0, 0.97, group="optimizers")]
    rows += [{**row("sgld", 0, 0.9, group="optimizers"), "averaged_test_nll": 0.3, "averaged_test_accuracy": 0.95}]
    rows += [{**rows[-1], "arm": "sgld, selected", "averaged_test_nll": 0.35}]
    found = {(one["group"], one["arm"]): one["mean"] for one in script.intervals(script.Table(rows))}
    assert found["optimizers", "adam, selected"] == pytest.approx(1.0)
    assert found["optimizers, test_accuracy", "adam, selected - adam"] == pytest.approx(-1.0)
    # Of samplers the mean of the draws counts.
    assert found["optimizers, averaged_test_nll", "sgld, selected - sgld"] == pytest.approx(0.05)
    assert ("optimizers, test_accuracy", "sgld, selected - sgld") not in found


def test_both_choices_together_have_intervals() -> None:
    """Against full training of the group of criteria, as what is zeroed has: their own group has none."""
    script, arms = module("selection"), module("selection_arms")
    name = arms.both(*arms.BOTH[0])
    rows = [row(arms.FULL, seed, 0.98, group="criteria") for seed in range(3)]
    rows += [row(name, seed, 0.97 - 0.01 * seed, group="both") for seed in range(3)]
    (found,) = (one for one in script.intervals(script.Table(rows)) if one["group"] == "both")
    assert found["arm"] == name and found["mean"] == pytest.approx(2.0)


def test_what_was_named_is_tested() -> None:
    """Of every claim the difference and p; of ten that are sure and one that is not Holm's correction."""
    script, arms = module("selection"), module("selection_arms")
    noise = {seed: 0.0001 * (seed % 3) for seed in range(4)}
    rows = []
    for seed in range(4):
        for group, arm, accuracy in (
            ("cnn", "full", 0.99),
            ("cnn", "automatic", 0.9895),
            ("cnn", script.EQUAL, 0.99),
            ("criteria", "full", 0.98),
            ("criteria", "weight random 0.8, output active", 0.9),
            ("criteria", "weight gain 0.8, output active", 0.95),
            ("zeroed", "z 0.95", 0.975),
        ):
            own = noise[seed] * (arm not in ("full", "weight random 0.8, output active"))
            rows.append(row(arm, seed, accuracy + own, group=group))
    found = {one["test"]: one for one in script.tests(script.Table(rows))}
    assert list(found) == [
        "2a loss of the CNN below .2",
        "2a CNN above equal time by .5",
        "2c above random by .3",
        "2e loss with 95 % zeroed below 1",
    ]
    assert found["2a loss of the CNN below .2"]["difference"] == pytest.approx(-0.05 + 0.0075)
    assert found["2a loss of the CNN below .2"]["p_holm"] < 0.05 < found["2a CNN above equal time by .5"]["p_holm"]
    assert arms.TIMED["cnn"] == "automatic"


def test_a_speed_is_of_one_run() -> None:
    script = module("selection")
    rows = [{**row("full", s, 0.9, 4.0), "run": "a"} for s in (0, 1)]
    rows += [{**row("automatic", s, 0.9, t), "run": r} for s, t, r in ((0, 2.0, "a"), (1, 1.0, "b"))]
    assert script.Table(rows).speed("cnn", "automatic") == 2.0 and script.Table(rows).speeds("cnn", "automatic") == [
        2.0
    ]


@pytest.mark.parametrize("preset", ["smoke", "cpu"])
def test_arms_are_trainings(preset: str) -> None:
    arms, runs = module("selection_arms"), module("selection_runs")
    for (group, arm), parameters in arms.arms(preset).items():
        assert parameters["network"] in runs.NETWORKS and parameters["steps"] >= 3, (group, arm)
        if selection := parameters.get("selection"):
            SelectiveOptimization(**selection)
    networks = {name: sum(p.numel() for p in make().parameters()) for name, make in runs.NETWORKS.items()}
    assert networks["mlp-200"] == 159_010 and networks["cnn"] == 80_202


def test_pixels_are_standardized_one_by_one() -> None:
    import torch

    x = torch.randn(50, 1, 2, 2) * torch.tensor([[1.0, 5.0], [0.0, 2.0]]) + 3
    found = module("selection_runs").Pixels(x)(x)
    assert found.mean(0).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert found.std(0).tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert torch.equal(found.argmax(0), x.flatten(1)[:, [0, 1, 3]].argmax(0))


def test_the_paper_chooses_by_the_gradient_of_all_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all weights those with the largest |gradient| of the mean loss where the choice is made."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    runs, generator = module("selection_runs"), torch.Generator().manual_seed(0)
    x, y = torch.rand(300, 1, 28, 28, generator=generator), torch.arange(300) % 10
    torch.manual_seed(0)
    net = runs.NETWORKS["mlp-200-tanh"]()
    training = runs.Training(net, lambda p: torch.optim.SGD(p, 0.1), False, 0, torch.nn.Identity())
    chosen = runs.OfAllData(active=50, criterion="gradient", granularity="weight", start=3, window=3)
    state: dict[str, Any] = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                state.update({name: value.clone() for name, value in net.state_dict().items()})

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=5,
        callbacks=[chosen, Look()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, DataLoader(TensorDataset(x, y), batch_size=50))
    net.load_state_dict(state)
    net.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    gradients = torch.cat([p.grad.abs().flatten() for p in net.parameters()])
    active = torch.cat([mask.flatten() for mask in chosen.active.values()])
    assert int(active.sum()) == 50 and set(gradients.topk(50).indices.tolist()) == set(active.nonzero()[:, 0].tolist())


def test_means_over_shares_are_those_of_a_polygon() -> None:
    """98 at 0, 90 at 100 %, a straight line but for one share, which is 1 above it."""
    script, arms = module("selection"), module("selection_arms")
    at = {0.0: "full", **{share: f"gradient {share:g}" for share in arms.PAPER_FROZEN}, 1.0: arms.STOPPED}
    rows = [row(arm, 0, (98 - 8 * share + (share == 0.8)) / 100, group="paper") for share, arm in at.items()]
    assert script.paper_means(script.Table(rows), "gradient")[0] == pytest.approx(94 + (0.9 - 0.6) / 2)
    assert script.paper_means(script.Table(rows[1:]), "gradient") == {}


def test_what_is_timed_runs_alone() -> None:
    arms = module("selection_arms")
    assert arms.is_timed("cnn", "automatic") and arms.is_timed("optimizers", "adam")
    assert not arms.is_timed("criteria, cnn", "neuron gain 0.9") and not arms.is_timed("criteria", "full")
    assert not arms.is_timed("cnn", "automatic, 0.5 x rate")


def test_how_equal_equal_times_are() -> None:
    """Of seeds that have both; and what waited for a processor, of what is timed alone."""
    tables = module("selection_tables")
    seconds = [("automatic", 0, 10.0), ("automatic", 1, 20.0), ("full, equal time", 0, 11.0)]
    rows = [
        {"group": "cnn", "arm": arm, "seed": seed, "process_seconds": s, "wall_seconds": s + seed}
        for arm, seed, s in seconds
    ]
    beside = {"group": "criteria", "arm": "full", "seed": 0, "process_seconds": 1.0, "wall_seconds": 9.0}
    table = tables.Table([*rows, beside])
    (found,) = tables.equal_times(table)
    assert (found["mean"], found["n"], table.waited()) == (1.1, 1, (20 / 21, pytest.approx((2 + 20 / 21) / 3)))
    assert tables.equal_times(tables.Table([])) == [] and tables.Table([]).waited() is None


def test_arms_take_turns() -> None:
    script, jobs = module("selection"), module("workers").Job
    named = [(g, s, jobs(f"{g}{a}{s}", "", {}, {})) for s in (0, 1) for g in "xy" for a in "abc"]
    found = sorted(script.in_turns(named), key=lambda one: one.order)
    assert [one.name for one in found] == "xa0 xb0 xc0 ya0 yb0 yc0 xb1 xc1 xa1 yb1 yc1 ya1".split()


def test_figure(tmp_path: Path) -> None:
    """Of all arms, and of none."""
    arms = module("selection_arms").arms("smoke")
    numbers = {"test_nll": 0.1, "test_ece": 0.01, "process_seconds": 9.0}
    rows = [{"group": group, "arm": arm, "seed": 0, "test_accuracy": 0.97, **numbers} for group, arm in arms]
    for found in (rows, []):
        path = tmp_path / f"{len(found)}.png"
        module("selection_figure").draw(found, module("selection").Table(found).mean, path)
        assert path.stat().st_size > 30_000


@pytest.mark.slow
def test_selection(tmp_path: Path) -> None:
    said, result = run(
        "selection", tmp_path / "selection.json", 1, "--data", "mnist", "--root", str(fake_mnist(tmp_path))
    )
    rows = result["rows"]
    rows = [row for row in rows if "group" in row]
    assert {row["group"] for row in rows} >= {"criteria", "cnn", "paper", "zeroed", "optimizers"}
    assert sum(row["arm"] == "full, equal time" for row in rows) == len(module("selection_arms").TIMED) == 6
    automatic = next(row for row in rows if (row["group"], row["arm"]) == ("cnn", "automatic"))
    assert automatic["no_cache"] is None or not automatic["frozen"]
    augmented = next(row for row in rows if (row["group"], row["arm"]) == ("cnn", "automatic, augmented"))
    assert augmented["no_cache"] == "cache=False, or data that are augmented" and augmented["cache_bytes"] == 0
    drawn = next(row for row in rows if (row["group"], row["arm"]) == ("optimizers", "sgld"))
    assert 0 <= drawn["averaged_test_accuracy"] <= 1 and drawn["averaged_test_nll"] > 0
    assert any(
        (row["group"], row["arm"]) == ("criteria, cnn", "neuron gain_per_flop 0.9") for row in rows if "group" in row
    )
    assert "points lost, neurons frozen" in said and "optimizer" in said
    assert result["complete"] and sum(row["group"] == "equal time" for row in result["intervals"]) == 6
    assert "processor time over wall time of what is timed" in said
    assert (tmp_path / "selection.png").is_file()


def test_a_search_is_judged_by_the_arm_that_was_named() -> None:
    script = module("selection_search")
    found = [
        {"arm": arm, "seed": seed, "val_accuracy": accuracy + seed, "training_seconds": seconds, "run": "a"}
        for seed in (0, 1, 2)
        for arm, accuracy, seconds in (("full", 90.0, 12.0), ("full, shorter", 88.0, 10.0), ("prefix 0.5", 90.5, 10.0))
    ]
    assert script.arms_of(SimpleNamespace(data="mnist")) == ["full", "prefix 0.5"]
    assert len(script.arms_of(SimpleNamespace(data="digits"))) == 6
    failed = {"arm": "prefix 0.5", "seed": 3, "error": "out of memory"}
    assert [target.value for target in script.targets([*found, failed])] == pytest.approx([1.2, 0.5, 2.5])
    assert [target.value for target in script.targets([failed])] == [None] * 3
    # The same accuracy for certain: by the low end of the interval. A speed is of searches that ran in one go.
    found[2] |= {"val_accuracy": 80.0, "run": "b", "training_seconds": 1.0}
    times, against, _ = script.targets(found)
    assert times.value == pytest.approx(1.2) and against.value < -10


@pytest.mark.slow
def test_selection_in_a_search(tmp_path: Path) -> None:
    said, result = run("selection_search", tmp_path / "search.json", 1)
    rows = {row["arm"]: row for row in result["rows"]}
    assert set(rows) == {
        *("full", "full, shorter"),
        *("layer 0.5", "layer 0.2", "prefix 0.5", "prefix 0.2", "neuron 0.2"),
    }
    assert rows["full"]["milliseconds"] is None and set(rows["prefix 0.2"]["milliseconds"]) == {"before", "after"}
    assert all(row["training_seconds"] > 0 and 0 < row["val_accuracy"] <= 100 for row in rows.values())
    assert "times as fast" in said


def test_seconds_on_a_gpu_are_compared_in_one_run() -> None:
    script = module("selection_gpu")
    found = [
        {"group": "cnn-wide", "arm": arm, "seed": seed, "test_accuracy": accuracy, "wall_seconds": s, "run": run}
        for arm, seed, accuracy, s, run in (
            ("full", 0, 0.99, 8.0, "a"),
            ("automatic", 0, 0.98, 2.0, "a"),
            ("full", 1, 0.99, 9.0, "a"),
            ("automatic", 1, 0.96, 1.0, "b"),
        )
    ]
    (row,) = script.intervals([*found, {"group": "cnn-normalized", "arm": "full", "seed": 0, "error": "no memory"}])
    assert (row["mean"], row["n"]) == (pytest.approx(2.0), 2) and row["times_as_fast"] == row["most"] == 4.0


@pytest.mark.slow
def test_selection_on_a_gpu(tmp_path: Path) -> None:
    """Its smallest size, which takes the processor."""
    said, result = run(
        "selection_gpu", tmp_path / "gpu.json", 1, "--data", "mnist", "--root", str(fake_mnist(tmp_path))
    )
    assert result["complete"] and {row["arm"] for row in result["rows"]} == {"full", "automatic"}
    assert result["intervals"][0]["group"] == "cnn-normalized" and "times as fast" in said
