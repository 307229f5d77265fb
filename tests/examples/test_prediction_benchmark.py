"""The benchmark of predictions: what it reads off rows, and the whole at its smallest size."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmark_scripts import fake_mnist, module, run, script_folder  # noqa: F401 (a fixture)


def rows(gain: float = 0.1, data: tuple[str, ...] = ("a", "b")) -> list[dict]:
    """Three budgets of two data sets, four seeds; ours is above random by `gain` and a little more in later seeds."""
    found = []
    for name in data:
        for seed in range(4):
            for budget, base in ((10, 0.5), (20, 0.55), (50, 0.7), (41, 0.65)):
                head = {"data": name, "seed": seed, "budget": budget, "val_loss": 1.0 - base, "seconds": 1.0}
                more = {
                    "tau": 0.7,
                    "whole_tau": 0.65,
                    "within_tau": 0.61,
                    "fit_seconds": 2.0,
                    "meta": 1000,
                    "predict_seconds": 0.1 * seed,
                }
                ours = base + gain + 0.001 * seed
                found += [
                    {**head, "arm": "seq2seq", "connections": budget, "test_accuracy": ours, **more},
                    {**head, "arm": "random", "connections": budget, "test_accuracy": base},
                    {**head, "arm": "snip", "connections": budget, "test_accuracy": base + 0.05},
                    {**head, "arm": "dense", "connections": 410, "test_accuracy": 0.76},
                ]
    return [*found, {"data": "a", "seed": 9, "arm": "seq2seq", "error": "out of memory"}]


def test_figures_by_hand() -> None:
    figures = module("prediction_results").Figures(rows())
    # n, five times it, and the budget next to a tenth of 410.
    assert set(figures.by_seed("a", "n", "random").values()) == {0.5}
    assert set(figures.by_seed("a", "5 n", "random").values()) == {0.7}
    assert set(figures.by_seed("a", "10 %", "random").values()) == {0.65}
    assert figures.mean("random", "test_accuracy") == pytest.approx((0.5 + 0.7 + 0.65) / 3)
    tests = figures.above("seq2seq", "random")
    assert len(tests) == 6 and all(row["difference"] == pytest.approx(0.1015) for row in tests)
    together = figures.above("seq2seq", "random", together=True)
    assert [(row["data"], row["budget_kind"]) for row in together] == [("a", "all"), ("b", "all")]
    assert all(row["difference"] == pytest.approx(0.1015) for row in together)
    assert {row["seeds"] for row in together} == {row["seeds"] for row in tests}
    # Where p differ, the largest of an order is corrected by as many as come after it.
    other = [
        {**r, "test_accuracy": r["test_accuracy"] + 0.2 * (r["seed"] == 0) * (r["data"] == "b")} for r in rows()[:-1]
    ]
    mixed = (
        module("prediction_results")
        .Figures(
            [r for r in other if r["arm"] != "seq2seq" or r["data"] == "a"]
            + [r for r in rows()[:-1] if r["arm"] == "seq2seq" and r["data"] == "b"]
        )
        .above("seq2seq", "random")
    )
    module("contract").correct(mixed)
    mixed.sort(key=lambda row: row["p"])
    assert mixed[0]["p"] < mixed[-1]["p"]
    largest = 0.0
    for rank, row in enumerate(mixed):
        largest = max(largest, min(1.0, (6 - rank) * row["p"]))
        assert row["p_holm"] == pytest.approx(largest)
    same = module("prediction_results").Figures(rows()).above("dense", "dense")
    assert {row["p"] for row in same} == {1.0}


def targets(gain: float = 0.1, data: Sequence[str] = ("a", "b")) -> dict:
    """Of rows where what is ranked is no better, and what is shown other objects is as random."""
    results, found = module("prediction_results"), rows(gain)
    for row in rows(gain)[:-1]:
        if row["arm"] in ("random", "snip"):
            found.append({**row, "arm": f"{row['arm']}, ranked"})
        if row["arm"] == "random":
            found.append({**row, "arm": "seq2seq, shuffled"})
            found.append({**row, "arm": "random, refined"})
    chosen, own = results.ours_of(results.Figures(found))
    assert chosen == {"a": "seq2seq", "b": "seq2seq"}
    figures = results.Figures([*found, *own])
    others = ("random", "random, ranked", "random, refined", "ours, shuffled")
    tests = [row for other in others for row in figures.above("ours", other, together=True)]
    # Those of single budgets are of another family.
    tests += figures.above("ours", "snip")
    module("contract").correct(tests)
    bank = {"share": 0.9, "minutes": 12.0}
    return {target.what: target for target in results.targets(figures, bank, tests, data)}


def test_the_decoder_of_a_data_set_is_chosen_by_the_others() -> None:
    """On a one decoder is better by far, on b and c the other by little: of a it is that of b and c, of these of a."""
    results = module("prediction_results")
    found = [
        {**row, "arm": row["arm"].replace("random", "doubly_recurrent")} for row in rows(data=("a", "b", "c"))[:-1]
    ]
    for row in found:
        if row["arm"] == "doubly_recurrent":
            row["val_loss"] = {"a": 9.0, "b": 0.0, "c": 0.0}[row["data"]]
    shown = [{**row, "arm": "doubly_recurrent, shuffled"} for row in found if row["arm"] == "doubly_recurrent"]
    chosen, own = results.ours_of(results.Figures([*found, *shown]))
    assert chosen == {"a": "doubly_recurrent", "b": "seq2seq", "c": "seq2seq"}
    assert {(row["data"], row["arm"]) for row in own} == {(d, "ours") for d in "abc"} | {("a", "ours, shuffled")}
    assert {row["test_accuracy"] for row in own if row["data"] == "a"} == {0.5, 0.55, 0.65, 0.7}


def test_data_sets_that_are_left_out_together_do_not_choose_for_each_other() -> None:
    """Of two tables of one generator, and a third data set where random networks have a loss ten times as large."""
    results, names = module("prediction_results"), ("synthetic-a", "synthetic-b", "c")
    found = rows(data=names)[:-1]
    found += [{**row, "arm": "doubly_recurrent", "val_loss": 0.9} for row in found if row["arm"] == "seq2seq"]
    for row in found:
        if row["arm"] == "random":
            row["val_loss"] = 10.0 if row["data"] == "c" else 1.0
        elif row["arm"] in ("seq2seq", "doubly_recurrent"):
            better = (row["arm"] == "seq2seq") == (row["data"] == "c")
            row["val_loss"] = (8.0 if better else 9.0) if row["data"] == "c" else (0.5 if better else 0.9)
    chosen, _ = results.ours_of(results.Figures(found))
    # Of a table that is c's alone, of c that of the tables.
    assert chosen == {"synthetic-a": "seq2seq", "synthetic-b": "seq2seq", "c": "doubly_recurrent"}


def test_a_small_network_is_as_good_as_the_dense_one_by_seeds_alone(tmp_path: Path) -> None:
    """Accuracies .9 and 1 of the dense one have a standard error of .05; of a task the entry of least loss counts."""
    import dataclasses
    import json

    from nni_bayes_nas.prediction.bank import Entry
    from nni_bayes_nas.prediction.inner_search import Found
    from nni_bayes_nas.prediction.sparse_net import dense
    from nni_bayes_nas.prediction.tasks import Task

    def entry(seed: int, loss: float, accuracy: float) -> Entry:
        net = dense(2, 2, (2,))
        found = Found(net, (loss, loss), (accuracy, accuracy), "random")
        task = Task("wine", 0.5, (0, 1), (0, 1), 0.0, seed)
        return Entry(task, 9, (0, 1), (found,), dataclasses.replace(found, accuracies=(0.9, 1.0)))

    file = tmp_path / "bank.jsonl"
    entries = [entry(0, 0.5, 0.89), entry(0, 0.4, 0.91), entry(1, 0.1, 0.89), entry(1, 0.2, 1.0)]
    file.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in entries))
    assert module("prediction").share_by_seeds(file) == 0.5


def test_no_target_holds_of_some_of_the_data_sets() -> None:
    """A data set whose jobs have failed."""
    found = targets(data=["a", "b", "c"])
    assert found["ours: smallest mean difference to random"].value is None
    share = found["share of data sets with at most 1 % lost to dense at 10 %"]
    assert share.value == pytest.approx(0.0) and not share.holds


def test_targets_by_hand() -> None:
    results, found = module("prediction_results"), targets()
    # .65 + .1015 of .76 is 1.1 % less.
    for what in ("", "real "):
        assert not found.pop(f"share of {what}data sets with at most 1 % lost to dense at 10 %").holds
    # None of the data sets is made up.
    assert found.pop("Kendall's tau of the ranker, data set left out, all of it, made-up ones").value is None
    assert all(target.holds for target in found.values()) and len(found) == 18
    assert found["seconds of a prediction, mean over seeds, the slowest data set and budget"].value == pytest.approx(
        0.15
    )
    tau = "Kendall's tau of the ranker, data set left out, "
    assert found[tau + "all of it"].value == pytest.approx(0.65) and found[tau + "its parts"].value == pytest.approx(
        0.7
    )
    assert found[tau + "within a baseline"].value == pytest.approx(0.61)
    # Of a correlation of .707 between two, that of the truth with their mean is .910.
    assert results.reachable(0.5) == pytest.approx(0.728, abs=1e-3)
    assert results.reachable(-0.1) == 0 and results.reachable(1.0) == pytest.approx(1)
    # That of a third order with the mean of two is .765.
    assert results.of_one_more(0.5) == pytest.approx(0.555, abs=1e-3) and results.of_one_more(1.0) == pytest.approx(1)
    assert targets(0.105)["share of data sets with at most 1 % lost to dense at 10 %"].holds
    worse = targets(-0.01)
    for what in ("mean difference to snip at n", "mean difference to snip, ranked at 10 %"):
        assert not worse[what].holds and found[what].holds
    for other in ("random", "random, ranked", "random, refined", "ours, shuffled"):
        assert not worse[f"ours: largest p (Holm) of being above {other}"].holds
        assert not worse[f"ours: smallest mean difference to {other}"].holds


def test_what_was_found_by_its_initial_weights_keeps_them() -> None:
    """Ranked networks of SNIP and magnitude: each is what its own seed gives on the columns of the data."""
    import torch

    from nni_bayes_nas.config import Config
    from nni_bayes_nas.prediction.inner_search import strongest
    from nni_bayes_nas.prediction.many import Training
    from nni_bayes_nas.prediction.relevance import order_of_features
    from nni_bayes_nas.prediction.tasks import TaskData
    from nni_bayes_nas.prediction.training import WholeData

    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 6, generator=generator)
    x[:, 4] += 3.0 * y
    x[:, 2] -= 2.0 * y
    data = WholeData(TaskData(x[:45], y[:45], x[45:], y[45:]), x[45:], y[45:], 3)
    assert order_of_features(*(x[:45], y[:45])).tolist() != list(range(6))
    config = Config.from_dict({"predict": {"draws": 4, "verify": 2, "train_steps": 3, "widths": [2, 4]}})
    ranker = SimpleNamespace(scores=lambda described, short, n_objects: short.mean(1))
    predictor = SimpleNamespace(
        ranked=lambda nets, parts, seed: [-float(i) for i in range(len(nets))],
        refined=lambda nets, parts, budget, seed: nets[::-1][:1],
        ranker=ranker,
        short=Training(3),
    )
    ranked = module("prediction_jobs")._ranked
    arms, seeds, taus = ranked(config, predictor, {12: [], 16: []}, data, 5, with_tau=False)
    assert taus == {}
    predicted = {b: arms["random, ranked", b] + arms["relevance, ranked", b] for b in (12, 16)}
    again = ranked(config, predictor, predicted, data, 5, with_tau=True)
    assert again[:2] == (arms, seeds)
    taus = again[2]
    assert all("own_tau" in row for row in taus.values())
    assert set(seeds) == {(f"{name}, ranked", b) for name in ("snip", "magnitude") for b in (12, 16)} and len(taus) == 2
    for budget in (12, 16):
        key = "snip, ranked", budget
        assert seeds[key] == [5 * 1009 + 3, 5 * 1009 + 2]
        for net, own in zip(arms[key], seeds[key], strict=True):
            assert strongest([net], data.parts, budget, [own], None) == [net]


def small_task() -> tuple:
    """Settings, and 60 objects of three classes."""
    import torch

    from nni_bayes_nas.config import Config
    from nni_bayes_nas.prediction.tasks import TaskData
    from nni_bayes_nas.prediction.training import WholeData

    y = torch.arange(60) % 3
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + y.unsqueeze(1)
    data = WholeData(TaskData(x[:45], y[:45], x[45:], y[45:]), x[45:], y[45:], 3)
    settings = {"verify": 2, "train_steps": 5, "widths": [2, 4], "max_depth": 2, "deepest": [32, 32]}
    settings = Config.from_dict({"predict": settings}).predict
    return settings, data


def test_pruning_is_tuned_by_validation_data() -> None:
    """Of all widths that the budget can afford, both activations, and of magnitude every rate."""
    from nni_bayes_nas.prediction.inner_search import strongest
    from nni_bayes_nas.prediction.sparse_net import dense

    jobs, (settings, data) = module("prediction_tuning"), small_task()
    for name, n in (("snip", 2 * 4), ("magnitude", 2 * 4 * 3)):
        found = jobs.tuned_pruning(name, settings, data, 14, 3)
        losses = [loss for *_, loss in found["tried"]]
        # 32 units have at least 67 connections.
        assert len(losses) == n and losses == sorted(losses) and len(found["at"]) == 2
        assert [tuple(one[0]) for one in found["at"]] == [tuple(one[0]) for one in found["tried"][:2]]
        assert {tuple(one[0]) for one in found["tried"]} == {(2,), (4,), (2, 2), (4, 4)}
    at = [[(4,), "tanh", 1.0], [(2, 2), "relu", 1.0]]
    nets = jobs.pruned("snip", settings, data, 14, [7, 8], at)
    for net, (shape, activation, _), seed in zip(nets, at, (7, 8), strict=True):
        assert (net.widths, set(net.activations), net.n_connections) == (shape, {activation}, 14)
        assert strongest([dense(6, 3, shape, activation)], data.parts, 14, [seed], None) == [net]


def test_networks_of_other_form_are_tuned_by_validation_data() -> None:
    """Their rate, penalty, and of all sizes that use the budget as many as there are tries, the best of them first."""
    jobs, (settings, data) = module("prediction_tuning"), small_task()
    for name, n in (("adanet", 5), ("low_rank", 3)):
        found = jobs.tuned_other_form(name, settings, data, 40, 3)
        # Rates and penalties of tries whose sizes are drawn, then sizes at the best of these.
        losses = {tuple(at): loss for *at, loss in found["tried"][:n]}
        by_size = {size: loss for _, _, size, loss in found["tried"][n:]}
        *at, sizes = found["at"]
        assert losses[tuple(at)] == min(losses.values()) and 2 < len(by_size) <= jobs.SIZES
        assert [tuple(size) for size in sizes] == sorted(by_size, key=by_size.__getitem__)[:2]
        assert all([rate, penalty] == at for rate, penalty, *_ in found["tried"][n:])
        one = jobs.of_other_form(name, settings, data, 40, 3, found["at"])
        # The first try has the seed of the search for sizes.
        assert one.val_loss <= min(by_size.values())


def test_what_diverges_takes_nothing_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side it stops all; then they are trained one by one."""
    from nni_bayes_nas.errors import NumericsError
    from nni_bayes_nas.prediction import training

    def trained(nets: list, seeds: list, data: object, how: object) -> list:
        if 3 in nets:
            raise NumericsError("loss of network 3 is nan")
        return [(net, seed) for net, seed in zip(nets, seeds, strict=True)]

    monkeypatch.setattr(training, "train_together", trained)
    finite = module("prediction_tuning").finite
    assert finite([1, 2], [7, 8], None, None) == [(1, 7), (2, 8)]
    assert finite([1, 3, 2], [7, 8, 9], None, None) == [(1, 7), None, (2, 9)]
    assert finite([1, None, 2], [7, 8, 9], None, None) == [(1, 7), None, (2, 9)]


def test_mnist_of_as_many_points_as_the_digits(tmp_path: Path) -> None:
    """Squares of 3x3 of images without their border; left out together with the digits, in place of a made-up table."""
    import argparse

    script, root = module("prediction"), fake_mnist(tmp_path)
    train, test = module("prediction_data").mnist_8x8(str(root))
    from torchvision.datasets import MNIST

    image = MNIST(str(root), train=True).data[0].double() / 255
    assert train.tensors[0].shape[1] == 64 and len(test) > 0
    assert float(train.tensors[0][0, 8 * 3 + 2]) == pytest.approx(float(image[11:14, 8:11].mean()), abs=1e-6)
    options = argparse.Namespace(data="mnist", root=str(root), preset="cpu")
    names = list(script.sources(options))
    together = script.left_out_together(options)
    assert together[0] == ["digits", "mnist_8x8"] and len(names) == 7 and "synthetic-linear" not in names
    assert len(together[-1]) == 3 and sorted(name for each in together for name in each) == sorted(names)


@pytest.mark.slow
def test_prediction(tmp_path: Path) -> None:
    said, result = run("prediction", tmp_path / "prediction.json", 2)
    rows = [row for row in result["rows"] if "arm" in row]
    assert len({row["data"] for row in rows}) == 7 and len({row["arm"] for row in rows}) == 21
    other = ("dense", "adanet", "low_rank")
    assert all(row["connections"] <= row["budget"] for row in rows if row["arm"] not in other)
    assert 14 <= result["rows"][0]["entries"] <= 21 and "s a data set: the bank" in said
    assert said.count("two seeds have") == 7 and said.count("by itself") == 2
    assert said.count("entries left out") == 2 and any(row.get("errors_of") == "seq2seq" for row in result["rows"])
    first = [row for row in rows if row["seed"] == 331]
    assert all({"whole_tau", "within_tau"} <= row.keys() for row in first if row["arm"] == "seq2seq")
    assert len([row for row in result["rows"] if "tuned" in row]) == 7 and set(result["rows"][0]["ours"]) == {
        row["data"] for row in rows
    }
    assert run("prediction", tmp_path / "prediction.json", 2)[1]["rows"] == result["rows"]


def test_gaps_of_cells_by_hand() -> None:
    """The mean over lambda, by seed; a seed in which one has no counterpart does not count."""
    script = module("prediction_cells")
    head = {"data": "a", "val_accuracy": 0.5}
    found = [
        {**head, "seed": seed, "arm": arm, "lambda": lam, "test_accuracy": accuracy + 0.01 * seed * (arm == "random")}
        for seed in (0, 1)
        for arm, lam, accuracy in (("predicted", 0.1, 0.9), ("predicted", 1.0, 0.7), ("random", 0.1, 0.8))
    ]
    found += [{**head, "seed": 0, "arm": "random", "lambda": 1.0, "test_accuracy": 0.72}, {"data": "a", "arm": "x"}]
    assert script.gaps(found, "a", "random") == pytest.approx([(10 - 2) / 2])
    of = {f"try {i}": ("a", 0, "predicted", 0.1) for i in range(3)}
    numbers = {"params": 1, "macs": 1, "test_accuracy": 0.5}
    outcomes = {f"try {i}": {"result": {**numbers, "val_accuracy": v}} for i, v in ((0, 0.6), (2, 0.7))}
    outcomes["try 1"] = {"error": "out of memory"}
    best, failed = script.rows_of(SimpleNamespace(of=of), outcomes)
    assert (best["val_accuracy"], best["tried"], failed["error"]) == (0.7, 2, "out of memory")
    assert script.gaps(found, "b", "random") == []


@pytest.mark.slow
def test_prediction_of_cells(tmp_path: Path) -> None:
    data = ("--data", "mnist", "--root", str(fake_mnist(tmp_path)))
    said, result = run("prediction_cells", tmp_path / "cells.json", 2, *data)
    # Each of the two data sets in turn is left out.
    assert {row["data"] for row in result["rows"] if row["arm"] == "predicted"} == {"digits", "mnist"}
    arms = {row["arm"] for row in result["rows"]}
    assert {"predicted", "constant", "random", "searched", "bank", "prediction"} == arms and result["complete"]
    assert "predicted - random" in said and all(row["tried"] <= 2 for row in result["rows"] if "tried" in row)
