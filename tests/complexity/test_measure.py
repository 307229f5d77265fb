"""Counts by hand."""

import torch
from torch import nn

from nni_bayes_nas.complexity.measure import count_macs, count_parameters


def test_convolution_and_linear_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    assert count_parameters(net) == 3 * 8 * 9 + 8 * 16 * 10 + 10
    assert count_macs(net, (3, 4, 4)) == 3 * 8 * 9 * 16 + 8 * 16 * 10


def test_grouped_and_strided_convolution_by_hand() -> None:
    net = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
    assert count_macs(net, (8, 8, 8)) == 8 * 9 * 16


def test_training_mode_and_statistics_are_untouched() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    before = net[1].running_mean.clone()
    count_macs(net, (1, 5, 5))
    assert net.training and torch.equal(net[1].running_mean, before)
