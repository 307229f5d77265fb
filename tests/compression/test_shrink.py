"""Pruned networks made smaller: the same outputs from fewer neurons and filters."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nni_bayes_nas.compression import prune
from nni_bayes_nas.compression.shrink import shrink
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.variational import Variational, to_variational

X = torch.randn(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def convolutional(padding=0, activation=nn.ReLU):
    torch.manual_seed(0)
    size = 4 if padding else 2
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 6, 3, padding=padding, bias=False), nn.BatchNorm2d(6), activation()),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3 if padding else 2, padding=padding),
        activation(),
        nn.Flatten(),
        nn.Linear(5 * size * size, 8),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    ).double()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return net.eval()


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, partial(nn.ReLU, inplace=True)])
@settings(deadline=None, max_examples=15)
@given(fraction=st.floats(0.0, 0.95), structured=st.booleans())
def test_outputs_are_the_same(padding, activation, fraction, structured):
    net = convolutional(padding, activation)
    prune(net, fraction=fraction, structured=structured, scope="layer", skip=["8"])
    with torch.no_grad():
        expected = net(X)
        made = shrink(net)
        torch.testing.assert_close(made(X), expected, rtol=1e-9, atol=1e-9)
    assert parameters(made) <= parameters(net) + 6 + 5  # biases of convolutions that had none


def test_what_goes():
    net = convolutional()
    prune(net, fraction=0.5, structured=True, scope="layer", skip=["8"])
    made = shrink(net)
    assert [tuple(m.weight.shape) for m in made if isinstance(m, (nn.Conv2d, nn.Linear))] == [
        (3, 2, 3, 3),
        (3, 3, 2, 2),
        (4, 12),
        (3, 4),
    ]
    assert parameters(made) < 0.5 * parameters(net) and isinstance(made[1], nn.BatchNorm2d)
    # Filters go with an edge of zeros behind them too, for with its bias and normalization each gives zero.
    padded = convolutional(padding=1)
    prune(padded, fraction=0.5, structured=True, scope="layer", skip=["8"])
    made = shrink(padded)
    assert [m.weight.shape[0] for m in made if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))] == [3, 3, 3]
    # Of single weights, what is constant but not zero must stay there.
    padded = convolutional(padding=1)
    with torch.no_grad():
        padded[0][0].weight[:3] = 0
        constant = torch.relu(padded[0][1](torch.zeros(1, 6, 1, 1, dtype=torch.float64))).flatten()
    assert shrink(padded)[0].weight.shape[0] == 6 - int((constant[:3] == 0).sum()) > 3


def test_single_weights_take_neurons_with_them():
    net = convolutional()
    prune(net, fraction=0.97)
    assert parameters(shrink(net)) < 0.4 * parameters(net)


def test_a_layer_that_is_gone_leaves_what_is_constant():
    net = convolutional()
    with torch.no_grad():
        net[5].weight.zero_()
        expected = net(X)
        made = shrink(net)
        torch.testing.assert_close(made(X), expected)
    assert torch.equal(expected[0], expected[1]) and made[7].weight.shape[0] == 1


def test_a_module_that_is_there_twice():
    torch.manual_seed(0)
    act = nn.Tanh()
    net = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 5), act, nn.Linear(5, 2)).double()
    prune(net, fraction=0.7)
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(shrink(net)(x), net(x))


def test_gaussian_layers_by_their_means_and_the_network_is_left_alone():
    net = to_variational(convolutional(), rho=-3.0).eval()
    prune(net, fraction=0.8, scope="layer")
    before = copy.deepcopy(net.state_dict())
    made = shrink(net)
    with torch.no_grad():
        torch.testing.assert_close(made(X), net(X))
    assert not any(isinstance(m, Variational) for m in made)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "1 is Conv2d with groups"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "1 is Conv2d with padding_mode='circular'"),
        (nn.AvgPool2d(2, divisor_override=3), "1 is AvgPool2d with a divisor_override"),
        (nn.Softplus(), "1 is Softplus"),
        (Residual(nn.Linear(3, 3)), "1 is Residual"),
        (nn.LSTM(3, 3), "1 is LSTM"),
        (nn.Flatten(2), "1 is Flatten of the dimensions 2 to -1"),
        (nn.Flatten(0), "1 is Flatten of the dimensions 0 to -1"),
        (nn.BatchNorm1d(3, track_running_stats=False), "1 has track_running_stats=False"),
    ],
)
def test_what_is_no_chain_is_named(module, named):
    with pytest.raises(SpaceError, match=named):
        shrink(nn.Sequential(nn.Linear(3, 3), module))


def test_columns_of_images_are_no_features():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(SpaceError, match="2 follows the convolution 0 without a Flatten"):
        shrink(net)


def test_normalization_of_places_is_named_wherever_it_is():
    """Before anything is made of it: a row that is constant is not constant behind it."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(4 * 36), nn.Linear(4 * 36, 3)
    ).eval()
    with pytest.raises(SpaceError, match="not of the 144 places of a flattened image; put it before Flatten"):
        shrink(net)
