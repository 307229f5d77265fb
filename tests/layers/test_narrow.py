"""Layers on a part of their channels, as slices of the whole ones."""

import pytest
import torch
from nni.nas.hub.pytorch.nasnet import FactorizedReduce
from torch import nn
from torch.nn import functional as F

from nni_bayes_nas.layers.narrow import Narrow, can_be_narrow, parted, rejoined
from nni_bayes_nas.layers.normalization import recalibrated
from nni_bayes_nas.layers.variational import to_variational, weight_noise
from nni_bayes_nas.strategies.guards import BatchNormalize


def operation(groups=1, channels=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, groups=groups), nn.BatchNorm2d(channels)
    ).double()


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_the_first_channels_by_hand(groups):
    whole = operation(groups)
    x = torch.randn(4, 4, 5, 5, dtype=torch.float64)
    narrow = Narrow(whole, 2)
    conv, norm = whole[1], whole[2]
    before = norm.running_mean.clone()
    output = narrow()(x)
    weight = conv.weight[:4, : 4 if groups == 1 else None]
    by_hand = F.conv2d(x.relu(), weight, conv.bias[:4], padding=1, groups=1 if groups == 1 else groups // 2)
    torch.testing.assert_close(output, F.batch_norm(by_hand, None, None, norm.weight[:4], norm.bias[:4], training=True))
    # Statistics of the channels that were seen move, in the whole layer.
    torch.testing.assert_close(norm.running_mean[:4], 0.9 * before[:4] + 0.1 * by_hand.mean((0, 2, 3)))
    assert torch.equal(norm.running_mean[4:], before[4:]) and int(norm.num_batches_tracked) == 1
    output.square().sum().backward()
    assert bool(conv.weight.grad[:4].abs().sum() > 0) and not conv.weight.grad[4:].any()


def test_it_follows_the_whole_one():
    whole = operation()
    narrow, x = Narrow(whole, 4), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    before = narrow()(x)
    with torch.no_grad():
        whole[1].weight.mul_(-1.0)
    assert not torch.equal(before, narrow()(x))
    whole.eval()
    count = int(whole[2].num_batches_tracked)
    narrow()(x)
    assert int(whole[2].num_batches_tracked) == count
    whole.float()
    assert narrow()(x.float()).dtype == torch.float32


def test_who_listens_to_a_layer_of_the_whole_or_sets_it_reaches_that_of_the_part():
    whole = nn.Sequential(operation(), nn.Dropout(0.0))
    narrow, x = Narrow(whole, 2), 3 + 2 * torch.randn(64, 4, 5, 5, dtype=torch.float64)
    narrow()(x)
    heard = []
    with whole[0][1].register_forward_hook(lambda *_: heard.append(1)):
        narrow()(x)
    narrow()(x)
    assert heard == [1]
    whole[1].p = 1.0
    assert not narrow()(x).any()
    whole[1].p = 0.0
    # Statistics of what runs: the mean over a few batches, from a hook before each pass of the whole layer.
    with recalibrated(whole, lambda x: narrow()(x), x.chunk(8)), torch.no_grad():
        output = narrow()(x)
    assert bool((output.mean((0, 2, 3)).abs() < 0.05).all() and ((output.var((0, 2, 3)) - 1).abs() < 0.1).all())


def test_gaussian_weights_and_operations_of_the_hub():
    whole = to_variational(operation(), rho=-1.0)
    x = torch.randn(4, 4, 5, 5, dtype=torch.float64)
    Narrow(whole, 2)()(x).square().sum().backward()
    assert whole[1].rho.grad[:4, :4].any() and not whole[1].rho.grad[4:].any() and not whole[1].rho.grad[:, 4:].any()
    narrow = Narrow(whole.eval(), 2)
    assert torch.equal(narrow()(x), narrow()(x))
    with weight_noise(whole, True):
        assert not torch.equal(narrow()(x), narrow()(x))
    reduce = FactorizedReduce(8, 8).double()
    assert can_be_narrow(reduce, 4) and Narrow(reduce, 4)()(x[:, :2]).shape == (4, 2, 3, 3)


@pytest.mark.parametrize(
    ("layer", "parts", "fits"),
    [
        (nn.Conv2d(8, 8, 3), 4, True),
        (nn.Conv2d(8, 8, 3), 3, False),
        (nn.Conv2d(8, 16, 3), 4, False),
        (nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)), 4, True),
        (nn.Conv2d(8, 8, 3, groups=2), 4, False),
        (nn.Conv2d(8, 8, 3, groups=8), 4, True),
        (nn.Linear(8, 8), 4, False),
        (nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(8, affine=False, track_running_stats=False)), 4, True),
        (nn.Sequential(nn.Conv2d(8, 8, 1), BatchNormalize()), 4, True),
        (nn.Identity(), 4, True),
    ],
    ids=str,
)
def test_what_can_be_narrow(layer, parts, fits):
    assert can_be_narrow(layer, parts) == fits


def test_channels_take_turns():
    x = torch.arange(8.0).reshape(1, 8, 1, 1).expand(1, 8, 2, 2)
    first, others = parted(x, 4)
    assert first[0, :, 0, 0].tolist() == [0, 1] and others.shape[1] == 6
    y = rejoined(10 * first, [others, others], [torch.tensor(0.25), torch.tensor(0.75)])
    assert y[0, :, 0, 0].tolist() == [2, 3, 4, 5, 6, 7, 0, 10]
    smaller = rejoined(first[..., :1, :1], [others], [torch.ones(1)])
    assert smaller.shape == (1, 8, 1, 1)
