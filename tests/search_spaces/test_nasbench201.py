"""The space of NAS-Bench-201: sizes of the benchmark's own networks, its arch strings, NASLib's indices."""

import re
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nni.nas.space import model_context

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.search_spaces.nasbench201 import (
    EDGES,
    NASLIB_OPERATIONS,
    OPERATIONS,
    NasBench201Space,
    from_arch_string,
    from_naslib,
    isomorphism_key,
    to_arch_string,
    to_naslib,
)

# Arch string, parameters and FLOPs as the benchmark has them for CIFAR-10.
TABLE = [
    ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", 73306, 7783050),
    ("|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|", 73306, 7783050),
    (
        "|nor_conv_1x1~0|+|nor_conv_1x1~0|nor_conv_1x1~1|+|nor_conv_1x1~0|nor_conv_1x1~1|nor_conv_1x1~2|",
        241306,
        31376010,
    ),
    (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
        1531546,
        220119690,
    ),
    ("|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|avg_pool_3x3~0|nor_conv_3x3~1|skip_connect~2|", 587386, 82494090),
    (
        "|skip_connect~0|+|nor_conv_3x3~0|skip_connect~1|+|avg_pool_3x3~0|avg_pool_3x3~1|skip_connect~2|",
        316346,
        43172490,
    ),
    (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|avg_pool_3x3~0|avg_pool_3x3~1|avg_pool_3x3~2|",
        559386,
        78561930,
    ),
    ("|skip_connect~0|+|avg_pool_3x3~0|avg_pool_3x3~1|+|avg_pool_3x3~0|none~1|none~2|", 73306, 7783050),
    ("|nor_conv_1x1~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|none~0|nor_conv_1x1~1|skip_connect~2|", 400346, 54968970),
    (
        "|nor_conv_1x1~0|+|nor_conv_3x3~0|skip_connect~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|",
        615386,
        86426250,
    ),
    ("|skip_connect~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|nor_conv_3x3~0|none~1|avg_pool_3x3~2|", 559386, 78561930),
    ("|avg_pool_3x3~0|+|nor_conv_1x1~0|none~1|+|none~0|skip_connect~1|none~2|", 101306, 11715210),
    ("|skip_connect~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|", 316346, 43172490),
    ("|none~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|", 316346, 43172490),
]
EXAMPLE = "|avg_pool_3x3~0|+|nor_conv_1x1~0|none~1|+|nor_conv_3x3~0|skip_connect~1|none~2|"

cells = st.tuples(*[st.sampled_from(OPERATIONS)] * len(EDGES)).map(
    lambda names: {f"cell/{i}_{j}": name for (i, j), name in zip(EDGES, names, strict=True)}
)


def test_sizes_are_those_of_the_benchmark() -> None:
    for text, params, flops in TABLE:
        # Freezing a large space copies all of it; in this context NNI makes the chosen operations only.
        with torch.device("meta"), model_context(from_arch_string(text)):
            network = NasBench201Space(width=16, cells_per_stage=5)
        assert count_parameters(network) == params, text
        # The benchmark counts the additions of the classifier's bias, too.
        assert count_macs(network, (3, 32, 32)) + 10 == flops, text


def test_the_sum_over_the_edges_of_a_cell() -> None:
    """Of skip connections alone node 1 is x, node 2 is 2 x, node 3 is 4 x; without them it is zero."""
    space = NasBench201Space(in_channels=1, width=2, cells_per_stage=1)
    x = torch.randn(2, 2, 6, 6)
    for operation, factor in (("skip_connect", 4.0), ("none", 0.0)):
        choices = from_arch_string("|op~0|+|op~0|op~1|+|op~0|op~1|op~2|".replace("op", operation))
        cell: Any = Architecture(choices).build(space).blocks[0]
        assert torch.equal(cell(x), factor * x)


@pytest.mark.parametrize(("size", "pool"), [(8, 1), (28, 1), (28, 2), (7, 1), (32, 4)])
def test_any_image_size_runs(size: int, pool: int) -> None:
    space = NasBench201Space(in_channels=1, num_classes=3, width=2, cells_per_stage=1, input_pool=pool)
    network = Architecture(from_arch_string(EXAMPLE)).build(space)
    assert network(torch.randn(2, 1, size, size)).shape == (2, 3)


@given(cells)
def test_strings_and_indices_round_trip(choices: dict[str, str]) -> None:
    assert from_arch_string(to_arch_string(choices)) == choices
    indices = to_naslib(choices)
    assert from_naslib(indices) == from_naslib(list(indices)) == from_naslib(str(indices)) == choices
    assert from_naslib(str(list(indices))) == choices


def test_all_cells_have_strings_of_their_own() -> None:
    labels = [f"cell/{i}_{j}" for i, j in EDGES]
    choices = [dict(zip(labels, names, strict=True)) for names in product(OPERATIONS, repeat=6)]
    assert len({to_arch_string(c) for c in choices}) == len({to_naslib(c) for c in choices}) == 15625


def test_known_strings() -> None:
    choices = from_arch_string(EXAMPLE)
    assert choices == {
        "cell/0_1": "avg_pool_3x3",
        "cell/0_2": "nor_conv_1x1",
        "cell/1_2": "none",
        "cell/0_3": "nor_conv_3x3",
        "cell/1_3": "skip_connect",
        "cell/2_3": "none",
    }
    assert to_arch_string(choices) == EXAMPLE
    # Edges (1,2) (1,3) (1,4) (2,3) (2,4) (3,4) of NASLib, whose nodes count from 1.
    assert [NASLIB_OPERATIONS[n] for n in to_naslib(choices)] == [
        choices[label] for label in ("cell/0_1", "cell/0_2", "cell/0_3", "cell/1_2", "cell/1_3", "cell/2_3")
    ]
    assert to_naslib(choices) == (4, 3, 2, 1, 0, 1)


def test_strings_fit_the_labels_of_the_space() -> None:
    Architecture(from_arch_string(EXAMPLE)).check(NasBench201Space(width=2, cells_per_stage=2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none~0",
        EXAMPLE[:-1],
        EXAMPLE + "+|none~0|",
        EXAMPLE.replace("+", "-"),
        EXAMPLE.replace("~1", "~2"),
        EXAMPLE.replace("~0|+", "|+"),
        EXAMPLE.replace("|+|", "||"),
        EXAMPLE.replace("none~2", "none~2|none~3"),
    ],
)
def test_malformed_arch_strings_are_refused(text: str) -> None:
    with pytest.raises(SpaceError, match="must have the form"):
        from_arch_string(text)


def test_an_operation_of_another_space_is_refused() -> None:
    with pytest.raises(SpaceError, match="max_pool_3x3"):
        from_arch_string(EXAMPLE.replace("avg", "max"))


@pytest.mark.parametrize(
    "indices",
    [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, -1), (0, 1, 2, 3, 4, True), "012340", "(0, 1, 2, 3, 4, x)"],
)
def test_malformed_indices_are_refused(indices: Any) -> None:
    with pytest.raises(SpaceError, match="6 whole numbers"):
        from_naslib(indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell/0_1": None}, r"\['cell/0_1'\] are missing"),
        ({"cell/3_4": "none"}, r"only, got \['cell/3_4'\]"),
        ({"cell/0_1": "conv_9x9"}, "conv_9x9"),
    ],
)
def test_choices_that_are_no_cell_are_refused(change: dict[str, Any], message: str) -> None:
    choices = {k: v for k, v in {**from_arch_string(EXAMPLE), **change}.items() if v is not None}
    for function in (to_arch_string, to_naslib):
        with pytest.raises(SpaceError, match=message):
            function(choices)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"operations": ["none", "max_pool_3x3"]}, "max_pool_3x3"),
        ({"operations": ["none"]}, "at least two"),
        ({"width": 0}, "width must be at least 1"),
        ({"cells_per_stage": 0}, "cells_per_stage must be at least 1"),
        ({"input_pool": 0}, "input_pool must be at least 1"),
    ],
)
def test_impossible_spaces_are_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        NasBench201Space(**args)


def every_cell() -> list[dict[str, str]]:
    labels = [f"cell/{i}_{j}" for i, j in EDGES]
    return [dict(zip(labels, operations, strict=True)) for operations in product(OPERATIONS, repeat=6)]


def test_cells_that_compute_the_same() -> None:
    cells = every_cell()
    keys = {isomorphism_key(cell) for cell in cells}
    assert len(cells) == 15_625 and len(keys) == 5_545
    by_skip = from_arch_string("|skip_connect~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|skip_connect~2|")
    direct = from_arch_string("|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|")
    assert isomorphism_key(by_skip) == isomorphism_key(direct) == "nor_conv_3x3(x)"


@pytest.mark.slow
def test_cells_of_one_key_are_one_network() -> None:
    """With one weight for an operation on every edge, outputs are equal where keys are, and hardly anywhere else."""
    space = NasBench201Space(width=2, cells_per_stage=1)
    generator = torch.Generator().manual_seed(0)
    first: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, value in space.state_dict().items():
            # blocks.0.edges.3.nor_conv_3x3.1.weight: the same for every edge of a cell
            alike = re.sub(r"edges\.\d+", "edges", name)
            if value.is_floating_point() and "running" not in name:
                value.copy_(first.setdefault(alike, torch.randn(value.shape, generator=generator)))
    space, x = space.double(), torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
    cells = every_cell()
    chosen = [cells[i] for i in torch.randperm(len(cells), generator=generator)[:300].tolist()]
    outputs: dict[str, torch.Tensor] = {}
    for cell in chosen:
        with torch.no_grad():
            output = space.freeze(cell).eval()(x)
        known = outputs.setdefault(isomorphism_key(cell), output)
        torch.testing.assert_close(output, known, rtol=1e-9, atol=1e-9)
    assert len(outputs) < len(chosen)
    different = torch.stack(list(outputs.values())).flatten(1)
    # A pooling of a constant is that constant, and that of a sum a sum of poolings, which keys do not say.
    alike = torch.cdist(different, different).fill_diagonal_(1.0).amin(1) < 1e-9
    assert float(alike.double().mean()) < 0.1
