"""Searches side by side: what each leaves, and what becomes of one that fails or is stopped."""

import dataclasses
import json
import time

import pytest
import torch

from nni_bayes_nas import lockstep
from nni_bayes_nas.bayes.objective import check_finite
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, DataError, NumericsError, SpaceError
from nni_bayes_nas.experiment.build import build_space, validate
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.in_process import search_in_process
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain
from nni_bayes_nas.experiment.replicas import run_retrains, run_searches
from nni_bayes_nas.experiment.retrain import run_retrain
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.strategies.bilevel import BilevelModule

SMALL = {
    "space": {"name": "cell", "args": {"width": 4, "n_nodes": 2}},
    "data": {"limit": 160, "val_limit": 60},
    "search": {"epochs": 2, "warmup_epochs": 1, "batch_size": 40, "lambdas": 2, "random": 1, "searches": 3},
}


def config(replicas=3, **args):
    values = {**SMALL, "search": {**SMALL["search"], "replicas": replicas}, "strategy": {"args": args}}
    return Config.from_dict(values)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_search_is_what_it_is_alone(tmp_path):
    parameters = {"trial": "searches-s0-s2", "seeds": {f"search-s{i}": i for i in range(3)}}
    told = []
    result = run_searches(config(), parameters, tmp_path / "together" / "searches-s0-s2", told.append)
    assert list(result["searches"]) == list(parameters["seeds"]) and result["failures"] == []
    assert [set(row) for row in told] == [{"default", "epoch", *(f"default_search-s{i}" for i in range(3))}] * 2
    for i in range(3):
        folder = tmp_path / "alone" / f"search-s{i}"
        folder.mkdir(parents=True)
        alone = run_search(config(), {"trial": folder.name, "seed": i}, folder, lambda row: None)
        found = result["searches"][folder.name]
        assert found["search"]["seed"] == i and found["search"]["id"] == f"s{i}"
        assert set(found) == set(alone) - {"stage_seconds"}
        theirs, ours = rows(folder), rows(tmp_path / "together" / folder.name)
        assert [row.keys() for row in theirs] == [row.keys() for row in ours]
        terms = [(a["terms"], b["terms"]) for a, b in zip(theirs, ours, strict=True) if "terms" in a]
        assert len(terms) == 2
        for a, b in terms:
            # Single precision, and a few steps apart: in double precision a step differs by 1e-10, see below.
            assert b == pytest.approx(a, rel=2e-2, abs=2e-2)


def recorded(monkeypatch):
    """Losses and gradients of the first structure step and the first weight step, by seed."""
    found = {}
    backward, log = BilevelModule.backward, BilevelModule.log_dict

    def after_backward(self, loss, *args, **kwargs):
        backward(self, loss, *args, **kwargs)
        gradients = [None if p.grad is None else p.grad.clone() for p in self.training_module.parameters()]
        found.setdefault(self.seed, {}).setdefault("weights", [loss.detach(), *gradients])

    def before_log(self, values, *args, **kwargs):
        if "structure_loss" in values:
            gradients = [None if p.grad is None else p.grad.clone() for p in self.arch_parameters()]
            found.setdefault(self.seed, {}).setdefault("structure", [values["structure_loss"], *gradients])
        return log(self, values, *args, **kwargs)

    monkeypatch.setattr(BilevelModule, "backward", after_backward)
    monkeypatch.setattr(BilevelModule, "log_dict", before_log)
    return found


@pytest.fixture
def double(monkeypatch):
    """Everything in double precision."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    from nni_bayes_nas.experiment import data

    real = data.load_data
    for module in ("search", "retrain"):
        name = f"nni_bayes_nas.experiment.{module}.load_data_on"
        monkeypatch.setattr(name, lambda device, c, shared: in_double(real(c)))
    yield
    torch.set_default_dtype(before)


def searched_alone(base, seeds, tmp_path):
    found = {}
    for name, seed in seeds.items():
        folder = tmp_path / "alone" / name
        folder.mkdir(parents=True)
        found[name] = run_search(base, {"trial": name, "seed": seed}, folder, lambda row: None)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"lambda_per": "object", "hypernet": "linear", "complexity": "penalty"},
    ],
)
def test_the_first_step_equals_that_of_a_single_search(tmp_path, monkeypatch, double, args):
    seeds = {f"search-s{i}": i for i in range(3)}
    base = config(**args)
    base = dataclasses.replace(base, search=dataclasses.replace(base.search, warmup_epochs=0, epochs=1))
    together = recorded(monkeypatch)
    run_searches(base, {"trial": "t", "seeds": seeds}, tmp_path / "t", lambda row: None)
    alone = recorded(monkeypatch)
    searched_alone(base, seeds, tmp_path)
    assert set(together) == set(alone) == {0, 1, 2}
    for seed, steps in alone.items():
        for step in ("structure", "weights"):
            for a, b in zip(steps[step], together[seed][step], strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.dtype == torch.float64
                    torch.testing.assert_close(b, a, atol=1e-10, rtol=1e-10)


@pytest.mark.slow
def test_a_whole_search_equals_a_single_one(tmp_path, double):
    seeds = {f"search-s{i}": i for i in range(2)}
    base = config(one_hot_passes=3)
    base = dataclasses.replace(base, search=dataclasses.replace(base.search, epochs=3))
    together = run_searches(base, {"trial": "t", "seeds": seeds}, tmp_path / "together" / "t", lambda row: None)
    for name, alone in searched_alone(base, seeds, tmp_path).items():
        ours, theirs = (rows(tmp_path / part / name) for part in ("together", "alone"))
        assert len(ours) == 6
        for a, b in zip(ours, theirs, strict=True):
            assert a.get("terms", {}) == pytest.approx(b.get("terms", {}), rel=1e-9, abs=1e-9)
        kept = ("params", "macs", "one_hot_accuracy", "mixture_accuracy", "log_prob")
        for a, b in zip(together["searches"][name]["architectures"], alone["architectures"], strict=True):
            assert a["choices"] == b["choices"]
            assert {k: a[k] for k in kept} == pytest.approx({k: b[k] for k in kept}, rel=1e-6)


def in_double(splits):
    for part in (splits.train, splits.val, splits.test):
        part.tensors = tuple(x.double() if x.is_floating_point() else x for x in part.tensors)
    return splits


@pytest.mark.parametrize("where", ["the loss", "a single architecture"])
def test_one_that_fails_ends_alone(tmp_path, monkeypatch, where):
    real = BilevelModule.weight_loss

    def failing(self, *args):
        loss = real(self, *args)
        return loss * float("nan") if self.seed == 1 and self.current_step > 1 else loss

    single = BilevelModule._single_losses

    def failing_alone(self, *args):
        losses = single(self, *args)
        if self.seed == 1 and self.current_step > 1:
            check_finite("train_loss", losses[0] * float("nan"), step=self.current_step)
        return losses

    patched = ("weight_loss", failing) if where == "the loss" else ("_single_losses", failing_alone)
    monkeypatch.setattr(BilevelModule, *patched)
    parameters = {"trial": "t", "seeds": {f"search-s{i}": i for i in range(3)}}
    result = run_searches(config(), parameters, tmp_path / "t", lambda row: None)
    assert list(result["searches"]) == ["search-s0", "search-s2"]
    (failure,) = result["failures"]
    assert failure["trial"] == "search-s1" and "NumericsError" in failure["cause"] and "train_loss" in failure["cause"]
    assert "train_loss" in json.loads((tmp_path / "search-s1" / "error.json").read_text())["traceback"]
    with pytest.raises(NumericsError, match="train_loss"):
        run_searches(config(), {"trial": "t", "seeds": {"search-s9": 1, "search-s8": 1}}, tmp_path / "t", print)


@pytest.mark.slow
def test_a_stopped_meeting_goes_on(tmp_path, monkeypatch):
    parameters = {"trial": "t", "seeds": {f"search-s{i}": i for i in range(2)}}
    whole = run_searches(config(), parameters, tmp_path / "whole" / "t", lambda row: None)

    meet, met = lockstep._meet, []

    def stop(members):
        met.append(1)
        if len(met) == 12:
            raise KeyboardInterrupt
        meet(members)

    monkeypatch.setattr(lockstep, "_meet", stop)
    with pytest.raises(KeyboardInterrupt):
        run_searches(config(), parameters, tmp_path / "broken" / "t", lambda row: None)
    assert len(rows(tmp_path / "broken" / "search-s0")) < len(rows(tmp_path / "whole" / "search-s0"))
    monkeypatch.setattr(lockstep, "_meet", meet)
    again = run_searches(config(), parameters, tmp_path / "broken" / "t", lambda row: None)
    for name in parameters["seeds"]:
        assert rows(tmp_path / "broken" / name) == rows(tmp_path / "whole" / name)
        assert again["searches"][name]["architectures"] == whole["searches"][name]["architectures"]


@pytest.mark.slow
def test_the_command_search_writes_the_run_of_all(tmp_path):
    search_in_process(config(replicas=2), tmp_path / "run", resume=False, command="test")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["id"] for row in summary["searches"]] == ["s0", "s1", "s2"] and summary["status"] == "done"
    assert {row["trial"] for row in rows(tmp_path / "run")} == {"search-s0", "search-s1", "search-s2"}
    assert list(summary["wall_clock"]["trials"]) == ["searches-s0-s1", "search-s2"]


def test_the_plan_puts_searches_side_by_side():
    plan = SearchAndRetrain(config(replicas=2))
    assert [(s.name, s.kind) for s in plan.trials({}, set())] == [
        ("searches-s0-s1", "searches"),
        ("search-s2", "search"),
    ]
    ledger = Ledger(plan, 0)
    assert ledger.folders() == ["search-s0", "search-s1", "search-s2"]
    assert [s.kind for s in SearchAndRetrain(config(replicas=1)).trials({}, set())] == ["search"] * 3


def test_what_cannot_run_side_by_side_is_refused():
    with pytest.raises(ConfigError, match="order 1"):
        validate(config(order=2))
    assert validate(config(replicas=1, order=2)).search.replicas == 1
    with pytest.raises(ConfigError, match=r"search\.replicas"):
        config(replicas=0)


VARIANTS = [
    {"strategy.args.lambda_range": [0.01, 0.1], "strategy.args.arc_learning_rate": 0.1},
    {"data.skip": 60, "data.limit": 100, "search.learning_rate": 0.1},
    {"strategy.args.n_knots": 5, "search.epochs": 3, "search.batch_size": 20},
]


def with_search(base, **changes):
    return dataclasses.replace(base, search=dataclasses.replace(base.search, **changes))


@pytest.mark.slow
def test_searches_of_other_ranges_data_and_lengths_equal_single_ones(tmp_path, double):
    base = with_search(config(replicas=4), searches=1, variants=[{}, *VARIANTS])
    (spec,) = SearchAndRetrain(base).trials({}, set())
    names = [f"search-s{i}" for i in range(4)]
    assert (spec.name, spec.folders) == ("searches-s0-s3", tuple(names))
    assert spec.parameters["changes"] == dict(zip(names[1:], VARIANTS, strict=True))
    together = run_searches(base, {"trial": "t", **spec.parameters}, tmp_path / "together" / "t", lambda row: None)
    assert together["failures"] == []
    for i, alone in enumerate(SearchAndRetrain(with_search(base, replicas=1)).trials({}, set())):
        folder = tmp_path / "alone" / names[i]
        folder.mkdir(parents=True)
        found = run_search(base, {"trial": alone.name, **alone.parameters}, folder, lambda row: None)
        ours, theirs = (rows(tmp_path / part / alone.name) for part in ("together", "alone"))
        assert len(ours) == (6 if i == 3 else 4)
        for a, b in zip(ours, theirs, strict=True):
            assert a.get("terms", {}) == pytest.approx(b.get("terms", {}), rel=1e-9, abs=1e-9)
        assert together["searches"][alone.name]["search"].get("changes") == found["search"].get("changes")
    assert found["search"]["changes"] == VARIANTS[-1]


def test_variants_that_cannot_be_searched_are_refused():
    base = config(replicas=1)
    assert validate(with_search(base, replicas=4, variants=VARIANTS)).search.variants == VARIANTS
    for changes, message in (
        ({"strategy.args.lambda_range": [1.0, 0.1]}, "range"),
        ({"strategy.args.penaltie": 1}, "penaltie"),
        ({"data.limit": 1}, "structure_fraction"),
        ({"data.skip": 10_000}, "training set"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            validate(with_search(base, variants=[{}, changes]))
    with pytest.raises(ConfigError, match="order 1"):
        validate(with_search(base, replicas=2, variants=[{}, {"strategy.args.order": 2}]))


@pytest.mark.slow
def test_searches_out_of_step_do_not_share_a_graph(tmp_path, double):
    changes = {"search-s0": {"data.limit": 90}, "search-s2": {"strategy.args.lambdas_per_step": 3}}
    base = config(lambda_per="step", lambdas_per_step=2)
    parameters = {"trial": "t", "seeds": {f"search-s{i}": i for i in range(3)}, "changes": changes}
    together = run_searches(base, parameters, tmp_path / "together" / "t", lambda row: None)
    assert together["failures"] == []
    for i, name in enumerate(parameters["seeds"]):
        folder = tmp_path / "alone" / name
        folder.mkdir(parents=True)
        run_search(base, {"trial": name, "seed": i, "changes": changes.get(name)}, folder, lambda row: None)
        for a, b in zip(*(rows(tmp_path / part / name) for part in ("together", "alone")), strict=True):
            assert a.get("terms", {}) == pytest.approx(b.get("terms", {}), rel=1e-9, abs=1e-9)


def test_a_run_of_variants_keeps_its_own_configuration(tmp_path):
    base = with_search(config(replicas=1), variants=[{}, {"data.limit": 100}])
    result = run_search(base, {"trial": "search-s1", "seed": 0, "changes": {"data.limit": 100}}, tmp_path, print)
    assert result["config"]["search"]["variants"] == base.search.variants and result["config"]["data"]["limit"] == 160


def test_seconds_add_up_to_those_of_all(tmp_path):
    began = time.perf_counter()
    result = run_searches(config(), {"trial": "t", "seeds": {"search-s0": 0, "search-s1": 1}}, tmp_path / "t", print)
    total = time.perf_counter() - began
    seconds = [row["search"]["seconds"] for row in result["searches"].values()]
    assert 0.8 * total < sum(seconds) <= total + 0.02
    assert sum(result["stage_seconds"].values()) == pytest.approx(sum(seconds), abs=0.05)


class CountsInPasses(CellSpace):
    """A space that torch.vmap cannot run."""

    def forward(self, x):
        return super().forward(x * float(x.abs().max() > -1))


def test_what_cannot_be_stacked_is_refused_before_time_is_spent():
    name = f"{__name__}:CountsInPasses"
    for section, values in (
        ("search", {"search": {**SMALL["search"], "replicas": 2}}),
        ("retrain", {"retrain": {"repeats": 2, "replicas": 2}}),
    ):
        values = {**SMALL, **values, "space": {**SMALL["space"], "name": name}}
        with pytest.raises(SpaceError, match=rf"torch\.vmap.*\n.*leave {section}\.replicas out"):
            validate(Config.from_dict(values))
    validate(Config.from_dict({**SMALL, "space": {**SMALL["space"], "name": name}}))


CHOICES = {
    **{f"cell{c}/op_{n}_{k}": op for c in (0, 1) for n, k, op in ((2, 0, "conv_3x3"), (2, 1, "max_pool_3x3"))},
    **{f"cell{c}/op_{n}_{k}": op for c in (0, 1) for n, k, op in ((3, 0, "avg_pool_3x3"), (3, 1, "skip_connect"))},
    **{f"cell{c}/input_{n}_{k}": [k] for c in (0, 1) for n in (2, 3) for k in (0, 1)},
}


def retraining(**values):
    base = Config.from_dict({**SMALL, "retrain": {"epochs": 2, "batch_size": 40, "repeats": 3, **values}})
    labels = set(build_space(base, load_data(base.data), 0).simplify())
    return base, {label: choice for label, choice in CHOICES.items() if label in labels}


def test_retrainings_side_by_side_equal_single_ones(tmp_path, double):
    base, choices = retraining(crop_padding=1, horizontal_flip=True)
    seeds = {f"retrain-s0-lam0-seed{seed}": seed for seed in range(3)}
    parameters = {"choices": choices, "lambda": 0.1}
    (tmp_path / "alone").mkdir()
    result = run_retrains(base, {**parameters, "seeds": seeds}, tmp_path / "together" / "t", lambda row: None)
    assert list(result["retrainings"]) == list(seeds) and result["failures"] == []
    for name, seed in seeds.items():
        folder = tmp_path / "alone" / name
        folder.mkdir()
        alone = run_retrain(base, {**parameters, "seed": seed}, folder, lambda row: None)
        found = result["retrainings"][name]
        kept = [key for key in alone if isinstance(alone[key], (int, float)) and key != "seconds"]
        assert {key: found[key] for key in kept} == pytest.approx({key: alone[key] for key in kept}, rel=1e-9)
        ours, theirs = (rows(tmp_path / part / name) for part in ("together", "alone"))
        assert [row["terms"] for row in ours] == [pytest.approx(row["terms"], rel=1e-9) for row in theirs]
        ours, theirs = (
            torch.load(tmp_path / part / name / "model.pt", weights_only=True) for part in ("together", "alone")
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_plan_puts_repeats_side_by_side():
    base, choices = retraining(replicas=2)
    plan = SearchAndRetrain(dataclasses.replace(base, search=dataclasses.replace(base.search, searches=1)))
    search = {"search": {"id": "s0"}, "architectures": [{"choices": choices, "lambda": 0.1, "origin": "lambda"}]}
    ledger = Ledger(plan, 0)
    assert [spec.name for spec in ledger.take()] == ["search-s0"]
    ledger.done("search-s0", {"default": 0.5, **search})
    pair, single = ledger.take()
    assert (pair.name, pair.kind) == ("retrains-s0-lam0-seeds0-1", "retrains")
    assert (single.name, single.kind) == ("retrain-s0-lam0-seed2", "retrain")
    names = [f"retrain-s0-lam0-seed{seed}" for seed in range(3)]
    assert ledger.folders()[1:] == names and pair.parameters["seeds"] == {names[0]: 0, names[1]: 1}
    result = {"test_accuracy": 0.75, "params": 7}
    lost = {"trial": names[1], "attempts": 1, "cause": "ValueError: x"}
    ledger.done(pair.name, {"default": 0.5, "retrainings": {names[0]: result}, "failures": [lost]}, job="a")
    ledger.done(single.name, {"default": 0.5, **result, "test_accuracy": 0.25}, job="b")
    summary = ledger.summary()
    (row,) = summary["architectures"]
    assert [(r["seed"], r["name"], r["trial"]) for r in row["retrain"]] == [(0, names[0], "a"), (2, names[2], "b")]
    assert row["test_score_mean"] == 0.5 and row["params"] == 7 and summary["failures"] == [lost]


def test_what_serves_in_retraining_only_is_refused_side_by_side():
    with pytest.raises(ConfigError, match=r"side by side, got `auxiliary`.*retrain\.replicas"):
        validate(retraining(replicas=2, space={"auxiliary": True})[0])
    validate(retraining(replicas=2, drop_path=0.1)[0])
    assert validate(retraining(replicas=2)[0]).retrain.replicas == 2
    with pytest.raises(ConfigError, match=r"retrain\.replicas"):
        retraining(replicas=0)
