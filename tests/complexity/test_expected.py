"""Expected cost: the sum of products term by term, its gradient, batches, many terms."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nni_bayes_nas.complexity.expected import CostModel, CostTerm

N_OPTIONS = (3, 2, 4, 2)


def one_by_one(cost: CostModel, marginals: list[Tensor]) -> Tensor:
    """The definition."""
    flat = [m.flatten(-2) for m in marginals]
    total = torch.full(flat[0].shape[:-1], cost.constant, dtype=flat[0].dtype)
    for term in cost.terms:
        product = torch.full_like(total, term.cost)
        for unit, options in term.gates:
            product = product * flat[unit][..., list(options)].sum(-1)
        total = total + product
    return total


@st.composite
def terms(draw: st.DrawFn) -> CostTerm:
    units = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
    gates = []
    for unit in sorted(units):
        options = draw(st.sets(st.integers(0, N_OPTIONS[unit] - 1), min_size=1))
        gates.append((unit, tuple(sorted(options))))
    return CostTerm(tuple(gates), draw(st.floats(0, 1e6)))


def random_marginals(batch: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(*batch, 1, n, generator=generator, dtype=torch.float64) for n in N_OPTIONS]


@settings(max_examples=50)
@given(parts=st.lists(terms(), max_size=12), batch=st.sampled_from([(), (5,), (2, 3)]), seed=st.integers(0, 99))
def test_equals_the_definition_with_every_batch(parts: list[CostTerm], batch: tuple[int, ...], seed: int) -> None:
    cost = CostModel(tuple(parts), 7.0, N_OPTIONS)
    marginals = random_marginals(batch, seed)
    found = cost.expected(marginals)
    assert found.shape == batch
    torch.testing.assert_close(found, one_by_one(cost, marginals), rtol=1e-10, atol=1e-6)


def test_known_value() -> None:
    parts = (CostTerm(((0, (0,)),), 10.0), CostTerm(((0, (1, 2)), (1, (0,))), 100.0), CostTerm(((1, (0,)),), 1.0))
    cost = CostModel(parts, 5.0, (3, 2))
    p = [torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.2, 0.8]])]
    assert float(cost.expected(p)) == pytest.approx(5 + 0.5 * 10 + 0.5 * 0.2 * 100 + 0.2)


def test_gradients_also_where_gates_are_shut() -> None:
    parts = [CostTerm(((0, (0,)), (1, (1,)), (2, (0, 3))), 2.0), CostTerm(((1, (0,)), (3, (1,))), 3.0)]
    cost = CostModel((*parts, CostTerm(((2, (1, 2)),), 4.0)), 0.0, N_OPTIONS)
    marginals = random_marginals((2,), 0)
    marginals[0][0] = 0.0
    marginals[1][1] = 0.0
    inputs = [m.requires_grad_(True) for m in marginals]
    assert torch.autograd.gradcheck(lambda *m: cost.expected(m), inputs)
    assert torch.autograd.gradgradcheck(lambda *m: cost.expected(m), inputs)


def test_a_first_look_in_inference_mode_leaves_gradients_possible() -> None:
    cost = CostModel((CostTerm(((0, (0,)), (1, (0,))), 6.0),), 0.0, (2, 2))
    half = torch.full((1, 2), 0.5)
    with torch.inference_mode():
        assert float(cost.expected([half, half])) == 1.5
    inputs = [half.clone().requires_grad_(True), half.clone().requires_grad_(True)]
    gradient, _ = torch.autograd.grad(cost.expected(inputs), inputs)
    assert gradient.tolist() == [[3.0, 0.0]]


def test_thousands_of_products_are_exact_and_copies_work() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (8,) * 40
    picks = torch.randint(0, 8, (8000, 4), generator=generator).tolist()
    units = [sorted(torch.randperm(40, generator=generator)[:4].tolist()) for _ in picks]
    parts = tuple(
        CostTerm(tuple((u, (o,)) for u, o in zip(unit, pick, strict=True)), float(100 + i))
        for i, (unit, pick) in enumerate(zip(units, picks, strict=True))
    )
    cost = copy.deepcopy(CostModel(parts, 0.0, sizes))
    chosen = torch.randint(0, 8, (40,), generator=generator).tolist()
    one_hot = [torch.eye(8, dtype=torch.float64)[[c]] for c in chosen]
    open_ = [t.cost for t in parts if all(chosen[u] in options for u, options in t.gates)]
    assert float(cost.expected(one_hot)) == sum(open_)
    equal = torch.full((65, 1, 8), 1 / 8)
    expected = cost.expected([equal] * 40)
    assert float(expected[0]) == pytest.approx(math.fsum(t.cost for t in parts) / 8**4, rel=1e-5)
