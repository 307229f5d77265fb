"""Choices of parameters: exact numbers, known sets on quadratics, and regrets to the best choice by enumeration."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim import GradientStatistics
from nni_bayes_nas.optim.selection import (
    GRANULARITIES,
    NEEDS,
    choose,
    choose_in_layers,
    groups,
    keeping_scores,
    scores,
)
from nni_bayes_nas.optim.statistics import PARTS


def net():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 3, 3, bias=False), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3, 2)]
    return torch.nn.Sequential(*layers)


def count(chosen):
    return sum(int(c.sum()) for c in chosen.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 41), st.sampled_from(GRANULARITIES), st.integers(0, 9))
def test_exactly_k_are_chosen_and_whole_groups_but_one(k, granularity, seed):
    model = net()  # 27 + 6 + 8
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    together = groups(model, granularity)
    chosen = choose(k, values, together, in_order=granularity == "prefix")
    assert count(chosen) == k and all(chosen[name].shape == p.shape for name, p in model.named_parameters())
    ids = torch.cat([x.flatten() for x in together.values()])
    taken = torch.cat([x.flatten() for x in chosen.values()])
    assert ids.unique().tolist() == list(range(int(ids.max()) + 1))
    whole = [bool(taken[ids == i].all()) or not bool(taken[ids == i].any()) for i in ids.unique()]
    assert whole.count(False) <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.sampled_from(["weight", "neuron"]), st.integers(0, 9))
def test_every_layer_has_its_share(k, granularity, seed):
    model = net()
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    layers, together = groups(model, "layer"), groups(model, granularity)
    kept = choose_in_layers(30, values, layers)
    for n, allowed in ((41, None), (30, kept)):
        chosen = choose_in_layers(k, values, layers, together, allowed=allowed)
        assert count(chosen) == k
        for layer in ("0.", "1.", "3."):
            names = [name for name in values if name.startswith(layer)]
            of = sum(values[name].numel() if allowed is None else int(allowed[name].sum()) for name in names)
            assert abs(sum(int(chosen[name].sum()) for name in names) - k * of / n) < 1
        assert allowed is None or all(bool((allowed[name] | ~chosen[name]).all()) for name in values)
    if granularity == "weight":
        first = torch.cat([values[name].flatten() for name in ("3.weight", "3.bias")])
        taken = torch.cat([choose_in_layers(k, values, layers)[name].flatten() for name in ("3.weight", "3.bias")])
        assert not taken.any() or taken.all() or first[taken].min() >= first[~taken].max()


def test_groups_by_hand():
    model = net()
    sizes = {"weight": 41, "neuron": 3 + 3 + 2, "layer": 3, "prefix": 3}
    for granularity, n in sizes.items():
        found = groups(model, granularity)
        assert len(torch.cat([x.flatten() for x in found.values()]).unique()) == n
    rows = groups(model, "neuron")
    assert rows["0.weight"].reshape(3, 9)[:, 0].tolist() == [0, 1, 2] and rows["3.bias"].tolist() == [6, 7]
    assert rows["1.weight"].tolist() == [3, 4, 5] and rows["1.bias"].tolist() == [3, 4, 5]
    assert torch.equal(rows["3.weight"], torch.tensor([[6] * 3, [7] * 3]))


def test_the_best_groups_come_first_and_the_next_one_is_cut_by_its_best_entries():
    values = {"a": torch.tensor([[1.0, 0.0], [0.5, 0.9]]), "b": torch.tensor([0.1, 2.0])}
    together = {"a": torch.tensor([[0, 0], [1, 1]]), "b": torch.tensor([2, 2])}
    assert choose(3, values, together)["b"].all()
    # Sums 1, 1.4 and 2.1, of two entries each.
    assert choose(3, values, together)["a"].tolist() == [[False, False], [False, True]]
    # Of an entry a group is not better for having many: .9 each before .5 each of four.
    sizes = {"a": torch.tensor([0.5, 0.5, 0.5, 0.5]), "b": torch.tensor([0.9])}
    assert choose(1, sizes, {"a": torch.zeros(4, dtype=torch.long), "b": torch.ones(1, dtype=torch.long)})["b"].all()
    # Of twice the cost the last one is worth 1.05.
    costs = torch.tensor([1.0, 1.0, 2.0])
    assert choose(3, values, together, costs=costs)["b"].tolist() == [False, True]
    assert choose(2, values, together, always={"a"})["a"].tolist() == [[False, False], [True, True]]
    # A suffix, whatever the scores: all of b, and the best of what is before it.
    found = choose(3, {**values, "b": -values["b"]}, together, in_order=True)
    assert found["b"].all() and found["a"].tolist() == [[False, False], [False, True]]
    only = {"a": torch.tensor([[True, True], [False, False]]), "b": torch.tensor([False, False])}
    assert choose(2, values, together, allowed=only)["a"][0].all()


def test_ties_fall_to_what_comes_first():
    assert choose(2, {"a": torch.zeros(4)})["a"].tolist() == [True, True, False, False]


def trained(start, best, curvature, noise, steps, gather):
    """SGD with noise on a quadratic without interaction."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(start.clone())
    statistics = GradientStatistics([("w", w)], batch_size=1, gather=gather, block=10)
    for _ in range(steps):
        w.grad = curvature * (w.detach() - best) + noise * torch.randn(w.shape)
        statistics.update()
        with torch.no_grad():
            w -= 0.01 * w.grad
    return statistics


@pytest.mark.parametrize("criterion", [name for name in NEEDS if name != "random"])
def test_criteria_find_what_has_not_converged(criterion):
    best = torch.linspace(-1, 1, 12)
    far = torch.zeros(12, dtype=torch.bool)
    far[[1, 4, 5, 10]] = True
    statistics = trained(best + 3 * far, best, torch.ones(12), 0.3, 50, NEEDS[criterion])
    found = scores(criterion, statistics, torch.Generator())
    assert torch.equal(choose(4, found)["w"], far)


def test_gains_find_what_has_not_converged_whatever_curvature_and_noise():
    """Slopes from .2 to 5, noise in proportion to their roots: what is far may have less gradient than noise."""
    best, far = torch.zeros(12), torch.zeros(12, dtype=torch.bool)
    far[[0, 3, 6, 9]] = True
    curvature = torch.logspace(-0.7, 0.7, 12)[torch.randperm(12, generator=torch.Generator().manual_seed(2))]
    statistics = trained(best + 3 * far, best, curvature, 0.8 * curvature.sqrt(), 200, PARTS)
    found = scores("gain", statistics, torch.Generator())
    assert torch.equal(choose(4, found)["w"], far)


def test_criteria_weigh_noise_and_scale_as_they_say():
    """Equal drifts: noise counts against a parameter by its ratio; scale counts for it in sums and gains alone."""
    best, curvature = torch.zeros(3), torch.tensor([1.0, 1.0, 0.1])
    statistics = trained(torch.full((3,), 3.0), best, curvature, torch.tensor([0.1, 2.0, 0.01]), 100, PARTS)
    order = {
        name: scores(name, statistics, torch.Generator())["w"].argsort(descending=True).tolist()
        for name in NEEDS
        if name != "random"
    }
    assert order["snr"][-1] == 1 and order["preconditioner"][0] == 2 and order["preconditioner"][-1] == 1
    assert order["gradient"][-1] == order["gain"][-1] == 2


def test_chance_is_the_generators():
    statistics = trained(torch.zeros(5), torch.zeros(5), torch.ones(5), 0.1, 3, ())
    draws = [scores("random", statistics, torch.Generator().manual_seed(s))["w"] for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_chance_knows_no_sizes():
    """Of rows of 2 and of 50 entries as many are the best half; a mean of numbers of their own would sort them."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(n, 50, bias=False) for n in (2, 50)))
    statistics, ids, small = GradientStatistics(layers.named_parameters(), batch_size=1), groups(layers, "neuron"), 0
    for seed in range(20):
        drawn = scores("random", statistics, torch.Generator().manual_seed(seed), ids)
        rows = torch.cat([drawn["0.weight"][:, 0], drawn["1.weight"][:, 0]])
        torch.testing.assert_close(drawn["1.weight"], rows[50:, None].expand(50, 50), rtol=0, atol=1e-8)
        small += int((rows.argsort(descending=True)[:10] < 50).sum())
    assert 80 <= small <= 120  # of 200; by means of two numbers 199 or so
    # Of a layer that fits in part other rows from seed to seed, not the first ones.
    ids = groups(layers, "layer")
    parts = [
        choose(35, scores("random", statistics, torch.Generator().manual_seed(seed), ids), ids) for seed in range(4)
    ]
    places = {tuple(torch.cat([mask.flatten() for mask in one.values()]).nonzero()[:, 0].tolist()) for one in parts}
    assert len(places) == 4 and all(max(each) - min(each) > 40 for each in places)


def test_what_is_kept():
    best = torch.tensor([2.0, -1.0, 0.3, 0.0])
    statistics = trained(best, best, torch.ones(4), torch.tensor([5.0, 0.1, 0.1, 0.1]), 200, ("chain",))
    magnitude = keeping_scores("magnitude", statistics, torch.Generator())["w"]
    z = keeping_scores("z", statistics, torch.Generator())["w"]
    mean, sd = statistics.weights()["w"]
    torch.testing.assert_close(z, mean.abs() / sd)
    assert int(magnitude.argmax()) == 0 and int(z.argmax()) == 1 and int(z.argmin()) == 3
    assert keeping_scores("random", statistics, torch.Generator())["w"].shape == (4,)


def test_what_has_not_moved_is_kept_last_by_z():
    """The weights of a constant input: however large they are, and their standard deviation of 0 is no certainty."""
    statistics = trained(
        torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0]), 0.0, 20, ("chain",)
    )
    z = keeping_scores("z", statistics, torch.Generator())["w"]
    assert z[0] == 0 and z[1] > 0


def optimized(hessian, best, w, rows):
    """Where the loss is least in some entries, the others as they are."""
    rest = [i for i in range(len(w)) if i not in rows]
    moved = w.clone()
    right = hessian[rows][:, rest] @ (w - best)[rest]
    moved[rows] = best[rows] - torch.linalg.solve(hessian[rows][:, rows], right)
    return moved


def losses(hessian, best, w, k, n_kept, at):
    """The loss of every pair of choices, what is optimized further and what is kept.

    At the selection what is not kept becomes zero, and some of the others go to their optimum; at the end it becomes
    zero afterwards, and neither need be a part of the other.
    """
    n, found = len(w), {}
    every = list(itertools.combinations(range(n), n_kept))
    cuts = torch.stack([torch.zeros(n).index_fill(0, torch.tensor(kept), 1.0) for kept in every])
    for active in itertools.combinations(range(n), k):
        if at == "end":
            ends = cuts * optimized(hessian, best, w, list(active))
        else:
            pairs = [(kept, cut) for kept, cut in zip(every, cuts, strict=True) if set(active) <= set(kept)]
            ends = torch.stack([optimized(hessian, best, cut * w, list(active)) for _, cut in pairs])
        values = ((ends - best) @ hessian * (ends - best)).sum(-1) / 2
        names = every if at == "end" else [kept for kept, _ in pairs]
        found |= {(active, kept): float(value) for kept, value in zip(names, values, strict=True)}
    return found


def problem(seed, n):
    """A quadratic whose parameters interact, some of them far from the optimum; and what ten steps of descent say."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator)
    hessian = root @ root.T / n + torch.eye(n)
    best = torch.randn(n, generator=generator) * torch.linspace(0.1, 2, n)
    start = best + torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) < 0.4)
    w = torch.nn.Parameter(start.clone())
    statistics = GradientStatistics([("w", w)], batch_size=1, gather=("moments", "noise", "path", "chain"))
    for _ in range(10):
        w.grad = hessian @ (w.detach() - best) + 0.05 * torch.randn(n, generator=generator)
        statistics.update()
        with torch.no_grad():
            w -= 0.01 * w.grad
    return hessian, best, statistics, generator


def both(k, n_kept, at, criterion, keep, hessian, best, statistics, generator):
    """As `SelectiveOptimization` chooses, of single weights."""
    w = statistics.parameters["w"].detach()
    kept, values = keeping_scores(keep, statistics, generator), scores(criterion, statistics, generator)
    if at == "selection":
        stay = choose(n_kept, kept)
        return choose(k, values, allowed=stay)["w"], stay["w"]
    active = choose(k, values)["w"]
    if keep == "magnitude":  # by what has become of it
        kept = {"w": optimized(hessian, best, w, active.nonzero().flatten().tolist()).abs()}
    return active, choose(n_kept, kept)["w"]


WAYS = {name: (name, "magnitude") for name in NEEDS if name not in ("gain_per_flop", "random")}
WAYS |= {"z": ("gain", "z"), "of the largest": ("random", "magnitude"), "chance": ("random", "random")}
# In units of the mean regret of all pairs; as docs/theory.md has it, in the order of WAYS; chance differs.
REGRETS = {
    ("selection", 6): (0.11, 0.11, 0.11, 0.32, 0.11, 0.22),
    ("selection", 3): (0.16, 0.16, 0.16, 0.16, 0.16, 0.44),
    ("end", 6): (0.02, 0.09, 0.02, 0.29, 0.02, 0.22),
    ("end", 2): (0.05, 0.08, 0.05, 0.30, 0.05, 0.47),
}


@pytest.mark.parametrize(("at", "n_kept"), REGRETS)
def test_regret_to_the_best_of_all_pairs_of_choices(at, n_kept):
    """10 parameters that interact, 3 optimized further; up to 25,200 pairs; 20 problems."""
    n, k, regrets = 10, 3, {name: [] for name in WAYS}
    for seed in range(20):
        hessian, best, statistics, generator = problem(seed, n)
        every = losses(hessian, best, statistics.parameters["w"].detach(), k, n_kept, at)
        least, mean = min(every.values()), sum(every.values()) / len(every)
        for name, (criterion, keep) in WAYS.items():
            chosen = both(k, n_kept, at, criterion, keep, hessian, best, statistics, generator)
            active, kept = (tuple(x.nonzero().flatten().tolist()) for x in chosen)
            assert len(active) == k and len(kept) == n_kept
            regrets[name].append((every[active, kept] - least) / (mean - least))
    means = {name: sum(values) / len(values) for name, values in regrets.items()}
    assert 0.7 < means.pop("chance") < 1.3 and 0.15 < means.pop("of the largest") < 0.4
    assert means == pytest.approx(dict(zip(means, REGRETS[at, n_kept], strict=True)), abs=0.02)
    assert all(r >= -1e-6 for values in regrets.values() for r in values)


BAD = {
    "criterion": (lambda s: scores("best", s, torch.Generator()), r"criterion must be one of random, gradient"),
    "not gathered": (lambda s: scores("snr", s, torch.Generator()), r"`noise` must be gathered"),
    "keeping": (lambda s: keeping_scores("w", s, torch.Generator()), r"kept by one of magnitude, z, random, got 'w'"),
    "granularity": (lambda s: groups(net(), "row"), r"granularity must be one of weight, neuron, layer, prefix"),
    "too many": (lambda s: choose(5, {"w": torch.zeros(4)}), r"must be between 0 and 4 parameters, got 5"),
    "too many in layers": (
        lambda s: choose_in_layers(5, {"w": torch.zeros(4)}, {"w": torch.zeros(4)}),
        r"must be between 0 and 4 parameters, got 5",
    ),
    "negative": (lambda s: choose(-1, {"w": torch.zeros(4)}), r"must be between 0 and 4 parameters, got -1"),
}


@pytest.mark.parametrize(("ask", "match"), BAD.values(), ids=BAD)
def test_what_cannot_be(ask, match):
    statistics = GradientStatistics([("w", torch.nn.Parameter(torch.zeros(4)))], batch_size=1, gather=("moments",))
    statistics.update()
    with pytest.raises(ConfigError, match=match):
        ask(statistics)
