"""Sections `selection`: fewer parameters are optimized after some steps, interrupted or not."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.build import effective, validate
from nni_bayes_nas.experiment.retrain import run_probe, run_retrain
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.experiment.selection import SelectiveSearch, selective

CHOICES = {
    "cell/op_2_0": "conv_3x3",
    "cell/op_2_1": "skip_connect",
    "cell/op_3_0": "conv_3x3",
    "cell/op_3_1": "conv_3x3",
    "cell/input_2_0": [0],
    "cell/input_2_1": [1],
    "cell/input_3_0": [1],
    "cell/input_3_1": [2],
}
SPACE = {"width": 4, "n_cells": 2, "n_nodes": 2, "share": "all", "operations": ["skip_connect", "conv_3x3"]}


def config(selection: Any, **retrain: Any) -> Config:
    section = {"epochs": 3, "batch_size": 16, "selection": selection, **retrain}
    data = {"limit": 160, "val_limit": 64}
    return Config.from_dict(
        {"space": {"args": SPACE}, "data": data, "retrain": section, "experiment": {"device": "cpu"}}
    )


class Interrupted(Exception):
    """Stands for the death of the trial."""


def retrained(settings: Config, directory: Path, die_in: int | None = None) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)

    def report(terms: dict[str, Any]) -> None:
        if terms["epoch"] == die_in:
            raise Interrupted

    parameters = {"trial": "a", "choices": CHOICES, "seed": 3}
    if die_in is None:
        return run_retrain(settings, parameters, directory, report)
    with pytest.raises(Interrupted):
        run_retrain(settings, parameters, directory, report)
    return {}


SELECTION = {"active": 0.2, "start": 8, "window": 5, "criterion": "gain", "thaw_every": 9, "probe": 3}


def test_a_retraining_optimizes_so_many_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """30 steps; it dies after the first choice."""
    settings = config(SELECTION)
    whole = retrained(settings, tmp_path / "whole")
    layers = whole["selection"]["layers"]
    total = sum(row["parameters"] for row in layers.values())
    assert sum(row["active"] for row in layers.values()) == round(0.2 * total)
    assert whole["selection"]["macs"]["after"]["total"] < whole["selection"]["macs"]["before"]["total"]
    assert whole["selection"]["no_cache"] == "the network is no nn.Sequential"
    retrained(settings, tmp_path / "again", die_in=1)
    again = retrained(settings, tmp_path / "again")
    states = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "again")]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert again["test_accuracy"] == whole["test_accuracy"]
    plain = retrained(config(None), tmp_path / "plain")
    assert "selection" not in plain
    other = torch.load(tmp_path / "plain" / "model.pt", weights_only=True)
    assert any(not torch.equal(value, other[name]) for name, value in states[0].items())


def test_an_end_that_is_repeated_is_the_same(tmp_path: Path) -> None:
    """It dies after the last epoch, when all steps are done: what follows is zeroed and reported alike."""
    settings = config({**SELECTION, "kept": 0.5, "zero_at": "end"})
    whole = retrained(settings, tmp_path / "whole")
    tested = retrained(settings, tmp_path / "whole")
    state = torch.load(tmp_path / "whole" / "model.pt", weights_only=True)
    assert sum(int((value == 0).sum()) for value in state.values()) > 0.4 * sum(v.numel() for v in state.values())
    assert tested["test_accuracy"] == whole["test_accuracy"]
    assert tested["selection"] == whole["selection"]
    assert set(whole["selection"]["milliseconds"]) == set(whole["selection"]["state_bytes"]) == {"before", "after"}


def test_probes_optimize_all(tmp_path: Path) -> None:
    parameters = {"trial": "a", "choices": CHOICES, "seed": 3, "epochs": 1}
    found = []
    for name, selection in (("a", SELECTION), ("b", None)):
        (tmp_path / name).mkdir()
        found.append(run_probe(config(selection), parameters, tmp_path / name, lambda terms: None)["val_loss"])
    assert found[0] == found[1]


def test_defaults_are_filled_in() -> None:
    filled = effective(config({"active": 50})).retrain.selection
    assert filled is not None and filled["criterion"] == "gain" and filled["active"] == 50
    assert isinstance(filled["active"], int) and "seed" not in filled
    assert effective(config(None)).retrain.selection is None


@pytest.mark.parametrize(
    ("selection", "retrain", "message"),
    [
        ({"activ": 0.1}, {}, r"unknown key `retrain.selection.activ`, did you mean `active`\?"),
        ({}, {}, r"`retrain.selection.active` is missing"),
        ({"active": 0.1, "criterion": "best"}, {}, r"retrain.selection.criterion"),
        ({"active": 1.5}, {}, r"`active` must be a number, or a float in \[0, 1\]"),
        ({"active": 0.1, "criterion": "effective_perturbation", "thaw_every": 50}, {}, r"must be one of gradients"),
        ({"active": 0.1, "always": "net"}, {}, r"retrain.selection.always"),
        ({"active": 0.1}, {"replicas": 2, "repeats": 2}, r"`retrain.replicas` has 2 side by side"),
        ({"active": 10**6}, {}, r"`retrain.selection` does not fit: active must be at most the \d+ parameters"),
        ({"active": 0.1, "start": 10**4}, {}, r"`retrain.selection` does not fit: start must be at most the \d+ pla"),
        ({"active": 0.1, "start": 1}, {}, r"`retrain.selection` does not fit: start must be from 2 to \d+ of"),
        ({"active": 0.5, "kept": 0.2}, {}, r"`retrain.selection` does not fit: what goes on must be kept"),
        ({"active": 0.1, "gradients": "optimizer"}, {}, r"`retrain.selection.gradients` must be steps unless .* SGD"),
        ({"active": 0.1}, {"space": {"auxiliary": True}}, r"`retrain.space.auxiliary` has some that serve in training"),
    ],
)
def test_mistakes_are_refused_before_time_is_spent(selection: Any, retrain: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(config(selection, **retrain))


STRATEGIES = {
    "first order": ("regularized_darts", {}),
    "second order": ("regularized_darts", {"order": 2}),
    "operation by operation": ("regularized_darts", {"execution": "plain"}),
    "lambda": ("hyper_darts", {"one_hot_passes": 1}),
    "single level": ("dirichlet_darts", {"arc_learning_rate": 0.06}),
    "Gaussian weights": ("dirichlet_darts", {"weights": "variational", "scheme": "bilevel"}),
}


def search_config(strategy: str, selection: Any = None, **search: Any) -> Config:
    name, args = STRATEGIES[strategy]
    section = {"epochs": 4, "warmup_epochs": 1, "batch_size": 16, "lambdas": 2, "random": 0, **search}
    if selection is not None:
        section["selection"] = selection
    values = {"space": {"args": {**SPACE, "affine": True}}, "strategy": {"name": name, "args": args}}
    values |= {"data": {"limit": 160, "val_limit": 64}, "search": section, "experiment": {"device": "cpu"}}
    return Config.from_dict(values)


def searched(settings: Config, directory: Path, die_in: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Result, and all tensors of the search."""
    directory.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {}

    def report(terms: dict[str, Any]) -> None:
        if terms["epoch"] == die_in:
            raise Interrupted

    def inspect(reader: Any, architectures: Any) -> None:
        module = reader.strategy.oneshot_module
        state.update({name: value.detach().clone() for name, value in module.state_dict().items()})

    parameters = {"trial": "search-s0", "seed": 3}
    if die_in is None:
        return run_search(settings, parameters, directory, report, inspect=inspect), state
    with pytest.raises(Interrupted):
        run_search(settings, parameters, directory, report)
    return {}, state


IN_SEARCH = {"active": 0.3, "start": 7, "window": 4, "criterion": "gain"}


@pytest.mark.parametrize(
    "granularity", ["neuron", *(pytest.param(name, marks=pytest.mark.slow) for name in ("weight", "prefix"))]
)
@pytest.mark.parametrize(
    "strategy",
    [
        name if name in ("second order", "single level") else pytest.param(name, marks=pytest.mark.slow)
        for name in STRATEGIES
    ],
)
def test_what_a_search_freezes_stays_and_the_structure_goes_on(
    strategy: str, granularity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 steps in 4 epochs, to the bit; of the weights exactly so many go on."""
    chosen: list[tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    inner = SelectiveSearch._choose

    def record(self: Any, trainer: Any, module: Any) -> None:
        inner(self, trainer, module)
        tensors = {name: p.detach().clone() for name, p in module.named_parameters()}
        chosen.append((self.steps_done(trainer), {n: m.clone() for n, m in self.active.items()}, tensors))

    monkeypatch.setattr(SelectiveSearch, "_choose", record)
    result, state = searched(search_config(strategy, {**IN_SEARCH, "granularity": granularity}), tmp_path)
    ((step, active, then),) = chosen
    assert step == 7
    structure = {name for name in then if name.startswith("structure.")}
    assert structure
    assert not structure & set(active)
    total = sum(mask.numel() for mask in active.values())
    assert sum(int(mask.sum()) for mask in active.values()) == round(0.3 * total)
    assert all(torch.equal(state[name][~mask], then[name][~mask]) for name, mask in active.items())
    moved = [bool((state[name] != then[name])[mask].any()) for name, mask in active.items() if mask.any()]
    assert sum(moved) > len(moved) / 2
    assert any(not torch.equal(state[name], then[name]) for name in structure)
    report = result["search"]["selection"]
    assert sum(row["active"] for row in report["layers"].values()) == round(0.3 * total)
    assert set(report) == {"layers", "state_bytes", "milliseconds", "seconds"}


@pytest.mark.parametrize("strategy", ["first order", pytest.param("single level", marks=pytest.mark.slow)])
def test_a_selective_search_goes_on_where_it_was(strategy: str, tmp_path: Path) -> None:
    settings = search_config(strategy, {**IN_SEARCH, "thaw_every": 6, "probe": 3})
    whole, states = searched(settings, tmp_path / "whole")
    searched(settings, tmp_path / "again", die_in=2)
    again, others = searched(settings, tmp_path / "again")
    assert all(torch.equal(value, others[name]) for name, value in states.items())
    assert again["architectures"][0]["choices"] == whole["architectures"][0]["choices"]


def test_what_is_held_is_in_no_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe gives it gradients; steps of what goes on are as long as outside of one."""
    seen: list[tuple[bool, bool]] = []

    def clip(self: Any, optimizer: Any, *args: Any) -> None:
        callback = next(one for one in self.trainer.callbacks if isinstance(one, SelectiveSearch))
        held = [
            callback._parameters[name].grad[~mask]
            for name, mask in callback.active.items()
            if callback._parameters[name].grad is not None
        ]
        if callback._holding is not None:
            seen.append((callback._holding.probe, any(bool(grad.any()) for grad in held)))

    monkeypatch.setattr(pl.LightningModule, "configure_gradient_clipping", clip)
    searched(search_config("single level", {**IN_SEARCH, "thaw_every": 6, "probe": 3}), tmp_path)
    assert {probe for probe, _ in seen} == {True, False} and not any(held for probe, held in seen if probe)


def test_augmented_images_are_not_counted_on_to_be_kept() -> None:
    chosen = {"active": "auto", "granularity": "prefix"}
    kept, not_kept = (selective(config(chosen, **more), 0) for more in ({}, {"horizontal_flip": True}))
    assert kept is not None and kept.cache and not_kept is not None and not not_kept.cache


@pytest.mark.parametrize("active", [0, 1e-9])
def test_some_weights_go_on(active: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must leave weights to be optimized, but .* of them is none"):
        searched(search_config("first order", {**IN_SEARCH, "active": active}), tmp_path)


@pytest.mark.parametrize(
    ("selection", "strategy", "search", "message"),
    [
        ({"active": "auto", "granularity": "prefix"}, "first order", {}, r"cannot have 'auto', which measures layers"),
        ({"active": 0.1, "criterion": "gain_per_flop"}, "first order", {}, r"cannot have 'gain_per_flop'"),
        ({"active": 0.1, "cache": True}, "first order", {}, r"keeps no outputs of layers, but it has `cache`"),
        ({"active": 0.1}, "first order", {"replicas": 2, "searches": 2}, r"`search.replicas` has 2 side by side"),
        ({"active": 2.5}, "first order", {}, r"`active` must be a number"),
        ({"active": 0.1, "gradients": "optimizer"}, "first order", {}, r"but search.optimizer is sgd"),
        ({"active": 0.1, "start": 99}, "first order", {}, r"`search.selection` does not fit: start must be at most"),
    ],
)
def test_mistakes_of_a_search_are_refused(selection: Any, strategy: str, search: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(search_config(strategy, selection, **search))


def test_what_is_no_weight_is_not_chosen_from() -> None:
    """Means would go, and standard deviations stay; entries of a hypernetwork are no weights at all."""
    settings = search_config("single level", {"active": 0.3, "kept": 0.5})
    settings.strategy.args["weights"] = "variational"
    with pytest.raises(ConfigError, match=r"`search.selection.kept` .* half are logarithms of standard deviations"):
        validate(settings)
    settings = search_config("single level", {"active": 0.3})
    settings.strategy.args.update(weights="variational", weight_hypernet="linear", lambda_range=[0.1, 1.0])
    with pytest.raises(ConfigError, match=r"with `strategy.args.weight_hypernet` these are functions of lambda"):
        validate(settings)
    values = {"data": {"name": "diabetes", "task": "regression"}, "space": {"name": "dense"}}
    for section in ("retrain", "search"):
        own = {section: {"selection": {"active": 0.1, "kept": 0.5}}}
        with pytest.raises(ConfigError, match=rf"`{section}.selection.kept` .* in a regression the logarithm of the"):
            validate(Config.from_dict({**values, **own}))


def test_options_that_are_dropped_cannot_be_all_that_goes_on() -> None:
    settings = search_config("single level", {"active": 0.1})
    settings.strategy.args["keep_options"] = [1]
    with pytest.raises(ConfigError, match=r"options that `strategy.args.keep_options` drops"):
        validate(settings)


def test_recorded_passes_cannot_change() -> None:
    settings = search_config("first order", {"active": 0.1})
    settings.strategy.args["cuda_graphs"] = True
    with pytest.raises(ConfigError, match=r"with `strategy.args.cuda_graphs` passes are as they were"):
        validate(settings)


def test_a_search_by_the_moments_of_its_optimizer(tmp_path: Path) -> None:
    selection = {**IN_SEARCH, "gradients": "optimizer"}
    result, _ = searched(search_config("first order", selection, optimizer="adam"), tmp_path)
    layers = result["search"]["selection"]["layers"].values()
    assert sum(row["active"] for row in layers) == round(0.3 * sum(row["parameters"] for row in layers))


def test_a_share_and_a_number_are_not_compared_before_the_network_is_known() -> None:
    validate(config({"active": 0.9, "kept": 100}))
    with pytest.raises(ConfigError, match="what goes on must be kept"):
        validate(config({"active": 0.9, "kept": 0.5}))
