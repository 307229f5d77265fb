"""Costs of layers as they are measured, and the beginning that is frozen by them."""

import time
from types import SimpleNamespace

import pytest
import torch
from test_selective import Model, fit, selective
from torch import nn

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim.amounts import epochs_left
from nni_bayes_nas.optim.layer_cost import BACKWARD, LayerCosts, best_cut, entries_behind_cut, share_saved


def test_epochs_in_which_what_is_kept_is_of_use():
    trainer = SimpleNamespace(estimated_stepping_batches=100, accumulate_grad_batches=1, num_training_batches=10)
    assert (
        epochs_left(trainer, 20) == 8.0 and epochs_left(trainer, 20, 15) == 1.5 and epochs_left(trainer, 95, 15) == 0.5
    )


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
    # Where no more than the first two layers' outputs can be kept, or only theirs: .5 - .1, .6 - .4; .33 - .1, .9 - .4.
    assert best_cut([1, 3, 5, 1], [5, 4, 0.5, 0.5], [1, 2 / 3, 2 / 3]) == 1
    assert best_cut([1, 3, 5, 1], [5, 4, 0.5, 0.5], [2 / 3, 1, 2 / 3]) == 2


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


def test_what_keeping_outputs_saves():
    """Of ten epochs nine save all, and the one in which they are computed the pass backward."""
    assert share_saved(10) == pytest.approx((9 + BACKWARD) / 10)
    assert share_saved(1) == share_saved(0.2) == share_saved(0) == pytest.approx(BACKWARD)


def test_entries_behind_a_cut_are_those_that_can_be_optimized():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 5, bias=False), nn.Linear(5, 2, bias=False))
    parameters = dict(net.named_parameters())
    values = {name: torch.ones_like(p) for name, p in parameters.items()}
    ids = {name: torch.full(p.shape, i) for i, (name, p) in enumerate(parameters.items())}
    costs = LayerCosts(net)
    costs.remove()
    costs.seconds = {"0": 8.0, "1": 1.0, "2": 1.0}
    assert entries_behind_cut(parameters, values, ids, costs, 1.0) == 30
    allowed = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in parameters.items()}
    for name, n in (("0.weight", 12), ("1.weight", 6), ("2.weight", 3)):
        allowed[name].view(-1)[:n] = True
    # Twelve of the twenty-one are in the first layer: their share of the gain is not that of all.
    assert entries_behind_cut(parameters, values, ids, costs, 1.0, allowed) == 9


def test_a_beginning_whose_outputs_are_too_large_saves_less():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(32, 10, bias=False))
    parameters = dict(net.named_parameters())
    values = {name: torch.full(p.shape, 1 / p.numel()) for name, p in parameters.items()}
    ids = {name: torch.full(p.shape, i) for i, (name, p) in enumerate(parameters.items())}
    costs = LayerCosts(net)
    net(torch.zeros(2, 1, 6, 6))
    costs.remove()
    assert costs.bytes_before == {"0": 36 * 4, "2": 32 * 4}
    # Half of the gain, and .6 of the costs: .6 - .5 of it kept, .4 - .5 not.
    costs.seconds = {"0": 6.0, "2": 4.0}
    assert entries_behind_cut(parameters, values, ids, costs, 1.0, limit=128) == 320
    assert entries_behind_cut(parameters, values, ids, costs, 1.0, limit=127) == 338


def test_what_is_kept_does_not_spill_into_the_frozen_beginning(monkeypatch):
    monkeypatch.setattr("nni_bayes_nas.optim.layer_cost.best_cut", lambda *_: 2)
    callback = selective(active="auto", granularity="prefix", criterion="gradient", kept=0.3, keep_by="magnitude")
    fit(Model(), callback)
    assert callback.n_active == sum(int(callback.kept[name].sum()) for name in callback.kept if name[4] in "46")
    assert not any(mask.any() for name, mask in callback.active.items() if name[4] in "01")


def test_where_nothing_was_measured_multiply_accumulates_are_counted():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(32, 10, bias=False))
    parameters = dict(net.named_parameters())
    ids = {name: torch.full(p.shape, i) for i, (name, p) in enumerate(parameters.items())}
    costs = LayerCosts(net)
    net(torch.zeros(1, 1, 6, 6))
    costs.remove()
    costs.seconds = {}
    # The convolution: 18 entries at 16 places; of the costs 288 / 608, which gains of a half outweigh.
    values = {"0.weight": torch.full((2, 1, 3, 3), 0.1), "2.weight": torch.full((10, 32), 0.1)}
    assert entries_behind_cut(parameters, values, ids, costs, 1.0) == 320
    values["0.weight"] = torch.full((2, 1, 3, 3), 2.0)
    assert entries_behind_cut(parameters, values, ids, costs, 1.0) == 338


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_some_passes_are_timed_to_their_end():
    net = nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 8)).to("cuda")
    costs, x = LayerCosts(net), torch.zeros(4096, 4096, device="cuda")
    for _ in range(3):
        net(x)
    assert costs.places == {"0": 1, "1": 1} and not costs.seconds
    for _ in range(20):
        net(x)
    timed = dict(costs.seconds)
    assert timed["0"] > 5 * timed["1"] > 0
    net(x)
    assert costs.seconds == timed
