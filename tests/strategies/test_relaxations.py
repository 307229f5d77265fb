"""Relaxations and the price hypernetwork: known weights, limits, and sizes that never grow with lambda."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.concrete import gumbel
from nni_bayes_nas.complexity.axis import LambdaAxis, LiteralAxis
from nni_bayes_nas.complexity.expected import CostModel, CostTerm
from nni_bayes_nas.strategies.relaxations import Relaxation, log_probabilities_of_node, zero_one_loss
from nni_bayes_nas.strategies.structure import Structure

UNITS: list[law.Unit] = [
    law.Node("cell", 3, ("a", "b"), 2),
    law.Choice("x", ("p", "q", "r")),
    law.Subset("s", (0, 1, 2, 3), 2),
]
N_OPTIONS = (6, 3, 4)
AXIS = LambdaAxis(1e-2, 1e2)


def additive(costs: list[float]) -> CostModel:
    """Each option costs what it costs, whatever the others are."""
    places = [(unit, option) for unit, n in enumerate(N_OPTIONS) for option in range(n)]
    terms = tuple(CostTerm(((u, (o,)),), c) for (u, o), c in zip(places, costs, strict=True))
    return CostModel(terms, 0.0, N_OPTIONS)


def size(cost: CostModel, choices: dict[str, object]) -> float:
    return float(cost.expected([law.one_hot(unit, choices).double() for unit in UNITS]))


@given(
    costs=st.lists(st.integers(0, 100), min_size=13, max_size=13),
    scores=st.lists(st.floats(-3, 3), min_size=13, max_size=13),
    prices=st.lists(st.floats(-9, 9), min_size=9, max_size=9),
)
def test_sizes_never_grow_with_lambda_at_a_price(costs: list[int], scores: list[float], prices: list[float]) -> None:
    if max(costs) == 0:
        costs[0] = 1
    cost = additive([float(c) for c in costs])
    structure = Structure(UNITS, hypernet="price", n_knots=9, axis=AXIS).double()
    structure.set_costs(cost)
    with torch.no_grad():
        structure.logits.scores.copy_(torch.tensor(scores))
        structure.logits.knots.copy_(torch.tensor(sorted(prices)))
    sizes = [size(cost, structure.export(lam)) for lam in AXIS.grid(41)]
    assert all(a >= b for a, b in itertools.pairwise(sizes))


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(-9, 9))
def test_probabilities_of_a_node_sum_to_one_and_forget_a_common_shift(values: list[float], shift: float) -> None:
    logits = torch.tensor(values, dtype=torch.float64).reshape(3, 2)
    probs = log_probabilities_of_node(logits).exp()
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(probs, log_probabilities_of_node(logits + shift).exp())
    assert float(probs[..., -1].min()) < 1e-12  # the strongest edge leaves nothing


@pytest.mark.parametrize("hypernet", ["price", "linear", "piecewise_linear", "mlp"])
def test_marginals_become_the_derived_network_as_the_temperature_falls(hypernet: str) -> None:
    structure = Structure(UNITS, hypernet=hypernet, mixing="marginals", axis=AXIS, seed=3)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in structure.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    choices = structure.export(1.0)
    weights = structure.mean(1.0, temperature=1e-3)
    for unit in UNITS:
        expected = law.one_hot(unit, choices)
        actual = weights[unit.label].detach()
        torch.testing.assert_close(actual if isinstance(unit, law.Node) else actual.unsqueeze(0), expected)
    # At any temperature as many options are kept as the derived network keeps.
    assert float(structure.mean(1.0)["cell/3"].detach().sum()) == pytest.approx(2.0, abs=1e-5)


def test_gumbel_draws_follow_the_probabilities_and_repeat() -> None:
    structure = Structure([law.Choice("x", ("p", "q", "r"))], relaxation="gumbel", axis=AXIS)
    with torch.no_grad():
        structure.logits.initialize(torch.tensor([1.0, 0.0, -1.0]))
    u = torch.zeros(20_000)
    draws = structure.draw(u, 0.5, torch.Generator().manual_seed(0))["x"].detach()
    again = structure.draw(u, 0.5, torch.Generator().manual_seed(0))["x"].detach()
    assert torch.equal(draws, again)
    shares = torch.bincount(draws.argmax(-1), minlength=3) / len(u)
    # Gumbel's maximum is a draw from the probabilities themselves (4 standard errors).
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.0, -1.0]).softmax(0), rtol=0, atol=4 * 0.5 / len(u) ** 0.5)
    without_noise = structure.mean(1.0)["x"].detach()
    torch.testing.assert_close(without_noise, torch.tensor([1.0, 0.0, -1.0]).softmax(0))


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    noise = gumbel((200_000,), torch.Generator().manual_seed(0), torch.zeros(()).double())
    assert float(noise.mean()) == pytest.approx(0.5772157, abs=4 * 1.2825 / 200_000**0.5)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)


@pytest.mark.parametrize(
    ("relaxation", "expected"), [("sigmoid", [0.5, 0.8808, 0.0180]), ("identity", [0.0, 2.0, -4.0])]
)
def test_weights_without_a_softmax(relaxation: Relaxation, expected: list[float]) -> None:
    structure = Structure([law.Choice("x", ("p", "q", "r"))], relaxation=relaxation)
    with torch.no_grad():
        structure.logits.initialize(torch.tensor([0.0, 2.0, -4.0]))
    torch.testing.assert_close(structure.mean()["x"].detach(), torch.tensor(expected), rtol=0, atol=1e-4)
    assert structure.export() == {"x": "q"}
    assert float(structure.probs(torch.zeros(()))[0].detach().sum()) == pytest.approx(1.0)


def test_the_seeds_structure_starts_at_equal_shares_and_is_affine_in_lambda() -> None:
    structure = Structure(UNITS, relaxation="identity", hypernet="linear", axis=LiteralAxis(1e-4, 1e-1))
    assert structure.mean(1e-4)["x"].detach().tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    with torch.no_grad():
        structure.logits.knots.normal_(generator=torch.Generator().manual_seed(0))
    slope, offset = structure.logits.knots
    for lam in (1e-4, 1e-2, 1e-1):
        torch.testing.assert_close(structure.logits(structure.position(lam)), lam * slope + offset)


def test_zero_one_loss_is_least_for_decided_sigmoids() -> None:
    assert float(zero_one_loss(torch.zeros(4))) == 0.0
    assert float(zero_one_loss(torch.tensor([50.0, -50.0]))) == pytest.approx(-0.25)
    logits = torch.tensor([0.3, -0.2], requires_grad=True)
    zero_one_loss(logits).backward()
    assert logits.grad is not None and float(logits.grad[0]) < 0 < float(logits.grad[1])  # descent pushes both away
