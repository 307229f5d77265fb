"""Weights as functions of a position: what each kind can be, and what it learns from."""

import pytest
import torch

from nni_bayes_nas.compression import WeightHypernet
from nni_bayes_nas.compression.weight_hypernet import KINDS
from nni_bayes_nas.errors import ConfigError

SHAPES = ((4, 6), (4,), (3, 2, 3, 3))


def initial():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def random(net):
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_with_what_it_is_given(kind):
    net = WeightHypernet(initial(), kind)
    for t in (0.0, 0.3, 1.0):
        for given, value in zip(initial(), net(t), strict=True):
            assert value.shape == given.shape and value.dtype == torch.float64
            slack = 0.3 if kind in ("low_rank", "mlp") else 1e-12
            assert float((value - given).detach().abs().max()) <= slack * float(given.std())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_that_is_active(kind):
    net = random(WeightHypernet(initial(), kind, knots=4))
    sum(value.square().sum() for value in net(0.4)).backward()
    inactive = {"vectors.0", "vectors.3"} if kind == "piecewise_linear" else set()
    assert {name for name, p in net.named_parameters() if p.grad is None} == inactive


def test_linear_is_affine():
    net = random(WeightHypernet(initial(), "linear"))
    (a, _, _), (b, _, _), (c, _, _) = net(0.0), net(1.0), net(0.25)
    torch.testing.assert_close(c, 0.75 * a + 0.25 * b)
    torch.testing.assert_close(a.flatten(), net.vectors[0][:24])


@pytest.mark.parametrize("knots", [[0.0, 0.2, 0.6, 1.0], 4])
def test_piecewise_linear_by_hand(knots):
    net = random(WeightHypernet(initial(), "piecewise_linear", knots=knots))
    places = knots if isinstance(knots, list) else [0.0, 1 / 3, 2 / 3, 1.0]
    at = [torch.cat([x.flatten() for x in net(t)]) for t in places]
    for i, value in enumerate(at):
        torch.testing.assert_close(value, net.shared + net.vectors[i])
    between = torch.cat([x.flatten() for x in net(places[1] + 0.3 * (places[2] - places[1]))])
    torch.testing.assert_close(between, 0.7 * at[1] + 0.3 * at[2])


def test_a_knot_that_is_not_active_keeps_its_momentum():
    """At a knot its neighbours get no gradient; Adam then leaves them alone."""
    net = WeightHypernet(initial(), "piecewise_linear", knots=3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for t in (0.0, 0.25, 1.0, 1.0):
        before = [v.detach().clone() for v in net.vectors]
        optimizer.zero_grad()
        sum(value.square().sum() for value in net(t)).backward()
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, net.vectors, strict=True)]
        assert moved == [t < 0.5, 0 < t < 1, t > 0.5]


def test_knots_that_share_nothing_learn_as_networks_of_their_own():
    """One step of Adam at t = 1/4 of two knots: each moves by its own gradient, and nothing moves at other places."""
    net = WeightHypernet(initial(), "piecewise_linear", knots=3, shared_knots=False)
    plain = WeightHypernet(initial(), "linear")
    for one, t in ((net, 0.125), (plain, 0.25)):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
        sum(value.square().sum() for value in one(t)).backward()
        optimizer.step()
    for t, place in ((0.0, 0.0), (0.5, 1.0)):
        for ours, theirs in zip(net(t), plain(place), strict=True):
            torch.testing.assert_close(ours, theirs)
    for value, first in zip(net(1.0), initial(), strict=True):
        torch.testing.assert_close(value, first)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_has_that_rank(rank):
    net = random(WeightHypernet(initial(), "low_rank", rank=rank))
    for t in (0.2, 0.9):
        for shared, value in zip(torch.split(net.shared, net.sizes), net(t), strict=True):
            if value.dim() > 1:
                values = torch.linalg.svdvals((value - shared.reshape(value.shape)).detach().flatten(1))
                assert float(values[rank:].sum()) < 1e-10 * float(values[0]) and float(values[rank - 1]) > 1e-6
    assert not torch.allclose(net(0.2)[1], net(0.9)[1])


def test_mlp_moves_along_as_many_directions():
    net = random(WeightHypernet(initial(), "mlp", rank=2))
    at = torch.stack([torch.cat([x.flatten() for x in net(t)]) for t in (0.0, 0.2, 0.5, 0.8, 1.0)])
    values = torch.linalg.svdvals((at - net.shared).detach())
    assert float(values[2]) < 1e-10 * float(values[0]) and float(values[1]) > 1e-6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "spline"}, "kind must be one of constant, linear, piecewise_linear, low_rank, mlp, got 'spline'"),
        ({"kind": "mlp", "rank": 0}, "`rank` must be at least 1, got 0; 4 is the default"),
        ({"kind": "piecewise_linear", "knots": 1}, "knots must be at least 2, got 1"),
        ({"kind": "piecewise_linear", "knots": [0.0, 0.5, 0.5, 1.0]}, "must rise from 0 to 1"),
        ({"kind": "piecewise_linear", "knots": [0.1, 1.0]}, "must rise from 0 to 1"),
    ],
)
def test_functions_that_cannot_be(options, match):
    with pytest.raises(ConfigError, match=match):
        WeightHypernet(initial(), **options)


def test_positions_that_are_not_trained():
    with pytest.raises(ConfigError, match=r"t must lie in \[0, 1\], got 1.5"):
        WeightHypernet(initial(), "linear")(1.5)


@pytest.mark.parametrize("hidden", [4, 50])
@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.05), lambda p: torch.optim.Adam(p, 2e-3)])
def test_a_step_of_factors_moves_about_as_much_as_one_of_the_tensors(make, hidden):
    generator = torch.Generator().manual_seed(0)
    values = [0.05 * torch.randn(100, 300, generator=generator), torch.zeros(100)]
    slopes = [torch.randn(value.shape, generator=generator) for value in values]
    moved = {}
    for kind in ("constant", "low_rank"):
        net = WeightHypernet(values, kind, rank=1, hidden=hidden)
        optimizer, places = make(net.parameters()), (0.0, 0.5, 1.0)
        before = [[x.detach().clone() for x in net(t)] for t in places]
        sum((slope * x).sum() for slope, x in zip(slopes, net(1.0), strict=True)).backward()
        optimizer.step()
        moved[kind] = [
            [float((x.detach() - was).norm()) for x, was in zip(net(t), one, strict=True)]
            for t, one in zip(places, before, strict=True)
        ]
    for ours, theirs in zip(moved["low_rank"], moved["constant"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert 0.9 * b < a < 4 * b
