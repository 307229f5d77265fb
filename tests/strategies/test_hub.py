"""NNI's own hub: every space of it by the example, and its DARTS space (Liu, Simonyan & Yang, 2019) more closely."""

import re
import sys
from typing import Any

import pytest
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.hub.pytorch import DARTS as HubSpace
from nni.nas.space import RawFormatModelSpace
from torch.utils.data import TensorDataset

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.strategies import HyperDARTS, RegularizedDARTS, bilevel, second_order


def printed_rows(example: Any, capsys: Any, monkeypatch: Any, *options: str) -> list[tuple[str, ...]]:
    """Rows of the table as (strategy, order, size at the small lambda, at the large) or (strategy, order, refusal)."""
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", [example.__file__, "--threads", threads, *options])
    assert example.main() == 0
    out = capsys.readouterr().out
    sizes = re.findall(r"^\w+ +(\w+) +(1|2|2fd) +[\d.]+ +(\d+) +(\d+)$", out, flags=re.MULTILINE)
    refusals = re.findall(r"^\w+ +(\w+) +(1|2|2fd) +[\d.]+  (refused: .+)$", out, flags=re.MULTILINE)
    return sizes + refusals


def test_a_small_space_and_a_refusal(example: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(example, "STRATEGIES", {"HyperDARTS": HyperDARTS})
    options = ("--orders", "2", "--spaces", "NasBench201", "NasBench101")
    (strategy, order, small, large), (_, _, refusal) = printed_rows(example, capsys, monkeypatch, *options)
    assert (strategy, order) == ("HyperDARTS", "2") and int(small) > int(large)
    assert "NasBench101CellConstraint" in refusal and "`cell/final`" in refusal


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("space", "refused"),
    [
        *((space, {}) for space in ("DARTS", "ENAS", "NASNet", "PNAS", "AmoebaNet", "NasBench201")),
        *((space, {}) for space in ("ProxylessNAS", "AutoformerSpace", "ShuffleNetSpace")),
        ("MobileNetV3Space", {"2": ["aten::hardsigmoid_backward", "gate` (Hardsigmoid)", "finite_difference"]}),
        ("NasBench101", {order: ["NasBench101CellConstraint"] for order in "12"}),
    ],
)
def test_every_space(space: str, refused: dict[str, list[str]], example: Any, capsys: Any, monkeypatch: Any) -> None:
    """Searched, derived at two lambda, frozen from a fresh space and run forward, or refused by name."""
    rows = printed_rows(example, capsys, monkeypatch, "--spaces", space)
    orders = ["1", "2", *(["2fd"] if space == "MobileNetV3Space" else [])]
    expected = {(s, order) for s in ("HyperDARTS", "RegularizedDARTS") for order in orders}
    assert {row[:2] for row in rows} == expected | {("DirichletDARTS", "1")}
    for strategy, order, *found in rows:
        if order in refused:
            assert all(word in found[0] for word in refused[order])
        else:
            # Two steps of a Dirichlet structure do not move every choice.
            assert int(found[0]) > int(found[1]) or strategy != "HyperDARTS"


@pytest.mark.slow
def test_both_second_orders_agree_on_a_supernet(example: Any, monkeypatch: Any) -> None:
    """AutoFormer: smooth, so that no kink of a ReLU lies between w + eps v and w - eps v; with random drop path."""
    exact, differences = second_order.hypergradient, []

    def both(*args: Any, **options: Any) -> Any:
        loss, gradient = exact(*args, **options)
        _, quotient = exact(*args, **{**options, "method": "finite_difference"})
        _, first = exact(*args, **{**options, "learning_rate": 0.0})
        flat = [torch.cat([g.flatten() for g in found]) for found in (gradient, quotient, first)]
        differences.append([float((other - flat[0]).norm() / flat[0].norm()) for other in flat[1:]])
        return loss, gradient

    monkeypatch.setattr(bilevel, "hypergradient", both)
    found = example.row("AutoformerSpace", "HyperDARTS", {"order": 2, "second_order": "exact"})
    assert len(found["sizes"]) == 2 and len(differences) == 2
    for quotient, first in differences:
        assert quotient < 1e-2 and first > 0.2


def test_the_table_of_spaces_is_that_of_the_hub(example: Any) -> None:
    """A space that a later NNI brings is not forgotten."""
    spaces = {name for name in dir(example.hub) if isinstance(getattr(example.hub, name), type)}
    assert spaces - {"NDS", "AutoFormer"} == set(example.SPACES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("strategy", "sizes", "kind"),
    [
        (lambda: HyperDARTS(warmup_epochs=0), {"width": 4, "num_cells": 3}, "exact"),
        (lambda: RegularizedDARTS(penalty=0.1), {"width": 4, "num_cells": 3}, "exact"),
        # Width and depth are choices too: mixed convolutions, and stages whose first block must be aligned.
        (lambda: HyperDARTS(warmup_epochs=0, lambda_per="step"), {"width": (4, 8), "num_cells": (3, 6)}, "multilinear"),
    ],
    ids=["hyper_darts", "regularized_darts", "width_and_depth"],
)
def test_darts_space(strategy: Any, sizes: dict[str, Any], kind: str) -> None:
    def space() -> Any:
        torch.manual_seed(0)
        return HubSpace(**sizes, dataset="cifar")

    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8))
    evaluator = Classification(
        num_classes=10,
        train_dataloaders=DataLoader(data, batch_size=4),
        val_dataloaders=DataLoader(data, batch_size=4),
        max_epochs=1,
        limit_val_batches=1,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
    )
    search = strategy()
    search(RawFormatModelSpace(space(), evaluator), SequentialExecutionEngine())
    assert evaluator.trainer.global_step == 4  # two batches, two optimizers
    assert search.cost.kind == kind
    models = list(search.list_models(limit=3))
    assert len({Architecture(model.sample).key for model in models}) == len(models)
    for model in models:
        network = space().freeze(model.sample)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert search.exact_cost("params", model.sample) == count_parameters(network)
        if kind == "exact":
            assert search.predicted_cost("params", model.sample) == count_parameters(network)
