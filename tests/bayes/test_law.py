"""The law of architectures: probabilities sum to one, expected cost equals enumeration."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.expected import CostModel, CostTerm

UNITS = [
    law.Choice("layer", ("a", "b", "c")),
    law.Subset("input", (0, 1, 2), 2),
    law.Node("cell", 2, ("skip", "conv"), 2),
    law.Node("cell", 3, ("skip", "conv"), 2),
    law.Node("cell", 4, ("skip", "conv", "pool"), 1),
]


def probabilities(unit: law.Unit, seed: int, batch: tuple[int, ...] = ()) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*batch, *unit.shape, generator=generator, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: f"{type(u).__name__}-{u.label}")
@given(seed=st.integers(0, 1000))
def test_enumeration(unit: law.Unit, seed: int) -> None:
    probs = probabilities(unit, seed)
    total, entropy = 0.0, 0.0
    marginals = torch.zeros_like(law.marginals(unit, probs))
    for choices in law.enumerate_choices(unit):
        log_p = law.log_prob(unit, probs, choices)
        total += float(log_p.exp())
        entropy -= float(log_p.exp() * log_p)
        marginals += log_p.exp() * law.one_hot(unit, choices).double()
    assert total == pytest.approx(1.0, abs=1e-10)
    torch.testing.assert_close(law.marginals(unit, probs), marginals, rtol=1e-8, atol=1e-10)
    assert float(law.entropy(unit, probs)) == pytest.approx(entropy, abs=1e-9)


@given(seed=st.integers(0, 1000))
def test_expected_cost_equals_enumeration(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    units = [UNITS[0], UNITS[2], UNITS[3]]
    sizes = [law.n_options(u) for u in units]
    terms = [
        CostTerm(((i, (option,)),), float(torch.rand((), generator=generator)))
        for i, n in enumerate(sizes)
        for option in range(n)
    ]
    terms.append(CostTerm(((0, (0, 2)), (1, (1,))), 3.0))  # a part inside an operation: a product of two units
    cost = CostModel(tuple(terms), 5.0, tuple(sizes))
    probs = [probabilities(u, seed + i) for i, u in enumerate(units)]
    expected = 0.0
    for parts in itertools.product(*(law.enumerate_choices(u) for u in units)):
        log_p = sum(law.log_prob(u, p, c) for u, p, c in zip(units, probs, parts, strict=True))
        value = cost.expected([law.one_hot(u, c).double() for u, c in zip(units, parts, strict=True)])
        expected += float(log_p.exp() * value)
    marginals = [law.marginals(u, p) for u, p in zip(units, probs, strict=True)]
    assert float(cost.expected(marginals)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: f"{type(u).__name__}-{u.label}")
def test_batches_equal_single_ones(unit: law.Unit) -> None:
    probs = probabilities(unit, 3, batch=(4,))
    choices = next(law.enumerate_choices(unit))
    for i in range(4):
        torch.testing.assert_close(law.marginals(unit, probs)[i], law.marginals(unit, probs[i]))
        torch.testing.assert_close(law.log_prob(unit, probs, choices)[i], law.log_prob(unit, probs[i], choices))


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: f"{type(u).__name__}-{u.label}")
def test_sharp_probabilities_derive_and_draw_the_same(unit: law.Unit) -> None:
    wanted = list(law.enumerate_choices(unit))[-1]
    hot = law.one_hot(unit, wanted)
    probs = torch.full(unit.shape, 1e-9)
    probs[:, : hot.shape[1]] += hot
    if isinstance(unit, law.Node):
        probs[:, -1] += 1 - hot.sum(-1)
    probs = probs / probs.sum(-1, keepdim=True)
    assert law.derive(unit, probs) == wanted
    assert law.sample(unit, probs, torch.Generator().manual_seed(0)) == wanted


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: f"{type(u).__name__}-{u.label}")
def test_sharpening_goes_from_the_law_to_the_derived_architecture(unit: law.Unit) -> None:
    probs = probabilities(unit, 5)
    torch.testing.assert_close(law.sharpened(unit, probs.log(), 1.0), law.marginals(unit, probs))
    derived = law.one_hot(unit, law.derive(unit, probs)).double()
    torch.testing.assert_close(law.sharpened(unit, probs.log(), 1e-3), derived, rtol=0, atol=1e-4)


@given(seed=st.integers(0, 1000), sign=st.sampled_from([-1.0, 1.0]))
def test_best_response_is_the_best(seed: int, sign: float) -> None:
    for unit in UNITS:
        hot = law.one_hot(unit, next(law.enumerate_choices(unit)))
        gain = sign * torch.rand(hot.shape, generator=torch.Generator().manual_seed(seed))
        best = max(float((law.one_hot(unit, c) * gain).sum()) for c in law.enumerate_choices(unit))
        assert float((law.one_hot(unit, law.best_response(unit, gain)) * gain).sum()) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: f"{type(u).__name__}-{u.label}")
def test_underflowed_probabilities_stay_finite(unit: law.Unit) -> None:
    # float32 softmax of logits 400 apart has exact zeros.
    logits = torch.zeros(unit.shape)
    logits[:, 0] = 400.0
    logits[0] += 0.0 if unit.shape[0] == 1 else torch.linspace(0, -800, unit.shape[1])
    probs = logits.softmax(-1)
    assert (probs == 0).any()
    assert torch.isfinite(law.entropy(unit, probs)) and float(law.entropy(unit, probs)) >= -1e-6
    assert torch.isfinite(law.log_prob(unit, probs, law.derive(unit, probs)))
    assert torch.isfinite(law.marginals(unit, probs)).all()
    for seed in range(3):
        assert law.sample(unit, probs, torch.Generator().manual_seed(seed)) in list(law.enumerate_choices(unit))
