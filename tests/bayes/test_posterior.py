"""The posterior over architectures: one law, by enumeration."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior, Weighted, merge
from nni_bayes_nas.errors import ConfigError

UNITS = (
    law.Choice("layer", ("conv", "pool", 3)),
    law.Subset("skip", (0, 1, 2), 2),
    law.Node("cell", 2, ("conv", "skip"), 1),
    law.Node("cell", 3, ("conv", "skip"), 2),
)


def posterior(seed=0, sharpness=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = [sharpness * torch.randn(unit.shape, generator=generator, dtype=torch.float64) for unit in UNITS]
    return ArchitecturePosterior(UNITS, [x.softmax(-1) for x in logits])


def enumerated(q):
    for parts in itertools.product(*(law.enumerate_choices(unit) for unit in q.units)):
        choices = {label: choice for part in parts for label, choice in part.items()}
        yield choices, q.log_prob(choices)


GOOD = {
    "layer": "conv",
    "skip": [0, 2],
    **{"cell/op_2_0": "skip", "cell/input_2_0": [1]},
    **{"cell/op_3_0": "conv", "cell/input_3_0": [0], "cell/op_3_1": "conv", "cell/input_3_1": [2]},
}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"layer": None}, "must say what it has at 'layer', got cell/input_2_0"),
        ({"layer": "dense"}, "must have 1 of conv, pool, 3 at 'layer', got 'dense'"),
        ({"skip": [0, 1, 2]}, r"must have 2 of 0, 1, 2 at 'skip', got \[0, 1, 2\]"),
        ({"skip": [0, 0]}, r"must have 2 of 0, 1, 2 at 'skip', got \[0, 0\]"),
        ({"cell/op_3_1": "none"}, "must have 1 of conv, skip at 'cell/op_3_1', got 'none'"),
        ({"cell/input_2_0": [2]}, "must have 1 of 0, 1 at 'cell/input_2_0'"),
        ({"cell/input_3_1": [0]}, "must have 2 different inputs at 'cell/3'"),
    ],
)
def test_what_is_no_architecture_has_no_probability(change, match):
    q = posterior()
    assert math.isfinite(q.log_prob(GOOD)) and q.log_prob({**GOOD, "other": 1}) == q.log_prob(GOOD)
    choices = {label: value for label, value in (GOOD | change).items() if value is not None}
    with pytest.raises(ConfigError, match=match):
        q.log_prob(choices)


def test_options_that_are_never_chosen_and_draws_below_zero():
    q = ArchitecturePosterior([law.Choice("a", ("x", "y"))], [torch.tensor([[1.0, 0.0]])])
    assert q.log_prob({"a": "x"}) == 0.0 and q.log_prob({"a": "y"}) == -math.inf
    with pytest.raises(ConfigError, match="at least 0, got -1"):
        q.sample(-1, torch.Generator())


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 5.0))
def test_probabilities_sum_to_one_and_give_the_entropy(seed, sharpness):
    q = posterior(seed, sharpness)
    logs = torch.tensor([log for _, log in enumerated(q)], dtype=torch.float64)
    assert len(logs) == round(math.exp(q.log_count)) == 3 * 3 * 4 * 12
    assert float(logs.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    assert q.entropy() == pytest.approx(float(-(logs.exp() * logs).sum()), abs=1e-9)
    assert q.entropy() <= q.log_count + 1e-9


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_most_probable_come_first_and_each_once(seed):
    q = posterior(seed)
    everything = list(q.by_probability())
    keys = [Architecture(one.choices).key for one in everything]
    assert len(set(keys)) == len(keys) == 432
    expected = sorted((log for _, log in enumerated(q)), reverse=True)
    assert [one.log_prob for one in everything] == pytest.approx(expected)
    assert [one.log_prob for one in q.top_k(5)] == pytest.approx(expected[:5])
    assert q.log_prob(everything[7].choices) == pytest.approx(everything[7].log_prob)


def test_draws_have_their_probabilities():
    q = posterior(1, 2.0)
    n = 20_000
    drawn = Counter(Architecture(c).key for c in q.sample(n, torch.Generator().manual_seed(0)))
    for one in q.top_k(5):
        p = math.exp(one.log_prob)
        assert abs(drawn[Architecture(one.choices).key] / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_inclusion_probabilities_by_enumeration():
    q = posterior(2)
    found: Counter[tuple[str, str]] = Counter()
    for choices, log in enumerated(q):
        p = math.exp(log)
        found["layer", str(choices["layer"])] += p
        for option in choices["skip"]:
            found["skip", str(option)] += p
        for node in UNITS[2:]:
            for edge, operation in node.kept(choices):
                found[f"{node.label}_{edge}", node.operations[operation]] += p
    for (label, option), p in found.items():
        assert q.probability(option, label) == pytest.approx(p)
    assert sum(q.inclusion()["skip"].values()) == pytest.approx(2)


def test_the_mean_names_every_option():
    mean = posterior().mean()
    assert list(mean) == ["layer", "skip", "cell/2_0", "cell/2_1", "cell/3_0", "cell/3_1", "cell/3_2"]
    assert list(mean["cell/3_2"]) == ["conv", "skip", "none"] and sum(mean["layer"].values()) == pytest.approx(1)


def test_what_is_derived_need_not_be_the_most_probable():
    node = law.Node("cell", 2, ("a", "b", "c"), 1)
    # Edge 0 has the best operation, edge 1 the larger mass outside "none".
    probs = torch.tensor([[0.4, 0.0, 0.0, 0.6], [0.3, 0.3, 0.3, 0.1]], dtype=torch.float64)
    q = ArchitecturePosterior([node], [probs])
    assert node.kept(q.derived()) == [(0, 0)]
    assert math.exp(q.log_prob(q.derived())) == pytest.approx(0.4 / 1.3)
    assert q.top_k(1)[0].log_prob == pytest.approx(math.log(0.4 / 1.3))


def test_probability_of_an_operation_given_its_edge():
    """Of a node that keeps one of two edges: by hand, and by enumeration."""
    node = law.Node("cell", 2, ("conv", "skip"), 1)
    q = ArchitecturePosterior([node], [torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)])
    assert q.probability("conv", "cell/2_0") == pytest.approx(0.8 * 0.75)
    assert q.probability("conv", "cell/2_0", given_kept=True) == pytest.approx(0.75)
    every = [(node.kept(one.choices)[0], math.exp(one.log_prob)) for one in q.by_probability()]
    on_edge = {operation: sum(p for kept, p in every if kept == (1, operation)) for operation in (0, 1)}
    assert q.probability("skip", "cell/2_1", given_kept=True) == pytest.approx(on_edge[1] / sum(on_edge.values()))


def test_classes_of_architectures():
    q = posterior()
    classes = q.merged(lambda choices: choices["layer"])
    shares = q.mean()["layer"]
    assert {name: one.probability for name, one in classes.items()} == {
        option if option != "3" else 3: pytest.approx(p) for option, p in shares.items()
    }
    assert {one.members for one in classes.values()} == {144}
    assert all(one.choices["layer"] == name for name, one in classes.items())
    # Where probabilities are below what a number can hold, their logarithms are added all the same.
    rare = merge([Weighted({"layer": i}, -2000.0 - i) for i in range(3)], lambda choices: choices["layer"] > 0)
    assert rare[True].log_prob == pytest.approx(-2001 + math.log(1 + math.exp(-1))) and rare[True].probability == 0
    found = [one.probability for one in classes.values()]
    assert found == sorted(found, reverse=True)
    with pytest.raises(ConfigError, match="at most 100, got 432"):
        q.merged(lambda choices: 0, limit=100)


def test_files_hold_everything():
    q = posterior()
    read = ArchitecturePosterior.from_dict(json.loads(json.dumps(q.to_dict())))
    assert read.units == q.units and all(torch.equal(a, b) for a, b in zip(read.probs, q.probs, strict=True))


def test_files_know_options_that_are_tuples():
    q = ArchitecturePosterior([law.Choice("k", ((3, 3), (5, 5)))], [torch.tensor([[0.3, 0.7]], dtype=torch.float64)])
    read = ArchitecturePosterior.from_dict(json.loads(json.dumps(q.to_dict())))
    assert read.units == q.units and read.log_prob({"k": (3, 3)}) == q.log_prob({"k": (3, 3)})
    assert read.derived() == {"k": (5, 5)}


@pytest.mark.parametrize(
    "read",
    [
        None,
        [],
        {},
        {"schema": 2, "units": [], "probs": []},
        {"schema": 1, "units": [{"kind": "x"}], "probs": [[1]]},
    ],
)
def test_other_files_are_refused(read):
    with pytest.raises(ConfigError, match="what to_dict gave"):
        ArchitecturePosterior.from_dict(read)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda q: q.top_k(0), "k must be from 1 to the number of architectures 432, got 0"),
        (lambda q: q.top_k(433), "got 433"),
        (lambda q: q.probability("conv", "cell/9_0"), "label must be one of cell/2_0.*, got 'cell/9_0'"),
        (lambda q: q.probability("none", "cell/2_0"), "option of cell/2_0 must be one of conv, skip, got 'none'"),
        (lambda q: ArchitecturePosterior(q.units, q.probs[::-1]), "of the shapes of their units"),
        (lambda q: ArchitecturePosterior(q.units, [2 * p for p in q.probs]), "must sum to one, but those of 'layer'"),
    ],
)
def test_bad_questions_are_refused(call, match):
    with pytest.raises(ConfigError, match=match):
        call(posterior())


def test_a_large_choice_is_not_ranked():
    unit = law.Subset("many", tuple(range(30)), 15)
    q = ArchitecturePosterior([unit], [torch.full((1, 30), 1 / 30, dtype=torch.float64)])
    with pytest.raises(ConfigError, match="possibilities of one choice can be ranked, but 'many' has 155117520"):
        q.top_k(1)
