"""Prices that are solved for: known sizes, and the gradient of a loss whose prices follow the scores."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nni_bayes_nas.complexity.price import PriceHypernet, reduced_gradient, solve_prices

COSTS = torch.tensor([0.0, 3.0, 10.0, 0.0, 1.0, 10.0], dtype=torch.float64)
TARGETS = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=torch.float64)


def size(flat: Tensor) -> Tensor:
    """Share of the largest cost, two choices of three options each; `(*batch, 6)` -> `(*batch,)`."""
    return (flat.unflatten(-1, (2, 3)).softmax(-1).flatten(-2) @ COSTS) / 20


def solve(net: PriceHypernet, targets: Tensor) -> None:
    with torch.no_grad():
        net.knots.copy_(solve_prices(net.scores, net.costs, net.knots, size, targets))


def priced(scores: list[float]) -> PriceHypernet:
    net = PriceHypernet(6, n_knots=4).double()
    net.initialize(torch.tensor(scores, dtype=torch.float64))
    net.set_costs(COSTS)
    solve(net, TARGETS)
    return net


scores_of_six = st.lists(st.floats(-4, 4), min_size=6, max_size=6)


@given(scores_of_six)
def test_sizes_are_what_is_asked_for(scores: list[float]) -> None:
    net = priced(scores)
    outputs = net(torch.linspace(0, 1, 4).double()).detach()
    torch.testing.assert_close(size(outputs), TARGETS, rtol=0, atol=1e-3)
    assert all(a <= b for a, b in itertools.pairwise(net.knots.tolist()))
    # From where they are, and from far away, the same prices.
    with torch.no_grad():
        net.knots.add_(torch.tensor([500.0, -40.0, 0.5, 90.0]))
    before = net.knots.clone()
    solve(net, TARGETS)
    assert not torch.equal(before, net.knots)
    torch.testing.assert_close(size(net(torch.linspace(0, 1, 4).double())).detach(), TARGETS, rtol=0, atol=1e-3)


def test_a_size_that_no_price_reaches_gets_the_largest_and_the_smallest_one() -> None:
    net = PriceHypernet(6, n_knots=2).double()
    net.set_costs(COSTS)
    solve(net, torch.tensor([2.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(size(net(torch.tensor([0.0, 1.0]))).detach(), torch.tensor([1.0, 0.0]).double())


def test_prices_never_fall_even_where_sizes_are_asked_to_grow() -> None:
    """A target that rises again, or a size that is not monotone, must not let networks grow with lambda."""
    net = PriceHypernet(6, n_knots=4).double()
    net.set_costs(COSTS)
    solve(net, torch.tensor([0.9, 0.2, 0.7, 0.1], dtype=torch.float64))
    knots = net.knots.tolist()
    assert knots[0] < knots[1] == knots[2] < knots[3]


@given(scores_of_six, st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_the_reduced_gradient_is_that_of_prices_solved_again(scores: list[float], direction: list[float]) -> None:
    along = torch.tensor(direction, dtype=torch.float64)
    u = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    gains = torch.tensor([0.3, -1.0, 0.7, 0.2, 1.5, -0.4], dtype=torch.float64)

    def loss(net: PriceHypernet) -> Tensor:
        return (net(u).unflatten(-1, (2, 3)).softmax(-1).flatten(-2).square() @ gains).sum()

    def exact(net: PriceHypernet) -> None:
        # Newton: bisection stops at a thousandth, which a small step would not survive.
        for _ in range(20):
            knots = net.knots.detach().clone().requires_grad_(True)
            sizes = size(net.scores.detach() - knots.unsqueeze(-1) * net.costs)
            (slopes,) = torch.autograd.grad(sizes.sum(), knots)
            with torch.no_grad():
                net.knots.copy_(knots - (sizes - TARGETS) / slopes)

    net = priced(scores)
    exact(net)
    of_scores, of_prices = torch.autograd.grad(loss(net), [net.scores, net.knots])
    gradient = reduced_gradient(net.scores, net.costs, net.knots, size, of_scores, of_prices)
    assert float((gradient @ net.costs).abs()) < 1e-9
    values, h = [], 1e-5
    for sign in (1, -1):
        net = priced((torch.tensor(scores).double() + sign * h * along).tolist())
        exact(net)
        values.append(float(loss(net).detach()))
    assert float(gradient @ along) == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-6)


def test_where_no_price_moves_a_size_the_scores_move_alone() -> None:
    net = priced([0.0] * 6)
    with torch.no_grad():
        net.knots.fill_(1e3)
    of_scores = torch.arange(6.0).double()
    reduced = reduced_gradient(net.scores, net.costs, net.knots, size, of_scores, torch.ones(4).double())
    assert torch.equal(reduced, of_scores)


@given(st.lists(scores_of_six, min_size=2, max_size=4), st.lists(st.floats(-300, 300), min_size=4, max_size=4))
def test_several_are_solved_at_once_as_each_by_itself(scores: list[list[float]], starts: list[float]) -> None:
    several = torch.tensor(scores, dtype=torch.float64)
    begin = torch.tensor(starts[: len(scores)], dtype=torch.float64).unsqueeze(-1).expand(-1, 4)
    costs = COSTS / COSTS.max()
    together = solve_prices(several, costs, begin, size, TARGETS.expand(len(scores), 4))
    alone = [solve_prices(b, costs, p, size, TARGETS) for b, p in zip(several, begin, strict=True)]
    # Not approximately: who begins further away takes more steps, the others take none more.
    assert torch.equal(together, torch.stack(alone))
    of_scores, of_prices = several.flip(-1), begin / 100
    reduced = reduced_gradient(several, costs, together, size, of_scores, of_prices)
    for i, gradient in enumerate(reduced):
        by_itself = reduced_gradient(several[i], costs, together[i], size, of_scores[i], of_prices[i])
        torch.testing.assert_close(gradient, by_itself, rtol=1e-9, atol=1e-9)
