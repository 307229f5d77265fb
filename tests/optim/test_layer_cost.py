"""Costs of layers as they are measured, and the beginning that is frozen by them."""

import time

import pytest
import torch
from test_selective import Model, fit, selective
from torch import nn

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim.layer_cost import LayerCosts, best_cut


class Slow(nn.Module):
    """Takes some milliseconds, and has parameters if wanted."""

    def __init__(self, seconds, owns=False):
        super().__init__()
        self.seconds = seconds
        if owns:
            self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_seconds_and_places():
    net = nn.Sequential(Slow(0.02), nn.Conv2d(1, 3, 3), Slow(0.04), nn.Flatten(), Slow(0.03, owns=True), nn.ReLU())
    costs = LayerCosts(net)
    for _ in range(2):
        net(torch.zeros(2, 1, 6, 5))
    costs.remove()
    net(torch.zeros(2, 1, 6, 5))
    assert costs.places == {"1": 4 * 3, "4": 1}
    expected = {"": 0.04, "1": 0.08, "4": 0.06}
    assert set(costs.seconds) == set(expected)
    for name, seconds in expected.items():
        assert seconds <= costs.seconds[name] < seconds + 0.1


def test_the_best_cut_by_hand():
    # Shares of the costs less those of the gains: .5 - .1, .9 - .4, 1 - .9.
    assert best_cut([1, 3, 5, 1], [5, 4, 0.5, 0.5]) == 2
    assert best_cut([5, 5], [1, 9]) == 0 and best_cut([0, 0, 1], [1, 1, 1]) == 2
    # Where a frozen beginning is still run forward: .33 - .1, .6 - .4, .67 - .9.
    assert best_cut([1, 3, 5, 1], [5, 4, 0.5, 0.5], 2 / 3) == 1
    # The last layer goes on, whatever it costs; nothing to gain is no reason to stop.
    assert best_cut([0, 0], [1, 9]) == 1 and best_cut([3], [1]) == 0 and best_cut([0, 0], [0, 0]) == 0


@pytest.mark.parametrize(("seconds", "first"), [((9.0, 0.1, 0.1), "net.1"), ((0.1, 0.1, 9.0), "net.0")])
def test_a_training_freezes_what_takes_long(seconds, first, monkeypatch):
    callback = selective(active="auto", granularity="prefix", criterion="gradient")
    measured = dict(zip(("net.0", "net.4", "net.6"), seconds, strict=True))
    found = LayerCosts.remove

    def remove(self):
        if self.watching and self.seconds:
            assert set(measured) < set(self.seconds)
            self.seconds = measured
        found(self)

    monkeypatch.setattr(LayerCosts, "remove", remove)
    fit(Model(), callback)
    some = [name for name, mask in callback.active.items() if mask.all()]
    assert some[0].startswith(first) and all(mask.all() or not mask.any() for mask in callback.active.values())
    assert sum(int(mask.sum()) for mask in callback.active.values()) == callback.n_active


@pytest.mark.parametrize("options", [{"granularity": "neuron"}, {"granularity": "prefix", "criterion": "random"}])
def test_what_is_automatic_is_a_beginning_by_scores(options):
    with pytest.raises(ConfigError, match=r"`active` auto needs granularity prefix and a criterion that measures"):
        selective(active="auto", **options)
