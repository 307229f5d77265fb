"""Every space passes the suite; the cell space spans the sizes that it promises."""

from typing import Any, ClassVar

import pytest
import torch

from nni_bayes_nas.bayes import law
from nni_bayes_nas.compliance import SpaceCompliance
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.search_spaces.cell import CellSpace
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
