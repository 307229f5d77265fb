"""Networks on all data, and those that predictions are compared with."""

import math

import pytest
import torch
from torch import nn

from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.experiment.data_tables import synthetic
from nni_bayes_nas.prediction.baselines import BASELINES, baseline
from nni_bayes_nas.prediction.growth import Grown, grow
from nni_bayes_nas.prediction.low_rank import Factors, LowRank, sizes_within
from nni_bayes_nas.prediction.many import Many, Training
from nni_bayes_nas.prediction.random_nets import most_parameters
from nni_bayes_nas.prediction.sparse_net import build, dense, with_matrices
from nni_bayes_nas.prediction.tasks import TaskData
from nni_bayes_nas.prediction.tokens import Vocabulary
from nni_bayes_nas.prediction.training import WholeData, best, connections, fit, scores, train_nets, train_together

HOW = Training(steps=60, batch_size=32)


def whole(seed=0, n=300):
    x, y = synthetic("blobs", n, 10, 3, 3, seed=seed)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y).long()
    x = (x - x.mean(0)) / x.std(0)
    return WholeData(TaskData(x[:150], y[:150], x[150:200], y[150:200]), x[200:], y[200:], 3)


def make(name, budget=40, tries=2, seed=0):
    how = {"tries": tries, "vocabulary": Vocabulary(2, (2, 3, 4, 8)), "deepest": (16, 8), "seed": seed}
    return baseline(name, whole(), budget, HOW, **how)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_to_the_budget_and_is_repeated(name):
    data = whole()
    # Of two layers of 8 units, and all 40 connections.
    tried, most = make(name), most_parameters(10, 3, 40, Vocabulary(2, (2, 3, 4, 8)))
    assert most == 40 + 16 + 3 and all(one.parameters <= most for one in make("random"))
    if name in ("random", "relevance", "snip", "magnitude"):
        most = max(one.net.n_parameters for one in tried)
    assert 1 <= len(tried) <= 2
    for one in tried:
        assert one.connections == 10 * 16 + 16 * 8 + 8 * 3 if name == "dense" else one.parameters <= most
        assert one.connections <= 40 or name in ("dense", "adanet", "low_rank")
        assert (one.val_loss, one.val_accuracy) == scores(one.module, data.parts.x_val, data.parts.y_val)
        assert one.seconds > 0 and one.parameters > one.connections
    row = best(tried).row(data)
    assert row["test_loss"] == scores(best(tried).module, data.x_test, data.y_test)[0]
    assert row["val_loss"] == min(one.val_loss for one in tried)
    assert [one.val_loss for one in make(name)] == [one.val_loss for one in tried]


def test_what_matters_is_kept():
    """Of few connections the large ones, and those of telling features, are worth more than any, in the mean."""

    def loss(name):
        tried = [one.val_loss for seed in range(10) for one in make(name, budget=24, seed=seed)]
        return sum(tried) / len(tried)

    assert max(loss("magnitude"), loss("relevance")) < loss("random") - 0.02


def test_sensitive_connections_are_of_features_that_say_the_class():
    """One of twenty features says it: more connections of its own than at random."""
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    y = (x[:, 7] > 0).long()
    data = WholeData(TaskData(x[:200], y[:200], x[200:], y[200:]), x[200:], y[200:], 2)

    def share(name):
        how = {"tries": 2, "vocabulary": Vocabulary(1, (4, 8)), "deepest": (8,)}
        tried = [one.net for seed in range(6) for one in baseline(name, data, 24, Training(5), seed=seed, **how)]
        inputs = [a for net in tried for a, _ in net.edges[0]]
        return inputs.count(7) / len(inputs)

    assert share("snip") > 0.25 and share("random") < 0.12


@pytest.mark.parametrize("name", ["snip", "magnitude"])
def test_the_first_try_prunes_the_dense_network_itself(name):
    """Where the budget can give each of its units a connection; 16 and 8 units and 3 outputs want 40."""
    assert make(name, budget=40)[0].net.widths == (16, 8)
    assert make(name, budget=39)[0].net.widths != (16, 8)


def test_no_room():
    for name in ("random", "adanet", "low_rank"):
        with pytest.raises(ConfigError, match="connections"):
            make(name, budget=3)
    with pytest.raises(ConfigError, match="`baselines` must be among"):
        make("smallest")
    how = {"tries": 1, "vocabulary": Vocabulary(2, (2, 3, 4, 8)), "deepest": (16, 8), "seed": 0}
    with pytest.raises(ConfigError, match="`sizes` must have at most 59 parameters"):
        baseline("low_rank", whole(), 40, HOW, **how, sizes=[(10, 3, 8)])


def test_a_module_is_trained_as_networks_side_by_side_are():
    """The same network, weights, batches and steps: once padded, once as a module."""
    data, net = whole(), dense(10, 3, (6,))
    # Weights of sparse layers are vectors, which `fit` takes for biases: without decay both are the same.
    how = Training(HOW.steps, HOW.batch_size, HOW.learning_rate, 0.0)
    many, module = Many([net], [4]), build(net, 0)
    module.load_state_dict(many.network(0).state_dict())
    many.train(data.parts.x, data.parts.y, how, 7)
    fit(module, data.parts.x, data.parts.y, how, 7)
    ours, theirs = module(data.x_test), many.network(0)(data.x_test)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
    assert train_nets([net], data, HOW, 4)[0].connections == net.n_connections


def test_a_low_rank_network_is_that_of_the_product():
    order = torch.tensor([4, 1, 7, 0, 2, 3, 5, 6, 8, 9])
    net = LowRank(order, Factors(3, 2, 5), 3, seed=1)
    x = torch.randn(6, 10)
    w = net.u.weight @ net.v.weight
    assert torch.linalg.matrix_rank(w) == 2 and connections(net) == Factors(3, 2, 5).connections(3) == 2 * 8 + 15
    torch.testing.assert_close(net(x), net.out((x[:, [4, 1, 7]] @ w.T + net.u.bias).relu()))
    import random

    for one in sizes_within(10, 3, 40, 20, random.Random(0)):
        assert one.parameters(3) <= 40 and one.rank <= one.features <= 10
        module = LowRank(order, one, 3, seed=0)
        assert one.parameters(3) == sum(p.numel() for p in module.parameters()) > one.connections(3)


def test_a_grown_network_sees_what_was_there():
    """Two subnetworks of two layers: the second one's upper layer has inputs from the first one's lower layer."""
    grown = Grown(torch.arange(4), 3, 2, 5)
    grown.subnetworks.append(grown.next(2))
    grown.subnetworks.append(grown.next(2))
    a, b = grown.parts
    assert [layer.in_features for layer in (*a.layers, *b.layers)] == [3, 2, 3, 4]
    x = torch.randn(7, 4)
    low_a, low_b = a.layers[0](x[:, :3]).relu(), b.layers[0](x[:, :3]).relu()
    high_a, high_b = a.layers[1](low_a).relu(), b.layers[1](torch.cat([low_b, low_a], 1)).relu()
    torch.testing.assert_close(grown(x), a.out(high_a) + b.out(high_b))


def test_the_dense_network_is_tried_at_several_rates():
    """Tries have the rate, .3 and .1 of it in turn: so high a rate that the first one learns little costs nothing."""
    how = {"tries": 3, "vocabulary": Vocabulary(2, (2, 3, 4, 8)), "deepest": (16, 8), "seed": 0}
    tried = baseline("dense", whole(), 40, Training(60, 32, 2.0), **how)
    losses = [one.val_loss for one in tried]
    alone = [
        train_together([dense(10, 3, (16, 8))], [i], whole(), Training(60, 32, r))[0].val_loss
        for i, r in enumerate((2.0, 0.6, 0.2))
    ]
    torch.testing.assert_close(losses, alone)
    assert best(tried).val_loss == min(losses) < losses[0]


def test_growth_goes_on_while_the_objective_falls():
    data = whole(n=600)

    def grown(budget, penalty=1e-3):
        order = torch.arange(10)
        return grow(data.parts.x, data.parts.y, order, (10, 2), 3, budget, HOW, 0, penalty=penalty)

    small, large = grown(35), grown(120)
    assert len(small.parts) == 1 < len(large.parts) and sum(p.numel() for p in large.parameters()) <= 120
    losses = [scores(one, data.parts.x, data.parts.y)[0] for one in (small, large)]
    assert losses[1] < losses[0]
    # A price that no subnetwork is worth beyond the first one.
    assert len(grown(120, penalty=5.0).parts) == 1
    assert all(p.requires_grad for p in large.parameters())


def test_a_loss_that_is_not_finite_is_named():
    module = nn.Linear(10, 3)
    nn.init.constant_(module.weight, math.inf)
    with pytest.raises(NumericsError, match="not finite in step 0"):
        fit(module, whole().parts.x, whole().parts.y, HOW, 0)


def test_a_network_with_matrices_is_one_of_torch():
    module = with_matrices(dense(6, 3, (5, 4), "tanh"))
    assert [type(layer) for layer in module] == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert connections(module) == 30 + 20 + 12 and module(torch.zeros(2, 6)).shape == (2, 3)
