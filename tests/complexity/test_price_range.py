"""The automatic range of lambda: slopes of a known curve."""

import itertools

import pytest
import torch

from nni_bayes_nas.complexity.price_range import GRID_POINTS, PriceRange, hull_steps


def slopes(costs: torch.Tensor, losses: torch.Tensor) -> list[float]:
    return [step.slope for step in hull_steps(costs, losses)]


def ends(found: PriceRange) -> tuple[float, float] | None:
    """The lowest and the highest lambda that matter."""
    points = found.points(torch.linspace(0, 1, GRID_POINTS))
    return None if points is None else (points[0][0], points[-1][0])


def test_slopes_of_a_parabola() -> None:
    costs = torch.linspace(0, 1, 5, dtype=torch.float64)
    # From E = 1 down: the chords of (1 - E)^2.
    assert slopes(costs, (1 - costs) ** 2) == pytest.approx([0.25, 0.75, 1.25, 1.75])


def test_points_above_the_hull_do_not_matter() -> None:
    costs = torch.tensor([0.0, 0.3, 0.5, 0.5, 1.0], dtype=torch.float64)
    losses = torch.tensor([1.0, 5.0, 0.5, 0.7, 0.0], dtype=torch.float64)
    assert slopes(costs, losses) == pytest.approx([1.0])
    # Any lambda below 1 takes the dearest, any above the cheapest.
    for lam, best in ((0.9, 4), (1.1, 0)):
        assert int((losses + lam * costs).argmin()) == best


def test_nearly_equal_costs_give_no_slope_and_hide_none() -> None:
    # The cheaper of the two middle ones is the better: the dearer one is above the hull.
    costs = torch.tensor([0.0, 0.500, 0.505, 1.0], dtype=torch.float64)
    losses = torch.tensor([1.0, 0.2, 0.9, 0.0], dtype=torch.float64)
    assert slopes(costs, losses) == pytest.approx([0.4, 1.6])
    # 0.004 from the cheapest, and better by 0.1: a slope of 25 would be noise; the cheapest itself stays.
    costs = torch.tensor([0.0, 0.004, 1.0], dtype=torch.float64)
    assert slopes(costs, torch.tensor([1.0, 0.9, 0.0], dtype=torch.float64)) == pytest.approx([1.0])


def test_the_range_holds_all_slopes_and_survives_a_checkpoint() -> None:
    found = PriceRange()
    assert ends(found) is None
    costs = torch.linspace(1, 0, GRID_POINTS)
    for noise in (-0.1, 0.1):
        found.observe(costs, (1 - costs) ** 2 + noise)
    low, high = ends(found) or (0.0, 0.0)
    assert low == pytest.approx((1 / 8) / 2) and high == pytest.approx((2 - 1 / 8) * 2)
    again = PriceRange()
    again.load_state_dict(found.state_dict())
    assert ends(again) == (low, high)


def test_no_range_where_larger_networks_are_worse() -> None:
    found = PriceRange()
    costs = torch.linspace(1, 0, GRID_POINTS)
    found.observe(costs, costs)
    assert ends(found) is None


def test_lambda_stands_where_it_minimizes_loss_and_cost() -> None:
    found, grid = PriceRange(), torch.linspace(0, 1, GRID_POINTS)
    costs = 1 - grid
    # A kink at E = 0.5 (slopes 0.2 and 2), and the last quarter of the sizes is worth nothing.
    losses = torch.where(costs < 0.5, 2 * (0.5 - costs) + 0.05, 0.2 * (0.75 - costs).clamp_min(0.0))
    found.observe(costs, losses)
    points = found.points(grid)
    assert points is not None
    known = [(0.1, 0.25), (0.2, 0.375), (2.0, 0.75), (4.0, 1.0)]
    torch.testing.assert_close(torch.tensor(points), torch.tensor(known), rtol=1e-3, atol=0)
    assert ends(found) == pytest.approx((0.1, 4.0), rel=1e-3)


def test_prices_span_three_decades_at_most() -> None:
    found, grid = PriceRange(), torch.linspace(0, 1, GRID_POINTS)
    found.observe(1 - grid, torch.tensor([0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.5]))
    points = found.points(grid)
    assert points is not None
    assert points[-1][0] / points[0][0] == pytest.approx(4e3)
    assert points[0][1] == 0.0 and points[-1][1] == 1.0
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(points))
