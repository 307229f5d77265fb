"""The terms of the structure step of the real search: known values, signs, and a search that obeys lambda."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.evaluator import ClassificationModule
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.strategies.bilevel import BilevelModule


def module(**args: Any) -> BilevelModule:
    """The search module on a chain of choices, halfway through its epochs."""
    config = Config.from_dict({"space": {"name": "chain"}, "strategy": {"args": args}})
    data = load_data(config.data)
    strategy = build_strategy(config, data, 0)
    strategy._mutating = strategy.mutate_model(build_space(config, data, 0))
    evaluator = ClassificationModule(num_classes=10, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    search: BilevelModule = strategy.configure_oneshot_module(evaluator)
    search.trainer = SimpleNamespace(max_epochs=30, current_epoch=29)  # type: ignore[assignment]
    return search


def choose(search: BilevelModule, knot: int, option: int) -> None:
    """Make every choice take one option, almost surely, at a knot."""
    with torch.no_grad():
        search.structure.logits.knots[knot].view(-1, 3).fill_(-20.0)[:, option] = 20.0


def test_the_target_is_met_by_the_right_sizes_and_only_by_them() -> None:
    search = module(hypernet="linear", target_range=(1.0, 0.0))
    choose(search, 0, 2)  # conv_3x3 everywhere at the smallest lambda: cost 1
    choose(search, 1, 0)  # identity everywhere at the largest: cost 0
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(search.normalized_cost(ends), torch.tensor([1.0, 0.0]), rtol=0, atol=1e-5)
    assert float(search.complexity_term(ends).detach()) < 1e-8
    assert float(search.complexity_term(1 - ends).detach()) < 1e-8
    choose(search, 0, 0)
    assert float(search.complexity_term(ends).detach()) == pytest.approx(0.5, abs=1e-4)


def test_growth_with_lambda_is_punished_by_its_size() -> None:
    search = module(hypernet="linear")
    choose(search, 0, 2)
    choose(search, 1, 0)
    assert float(search.monotonicity_term().detach()) == 0.0
    choose(search, 0, 0)
    choose(search, 1, 2)
    assert float(search.monotonicity_term().detach()) == pytest.approx(1.0, abs=1e-4)


def test_the_penalty_is_lambda_times_the_cost() -> None:
    search = module(hypernet="linear", complexity="penalty", lambda_range=[0.01, 100.0])
    choose(search, 0, 2)
    choose(search, 1, 2)
    for u, lam in ((0.0, 0.01), (0.5, 1.0), (1.0, 100.0)):
        assert float(search.complexity_term(torch.tensor([u])).detach()) == pytest.approx(lam, rel=1e-4)


def test_the_temperature_falls_from_one() -> None:
    search = module(temperature=0.1)
    temperatures = []
    for epoch in (0, 3, 16, 29):
        search.trainer.current_epoch = epoch
        temperatures.append(search.temperature)
    assert temperatures == pytest.approx([1.0, 1.0, 0.55, 0.1], abs=0.01)


def test_lambdas_of_a_step_depend_on_seed_and_step_alone() -> None:
    search = module()
    assert torch.equal(search.positions(64, 5, 0)[0], search.positions(64, 5, 0)[0])
    assert not torch.equal(search.positions(64, 5, 0)[0], search.positions(64, 6, 0)[0])
    assert not torch.equal(search.positions(64, 5, 0)[0], search.positions(64, 5, 1)[0])


def test_a_short_search_on_digits_obeys_lambda(tmp_path: Path) -> None:
    values = {"space": {"name": "chain"}, "search": {"epochs": 12, "warmup_epochs": 1, "lambdas": 6, "random": 0}}
    result = run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)
    sizes = [row["params"] for row in result["architectures"]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) >= 3 and sizes[0] >= 2 * sizes[-1]
    expected = [row["expected_cost"] for row in result["curve"]]
    assert expected[0] > expected[16] > expected[-1]
