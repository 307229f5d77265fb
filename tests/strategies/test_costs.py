"""Cost of the parts of a supernet: latency by a table, its measurement, the extremes of a cost."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nni.mutable import Categorical
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d, Repeat
from torch import Tensor, nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.expected import CostModel, CostTerm
from nni_bayes_nas.complexity.latency import LatencyTable, write_latency_table
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.strategies import RegularizedDARTS
from nni_bayes_nas.strategies.costs import cost_models, extreme_architecture
from nni_bayes_nas.strategies.latency import measure_latency

SHAPE = (2, 6, 6)


def conv(kernel: int) -> nn.Module:
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2)


def block(i: int) -> nn.Module:
    return nn.Sequential(LayerChoice([conv(1), conv(3)], label=f"in{i}"), conv(1))


class EveryKind(ModelSpace):
    """A choice with a choice inside, a choice used twice, blocks with choices, an operation with a mutable argument."""

    def __init__(self) -> None:
        super().__init__()
        inner = LayerChoice({"one": conv(1), "three": conv(3)}, label="inner")
        kernel, width = Categorical([1, 3], label="kernel"), Categorical([2, 4], label="width")
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 1),
            LayerChoice({"skip": nn.Identity(), "deep": nn.Sequential(conv(1), inner)}, label="outer"),
            *(LayerChoice([conv(1), conv(5)], label="twice") for _ in range(2)),
            Repeat(block, (0, 2), label="d"),
            MutableConv2d(4, width, kernel, padding=kernel // 2),
            MutableConv2d(width, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out.mean((-2, -1))


TABLE = {
    **{"fixed": 100.0, "outer/skip": 0.0, "deep": 1.5, "inner/one": 0.25, "inner/three": 0.5},
    **{"twice/0": 2.0, "twice/1": 4.0, "d/block_1": 8.0, "d/block_*": 16.0, "in?/0": 32.0, "in?/1": 64.0},
    **{f"MutableConv2d(width={w},kernel={k})": 128.0 * w + k for w in (2, 4) for k in (1, 3)},
    **{f"layers.6/MutableConv2d(width={w})": 4096.0 * w for w in (2, 4)},
}


def strategy_for(space: Any, shape: tuple[int, ...], table: Any = None) -> tuple[Any, dict[str, CostModel]]:
    strategy = RegularizedDARTS()
    supernet = strategy.mutate_model(space)
    models = cost_models(supernet, strategy._binding, shape, latency_table=table)
    strategy._costs = models
    return strategy, {str(kind): model for kind, model in models.items()}


def latency_by_hand(sample: dict[str, Any]) -> float:
    total = 100.0 + {"skip": 0.0, "deep": 1.5}[sample["outer"]] + 2 * {0: 2.0, 1: 4.0}[int(sample["twice"])]
    if sample["outer"] == "deep":
        total += {"one": 0.25, "three": 0.5}[sample["inner"]]
    for block in range(sample["d"]):
        total += [8.0, 16.0][block] + [32.0, 64.0][int(sample[f"in{block}"])]
    return total + 128.0 * sample["width"] + sample["kernel"] + 4096.0 * sample["width"]


def test_latency_of_every_architecture_is_the_sum_of_its_entries() -> None:
    strategy, models = strategy_for(EveryKind(), SHAPE, LatencyTable(TABLE))
    units = strategy.structure.units
    weights = strategy.structure.probs(strategy.structure.position(None))
    seen, expected = 0, 0.0
    for parts in itertools.product(*(list(law.enumerate_choices(unit)) for unit in units)):
        sample = {label: choice for part in parts for label, choice in part.items()}
        assert strategy.predicted_cost("latency", sample) == pytest.approx(latency_by_hand(sample), abs=1e-9)
        logs = sum(law.log_prob(u, w, sample) for u, w in zip(units, weights, strict=True))
        expected += float(torch.as_tensor(logs).detach().exp()) * latency_by_hand(sample)
        seen += 1
    assert seen == 2 * 2 * 2 * 3 * 2 * 2 * 2 * 2
    model = models["latency"]
    found = strategy.structure.expected_cost(model, strategy.structure.position(None))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    assert sorted(models) == ["latency", "macs", "params"]


def test_latency_of_cells_by_operation_name_and_by_cell(tmp_path: Path) -> None:
    names = ("skip_connect", "sep_conv_3x3", "conv_3x3")
    entries = {"skip_connect": 0.01, "sep_conv_3x3": 0.42, "conv_3x3@8x4x4": 0.2, "conv_3x3": 0.7, "cell1/sep*": 0.3}
    path = tmp_path / "table.yaml"
    write_latency_table(path, {**entries, "cell1/skip_connect": 0.02})
    space = CellSpace(width=8, n_cells=2, n_nodes=2, operations=names)
    strategy, _ = strategy_for(space, (1, 8, 8), path)
    by_cell = {
        "cell0": {"skip_connect": 0.01, "sep_conv_3x3": 0.42, "conv_3x3": 0.7},
        # A name alone is more specific than a wildcard; the second cell sees 4x4 images.
        "cell1": {"skip_connect": 0.02, "sep_conv_3x3": 0.42, "conv_3x3": 0.2},
    }
    for sample in strategy.structure.random_samples(8, generator=torch.Generator().manual_seed(0)):
        chosen = [(key.split("/")[0], name) for key, name in sample.items() if "/op_" in key]
        assert len(chosen) == 8
        by_hand = sum(by_cell[cell][name] for cell, name in chosen)
        assert strategy.predicted_cost("latency", sample) == pytest.approx(by_hand)


class ChoiceOfChoices(ModelSpace):
    """A candidate that is a choice itself, with nothing around it."""

    def __init__(self) -> None:
        super().__init__()
        inner = LayerChoice({"one": conv(1), "three": conv(3)}, label="inner")
        self.outer = LayerChoice({"plain": conv(5), "nested": inner}, label="outer")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(x)
        return out.mean((-2, -1))


def test_a_wildcard_means_operations_not_choices_around_them() -> None:
    strategy, _ = strategy_for(ChoiceOfChoices(), (4, 6, 6), LatencyTable({"*": 1.0}))
    for outer in ("plain", "nested"):
        assert strategy.predicted_cost("latency", {"outer": outer, "inner": "one"}) == pytest.approx(1.0)
    # An entry of its own is meant.
    strategy, _ = strategy_for(ChoiceOfChoices(), (4, 6, 6), LatencyTable({"*": 1.0, "outer/nested": 4.0}))
    assert strategy.predicted_cost("latency", {"outer": "nested", "inner": "one"}) == pytest.approx(5.0)


def test_a_table_that_lacks_candidates_is_refused_by_their_names() -> None:
    lacking = {key: value for key, value in TABLE.items() if key not in ("inner/three", "in?/1")}
    with pytest.raises(SpaceError, match="lacks inner/three, in0/1, in1/1;"):
        strategy_for(EveryKind(), SHAPE, LatencyTable(lacking))
    with pytest.raises(SpaceError, match=r"my table lacks outer/skip, outer/deep, .* and 13 more"):
        strategy_for(EveryKind(), SHAPE, LatencyTable({"other": 1.0}, {}, "my table"))


def test_a_measured_table_serves_the_space_and_knows_slow_from_fast(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    table = measure_latency(EveryKind(), SHAPE, repeats=1, warmup=0)
    assert torch.get_num_threads() == threads and table.environment["threads"] == 1
    write_latency_table(tmp_path / "measured.yaml", table)
    _, models = strategy_for(EveryKind(), SHAPE, tmp_path / "measured.yaml")
    keys = {"inner/three@4x6x6", "d/block_2@4x6x6", "layers.6/MutableConv2d(width=2)@4x6x6", "fixed"}
    assert keys <= set(table.entries)
    assert min(table.entries.values()) >= 0 and table.fixed > 0
    assert models["latency"].constant == table.fixed

    class FastAndSlow(ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            slow = nn.Sequential(*(nn.Conv2d(32, 32, 5, padding=2) for _ in range(4)))
            self.layer = LayerChoice({"fast": nn.Conv2d(32, 32, 1), "slow": slow}, label="l")

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    entries = measure_latency(FastAndSlow(), (32, 16, 16), repeats=5, warmup=1).entries
    assert entries["l/slow@32x16x16"] > 2 * entries["l/fast@32x16x16"] > 0
    assert entries["fixed"] < entries["l/slow@32x16x16"]


@st.composite
def small_costs(draw: st.DrawFn) -> CostModel:
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        option = draw(st.integers(0, 2))
        parts.append(CostTerm(((draw(st.integers(0, 2)), (option,)),), float(draw(st.integers(0, 99)))))
    return CostModel(tuple(parts), 3.0, (3, 3, 3))


@settings(max_examples=25)
@given(cost=small_costs(), sign=st.sampled_from([-1.0, 1.0]))
def test_the_extreme_of_a_sum_equals_enumeration(cost: CostModel, sign: float) -> None:
    units = [law.Choice(label, ("a", "b", "c")) for label in "xyz"]
    values = [
        float(cost.expected([law.one_hot(u, {u.label: option}) for u, option in zip(units, options, strict=True)]))
        for options in itertools.product("abc", repeat=3)
    ]
    sample, value = extreme_architecture(cost, units, sign)
    assert value == (max(values) if sign > 0 else min(values))
    assert float(cost.expected([law.one_hot(u, sample) for u in units])) == value


def test_the_extreme_sees_into_nested_choices() -> None:
    """Seen from the first options, the inner choice is cheap, and leaving the outer one alone looks best."""
    units = [law.Choice("outer", ("plain", "nested")), law.Choice("inner", ("small", "large"))]
    parts = [
        CostTerm(((0, (0,)),), 10.0),
        CostTerm(((0, (1,)), (1, (0,))), 1.0),
        CostTerm(((0, (1,)), (1, (1,))), 99.0),
    ]
    cost = CostModel(tuple(parts), 0.0, (2, 2))
    assert extreme_architecture(cost, units, 1.0) == ({"outer": "nested", "inner": "large"}, 99.0)
    assert extreme_architecture(cost, units, -1.0) == ({"outer": "nested", "inner": "small"}, 1.0)


@pytest.mark.parametrize("kind", ["two choices", "one choice", "outside too"])
def test_a_module_of_two_options_is_refused(kind: str) -> None:
    """It is there by either of them, and costs what it costs once; those of one may be used twice."""

    class Shared(ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            own = conv(3)
            first = LayerChoice(
                {"k": own, "i": nn.Sequential(own, nn.ReLU()) if kind == "one choice" else conv(1)}, label="a"
            )
            second = {"two choices": LayerChoice({"k": own, "i": nn.Identity()}, label="b"), "outside too": own}
            self.layers = nn.Sequential(nn.Conv2d(2, 4, 1), first, second.get(kind, nn.Identity()))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers(x)
            return out.mean((-2, -1))

    strategy = RegularizedDARTS(input_shape=SHAPE)
    with pytest.raises(SpaceError, match=r"must have modules of its own.* a/k has those of"):
        strategy.measure(strategy.mutate_model(Shared()), SHAPE)


def test_what_is_used_twice_in_one_option_counts_once() -> None:
    class Twice(ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            own, always = conv(3), conv(1)
            self.layers = nn.Sequential(
                nn.Conv2d(2, 4, 1),
                always,
                LayerChoice({"k": nn.Sequential(own, own, always), "i": nn.Identity()}, label="a"),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers(x)
            return out.mean((-2, -1))

    strategy = RegularizedDARTS(input_shape=SHAPE)
    supernet = strategy.mutate_model(Twice())
    strategy.measure(supernet, SHAPE)
    cost = cost_models(supernet, strategy._binding, SHAPE)["params"]
    assert cost.constant == 12 + 20 and [term.cost for term in cost.terms] == [148]


def test_thousands_of_terms_take_no_time() -> None:
    units = [law.Choice(f"c{i}", tuple(range(6))) for i in range(40)]
    parts = [
        CostTerm(((i, (a,)), (j, (b,))), float(1 + a * b + i))
        for i in range(40)
        for j in (i + 1, i + 2, i + 3)
        if j < 40
        for a in range(6)
        for b in range(6)
    ]
    cost = CostModel(tuple(parts), 0.0, (6,) * 40)
    assert len(parts) > 4000
    started = time.process_time()
    sample, _ = extreme_architecture(cost, units, 1.0)
    assert set(sample.values()) == {5}
    assert time.process_time() - started < 2
