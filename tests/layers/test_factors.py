"""Factors of an operation whose layers are scaled: by what it computes, not by the order in which its layers stand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_bayes_nas.layers.factors import factors


class Op(nn.Module):
    """Two convolutions and a function of them."""

    def __init__(self, forward, bias=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1, bias=bias), nn.Conv2d(2, 2, 3, padding=1, bias=bias)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


class FactorizedReduce(nn.Module):
    """Registered in another order than it is used in."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 1, 1, stride=2, bias=False), nn.Conv2d(2, 1, 1, stride=2, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(2, affine=False, eps=1e-12), nn.ReLU()
        self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)

    def forward(self, x):
        x = self.relu(x)
        y = self.pad(x)
        return self.norm(torch.cat([self.a(x), self.b(y[:, :, 1:, 1:])], dim=1))


def chain(*layers):
    return lambda: nn.Sequential(*layers)


def conv(bias=False):
    return nn.Conv2d(2, 2, 1, bias=bias)


POWERS = {
    "parallel": (lambda: Op(lambda m, x: m.a(x) + m.b(x), bias=True), 1),
    "parallel, scaled": (lambda: Op(lambda m, x: 0.5 * m.a(x) - m.b(x) / 3), 1),
    "one after the other": (lambda: Op(lambda m, x: m.b(F.relu(m.a(x)))), 2),
    "product": (lambda: Op(lambda m, x: m.a(x) * m.b(x), bias=True), 2),
    "square": (lambda: Op(lambda m, x: m.a(x) * m.a(x)), 2),
    "gated by the input": (lambda: Op(lambda m, x: torch.sigmoid(x) * m.a(x)), 1),
    "joined": (lambda: Op(lambda m, x: torch.cat([m.a(x), m.b(x)], 1).mean((2, 3))), 1),
    "reshaped": (lambda: Op(lambda m, x: m.a(x).view(x.size(0), -1)[:, 1:]), 1),
    "padded": (lambda: Op(lambda m, x: F.pad(m.a(x), (1, 1, 0, 0))), 1),
    "of layers before": (lambda: Op(lambda m, x: m.a(torch.tanh(x))), 1),
    "none": (lambda: nn.Sequential(nn.Tanh()), 0),
}
UNCLEAR = {
    "residual": (lambda: Op(lambda m, x: x + m.a(x)), "add of parts with and without the factor"),
    "of unlike depth": (lambda: Op(lambda m, x: m.a(x) + m.b(m.a(x))), "add of parts with and without the factor"),
    "a number more": (lambda: Op(lambda m, x: m.a(x) + 1.0), "add of parts with and without the factor"),
    "function": (lambda: Op(lambda m, x: torch.tanh(m.a(x))), "tanh"),
    "bias behind": (lambda: Op(lambda m, x: m.b(m.a(x)), bias=True), "Conv2d with a bias"),
    "padded with ones": (lambda: Op(lambda m, x: F.pad(m.a(x), (1, 1), value=1.0)), "pad"),
    "ratio": (lambda: Op(lambda m, x: x / m.a(x)), "truediv"),
    "activation": (chain(conv(), nn.Sigmoid()), "Sigmoid"),
    "untraceable": (lambda: Op(lambda m, x: m.a(x) if x.sum() > 0 else x), "Op, which cannot be traced"),
}


def is_layer(module):
    return isinstance(module, nn.Conv2d)


@pytest.mark.parametrize("name", POWERS)
def test_scaled_layers_scale_the_output_by_a_power(name):
    """o(x; gamma v) = gamma^n o(x; v), computed."""
    make, n = POWERS[name]
    torch.manual_seed(0)
    operation, gamma = make().double(), 0.4
    assert factors(operation, is_layer) == (n, None)
    other = copy.deepcopy(operation)
    with torch.no_grad():
        for module in filter(is_layer, other.modules()):
            for parameter in module.parameters():
                parameter.mul_(gamma)
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(other(x), gamma**n * operation(x))


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_no_power_says_why(name):
    make, reason = UNCLEAR[name]
    assert factors(make(), is_layer) == (0, reason)


def test_normalization_takes_all_factors_and_leaves_its_own():
    assert factors(FactorizedReduce(), is_layer) == (1, None)
    assert factors(nn.Sequential(conv(), nn.ReLU(), conv(), nn.BatchNorm2d(2)), is_layer) == (1, None)
    assert factors(nn.Sequential(conv(), nn.BatchNorm2d(2), nn.ReLU(), conv()), is_layer) == (2, None)
    assert factors(nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(2)), is_layer) == (0, None)
