"""Curves and lengths of pruned networks."""

import math

import pytest
import torch
from torch import nn

from nni_bayes_nas.compression import accuracy_pruning_curve, description_length, kept, mean_network, pack, prune
from nni_bayes_nas.errors import ConfigError, NumericsError, SpaceError
from nni_bayes_nas.layers.normalization import batch_norms
from nni_bayes_nas.layers.variational import collect_kl, to_variational, variational_layers

X = torch.randn(64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(gaussian=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40, bias=False), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 3)).double()
    return to_variational(net, rho=-3.0) if gaussian else net


@pytest.mark.parametrize("gaussian", [True, False])
def test_a_curve(gaussian):
    net = network(gaussian)
    # Weights that are left out change the statistics of what is normalized.
    seen = []

    def evaluate(pruned):
        assert not pruned.training
        seen.append([norm.running_mean.clone() for norm in batch_norms(pruned)])
        return {"square": float(pruned(X).detach().square().mean())}

    def finetune(pruned, rate):
        nn.functional.mse_loss(pruned(X), torch.zeros(64, 3, dtype=torch.float64)).backward()
        torch.optim.SGD(pruned.parameters(), lr=0.01).step()

    rows = accuracy_pruning_curve(net, [0.0, 0.5, 0.9], evaluate, calibration=[X], finetune=finetune)
    assert [row["kept"] for row in rows] == [360, 180, 36]
    assert [row["compression"] for row in rows] == [1.0, 2.0, 10.0]
    assert all(row["finetuned"]["square"] < row["square"] for row in rows)
    assert kept(net) == 360 and not torch.equal(seen[0][0], seen[2][0])
    (again,) = accuracy_pruning_curve(net, [0.5], evaluate)
    assert "finetuned" not in again and again["square"] != rows[1]["square"]


def test_every_network_takes_the_rate_that_is_worth_most():
    """The first of equals; a rate that fails is none, and an error where all do."""

    def finetune(pruned, rate):
        if rate > 1:
            raise NumericsError(f"loss is nan at {rate:g}")
        torch.nn.init.constant_(pruned[3].bias, rate)

    def worth(pruned):
        assert not pruned.training
        # More than .2 is as good where all is there, and worse where half of it is.
        bias = float(pruned[3].bias[0].detach())
        return min(bias, 0.2) if kept(pruned) == 360 else -abs(bias - 0.2)

    looked = []

    def curve(rates, fractions=(0.0, 0.5), **options):
        looked.clear()
        rows = accuracy_pruning_curve(
            network(False),
            fractions,
            lambda pruned: looked.append(0) or {"bias": float(pruned[3].bias[0].detach())},
            finetune=finetune,
            learning_rates=rates,
            keep=lambda row, pruned: looked.append(float(pruned[3].bias[0].detach())),
            **options,
        )
        return [row["finetuned"] for row in rows]

    found = curve((2.0, 0.1, 0.5, 0.2, 3.0), prefer=worth)
    assert found == [{"bias": 0.5, "learning_rate": 0.5}, {"bias": pytest.approx(0.2), "learning_rate": 0.2}]
    # What is preferred alone is looked at, and kept.
    assert looked == [0, 0, 0.5, 0, 0, pytest.approx(0.2)]
    assert curve((0.3,)) == 2 * [{"bias": pytest.approx(0.3), "learning_rate": 0.3}]
    # One rate is not compared with anything.
    assert curve((0.3,), (0.5,), prefer=lambda pruned: pytest.fail("looked at"))[0]["learning_rate"] == 0.3
    nan = (lambda pruned: float("nan") if pruned[3].bias[0] < 0.2 else 1.0), (0.1, 0.3)
    assert [row["learning_rate"] for row in curve(nan[1], prefer=nan[0])] == [0.3, 0.3]
    with pytest.raises(NumericsError, match=r"what prefers a rate must be a number, got nan at 0\.15"):
        curve((0.1, 0.15), prefer=nan[0])
    for rates in ((2.0,), (2.0, 3.0)):
        with pytest.raises(NumericsError, match=f"loss is nan at {rates[-1]:g}"):
            curve(rates, prefer=worth)
    with pytest.raises(ConfigError, match="prefer must be given to choose among 2 learning rates; pass one of them"):
        curve((0.1, 0.2), (0.5,))
    with pytest.raises(ConfigError, match="`learning_rates` must name at least one"):
        curve((), prefer=worth)


def test_shares_are_looked_at_before_any_network_is_trained():
    with pytest.raises(ConfigError, match=r"fraction must lie in \[0, 1\), got 1"):
        accuracy_pruning_curve(network(), [0.5, 1.0], lambda pruned: pytest.fail("too late"))


def test_lengths_by_hand():
    net = network()
    divergence = sum(float(kl.detach()) for kl in collect_kl(net).values())
    found = description_length(net, precision=16)
    assert found["values"] == 16 * 360 and found["positions"] == pytest.approx(0.0, abs=1e-9)
    assert found["points"] == 16 * (80 + 3 + 80) and found["information"] == pytest.approx(divergence / math.log(2))
    plain = mean_network(net)
    prune(plain, fraction=0.5, scope="layer")
    short = description_length(plain)
    assert short["values"] == 32 * 180 and "information" not in short and short["points"] == 32 * 163
    assert short["positions"] == pytest.approx(math.log2(math.comb(240, 120)) + math.log2(math.comb(120, 60)))
    assert short["total"] == pytest.approx(short["values"] + short["positions"] + short["points"])
    for layer in variational_layers(net).values():
        layer.prior = "log_uniform"
    assert "information" not in description_length(net)  # it has no normalization
    with pytest.raises(ConfigError, match="precision must be at least 1 bit, got 0"):
        description_length(net, precision=0)


def test_layers_that_stay_points_count_as_weights_that_are_kept():
    net = network(gaussian=False)
    to_variational(net, rho=-3.0, skip=["3"])
    rows = accuracy_pruning_curve(net, [0.0, 0.5], lambda pruned: {})
    assert [(row["kept"], row["compression"]) for row in rows] == [(360, 1.0), (240, 1.5)]


def test_whole_neurons_of_a_network_of_one_layer():
    net = to_variational(nn.Sequential(nn.Linear(6, 3)))
    with pytest.raises(SpaceError, match="whole neurons can go only before the last layer"):
        accuracy_pruning_curve(net, [0.5], lambda pruned: {}, structured=True)


def test_a_packed_network_is_as_long_as_the_one_that_it_is_of():
    net = mean_network(network())
    prune(net, fraction=0.9)
    assert description_length(pack(net)) == description_length(net)
