"""What runs differently where gradients are differentiated, and what does not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_bayes_nas.layers import twice
from nni_bayes_nas.layers.twice import DifferentiatedTwice


def nodes(output):
    """Names of the nodes of a graph."""
    names, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting += [following for following, _ in node.next_functions if following is not None]
    return names


def test_second_derivatives_of_a_network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, groups=4), nn.BatchNorm2d(4)
    ).double()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)

    def second():
        gradients = torch.autograd.grad(output.pow(3).sum(), list(net.parameters()), create_graph=True)
        scalar = sum(g.square().sum() for g in gradients)
        return torch.autograd.grad(scalar, list(net.parameters()), allow_unused=True, materialize_grads=True)

    output = net(x)
    expected = second()
    with DifferentiatedTwice():
        output = net(x)
    found = second()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert {"_FirstBackward", "_NormBackward"} <= nodes(output)
    assert not {"ConvolutionBackward0", "NativeBatchNormBackward0"} & nodes(output)


@pytest.mark.parametrize(
    "run",
    [
        lambda x, w: F.conv2d(x, w, padding="same"),
        lambda x, w: F.conv2d(x[0], w),
        lambda x, w: F.conv2d(x.bfloat16(), w.bfloat16()),
        lambda x, w: F.conv2d(x.to("meta"), w.to("meta")),
        lambda x, w: F.batch_norm(x * w[0, 0, 0, 0], torch.zeros(2), torch.ones(2)),
        lambda x, w: F.batch_norm((x * w[0, 0, 0, 0]).bfloat16(), None, None, training=True),
        lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0]),
    ],
)
def test_the_rest_is_torchs(run):
    x, w = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 3, 3, requires_grad=True)
    expected = run(x, w)
    with DifferentiatedTwice():
        found = run(x, w)
    assert (found.is_meta or torch.equal(found, expected)) and nodes(found) == nodes(expected)


def test_under_autocast_and_without_gradients_all_is_torchs(monkeypatch):
    monkeypatch.setattr(twice, "conv2d", None)
    x, w = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 3, 3, requires_grad=True)
    with DifferentiatedTwice():
        with torch.autocast("cpu", torch.bfloat16):
            cast = F.conv2d(x, w)
        with torch.no_grad():
            assert not F.conv2d(x, w).requires_grad
    assert cast.dtype == torch.bfloat16 and "ConvolutionBackward0" in nodes(cast)


def test_one_value_per_channel_is_still_refused():
    with DifferentiatedTwice(), pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.zeros(1, 3, requires_grad=True), None, None, training=True)
