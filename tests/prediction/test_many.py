"""Sparse layers against dense ones, and networks side by side against each alone."""

import itertools

import pytest
import torch
from drawn_nets import SMALL, drawn
from torch import nn

from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.prediction.many import Many, Training
from nni_bayes_nas.prediction.sparse_net import SparseLinear, build, dense

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).long() + (X[:, 3] > 1).long()
HOW = Training(steps=30, batch_size=16)


def of_depth(depth, n):
    nets = (drawn(seed, SMALL) for seed in itertools.count())
    return list(itertools.islice((net for net in nets if len(net.widths) == depth), n))


def test_a_sparse_layer_is_a_dense_one_with_zeros():
    edges = tuple((a, b) for a in range(5) for b in range(4) if (a + 2 * b) % 3 == 0)
    layer = SparseLinear(5, 4, edges).double()
    mask = torch.zeros(4, 5, dtype=torch.float64)
    for a, b in edges:
        mask[b, a] = 1
    whole = layer.matrix().to_dense().detach().requires_grad_(True)
    assert torch.equal((whole != 0).double(), mask)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_(True)
    ours, theirs = layer(x), other @ (whole * mask).T + layer.bias
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(layer.weight.grad, whole.grad[layer.places[0], layer.places[1]])
    assert "13" in repr(layer) or f"{len(edges)} connections" in repr(layer)


def test_a_network_has_the_parameters_of_its_connections_and_repeats():
    for seed in range(20):
        net = drawn(seed)
        one, two, other = build(net, 3), build(net, 3), build(net, 4)
        assert sum(p.numel() for p in one.parameters()) == net.n_parameters
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert one(X.reshape(40, 2, 3)).shape == (40, 3)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_networks_side_by_side_are_those_that_are_alone(depth):
    nets = of_depth(depth, 5)
    together = Many(nets, range(5))
    alone = [Many([net], [seed]) for seed, net in enumerate(nets)]
    for k, one in enumerate(alone):
        for own, shared in zip(one.weights, together.weights, strict=True):
            assert torch.equal(own[0], shared[k, : own.shape[1], : own.shape[2]])
    together.train(X, Y, HOW, seed=1)
    for k, one in enumerate(alone):
        before = one.scores(X, Y)[0].item()
        one.train(X, Y, HOW, seed=1)
        torch.testing.assert_close(one.logits(X)[0], together.logits(X)[k], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.network(k)(X), together.logits(X)[k], rtol=1e-5, atol=1e-5)
        assert one.scores(X, Y)[0].item() < before
    for weight, mask in zip(together.weights, together.masks, strict=True):
        assert bool((weight[mask == 0] == 0).all())


def test_a_dense_network_is_that_of_torch():
    net = dense(6, 3, (5, 4), "tanh")
    many = Many([net], [0])
    layers = [module for module in many.network(0) if isinstance(module, SparseLinear)]
    theirs = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for mine, linear in zip(layers, theirs[::2], strict=True):
        linear.weight.data.copy_(mine.matrix().to_dense())
        linear.bias.data.copy_(mine.bias)
    torch.testing.assert_close(many.logits(X)[0], theirs(X))
    assert net.n_connections == 30 + 20 + 12


def test_sensitivities_are_products_of_weights_and_gradients():
    many = Many([dense(6, 3, (4,))], [0])
    many.losses(X, Y).sum().backward()
    for weight, found in zip(many.weights, many.sensitivities(X, Y), strict=True):
        torch.testing.assert_close(found, (weight * weight.grad).abs())


def test_mistakes():
    with pytest.raises(ConfigError, match="equal inputs, outputs and depths"):
        Many([dense(6, 3, (4,)), dense(6, 3, (4, 4))], [0, 1])
    with pytest.raises(ConfigError, match="a seed of its own, got 1 for 2"):
        Many([dense(6, 3, (4,)), dense(6, 3, (4,))], [0])
    with pytest.raises(ConfigError, match="steps of a training must be positive, got 0"):
        Training(steps=0)
    x = X.clone()
    x[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="the loss of network 0 is not finite in step"):
        Many([dense(6, 3, (4,))], [0]).train(x, Y, HOW, seed=0)
