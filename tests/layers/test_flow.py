"""Which layers have a scale that normalization takes away: by what the network computes, not by its names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from nni_bayes_nas.layers.flow import before_normalization
from nni_bayes_nas.layers.variational import to_variational, variational_layers


class Block(nn.Module):
    """Attributes, a function between, and a branch that keeps its scale."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.norm(self.second(F.relu(self.first(x)))) + self.branch(x)


class Twice(nn.Module):
    """One layer, used before normalization and without."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.layer(self.norm(self.layer(x)))


class Beside(nn.Module):
    """What goes into normalization goes past it too."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.layer(x)
        return self.norm(y) + y


class OtherOrder(nn.Module):
    """Registered in the order in which they are not used."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.layer(self.norm(x))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.layer(x)) if float(x.sum()) > 0 else x


class ResidualChain(nn.Sequential):
    """A chain by its class, whose input goes past it."""

    def forward(self, x):
        return x + super().forward(x)


def nested():
    """As the guard against collapse puts normalization behind an operation."""
    return nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4))


CASES = {
    "attributes": (Block, {"first": "layer", "second": "filters"}),
    "nested chains": (nested, {"0.1": "filters"}),
    "residual": (lambda: BasicBlock(3, 3), {"conv1": "filters", "conv2": "filters"}),
    "bottleneck": (lambda: Bottleneck(8, 2), {"conv1": "filters", "conv2": "filters", "conv3": "filters"}),
    "a chain that is none": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 3, 1, bias=False), ResidualChain(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
        ),
        {"1.0": "filters"},
    ),
    "two uses": (Twice, {}),
    "past it": (Beside, {}),
    "other order": (OtherOrder, {}),
    "untraceable": (Untraceable, {}),
    "groups": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.GroupNorm(2, 4)), {"0": "layer"}),
    "groups, with a bias": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), {}),
    "instances": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)), {"0": "filters"}),
    "ReLU and pooling between": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(4)),
        {"0": "filters"},
    ),
    "ReLU6 between": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU6(), nn.BatchNorm2d(4)), {}),
}


def test_a_layer_that_is_used_elsewhere_too_keeps_its_scale():
    layer, is_layer = nn.Linear(4, 4), lambda m: isinstance(m, nn.Linear)
    assert before_normalization(nn.Sequential(layer, nn.BatchNorm1d(4), layer), is_layer) == {}
    chains = nn.ModuleList([nn.Sequential(layer, nn.BatchNorm1d(4)), nn.Sequential(layer, nn.ReLU())])
    assert before_normalization(chains, is_layer) == {}


@pytest.mark.parametrize("bias", [True, False])
def test_normalization_of_places_takes_no_scale_of_filters(bias):
    """(batch, places, features): what is normalized holds all filters, and their biases."""
    torch.manual_seed(0)
    layer, norm = nn.Linear(8, 16, bias=bias).double(), nn.BatchNorm1d(5, eps=1e-14).double()
    found = before_normalization(nn.Sequential(layer, norm), lambda m: isinstance(m, nn.Linear))
    assert found == ({} if bias else {id(layer): "layer"})
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    before, scales = norm(layer(x)).detach(), torch.logspace(-1, 1, 16, dtype=torch.float64)[:, None]
    with torch.no_grad():
        layer.weight.mul_(7)
        assert torch.allclose(norm(layer(x)), before) != bias
        layer.weight.mul_(scales)
        assert not torch.allclose(norm(layer(x)), before, atol=0.1)


@pytest.mark.parametrize("name", CASES)
def test_layers_whose_scale_is_taken_away(name):
    make, expected = CASES[name]
    model = make()
    names = {id(m): n for n, m in model.named_modules()}
    found = before_normalization(model, lambda m: isinstance(m, nn.Conv2d))
    assert {names[key]: kind for key, kind in found.items()} == expected


@pytest.mark.parametrize("name", [name for name, (_, expected) in CASES.items() if expected])
def test_their_scale_changes_neither_output_nor_divergence(name):
    """w -> c w, standard deviations too: every filter by a number of its own, or all of the layer by one."""
    torch.manual_seed(0)
    model = to_variational(CASES[name][0]().double(), rho=-2.0).train()
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-14
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.randn(5, channels, 6, 6, dtype=torch.float64)
    torch.manual_seed(1)
    output = model(x)
    for key, layer in variational_layers(model).items():
        kl = layer.kl().detach()
        if key not in CASES[name][1]:
            continue
        times = torch.full((len(layer.weight),), 3.0, dtype=torch.float64)
        if CASES[name][1][key] == "filters":
            times = torch.linspace(0.3, 5.0, len(layer.weight), dtype=torch.float64)
        with torch.no_grad():
            layer.weight.mul_(times.view(-1, 1, 1, 1))
            layer.rho.add_(times.log().view(-1, 1, 1, 1))
            if layer.bias is not None:
                layer.bias.mul_(times)
        torch.testing.assert_close(layer.kl().detach(), kl)
    torch.manual_seed(1)
    # The variance of an output has a floor, which does not scale.
    torch.testing.assert_close(model(x), output, rtol=1e-3, atol=1e-4)
