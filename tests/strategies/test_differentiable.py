"""What a strategy gives after a search: the largest network within a budget, and lambda outside of its range."""

from typing import Any

import pytest
import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import ModelSpace, MutableConv2d
from torch import Tensor, nn

from nni_bayes_nas.complexity.budget import GRID_POINTS
from nni_bayes_nas.complexity.latency import write_latency_table
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.strategies import HyperDARTS, RegularizedDARTS

BRUTE_FORCE = 2001
OPERATIONS = ("skip_connect", "sep_conv_3x3", "conv_1x1", "conv_3x3")
MILLISECONDS = {"skip_connect": 0.01, "sep_conv_3x3": 0.42, "conv_1x1": 0.2, "conv_3x3": 0.7}


def measured(strategy: Any) -> Any:
    """A family with preferences as a search leaves them: its sizes fall with lambda, with some ups between."""
    space = CellSpace(width=4, n_cells=2, n_nodes=2, operations=OPERATIONS)
    strategy.measure(strategy.mutate_model(space), (1, 8, 8))
    with torch.no_grad():
        for parameter in strategy.structure.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    strategy.size_control.solve(0.1)
    return strategy


@pytest.fixture(scope="module", params=["price", "piecewise_linear", "literal"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    table = tmp_path_factory.mktemp("table") / "table.yaml"
    write_latency_table(table, MILLISECONDS)
    options: dict[str, Any] = {"cost": "latency", "latency_table": str(table)}
    if request.param == "literal":
        return measured(HyperDARTS(**options, axis="literal", hypernet="linear", lambda_range=(-1.0, 2.0)))
    return measured(HyperDARTS(**options, hypernet=request.param))


@pytest.mark.parametrize("kind", ["params", "macs", "latency"])
def test_the_largest_network_within_a_budget(family: Any, kind: Any) -> None:
    def sizes(points: int) -> list[float]:
        return [family.predicted_cost(kind, family.export(lam)) for lam in family.axis.grid(points)]

    # What comes and goes between two points of the grid is found for sure only where sizes fall with lambda.
    falls = kind == "latency" and family.structure.per_node
    known = sizes(BRUTE_FORCE if falls else GRID_POINTS)
    assert len(set(known)) >= 4 and (not falls or known == sorted(known, reverse=True))
    for budget in (min(known), (min(known) + max(known)) / 2, sorted(known)[len(known) // 3], 2 * max(known)):
        found = family.for_budget(**{f"max_{kind}": budget})
        assert max(size for size in known if size <= budget) <= found.cost <= budget
        assert found.choices == family.export(found.lam)
        assert found.cost == family.predicted_cost(kind, found.choices)


@pytest.mark.parametrize("kind", ["params", "macs", "latency"])
def test_an_impossible_budget_is_refused_with_the_smallest_size(family: Any, kind: Any) -> None:
    smallest = min(family.predicted_cost(kind, family.export(lam)) for lam in family.axis.grid(GRID_POINTS))
    with pytest.raises(ConfigError, match="smallest derived network") as caught:
        family.for_budget(**{f"max_{kind}": smallest * 0.99})
    assert f"{smallest:,.6g}" in str(caught.value) and len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ({}, "got 0"),
        ({"max_params": 1000, "max_macs": 1000}, "got 2"),
        ({"max_latency": 3.0}, "search with cost='latency'"),
        ({"max_params": float("nan")}, "`max_params` must be a finite number, got nan"),
        ({"max_macs": "1000"}, "`max_macs` must be a number, got '1000'"),
    ],
)
def test_budgets_that_make_no_sense(budgets: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        measured(HyperDARTS()).for_budget(**budgets)


@pytest.mark.parametrize("lam", ["0.1", float("inf"), float("nan"), True, 0.0])
def test_a_lambda_that_is_none(lam: Any) -> None:
    strategy = measured(HyperDARTS())
    for extrapolate in (False, True):
        with pytest.raises(ConfigError, match=r"`?lambda`? must be (a number|a finite number|positive)"):
            strategy.export(lam, extrapolate=extrapolate)


def test_a_budget_below_what_the_range_of_lambda_reaches_names_the_lambda_that_does() -> None:
    strategy = measured(HyperDARTS(complexity="penalty", lambda_range=(1e-3, 1.0)))
    strategy.structure.set_axis([(10.0, 0.0), (30.0, 0.5), (100.0, 1.0)])
    smallest = strategy.predicted_cost("params", strategy.structure.derive_at(torch.ones(())))
    with pytest.raises(ConfigError, match="search with a wider lambda_range: sizes fall until lambda is 100"):
        strategy.for_budget(max_params=smallest)


def test_a_budget_before_the_search() -> None:
    with pytest.raises(RuntimeError, match="run the strategy first"):
        HyperDARTS().for_budget(max_params=1000)


def test_a_strategy_without_lambda_has_one_network() -> None:
    strategy = measured(RegularizedDARTS())
    size = strategy.predicted_cost("params", strategy.export())
    assert strategy.for_budget(max_params=size).lam is None
    with pytest.raises(ConfigError, match=f"{size:,.6g}"):
        strategy.for_budget(max_params=size - 1)


class Unpadded(ModelSpace):
    """A small kernel leaves a larger image to what follows: in the supernet every image is that of the large one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernels = [Categorical([1, 3], label=f"kernel{i}") for i in range(3)]
        self.layers = nn.Sequential(*(MutableConv2d(1 if i == 0 else width, width, k) for i, k in enumerate(kernels)))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x).mean((-2, -1))


def test_a_budget_holds_for_the_network_where_the_cost_model_is_wrong() -> None:
    shape = (1, 8, 8)
    strategy: Any = HyperDARTS(hypernet="linear", lambda_per="step")
    strategy.measure(strategy.mutate_model(Unpadded(4)), shape)
    with torch.no_grad():
        # From three large kernels to three small ones, one after the other.
        knots = strategy.structure.logits.knots
        knots[0], knots[1] = torch.tensor([-1.0, 1, -2, 1, -3, 1]), torch.tensor([1.0, -1, 1, -1, 1, -1])
    noise = torch.get_rng_state()
    choices = [strategy.export(lam) for lam in strategy.axis.grid(GRID_POINTS)]
    networks = [Unpadded(4).freeze(sample) for sample in choices]
    torch.set_rng_state(noise)
    sizes = [count_macs(network, shape) for network in networks]
    predicted = [strategy.predicted_cost("macs", sample) for sample in choices]
    assert len(set(sizes)) == 4 and any(p < 0.5 * size for p, size in zip(predicted, sizes, strict=True))
    for budget in (min(sizes), (min(sizes) + max(sizes)) / 2, max(sizes)):
        found = strategy.for_budget(max_macs=budget)
        assert found.cost == count_macs(Unpadded(4).freeze(found.choices), shape)
        assert found.cost == max(size for size in sizes if size <= budget)
        torch.set_rng_state(noise)
    with pytest.raises(ConfigError, match=f"{min(sizes):,.6g}"):
        strategy.for_budget(max_macs=min(predicted))
    found = strategy.for_budget(max_params=count_parameters(networks[0]))
    assert found.cost == count_parameters(networks[0]) and found.choices == choices[0]
    assert torch.equal(torch.get_rng_state(), noise)


@pytest.mark.parametrize("hypernet", ["price", "linear", "piecewise_linear", "mlp"])
def test_lambda_outside_of_the_range_is_refused_unless_asked_for(hypernet: Any) -> None:
    strategy = measured(HyperDARTS(hypernet=hypernet, lambda_range=(0.01, 1.0)))
    for lam in (0.005, 2.0):
        with pytest.raises(ConfigError, match=rf"trained range \[0.01, 1\], got {lam:g}.*extrapolate"):
            strategy.export(lam)
        assert set(strategy.export(lam, extrapolate=True)) == set(strategy.export(0.1))
    for lam in (0.01, 1.0):
        assert strategy.export(lam, extrapolate=True) == strategy.export(lam)


def test_at_a_price_extrapolation_goes_on_towards_smaller_networks() -> None:
    strategy = measured(HyperDARTS(lambda_range=(0.01, 1.0)))
    sizes = [strategy.predicted_cost("params", strategy.export(10.0**k, extrapolate=True)) for k in range(-4, 3)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 2
