"""Cells that are one graph are counted as one."""

import itertools
from collections import defaultdict

import pytest
import torch

from nni_bayes_nas.search_spaces.cell import CellSpace, isomorphism_key


def cells_of(nodes):
    """Every cell of one convolution or skip_connect an edge, each node on two of its inputs."""
    pairs = [list(itertools.combinations(range(node), 2)) for node in range(2, 2 + nodes)]
    for sources in itertools.product(*pairs):
        for names in itertools.product(("skip_connect", "conv_3x3"), repeat=2 * nodes):
            yield {
                label: value
                for i, pair in enumerate(sources)
                for slot in (0, 1)
                for label, value in (
                    (f"cell0/op_{2 + i}_{slot}", names[2 * i + slot]),
                    (f"cell0/input_{2 + i}_{slot}", [pair[slot]]),
                )
            }


def renumbered(choices, order):
    """The cell with node `2 + i` called `2 + order[i]`, and its slots exchanged; None if an edge would lead back.

    Inputs change places too: the first cell gets the stem's output twice.
    """
    found = {}
    for node in range(2, 2 + len(order)):
        new = 2 + order[node - 2]
        for slot in (0, 1):
            source = choices[f"cell0/input_{node}_{slot}"][0]
            source = 2 + order[source - 2] if source >= 2 else 1 - source
            if source >= new:
                return None
            found[f"cell0/op_{new}_{1 - slot}"] = choices[f"cell0/op_{node}_{slot}"]
            found[f"cell0/input_{new}_{1 - slot}"] = [source]
    return found


def plain(choices):
    nodes = sorted({int(label.split("_")[1]) for label in choices})
    at = [[(choices[f"cell0/op_{n}_{s}"], max(1, choices[f"cell0/input_{n}_{s}"][0])) for s in (0, 1)] for n in nodes]
    return tuple(tuple(sorted(each)) for each in at)


@pytest.mark.parametrize("nodes", [2, 3])
def test_cells_are_one_where_nodes_can_change_places(nodes):
    """Classes by the key are those of all renumberings, tried one by one."""
    by_key, orders = defaultdict(set), list(itertools.permutations(range(nodes)))
    forms = {}
    for cell in cells_of(nodes):
        others = [one for order in orders if (one := renumbered(cell, order)) is not None]
        forms[plain(cell)] = min(plain(one) for one in others)
        by_key[isomorphism_key(cell)].add(forms[plain(cell)])
    assert all(len(found) == 1 for found in by_key.values())
    assert len(by_key) == len(set(forms.values())) < len(forms)


def test_the_key_tells_whose_output_is_meant():
    """Two nodes that are the same: one of them twice is not the same as each of them once."""
    same = {"cell0/op_2_0": "conv_3x3", "cell0/input_2_0": [0], "cell0/op_3_0": "conv_3x3", "cell0/input_3_0": [0]}
    one = {"cell0/op_4_0": "conv_3x3", "cell0/op_5_0": "conv_3x3", "cell0/input_4_0": [2], "cell0/input_5_0": [2]}
    assert isomorphism_key({**same, **one}) != isomorphism_key({**same, **one, "cell0/input_5_0": [3]})
    assert isomorphism_key({**same, **one}) == isomorphism_key(
        {**same, **one, "cell0/input_4_0": [3], "cell0/input_5_0": [3]}
    )


def test_inputs_are_two_behind_the_first_cell():
    cell = next(cells_of(2))
    other = {**cell, "cell0/input_2_0": [1], "cell0/input_2_1": [0], "cell0/op_2_1": "conv_3x3"}
    same = {**other, "cell0/input_2_0": [0], "cell0/input_2_1": [1]}
    assert CellSpace(n_cells=2).isomorphism_key(other) == CellSpace(n_cells=2).isomorphism_key(same)
    behind = [{label.replace("cell0", "cell1"): value for label, value in one.items()} for one in (other, same)]
    assert len({CellSpace(n_cells=2).isomorphism_key({**cell, **one}) for one in behind}) == 2
    shared = [{label.replace("cell0", "cell"): value for label, value in one.items()} for one in (other, same)]
    for cells, keys in ((1, 1), (2, 2)):
        assert len({CellSpace(n_cells=cells, share="all").isomorphism_key(one) for one in shared}) == keys


def test_other_choices_count():
    cell = next(cells_of(2))
    assert isomorphism_key(cell) != isomorphism_key({**cell, "width": 4}) != isomorphism_key({**cell, "width": 8})


def test_cells_of_one_key_have_equal_outputs():
    """With one weight for an operation wherever it stands, and a classifier that adds up the nodes."""
    space = CellSpace(n_cells=1, n_nodes=3, width=2, operations=("skip_connect", "conv_3x3"))
    generator, outputs = torch.Generator().manual_seed(0), {}
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator)
    cells = list(cells_of(3))
    for i in torch.randperm(len(cells), generator=generator)[:200].tolist():
        network = space.freeze(cells[i]).double().eval()
        with torch.no_grad():
            for value in network.parameters():
                # The classifier's weights: ten classes of three nodes of two channels.
                width = 2 if value.shape == (10, 6) else value[0].numel()
                values = torch.linspace(-1, 1, len(value) * width, dtype=torch.float64).reshape(len(value), -1)
                value.copy_(values.repeat(1, value[0].numel() // width).reshape(value.shape))
            output = network(x)
        torch.testing.assert_close(output, outputs.setdefault(isomorphism_key(cells[i]), output))
    assert len(outputs) < 200
