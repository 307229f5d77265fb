"""Hypernetworks: exactly affine, exactly piecewise linear, continuous."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.complexity.hypernet import Hypernet, hat_basis

unit = st.floats(0.0, 1.0)


def filled(kind: str, n_knots: int = 5) -> Hypernet:
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
