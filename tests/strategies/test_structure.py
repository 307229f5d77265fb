"""The structure distribution: a known optimum per lambda, export from the mean, batches."""

import torch

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.axis import LambdaAxis
from nni_bayes_nas.complexity.expected import CostModel, CostTerm
from nni_bayes_nas.strategies.structure import Structure

AXIS = LambdaAxis(1e-2, 1e2)
GAINS = [0.1, 1.0, 5.0]  # what the dear option of each choice saves; it costs 1, so it pays while lambda < gain


def toy() -> tuple[list[law.Unit], CostModel]:
    units: list[law.Unit] = [law.Choice(f"c{i}", ("cheap", "dear")) for i in range(len(GAINS))]
    terms = tuple(CostTerm(((i, (1,)),), 1.0) for i in range(len(GAINS)))
    return units, CostModel(terms, 0.0, (2, 2, 2))


def test_penalty_recovers_the_known_optimum_of_every_lambda() -> None:
    units, cost = toy()
    structure = Structure(units, hypernet="piecewise_linear", n_knots=17, axis=AXIS)
    optimizer = torch.optim.Adam(structure.parameters(), 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        u = torch.rand(64, generator=generator)
        probs = structure.probs(u)
        loss = sum(g * (1 - p[:, 0, 1]) for g, p in zip(GAINS, probs, strict=True))
        total = (loss + AXIS.to_lambda(u) * structure.expected_cost(cost, u)).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    previous = None
    for lam in AXIS.grid(33):
        # At the threshold itself both options are equally good.
        if any(abs(torch.log10(torch.tensor(lam / g))) < 0.13 for g in GAINS):
            continue
        chosen = structure.export(lam)
        assert chosen == {f"c{i}": "dear" if lam < g else "cheap" for i, g in enumerate(GAINS)}, lam
        expected = float(structure.expected_cost(cost, structure.position(lam)).detach())
        assert previous is None or expected <= previous + 1e-3
        previous = expected


def test_target_follows_the_line() -> None:
    units, cost = toy()
    structure = Structure(units, hypernet="linear", axis=AXIS)
    optimizer = torch.optim.Adam(structure.parameters(), 0.05)
    u = torch.linspace(0, 1, 33)
    for _ in range(400):
        loss = ((structure.expected_cost(cost, u) / 3 - (0.9 - 0.8 * u)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 2e-3


def test_a_batch_of_positions_equals_single_ones() -> None:
    units = [law.Node("cell", 2, ("a", "b"), 2), law.Choice("x", ("p", "q", "r")), law.Subset("s", (0, 1, 2), 1)]
    structure = Structure(units, hypernet="piecewise_linear", axis=AXIS)
    torch.nn.init.normal_(structure.logits.knots)
    u = torch.tensor([0.0, 0.3, 1.0])
    many = structure.draw(u)
    for i, position in enumerate(u):
        for label, weights in structure.draw(position).items():
            torch.testing.assert_close(many[label][i], weights)


def test_log_prob_sums_to_one_over_all_architectures() -> None:
    units = [law.Node("cell", 3, ("a", "b"), 2), law.Choice("x", ("p", "q"))]
    structure = Structure(units, hypernet="linear", axis=AXIS).double()
    torch.nn.init.normal_(structure.logits.knots)
    total = sum(
        float(structure.log_prob({**a, **b}, 1.0).detach().exp())
        for a in law.enumerate_choices(units[0])
        for b in law.enumerate_choices(units[1])
    )
    assert abs(total - 1) < 1e-9
