"""The picture of an architecture: every choice is in it, and nothing overlaps."""

import itertools
import random
import re
import xml.etree.ElementTree as ET

import pytest

from nni_bayes_nas.report.picture import draw_architecture, split_choices

SVG = "{http://www.w3.org/2000/svg}"


def cell(n_nodes, seed, label="normal", n_inputs=2):
    rng = random.Random(seed)
    choices = {}
    for node in range(n_inputs, n_inputs + n_nodes):
        for slot in range(2):
            choices[f"{label}/op_{node}_{slot}"] = rng.choice(["sep_conv_3x3", "skip_connect", "max_pool_3x3"])
            choices[f"{label}/input_{node}_{slot}"] = [rng.randrange(node)]
    return choices


def test_cells_and_other_choices_are_told_apart():
    cells, rest = split_choices({**cell(2, 0), "stem/width": 8, "depth": 3, "n/input_1_0": [5]})
    assert list(cells) == ["normal"]
    assert [(e.node, e.slot) for e in cells["normal"]] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    # An input that the cell cannot have is listed, not drawn.
    assert rest == {"stem/width": 8, "depth": 3, "n/input_1_0": [5]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_nodes", [1, 3, 4])
def test_every_operation_and_node_is_drawn_without_overlap(n_nodes, seed):
    choices = cell(n_nodes, seed)
    root = ET.fromstring(draw_architecture(choices))
    texts = [t.text for t in root.iter(f"{SVG}text")]
    operations = [v for k, v in choices.items() if "/op_" in k]
    assert sorted(t for t in texts if t in set(operations)) == sorted(operations)
    assert {"in 0", "in 1", "output", *(str(n) for n in range(2, 2 + n_nodes))} <= set(texts)
    boxes = {tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in root.iter(f"{SVG}rect")}
    for (x, y, w, h), (X, Y, W, H) in itertools.combinations(sorted(boxes), 2):
        assert x + w <= X or X + W <= x or y + h <= Y or Y + H <= y
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(x + w <= width and y + h <= height for x, y, w, h in boxes)


def test_values_are_escaped_and_listed():
    svg = draw_architecture({"<label>": "a & b", "inputs": [0, 2]})
    ET.fromstring(svg)
    assert "&lt;label&gt;" in svg and "a &amp; b" in svg and "0, 2" in svg


def test_no_choices_at_all():
    assert "no choices" in draw_architecture({})


def test_picture_stands_alone():
    svg = draw_architecture(cell(3, 1))
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert svg.startswith("<svg") and svg.endswith("</svg>")
