"""The axis of lambda and its samplers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.complexity.axis import Axis, LambdaAxis, LiteralAxis, per_object, per_step, stratified
from nni_bayes_nas.errors import ConfigError


@given(u=st.floats(0, 1), low=st.floats(1e-6, 1), factor=st.floats(1.5, 1e6))
def test_u_and_lambda_are_inverse(u: float, low: float, factor: float) -> None:
    axis = LambdaAxis(low, low * factor)
    lam = float(axis.to_lambda(torch.tensor(u, dtype=torch.float64)))
    assert axis.to_u(lam) == pytest.approx(u, abs=1e-9)


def test_the_grid_has_both_ends_and_is_log_spaced() -> None:
    grid = LambdaAxis(1e-3, 1.0).grid(4)
    assert grid == pytest.approx([1e-3, 1e-2, 1e-1, 1.0])


@pytest.mark.parametrize("ends", [(1.0, 1.0), (1.0, 0.1), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_empty_or_reversed_ranges_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="0 < low < high"):
        LambdaAxis(*ends)


def test_lambda_outside_the_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained range"):
        LambdaAxis(1e-3, 1.0).to_u(2.0)


@given(n=st.integers(1, 200), seed=st.integers(0, 100))
def test_objects_cover_the_axis(n: int, seed: int) -> None:
    u = per_object(n, torch.Generator().manual_seed(seed))
    assert u.shape == (n,) and (u >= 0).all() and (u <= 1).all()
    ends = 0 if n < 3 else -(-n // 32)
    assert int((u == 0).sum()) >= ends and int((u == 1).sum()) >= ends


@given(n=st.integers(1, 50), seed=st.integers(0, 100))
def test_strata_hold_one_draw_each(n: int, seed: int) -> None:
    u = stratified(n, torch.Generator().manual_seed(seed))
    assert sorted((u.double() * n).floor().clamp(max=n - 1).tolist()) == list(range(n))


def test_passes_of_a_step_reach_the_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.cat([per_step(2, generator) for _ in range(200)])
    assert (u == 0).any() and (u == 1).any() and ((u > 0) & (u < 1)).any()


def test_extrapolation_must_be_asked_for() -> None:
    axis = LambdaAxis(1e-2, 1.0)
    assert axis.to_u(10.0, extrapolate=True) == pytest.approx(1.5)
    assert axis.to_u(1e-3, extrapolate=True) == pytest.approx(-0.5)
    with pytest.raises(ConfigError, match="train with a wider lambda_range"):
        axis.to_u(10.0)
    with pytest.raises(ConfigError, match="positive"):
        axis.to_u(0.0, extrapolate=True)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, -1.0), (-math.inf, 1.0), (0.0, math.nan)])
def test_the_literal_axis_refuses_an_empty_range(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="low < high"):
        LiteralAxis(*ends)


def test_the_literal_position_is_lambda_itself() -> None:
    axis = LiteralAxis(-2.0, 3.0)
    assert axis.to_u(0.25) == 0.25 and axis.domain == (-2.0, 3.0)
    assert float(axis.to_lambda(torch.tensor(0.25))) == 0.25
    with pytest.raises(ConfigError, match="trained range"):
        axis.to_u(3.5)
    assert axis.to_u(3.5, extrapolate=True) == 3.5


def test_the_literal_axis_is_drawn_by_decades_if_positive_and_evenly_otherwise() -> None:
    assert LiteralAxis(1e-4, 1e-1).grid(4) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert LiteralAxis(-1.0, 1.0).grid(5) == pytest.approx([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert LiteralAxis(1.0, 3.0, uniform=True).grid(3) == pytest.approx([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "axis",
    [LambdaAxis(1e-4, 1e-1), LiteralAxis(1e-4, 1e-1), LiteralAxis(-1.0, 2.0), LiteralAxis(1.0, 2.0, True)],
    ids=repr,
)
def test_positions_fill_the_domain_and_know_their_fraction(axis: Axis) -> None:
    low, high = axis.domain
    generator = torch.Generator().manual_seed(0)
    for u in (axis.positions_per_object(64, generator), axis.positions_per_step(400, generator)):
        assert float(u.min()) == pytest.approx(low) and float(u.max()) == pytest.approx(high)
        fractions = axis.fractions(u.double())
        # A quarter of the draws in each quarter of the axis, the shares of the ends aside.
        inner = fractions[(fractions > 1e-6) & (fractions < 1 - 1e-6)]
        counts = torch.histc(inner, 4, 0, 1)
        assert int(counts.min()) >= len(inner) // 4 - 4
        torch.testing.assert_close(axis.positions(fractions), u.double(), rtol=1e-5, atol=1e-9)
    for lam in axis.grid(7):
        assert low - 1e-9 <= axis.to_u(lam) <= high + 1e-9


TABLE = [(1e-2, 0.1), (0.1, 0.4), (0.2, 0.9), (3.0, 1.0)]


@given(u=st.floats(0, 1))
def test_a_bent_axis_goes_through_its_table(u: float) -> None:
    axis = LambdaAxis(1e-2, 3.0).bent(TABLE)
    assert axis.positions(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.1, 0.55, 1.0])
    assert axis.fractions(torch.tensor([0.1, 0.55, 1.0])).tolist() == pytest.approx([0.0, 0.5, 1.0])
    # What is trained is more than what has a lambda.
    drawn = axis.positions_per_object(64, torch.Generator().manual_seed(0))
    assert (float(drawn.min()), float(drawn.max())) == (0.0, 1.0)
    assert [axis.to_u(lam) for lam, _ in TABLE] == pytest.approx([at for _, at in TABLE])
    assert axis.to_u((0.1 * 0.2) ** 0.5) == pytest.approx((0.4 + 0.9) / 2)
    # Positions below the first one have no lambda: they get the nearest.
    lam = float(axis.to_lambda(torch.tensor(u, dtype=torch.float64)))
    assert axis.to_u(lam) == pytest.approx(max(0.1, u), abs=1e-9)
    assert axis.domain == (0.1, 1.0) and axis.grid(3) == pytest.approx([1e-2, 0.1 * 2**0.3, 3.0])


def test_a_bent_axis_stays_where_its_table_ends() -> None:
    axis = LambdaAxis(1e-4, 0.15).bent(TABLE)
    assert (axis.low, axis.high) == (1e-4, 0.15)
    assert axis.to_u(1e-4) == axis.to_u(5e-3) == pytest.approx(0.1)
    assert axis.to_u(0.15) == pytest.approx(0.4 + 0.5 * math.log(1.5) / math.log(2))
    with pytest.raises(ConfigError, match="trained range"):
        axis.to_u(0.2)
    with pytest.raises(ConfigError, match="trained range"):
        axis.to_u(5e-5)
    assert axis.to_u(float(axis.to_lambda(torch.tensor(0.1).double()))) == pytest.approx(0.1)
