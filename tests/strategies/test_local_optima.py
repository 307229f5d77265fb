"""Two operations that must fit each other: a softmax ends near where it starts, a posterior finds the best pair.

loss(p, q) = -sum_ij p_i q_j G_ij over mixing weights p and q, with G diagonal: every pair (i, i) is a local optimum,
from which no small step leads away, and (0, 0) the best one, known by enumeration.
"""

import itertools

import pytest
import torch

from nni_bayes_nas.bayes import dirichlet, elbo, law, objective
from nni_bayes_nas.strategies.structure import Structure

GAINS = torch.tensor([1.0, 0.7, 0.6, 0.5], dtype=torch.float64)
OPTIONS = ("a", "b", "c", "d")
BEST = {"first": "a", "second": "a"}
UNITS = [law.Choice("first", OPTIONS), law.Choice("second", OPTIONS)]
STARTS, STEPS, OBJECTS = 24, 400, 20


def loss(weights):
    return -(weights["first"] * weights["second"] * GAINS.to(weights["first"])).sum(-1).mean()


def ends_at(relaxation, seed, *, prior=1.0, objects=OBJECTS):
    """A search from random probabilities, the same for all relaxations: the structure, and the derived pair."""
    structure = Structure(UNITS, relaxation=relaxation, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(2, len(OPTIONS), generator=generator).softmax(-1)
    (parameter,) = structure.parameters()
    with torch.no_grad():
        # As surely as at the beginning of a search: concentrations of 4 in all.
        start = dirichlet.raw_of((4 * probs).clamp_min(0.11)) if relaxation == "dirichlet" else probs.log()
        parameter.copy_(start.reshape(parameter.shape))
    optimizer = torch.optim.Adam(structure.parameters(), 0.05, betas=(0.5, 0.999))
    for _ in range(STEPS):
        draws = structure.draw(torch.zeros(16), 1.0, generator if relaxation != "softmax" else None)
        kl = {"structure_kl": structure.divergence(torch.zeros(()))}
        terms = {"task": loss(draws), **elbo.divergence_terms(kl, objects, {"structure_kl": prior})}
        optimizer.zero_grad()
        objective.total(terms).backward()
        optimizer.step()
    return structure, structure.export()


def test_the_best_pair_is_the_known_one():
    pairs = {(i, j): float(GAINS[i]) if i == j else 0.0 for i, j in itertools.product(range(4), repeat=2)}
    assert max(pairs, key=pairs.get) == (0, 0)


@pytest.mark.slow
def test_share_of_starts_that_find_the_best_pair():
    """It takes both: draws alone, a Dirichlet without its divergence, and a point with the prior end in more places."""
    arms = {
        "softmax": ("softmax", 0.0),
        "concrete, no prior": ("gumbel", 0.0),
        "Dirichlet, no prior": ("dirichlet", 0.0),
        "softmax, with the prior": ("softmax", 1.0),
        "concrete, with the prior": ("gumbel", 1.0),
        "Dirichlet": ("dirichlet", 1.0),
    }
    found = {
        arm: sum(ends_at(relaxation, seed, prior=prior)[1] == BEST for seed in range(STARTS))
        for arm, (relaxation, prior) in arms.items()
    }
    assert found["Dirichlet"] >= 0.9 * STARTS
    assert max(found[arm] for arm in arms if arm != "Dirichlet") <= 0.8 * STARTS
    for relaxation in ("softmax", "concrete"):  # it helps them too
        assert (
            found[f"{relaxation}, with the prior"]
            > found[relaxation if relaxation == "softmax" else "concrete, no prior"]
        )


def test_more_objects_make_surer():
    """The more objects there are, the surer the posterior is: the divergence is paid once, the data every time."""
    entropies = []
    for objects in (5, 50, 500):
        structure, _ = ends_at("dirichlet", 0, objects=objects)
        entropies.append(float(structure.entropy().detach()))
    assert entropies[0] > entropies[1] > entropies[2]
