"""Signs of a collapse against known answers, and reasons to stop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.complexity.collapse import GROWTH, SHARE, WINDOW, largest_eigenvalue, parameter_free_share, reason
from nni_bayes_nas.complexity.expected import CostModel, CostTerm

# Two choices: of the first, option 1 has parameters; of the second, options 0 and 2, the latter beside another one.
COST = CostModel(
    (CostTerm(((0, (1,)),), 9.0), CostTerm(((1, (0,)),), 4.0), CostTerm(((0, (1,)), (1, (2,))), 2.0)), 5.0, (2, 3)
)


def test_choices_of_one_kind_say_nothing():
    """Of inputs, or of operations that all have parameters."""
    cost = CostModel((CostTerm(((0, (0,)),), 1.0), CostTerm(((0, (1,)),), 2.0)), 0.0, (2, 3))
    assert parameter_free_share(cost, [torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 1.0, 1.0]])]) is None
    assert reason([{"entropy": 1.0}]) is None


def test_share_by_hand():
    marginals = [torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.3, 0.2]])]
    assert float(parameter_free_share(COST, marginals)) == pytest.approx((0.25 + 0.3) / 2)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.integers(0, 100))
def test_the_largest_eigenvalue_is_that_of_the_hessian(values, seed):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    hessian = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    x = torch.randn(len(values), generator=generator, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(0.5 * x @ hessian @ x, x, create_graph=True)
    found = largest_eigenvalue([gradient], [x], torch.Generator().manual_seed(0))
    assert found == pytest.approx(max(values), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spectrum_that_reaches_as_far_below_zero(seed, dtype):
    """Of as many numbers as a structure has, in ten products; of a few in as many as there are."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(112, 112, generator=generator, dtype=dtype)
    hessian = (noise + noise.T) / (2 * 112**0.5)
    truth = float(torch.linalg.eigvalsh(hessian.double())[-1])
    for matrix, expected, off in ((hessian, truth, 0.15), (torch.diag(torch.tensor([1, -0.98], dtype=dtype)), 1, 1e-6)):
        x = torch.zeros(len(matrix), dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(0.5 * x @ matrix @ x, x, create_graph=True)
        found = largest_eigenvalue([gradient], [x], torch.Generator().manual_seed(seed))
        assert expected * (1 - off) <= found <= expected * (1 + 1e-5)


def test_a_large_negative_eigenvalue_does_not_hide_the_largest_one():
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor([-8.0, 0.5, 2.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(0.5 * (curvature * x * x).sum(), x, create_graph=True)
    assert largest_eigenvalue([gradient], [x], torch.Generator().manual_seed(0), iterations=60) == pytest.approx(2.0)


def test_a_structure_without_curvature_has_none():
    x = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad((x * 2).sum() + 0 * (x**2).sum(), x, create_graph=True)
    assert largest_eigenvalue([gradient], [x], torch.Generator().manual_seed(0)) == 0.0


def epoch(share=0.2, entropy=1.0, **more):
    return {"parameter_free": share, "entropy": entropy, **more}


def test_reasons():
    assert reason([]) is None and reason([epoch()]) is None
    assert "has no parameters" in reason([epoch(), epoch(share=SHARE)])
    assert "everything is decided" in reason([epoch(entropy=10.0), epoch(entropy=0.1)])
    assert reason([epoch(entropy=10.0), epoch(entropy=0.11)]) is None
    flat, steep = [epoch(curvature=1.0)] * WINDOW, [epoch(curvature=1.01 * GROWTH)] * WINDOW
    assert "has grown from 1 to" in reason([*flat, *steep])
    assert reason([*flat, *([epoch(curvature=0.99 * GROWTH)] * WINDOW)]) is None
    # Where it cannot be measured, or not often enough yet, nothing is said of it.
    assert reason([*flat, *steep[:-1]]) is None and reason([epoch()] * 10) is None
