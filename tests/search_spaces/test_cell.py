"""The cell space at every scale, and what serves in retraining only: auxiliary classifier and drop-path."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nni.nas.space import model_context

from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.search_spaces import cell as cell_module
from nni_bayes_nas.search_spaces.cell import DEFAULT_OPERATIONS, CellSpace
from nni_bayes_nas.search_spaces.operations import DropPath, drop_path


def frozen(operation: str = "conv_3x3", **args: Any) -> Any:
    """A network of the space with one operation everywhere, each node on its first two inputs."""
    space = CellSpace(**{"width": 4, "n_nodes": 2, **args})
    choices = {
        label: operation if "/op_" in label else [int(label.rsplit("_", 1)[1])] for label in map(str, space.simplify())
    }
    with model_context(choices):
        return CellSpace(**{"width": 4, "n_nodes": 2, **args})


def sizes(network: Any, pixels: int, channels: int = 1) -> list[tuple[int, int]]:
    """Channels and pixels that the cells give."""
    seen: list[tuple[int, int]] = []
    for cell in network.cells:
        cell.register_forward_hook(lambda module, args, output: seen.append(tuple(output[1].shape[1:3])))
    network(torch.zeros(2, channels, pixels, pixels))
    return seen


@pytest.mark.parametrize(
    ("stem", "after"), [(8, [8, 4, 4]), (28, [14, 7, 4]), (32, [32, 16, 8]), (64, [32, 16, 8]), (224, [28, 14, 7])]
)
def test_every_stem_takes_images_of_its_size(stem: int, after: list[int]) -> None:
    network = frozen(stem=stem, n_cells=3, in_channels=3)
    assert sizes(network, stem, channels=3) == [(8, n) for n in after]
    assert network(torch.zeros(2, 3, stem, stem)).shape == (2, 10)


@pytest.mark.parametrize("operation", DEFAULT_OPERATIONS)
def test_channels_last_changes_nothing_but_the_order_in_memory(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, x = frozen(operation, stem=28, in_channels=3), torch.randn(4, 3, 28, 28)
    orders: list[bool] = []
    for cell in network.cells:
        cell.preprocessor.register_forward_hook(
            lambda module, args, output: orders.append(output[1].is_contiguous(memory_format=torch.channels_last))
        )
    results = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(cell_module, "channels_last", lambda x: x)
        network.zero_grad()
        logits = network(x)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in network.parameters())])
    assert orders == [True, True, False, False]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_growth_follows_the_poolings() -> None:
    assert sizes(frozen(stem=32, n_cells=4, growth=2.0), 32) == [(8, 32), (16, 16), (32, 8), (64, 4)]
    # Nothing is pooled to less than 4 pixels, and then nothing grows.
    assert sizes(frozen(stem=8, n_cells=4, growth=2.0), 8) == [(8, 8), (16, 4), (16, 4), (16, 4)]
    thirds = frozen(stem=32, n_cells=6, reduce="thirds", growth=1.5, width=4)
    assert sizes(thirds, 32) == [(8, 32)] * 2 + [(12, 16)] * 2 + [(18, 8)] * 2


@pytest.mark.parametrize(
    ("args", "cells"),
    [
        ({"share": "all"}, {"cell"}),
        ({"share": "none"}, {f"cell{i}" for i in range(6)}),
        ({"share": "stage", "reduce": "thirds"}, {"stage0", "stage1", "stage2"}),
    ],
)
def test_what_cells_share(args: dict[str, Any], cells: set[str]) -> None:
    space = CellSpace(stem=32, n_cells=6, width=2, n_nodes=1, **args)
    assert {str(label).split("/")[0] for label in space.simplify()} == cells


def test_the_auxiliary_classifier_exists_for_training_only() -> None:
    plain, network = frozen(n_cells=6), frozen(n_cells=6, auxiliary=True)
    assert network.auxiliary_at == 4 and network.training_parts == ("auxiliary",)
    x = torch.randn(3, 1, 8, 8)
    network(x)
    assert network.auxiliary_logits.shape == (3, 10)
    # It learns, and so does what lies before it.
    network.auxiliary_logits.sum().backward()
    assert network.stem[0].weight.grad is not None and network.head[-1].weight.grad is None
    network.eval()(x)
    assert network.auxiliary_logits is None
    assert count_macs(network, (1, 8, 8)) == count_macs(plain, (1, 8, 8))
    assert count_parameters(network) > count_parameters(plain)
    network.drop_training_parts()
    assert count_parameters(network) == count_parameters(plain)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert network.training_parts == ()
    network.train()(x)
    assert network.auxiliary_logits is None


@pytest.mark.parametrize(("n_cells", "at"), [(2, 0), (3, 1), (8, 5), (20, 13)])
def test_the_auxiliary_classifier_is_at_two_thirds_and_never_at_the_end(n_cells: int, at: int) -> None:
    network = frozen("skip_connect", n_cells=n_cells, auxiliary=True, width=2)
    assert network.auxiliary_at == at < n_cells - 1


@given(p=st.floats(0.0, 0.9), n=st.integers(1, 5), seed=st.integers(0, 9))
def test_drop_path_keeps_or_drops_whole_objects(p: float, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    y = drop_path(torch.ones(n, 2, 3), p)
    for obj in y:
        assert torch.equal(obj, torch.zeros(2, 3)) or torch.allclose(obj, torch.full((2, 3), 1 / (1 - p)))


def test_drop_path_has_the_right_expectation_and_rate() -> None:
    torch.manual_seed(0)
    y = drop_path(torch.ones(20_000, 1), 0.3)
    # Standard errors: 0.0046 of the mean, 0.0032 of the rate.
    assert abs(float(y.mean()) - 1) < 0.02 and abs(float((y == 0).float().mean()) - 0.3) < 0.013


def test_drop_path_is_off_in_evaluation_and_follows_the_training() -> None:
    network = frozen(n_cells=2, drop_path=0.4)
    plain = frozen(n_cells=2)
    assert network.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(network.state_dict())
    drops = [module for module in network.modules() if isinstance(module, DropPath)]
    assert len(drops) == 2 * 2 * 2 and network.training_parts == ("drop_path",)
    x = torch.randn(16, 1, 8, 8)
    assert torch.equal(network.eval()(x), plain.eval()(x))
    network.train()
    assert not torch.equal(network(x), network(x))
    network.set_progress(0.5)
    assert {module.probability for module in drops} == {0.2}
    network.set_progress(0.0)
    assert torch.equal(network(x), network(x))


def test_drop_path_spares_skip_connections() -> None:
    network = frozen("skip_connect", n_cells=2, drop_path=0.4)
    assert not [module for module in network.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"stem": 16}, r"\[8, 28, 32, 64, 224\]"),
        ({"growth": 0.5}, r"growth must lie in \[1, 4\]"),
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\)"),
        ({"auxiliary": True, "n_cells": 1}, "n_cells=1"),
    ],
)
def test_impossible_scales_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        CellSpace(**args)
