"""Hypernetworks: exactly affine, exactly piecewise linear, continuous."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.complexity.hypernet import Hypernet, HypernetKind, hat_basis

unit = st.floats(0.0, 1.0)


def filled(kind: HypernetKind, n_knots: int = 5) -> Hypernet:
    net = Hypernet(kind, 3, n_knots=n_knots).double()
    with torch.no_grad():
        net.knots.copy_(torch.randn(net.knots.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return net


@given(a=unit, b=unit, t=unit)
def test_linear_is_affine_in_u(a: float, b: float, t: float) -> None:
    net = filled("linear")
    u = torch.tensor([a, b, min(1.0, (1 - t) * a + t * b)], dtype=torch.float64)
    first, second, between = net(u)
    torch.testing.assert_close(between, (1 - t) * first + t * second, rtol=0, atol=1e-12)


@given(n_knots=st.integers(2, 9), cell=st.integers(0, 7), t=unit)
def test_piecewise_linear_interpolates_its_knots(n_knots: int, cell: int, t: float) -> None:
    net = filled("piecewise_linear", n_knots)
    k = cell % (n_knots - 1)
    u = torch.tensor((k + t) / (n_knots - 1), dtype=torch.float64).clamp(0, 1)
    torch.testing.assert_close(net(u), (1 - t) * net.knots[k] + t * net.knots[k + 1], rtol=0, atol=1e-9)


@given(u=unit, n_knots=st.integers(1, 9))
def test_the_basis_is_a_partition_of_unity_with_two_active_knots(u: float, n_knots: int) -> None:
    basis = hat_basis(torch.tensor(u, dtype=torch.float64), n_knots)
    assert (basis >= 0).all() and float(basis.sum()) == pytest.approx(1.0, abs=1e-12)
    assert int((basis > 0).sum()) <= 2


@given(u=unit)
def test_small_moves_make_small_changes(u: float) -> None:
    net = filled("piecewise_linear")
    moved = min(1.0, u + 1e-6)
    a, b = net(torch.tensor([u, moved], dtype=torch.float64)).detach()
    assert float((a - b).abs().max()) <= 1e-6 * 4 * float(net.knots.detach().diff(dim=0).abs().max()) + 1e-12


def test_constant_ignores_u() -> None:
    net = filled("constant")
    assert torch.equal(net(torch.tensor(0.1, dtype=torch.float64)), net(torch.tensor(0.9, dtype=torch.float64)))


@pytest.mark.parametrize("u", [-0.1, 1.1])
def test_outside_of_the_trained_range_is_refused(u: float) -> None:
    with pytest.raises(ValueError, match="nothing is trained there"):
        filled("linear")(torch.tensor(u, dtype=torch.float64))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'cubic'"):
        Hypernet("cubic", 3)  # type: ignore[arg-type]


def mlp(seed: int = 0) -> Hypernet:
    """A perceptron that is far from flat."""
    net = Hypernet("mlp", 3, hidden=16, seed=seed).double()
    with torch.no_grad():
        net.outer.mul_(1e4)
    return net


def mlp_lipschitz(net: Hypernet) -> float:
    """Bound of |f(u) - f(v)| / |u - v| in the largest output: tanh has slopes in [0, 1]."""
    n = len(net.slopes)
    first = net.slopes.detach().abs()
    second = first + net.inner.detach().abs() @ first / n
    return float((net.outer.detach().abs() @ second / n).max())


@given(u=unit, h=st.floats(1e-9, 1e-2), seed=st.integers(0, 20))
def test_mlp_is_continuous_with_the_bound_of_its_weights(u: float, h: float, seed: int) -> None:
    net = mlp(seed)
    a, b = net(torch.tensor([u, min(1.0, u + h)], dtype=torch.float64)).detach()
    assert float((a - b).abs().max()) <= mlp_lipschitz(net) * h + 1e-12
    assert mlp_lipschitz(net) > 1


@given(u=unit, h=st.floats(1e-9, 1e-2), n_knots=st.integers(2, 9))
def test_piecewise_linear_is_continuous_with_the_bound_of_its_knots(u: float, h: float, n_knots: int) -> None:
    net = filled("piecewise_linear", n_knots)
    a, b = net(torch.tensor([u, min(1.0, u + h)], dtype=torch.float64)).detach()
    steepest = (n_knots - 1) * float(net.knots.detach().diff(dim=0).abs().max())
    assert float((a - b).abs().max()) <= steepest * h + 1e-12


@pytest.mark.parametrize("kind", ["constant", "linear", "piecewise_linear", "mlp", "linear_literal"])
def test_initialize_gives_the_values_at_every_u(kind: HypernetKind) -> None:
    net = Hypernet(kind, 4)
    values = torch.tensor([0.5, -1.0, 2.0, 0.0])
    net.initialize(values)
    outputs = net(torch.linspace(0, 1, 9))
    torch.testing.assert_close(outputs, values.expand(9, 4), rtol=0, atol=1e-2 if kind == "mlp" else 1e-6)
    if kind == "mlp":
        assert float(outputs.detach().std(0).min()) > 0
    assert outputs.dtype == net.reference.dtype


def test_mlp_is_the_same_for_a_seed_and_learns_as_fast_as_knots() -> None:
    assert torch.equal(Hypernet("mlp", 2, seed=3)(torch.tensor(0.3)), Hypernet("mlp", 2, seed=3)(torch.tensor(0.3)))
    u = torch.linspace(0, 1, 33)
    goal = torch.stack([2 * (3 * u).sin(), (u - 0.5).abs() * 4 - 1], -1)
    net = Hypernet("mlp", 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(300):
        loss = ((net(u) - goal) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 5e-3


@given(lam=st.floats(-2, 3))
def test_literal_is_exactly_lambda_b1_plus_b2(lam: float) -> None:
    net = Hypernet("linear_literal", 3, domain=(-2.0, 3.0)).double()
    torch.nn.init.normal_(net.knots, generator=torch.Generator().manual_seed(0))
    b1, b2 = net.knots
    assert torch.equal(net(torch.tensor(lam, dtype=torch.float64)), lam * b1 + b2)


@given(lam=st.floats(1e-4, 1e-1), other=st.floats(1e-4, 1e-1), t=unit)
def test_linear_on_a_literal_axis_is_affine_in_lambda(lam: float, other: float, t: float) -> None:
    net = Hypernet("linear", 2, domain=(1e-4, 1e-1)).double()
    torch.nn.init.normal_(net.knots, generator=torch.Generator().manual_seed(0))
    first, second, between = net(torch.tensor([lam, other, (1 - t) * lam + t * other], dtype=torch.float64))
    torch.testing.assert_close(between, (1 - t) * first + t * second, rtol=0, atol=1e-9)


@given(u=st.floats(-2, 3), n_knots=st.integers(2, 6))
def test_extrapolation_goes_on_with_the_first_and_the_last_segment(u: float, n_knots: int) -> None:
    net = filled("piecewise_linear", n_knots)
    found = net(torch.tensor(u, dtype=torch.float64), extrapolate=True)
    if 0 <= u <= 1:
        torch.testing.assert_close(found, net(torch.tensor(u, dtype=torch.float64)), rtol=0, atol=1e-12)
        return
    end, step = (net.knots[0], net.knots[0] - net.knots[1]) if u < 0 else (net.knots[-1], net.knots[-1] - net.knots[-2])
    beyond = (-u if u < 0 else u - 1) * (n_knots - 1)
    torch.testing.assert_close(found, end + beyond * step, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "piecewise_linear", "mlp", "linear_literal"])
def test_every_kind_refuses_what_was_not_trained_unless_asked(kind: HypernetKind) -> None:
    net = Hypernet(kind, 2, domain=(1e-3, 1e-1))
    ends = torch.tensor([1e-3, 1e-1])  # rounded to single precision
    assert net(ends).shape == (2, 2)
    with pytest.raises(ValueError, match="nothing is trained there"):
        net(torch.tensor(0.2))
    assert net(torch.tensor(0.2), extrapolate=True).shape == (2,)


def test_sizes_that_make_no_hypernetwork_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden"):
        Hypernet("mlp", 2, hidden=0)
    with pytest.raises(ValueError, match="low < high"):
        Hypernet("linear", 2, domain=(1.0, 1.0))
