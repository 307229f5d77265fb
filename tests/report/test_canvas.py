"""Labels of points beside one another."""

import pytest
from matplotlib.figure import Figure

from nni_bayes_nas.report.canvas import place_labels


def boxes(points):
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for x, y in points:
        axes.annotate("0.0027", (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8.5)
    place_labels(axes)
    return [text.get_window_extent() for text in axes.texts], axes


@pytest.mark.parametrize("points", [[(0.5, 0.5)] * 4, [(0.4, 0.5), (0.45, 0.5), (0.5, 0.52)], [(0.7, 0.5), (0.8, 0.5)]])
def test_labels_of_near_points_do_not_cover_each_other(points):
    found, _ = boxes(points)
    assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


def test_label_with_room_stands_below_on_the_right():
    (box,), axes = boxes([(0.5, 0.5)])
    x, y = axes.transData.transform((0.5, 0.5))
    assert box.x0 > x and box.y1 < y


def test_label_without_a_free_side_keeps_the_first_one():
    found, _ = boxes([(0.5, 0.5)] * 12)
    assert found[-1].bounds == found[0].bounds
