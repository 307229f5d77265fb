"""Sizes at a price: on their targets at any temperature, opened step by step; what lambda means under a penalty."""

import pytest
import torch
from torch import Tensor

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.axis import LambdaAxis
from nni_bayes_nas.complexity.expected import CostModel, CostTerm
from nni_bayes_nas.complexity.price_range import GRID_POINTS, PriceRange
from nni_bayes_nas.strategies.size_control import SizeControl, reduce_all
from nni_bayes_nas.strategies.structure import Structure
from nni_bayes_nas.strategies.structure_loss import NormalizedCost, StructureLoss

AXIS = LambdaAxis(1e-2, 1e2)
GAINS = [0.1, 1.0, 5.0]


def toy(**structure: object) -> SizeControl:
    """Three choices, each of whose dear options costs 1 of 3."""
    units: list[law.Unit] = [law.Choice(f"c{i}", ("cheap", "dear")) for i in range(3)]
    cost = CostModel(tuple(CostTerm(((i, (1,)),), 1.0) for i in range(3)), 0.0, (2, 2, 2))
    made = Structure(units, hypernet="price", n_knots=9, axis=AXIS, **structure)  # type: ignore[arg-type]
    made.set_costs(cost)
    loss = StructureLoss("target", target_scale="linear", target_range=(0.95, 0.05))
    return SizeControl(NormalizedCost(made, cost, (0.0, 3.0)), loss, ramp=0.5)


def losses(control: SizeControl, u: Tensor, temperature: float) -> Tensor:
    """What is lost at every position: the gains of the dear options that are not taken."""
    structure = control.costs.structure
    weights = structure.draw(u, temperature)
    return torch.stack([g * (1 - weights[f"c{i}"][:, 1]) for i, g in enumerate(GAINS)]).sum(0)


def searched(**structure: object) -> tuple[SizeControl, float]:
    """A search of the toy, temperature falling, and the last temperature."""
    control = toy(**structure)
    made, temperature = control.costs.structure, 1.0
    parameters = list(made.parameters())
    optimizer = torch.optim.Adam(parameters, 0.05, betas=(0.5, 0.999))
    generator = torch.Generator().manual_seed(0)
    control.solve(temperature)
    for step in range(300):
        temperature = 0.1 ** (step / 299)
        loss = losses(control, torch.rand(64, generator=generator), temperature).mean()
        gradients = list(torch.autograd.grad(loss, parameters))
        (reduced,) = reduce_all([(control, parameters, gradients, temperature)])
        for parameter, gradient in zip(parameters, reduced, strict=True):
            parameter.grad = gradient
        optimizer.step()
        control.solve(temperature)
    return control, temperature


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1])
def test_sizes_are_on_their_targets(temperature: float) -> None:
    control = toy()
    with torch.no_grad():
        control.costs.structure.logits.scores.copy_(torch.tensor([0.0, 1.0, 0.5, -1.0, 0.0, 3.0]))
    control.solve(temperature)
    knots = torch.linspace(0, 1, 9)
    flat = control.costs.structure.logits(knots).detach()
    torch.testing.assert_close(
        control.loss.size(control.costs, flat, temperature), 0.95 - 0.9 * knots, rtol=0, atol=3e-3
    )


def test_positions_open_from_equal_options_to_the_whole_range() -> None:
    control = toy()
    control.solve(1.0)
    u = torch.linspace(0, 1, 5)
    # Half of the cost at equal probabilities, and the target is half of it in the middle.
    torch.testing.assert_close(control.spread(u, 0.0), torch.full((5,), 0.5))
    equal = control.costs.structure.probs(torch.tensor(0.5))
    assert all(float((p - 0.5).detach().abs().max()) < 1e-2 for p in equal)
    torch.testing.assert_close(control.spread(u, 0.25), 0.5 + (u - 0.5) / 2)
    for progress in (0.5, 0.8, 1.0):
        torch.testing.assert_close(control.spread(u, progress), u)


def test_scores_compete_at_equal_size() -> None:
    control, _ = searched()
    kept = [[i for i in range(3) if control.costs.structure.export(lam)[f"c{i}"] == "dear"] for lam in AXIS.grid(33)]
    # The best first: of every size the best network, and all four of them.
    assert [list(k) for k in dict.fromkeys(map(tuple, kept))] == [[0, 1, 2], [1, 2], [2], []]


def test_lambda_of_a_penalty_is_what_a_unit_of_cost_must_save() -> None:
    control, temperature = searched(observed=True, automatic_range=True)
    structure, grid = control.costs.structure, torch.linspace(0, 1, GRID_POINTS)
    found = PriceRange()
    with torch.no_grad():
        # Cost 1 is that of all three: a unit of cost saves three times what one option does.
        found.observe(control.costs.expected(grid, temperature), losses(control, grid, temperature))
    points = found.points(grid)
    assert points is not None
    structure.set_axis(points)
    axis = structure.axis
    assert axis is not None and axis.low < 3 * min(GAINS) and axis.high > 3 * max(GAINS)
    for lam in axis.grid(33):
        if all(abs(torch.log10(torch.tensor(lam / (3 * g)))) > 0.25 for g in GAINS):
            best = {f"c{i}": "dear" if lam < 3 * g else "cheap" for i, g in enumerate(GAINS)}
            assert structure.export(lam) == best, lam


def test_what_lambda_means_survives_a_checkpoint() -> None:
    points = [(0.02, 0.0), (0.1, 0.3), (5.0, 1.0)]
    for automatic, ends in ((True, (0.02, 5.0)), (False, (AXIS.low, AXIS.high))):
        structure = toy(observed=True, automatic_range=automatic).costs.structure
        assert structure.axis == AXIS
        structure.set_axis(points)
        again = toy(observed=True, automatic_range=automatic).costs.structure
        again.load_state_dict(structure.state_dict())
        assert again.axis == structure.axis and again.axis is not None
        assert (again.axis.low, again.axis.high) == ends
        assert [again.axis.to_u(lam) for lam, _ in points] == pytest.approx([u for _, u in points])


def test_growth_is_punished_where_a_cost_is_no_sum() -> None:
    control = toy()
    both = CostModel((*control.costs.cost.terms, CostTerm(((0, (1,)), (1, (1,))), 2.0)), 0.0, (2, 2, 2))
    loss = StructureLoss("target", monotonicity=1.0)
    for cost, named in ((control.costs.cost, set()), (both, {"monotonicity"})):
        costs = NormalizedCost(control.costs.structure, cost, (0.0, 5.0))
        assert set(loss.terms(costs, [torch.linspace(0, 1, 3)], 0.1)) == named
