"""Searches that differ in more than their seeds: which there are, and what their configurations are."""

import pytest

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.variants import searches, varied


def config(*variants, **search):
    return Config.from_dict({"seed": 3, "search": {"variants": list(variants), **search}})


def test_every_variant_is_searched_with_every_seed():
    low, high = {"strategy.args.lambda_range": [0.001, 0.1]}, {"data.limit": 100}
    assert searches(config(searches=2)) == [(3, {}), (4, {})]
    assert searches(config(low, high, searches=2)) == [(3, low), (4, low), (3, high), (4, high)]


def test_a_variant_changes_what_it_names_and_nothing_else():
    base = config({"data.limit": 1}, epochs=7)
    changed = varied(base, {"strategy.args.penalty": 0.5, "search.learning_rate": 0.1, "data.skip": 5})
    assert changed.strategy.args == {"penalty": 0.5} and changed.search.learning_rate == 0.1 and changed.data.skip == 5
    back = varied(changed, {"search.learning_rate": base.search.learning_rate, "data.skip": 0}).to_dict()
    assert {**back, "strategy": 0} == {**varied(base, {}).to_dict(), "strategy": 0}
    assert base.strategy.args == {} and changed.search.variants == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space.args.width": 8}, r"search\.variants.*'space.args.width'"),
        ({"search.searches": 2}, r"search\.variants.*'search.searches'"),
        ({"strategy.name": "x"}, r"search\.variants.*'strategy.name'"),
        ({"seed": 1}, r"search\.variants.*'seed'"),
        ({3: 1}, r"search\.variants.*got 3"),
        ({"search.epoch": 3}, r"search.*epoch"),
        ({"search.foo.bar": 1}, r"'search.foo.bar'"),
        ({"search.epochs.x": 1}, r"`search.epochs` has nothing below it"),
        ({"search.epochs": 0}, r"search\.epochs.*at least 1"),
        ({"data.limit": "all"}, r"data\.limit"),
    ],
)
def test_what_may_not_differ_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        varied(config(), changes)
