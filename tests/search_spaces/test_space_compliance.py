"""Every space passes the suite; the cell space spans the sizes that it promises."""

from typing import Any, ClassVar

import pytest
import torch

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.compliance import SpaceCompliance
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.dense import DenseSpace
from nni_bayes_nas.strategies.costs import extreme_architecture


class TestChain(SpaceCompliance):
    name = "chain"


class TestCell(SpaceCompliance):
    name = "cell"
    args: ClassVar[dict[str, Any]] = {"width": 8}


class TestSharedCell(SpaceCompliance):
    name = "cell"
    args: ClassVar[dict[str, Any]] = {
        "width": 6,
        "share": "all",
        "n_cells": 3,
        "n_nodes": 2,
        "affine": True,
        "operations": ["skip_connect", "conv_3x3"],
    }


class TestGrowingCell(SpaceCompliance):
    name = "cell"
    args: ClassVar[dict[str, Any]] = {
        "width": 4,
        "share": "stage",
        "n_cells": 3,
        "n_nodes": 2,
        "reduce": "thirds",
        "growth": 2.0,
    }
    samples = 4


class TestNasBench201(SpaceCompliance):
    name = "nasbench201"
    args: ClassVar[dict[str, Any]] = {"width": 4, "cells_per_stage": 1}


class TestNasBench201WithoutNone(SpaceCompliance):
    name = "nasbench201"
    args: ClassVar[dict[str, Any]] = {
        "width": 4,
        "cells_per_stage": 1,
        "operations": ["skip_connect", "nor_conv_1x1", "nor_conv_3x3"],
        "affine": False,
    }
    samples = 4


class TestDense(SpaceCompliance):
    name = "dense"
    args: ClassVar[dict[str, Any]] = {"width": 16, "ranks": [2, 5]}


class TestDenseRegression(SpaceCompliance):
    name = "dense"
    args: ClassVar[dict[str, Any]] = {"depth": 2, "wide": False, "dropout": 0.1}
    data: ClassVar[dict[str, Any]] = {"name": "diabetes", "task": "regression"}


@pytest.mark.parametrize("data", [{}, {"name": "diabetes", "task": "regression"}], ids=["images", "vectors"])
def test_sizes_of_dense_networks_span_a_factor_of_six(data: dict[str, Any]) -> None:
    config = Config.from_dict({"space": {"name": "dense"}, "data": data})
    loaded = load_data(config.data)
    sizes = [
        count_parameters(build_space(config, loaded, 0).freeze({f"layer{i}": name for i in range(3)}))
        for name in ("skip", "low_rank_4", "low_rank_16", "linear", "wide")
    ]
    assert sizes == sorted(sizes) and sizes[-1] / sizes[0] >= 6


def test_default_ranks_follow_the_width() -> None:
    names = {width: DenseSpace(width=width).layers[0].names for width in (1, 2, 4, 16, 64)}
    low_rank = {width: [n for n in names[width] if n.startswith("low_rank")] for width in names}
    assert low_rank[1] == [] and low_rank[2] == ["low_rank_1"] and low_rank[4] == ["low_rank_1"]
    assert low_rank[16] == ["low_rank_1", "low_rank_4"] and low_rank[64] == ["low_rank_4", "low_rank_16"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"ranks": [4, 4]}, "distinct"),
        ({"width": 8, "ranks": [8]}, r"1\.\.7"),
        ({"in_features": 0}, "in_features"),
    ],
)
def test_impossible_dense_spaces_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        DenseSpace(**args)


def test_sizes_of_cells_span_a_factor_of_six() -> None:
    config = Config.from_dict({})
    data = load_data(config.data)
    strategy = build_strategy(config, data, 0)
    strategy.measure(strategy.mutate_model(build_space(config, data, 0)), data.shape)
    low, high = strategy.cost_bounds
    assert high / low >= 6
    units = list(strategy.structure.units)
    dearest, _ = extreme_architecture(strategy.cost, units, 1.0)
    assert {dearest[k] for k in dearest if "/op_" in k} == {"conv_3x3"}
    assert all(isinstance(unit, law.Node) for unit in units)


def test_images_of_28_pixels() -> None:
    space = CellSpace(stem=28, width=4, n_cells=3)
    assert space(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"operations": ["conv_7x7"]}, "conv_7x7"),
        ({"operations": []}, "at least one"),
        ({"width": 0}, "width must be at least 1"),
        ({"n_nodes": 0}, "n_nodes must be at least 1"),
    ],
)
def test_impossible_spaces_are_refused(args: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        CellSpace(**args)  # type: ignore[arg-type]
