"""The terms of the structure step of the real search: known values, signs, and a search that obeys lambda."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nni_bayes_nas.complexity.price_range import hull_steps
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.evaluator import ClassificationModule
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.strategies import bilevel
from nni_bayes_nas.strategies.bilevel import BilevelModule
from nni_bayes_nas.strategies.second_order import hypergradient


def module(**args: Any) -> BilevelModule:
    """The search module on a chain of choices, at its last step."""
    config = Config.from_dict({"space": {"name": "chain"}, "strategy": {"args": args}})
    data = load_data(config.data)
    strategy = build_strategy(config, data, 0)
    strategy._mutating = strategy.mutate_model(build_space(config, data, 0))
    evaluator = ClassificationModule(num_classes=10, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    search: BilevelModule = strategy.configure_oneshot_module(evaluator)
    search.trainer = SimpleNamespace(max_epochs=30, current_epoch=29, num_training_batches=10)  # type: ignore[assignment]
    search.current_step = 299
    return search


def choose(search: BilevelModule, knot: int, option: int) -> None:
    """Make every choice take one option, almost surely, at a knot."""
    with torch.no_grad():
        search.structure.logits.knots[knot].view(-1, 3).fill_(-20.0)[:, option] = 20.0


def term(search: BilevelModule, name: str, u: torch.Tensor | None = None) -> float:
    """A term of the structure step at positions u, without its factor."""
    temperature = search.temperature(search.structure_loss.temperature)
    terms = search.structure_loss.terms(search.costs, [torch.tensor([0.0, 1.0]) if u is None else u], temperature)
    return float(terms[name].detach())


def test_the_target_is_met_by_the_right_sizes_and_only_by_them() -> None:
    search = module(hypernet="linear", target_range=(1.0, 0.0))
    choose(search, 0, 2)  # conv_3x3 everywhere at the smallest lambda: cost 1
    choose(search, 1, 0)  # identity everywhere at the largest: cost 0
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(search.costs.expected(ends), torch.tensor([1.0, 0.0]), rtol=0, atol=1e-5)
    assert term(search, "complexity", ends) < 1e-8
    assert term(search, "complexity", 1 - ends) < 1e-8
    choose(search, 0, 0)
    assert term(search, "complexity", ends) == pytest.approx(0.5, abs=1e-4)


def test_growth_with_lambda_is_punished_by_its_size() -> None:
    search = module(hypernet="linear")
    choose(search, 0, 2)
    choose(search, 1, 0)
    assert term(search, "monotonicity") == 0.0
    choose(search, 0, 0)
    choose(search, 1, 2)
    assert term(search, "monotonicity") == pytest.approx(1.0, abs=1e-4)


def test_the_penalty_is_lambda_times_the_cost() -> None:
    search = module(hypernet="linear", complexity="penalty", lambda_range=[0.01, 100.0])
    choose(search, 0, 2)
    choose(search, 1, 2)
    for u, lam in ((0.0, 0.01), (0.5, 1.0), (1.0, 100.0)):
        assert term(search, "complexity", torch.tensor([u])) == pytest.approx(lam, rel=1e-4)


def test_temperatures_fall_from_one_after_the_warm_up() -> None:
    search = module(mixing_temperature=0.01)
    temperatures = []
    for search.current_step in (0, 30, 164, 299):
        temperatures.append(search.temperature(search.final_temperature))
    assert temperatures == pytest.approx([1.0, 1.0, 0.1, 0.01], rel=0.02)


def test_the_range_of_lambda_opens_and_its_large_end_stays() -> None:
    search = module(one_hot_passes=3)
    centre = float(search.sizes.spread(torch.zeros(()), 0.0))
    for search.current_step, share in ((10, 0.0), (97, 0.5), (299, 1.0)):
        for phase in (0, 1):
            u = search.positions(64, search.current_step, phase)[0]
            assert float(u.min()) == pytest.approx(centre * (1 - share), abs=0.01)
            assert float(u.max()) == pytest.approx(centre + (1 - centre) * share, abs=0.01)
        large, *others = torch.stack(search.one_hot_positions(torch.Generator().manual_seed(0))).tolist()
        assert large == 0.0
        assert all(abs(u - centre) <= max(centre, 1 - centre) * share + 1e-6 for u in others)


def test_single_architectures_run_at_the_large_end_and_all_over_the_range() -> None:
    search = module(one_hot_passes=5)
    large, *others = torch.stack(search.one_hot_positions(torch.Generator().manual_seed(0))).tolist()
    assert large == 0.0
    assert sorted(int(4 * u) for u in others) == [0, 1, 2, 3]
    assert len(module(one_hot_passes=1).one_hot_positions(torch.Generator())) == 1
    assert module(one_hot_passes=0).one_hot_positions(torch.Generator()) == []


def test_equal_architectures_pass_once_and_count_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    search = module(one_hot_passes=5, hypernet="linear")
    for knot, option in ((0, 2), (1, 2)):
        choose(search, knot, option)
    seen: list[float] = []

    def loss(*args: Any) -> torch.Tensor:
        seen.append(float(len(seen) + 1))
        return torch.tensor(seen[-1])

    monkeypatch.setattr(search, "_pass", loss)
    monkeypatch.setattr(search.binding, "only", lambda *args: contextlib.nullcontext())
    draws = search.draws(search.positions(4, 299, 1), 299, 1)
    total = search.weight_loss(None, 0, draws, 299)
    assert seen == [1.0, 2.0]  # the mixture, and the one architecture there is
    assert float(total) == pytest.approx((1.0 + 5 * 2.0) / 6)


@pytest.mark.parametrize("schedule", ["geometric", "linear", "constant"])
def test_schedules_of_the_temperature(schedule: Any) -> None:
    search = module(mixing_temperature=0.01, temperature_schedule=schedule)
    search.current_step = 164  # half of the structure steps
    half = {"geometric": 0.1, "linear": 0.505, "constant": 0.01}[schedule]
    assert search.temperature(0.01) == pytest.approx(half, rel=0.02)


def test_an_automatic_range_is_looked_for_in_the_first_half_alone() -> None:
    search = module(complexity="penalty", lambda_range="auto", hypernet="linear")
    assert not search.exploring  # the last step
    penalized = term(search, "complexity")
    search.current_step = 100
    assert search.exploring
    choose(search, 0, 2)
    choose(search, 1, 0)
    terms = search.structure_loss.terms(search.costs, [torch.tensor([0.0, 1.0])], 1.0, exploring=True)
    assert float(terms["complexity"].detach()) < 0.01 < penalized  # on target: 0.98 and 0.02 of the range of sizes


@pytest.mark.parametrize(("ramp", "first"), [(0.5, 232), (0.95, 286), (1.0, 299)])
def test_what_lambda_costs_is_not_looked_for_before_it_has_spread(ramp: float, first: int) -> None:
    search = module(complexity="penalty", ramp=ramp)
    observed = []
    for search.current_step in range(300):
        if search._observing:
            observed.append(search.current_step)
    assert observed[0] == first


@pytest.mark.parametrize("hypernet", ["linear", "price"])
def test_an_automatic_range_holds_the_prices_over_the_weight_of_the_term(
    hypernet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = module(complexity="penalty", lambda_range="auto", complexity_weight=4.0, hypernet=hypernet)
    if hypernet == "linear":
        choose(search, 0, 2)
        choose(search, 1, 0)
    monkeypatch.setattr(search, "draws", lambda positions, step, phase: positions)
    # What is observed at a price is the mixture, here at the temperature of the last step alone.
    monkeypatch.setattr(type(search), "temperature", lambda self, last: 1.0)
    monkeypatch.setattr(search, "task_loss", lambda batch, i, draws: (1 - search.costs.expected(draws[0])) ** 2)
    found: list[int] = []
    for search.current_step in range(300):
        before = int(search.price_range.n)
        search._look_for_range(None, 0, search.current_step)
        if int(search.price_range.n) > before:
            found.append(search.current_step)
    # The second quarter of the structure steps, 30 ... 299, at a price the last one; every fourth.
    assert found == (list(range(98, 165, 4)) if hypernet == "linear" else list(range(232, 300, 4)))
    with torch.no_grad():
        costs = search.costs.expected(torch.linspace(0, 1, 9)).double()
    slopes = [step.slope for step in hull_steps(costs, (1 - costs) ** 2)]
    axis = search.structure.axis
    assert axis is not None
    assert 4 * axis.low == pytest.approx(float(slopes[0]) / 2, rel=1e-4)
    assert 4 * axis.high == pytest.approx(float(slopes[-1]) * 2, rel=1e-4)
    # At a price the slopes tell positions too; the others learn what lambda means from the penalty.
    assert len(axis.bends) == (0 if hypernet == "linear" else len(slopes) + 2)


@pytest.mark.parametrize("second_order", ["exact", "finite_difference"])
def test_second_order_with_a_step_of_length_zero_is_first_order(second_order: str, tmp_path: Path) -> None:
    def run(order: dict[str, Any], rate: float) -> list[float]:
        values = {
            "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
            "strategy": {"args": {"one_hot_passes": 0, **order}},
            "data": {"limit": 128},
            "search": {"epochs": 2, "warmup_epochs": 1, "lambdas": 2, "random": 0, "learning_rate": rate},
        }
        folder = tmp_path / f"{order}{rate}".replace(" ", "")
        folder.mkdir()
        result = run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
        return [row["expected_cost"] for row in result["curve"]]

    second = {"order": 2, "second_order": second_order}
    assert run(second, 1e-12) == pytest.approx(run({}, 1e-12), rel=1e-4)
    assert run(second, 0.5) != pytest.approx(run({}, 0.5), rel=1e-9)


@pytest.mark.parametrize("second_order", ["exact", "finite_difference"])
def test_the_virtual_step_is_the_weight_step_that_follows(
    second_order: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Learning rate, momentum, decay and the lambda of its objects; the structure is held still between the two."""
    virtual: list[list[torch.Tensor]] = []
    real: list[list[torch.Tensor]] = []

    def spy(validation: Any, training: Any, weights: Any, structure: Any, **options: Any) -> Any:
        real.append([w.detach().clone() for w in weights])

        def at_virtual_weights() -> torch.Tensor:
            virtual.append([w.detach().clone() for w in weights])
            loss: torch.Tensor = validation()
            return loss

        return hypergradient(at_virtual_weights, training, weights, structure, **options)

    monkeypatch.setattr(bilevel, "hypergradient", spy)
    # Prices would follow the temperature between the two.
    args = {"order": 2, "second_order": second_order, "one_hot_passes": 0, "hypernet": "linear"}
    values = {
        "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
        "strategy": {"args": {**args, "arc_learning_rate": 1e-12}},
        "data": {"limit": 256},
        "search": {
            "epochs": 3,
            "warmup_epochs": 1,
            "lambdas": 2,
            "random": 0,
            "learning_rate": 0.1,
            "gradient_clip": 1e9,
        },
    }
    run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)
    # The temperature of the mixture does not change between the two either.
    assert len(real) == len(virtual) >= 3
    for predicted, before, after in zip(virtual, real, real[1:], strict=False):
        moved = [a - b for a, b in zip(after, before, strict=True)]
        foreseen = [p - b for p, b in zip(predicted, before, strict=True)]
        torch.testing.assert_close(moved, foreseen, rtol=1e-3, atol=1e-6)
        assert max(float(m.abs().max()) for m in moved) > 1e-3


def test_lambdas_of_a_step_depend_on_seed_and_step_alone() -> None:
    search = module()
    assert torch.equal(search.positions(64, 5, 0)[0], search.positions(64, 5, 0)[0])
    assert not torch.equal(search.positions(64, 5, 0)[0], search.positions(64, 6, 0)[0])
    assert not torch.equal(search.positions(64, 5, 0)[0], search.positions(64, 5, 1)[0])


@pytest.mark.parametrize("hypernet", ["price", "piecewise_linear"])
def test_a_short_search_on_digits_obeys_lambda(hypernet: str, tmp_path: Path) -> None:
    strategy = {"args": {"hypernet": hypernet}}
    values = {
        "space": {"name": "chain"},
        "strategy": strategy,
        "search": {"epochs": 30, "warmup_epochs": 1, "lambdas": 6, "random": 0},
    }
    result = run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)
    sizes = [row["params"] for row in result["architectures"]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) >= 3 and sizes[0] >= 2 * sizes[-1]
    expected = [row["expected_cost"] for row in result["curve"]]
    assert expected[0] > expected[16] > expected[-1]
