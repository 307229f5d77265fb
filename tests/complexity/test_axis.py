"""The axis of lambda and its samplers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.complexity.axis import LambdaAxis, per_object, per_step, stratified
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
    assert int((u == 0).sum()) >= n // 8 and int((u == 1).sum()) >= n // 8


@given(n=st.integers(1, 50), seed=st.integers(0, 100))
def test_strata_hold_one_draw_each(n: int, seed: int) -> None:
    u = stratified(n, torch.Generator().manual_seed(seed))
    assert sorted((u.double() * n).floor().clamp(max=n - 1).tolist()) == list(range(n))


def test_passes_of_a_step_reach_the_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.cat([per_step(2, generator) for _ in range(200)])
    assert (u == 0).any() and (u == 1).any() and ((u > 0) & (u < 1)).any()
