"""Packed networks: the same outputs, a small file, and what comes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nni_bayes_nas.compression import kept, mean_network, prune
from nni_bayes_nas.compression.packing import load_packed, pack, unpack
from nni_bayes_nas.compression.pruning import masks_of
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.packed import Packed, gaps_of
from nni_bayes_nas.layers.variational import to_variational


def lenet():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def small():
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 8, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).double()


def test_gaps_by_hand():
    present = torch.zeros(1000, dtype=torch.bool)
    present[[0, 3, 258, 514]] = True
    # 258 - 3 is one step of 255; 514 - 258 = 256 is one more than that.
    assert gaps_of(present).tolist() == [1, 3, 255, 255, 1]
    present[:] = False
    present[[254, 765]] = True
    assert gaps_of(present).tolist() == [255, 255, 255, 1]
    assert gaps_of(torch.zeros(5, dtype=torch.bool)).tolist() == []


@given(st.lists(st.integers(0, 2999), max_size=20, unique=True), st.integers(1, 10))
def test_any_pattern_comes_back(places, rows):
    weight = torch.zeros(3000)
    weight[places] = torch.arange(1.0, len(places) + 1)
    weight = weight.reshape(rows if 3000 % rows == 0 else 1, -1)
    packed = Packed(weight.shape, gaps_of(weight != 0))
    entries = packed.right_inverse(weight)
    assert torch.equal(packed(entries), weight) and torch.count_nonzero(entries) == len(places)


def test_a_file_that_is_smaller(tmp_path):
    net = lenet()
    torch.save(net.state_dict(), tmp_path / "dense.pt")
    prune(net, fraction=0.95)
    packed = pack(net)
    torch.save(packed.state_dict(), tmp_path / "packed.pt")
    assert (tmp_path / "packed.pt").stat().st_size <= (tmp_path / "dense.pt").stat().st_size / 10
    x = torch.randn(5, 784)
    assert torch.equal(packed(x), net(x)) and kept(packed) == kept(net) == 13310
    # The one that was given is as it was: masks go on to hold.
    assert set(masks_of(net)) == {"0", "2", "4"} and not masks_of(packed)
    plain = load_packed(lenet(), torch.load(tmp_path / "packed.pt"))
    assert torch.equal(plain(x), net(x)) and plain.state_dict().keys() == lenet().state_dict().keys()


@pytest.mark.parametrize("gaussian", [True, False])
def test_every_tensor_comes_back(gaussian):
    net = small()
    net(torch.randn(16, 1, 6, 6, dtype=torch.float64))
    net = to_variational(net, rho=-3.0) if gaussian else net
    prune(net, fraction=0.8)
    packed = pack(net)
    other = load_packed(small(), packed.state_dict()).eval()
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(other(x), mean_network(net).eval()(x))
    assert torch.equal(other(x), packed.eval()(x)) and other.state_dict()["1.num_batches_tracked"] == 1
    # What is not sparse stays as it is: packing would make it larger.
    whole = pack(small())
    assert whole.state_dict().keys() == small().state_dict().keys()


def test_a_packed_network_is_trained_where_it_is_not_zero():
    net = lenet()
    prune(net, fraction=0.9)
    packed = pack(net)
    before = unpack(packed)
    packed(torch.randn(8, 784)).square().sum().backward()
    torch.optim.SGD(packed.parameters(), lr=0.1).step()
    after = unpack(packed)
    gone = before[0].weight == 0
    assert torch.equal(after[0].weight[gone], before[0].weight[gone])
    assert not torch.equal(after[0].weight, before[0].weight)


def test_states_that_are_none():
    state = pack(mean_network(small())).state_dict()
    with pytest.raises(ConfigError, match="the state must be that of a network like this one"):
        load_packed(lenet(), state)
    net = lenet()
    prune(net, fraction=0.9)
    state = dict(pack(net).state_dict())
    smaller = nn.Sequential(nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10))
    with pytest.raises(ConfigError, match="the state must be that of a network like this one"):
        load_packed(smaller, state)
    # Of a larger one the entries and gaps would do, at other places.
    larger = nn.Sequential(nn.Linear(800, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    with pytest.raises(ConfigError, match=r"0.weight has shape \(300, 784\) in it and \(300, 800\) here; build"):
        load_packed(larger, state)
    state["0.parametrizations.weight.0.gaps"] = torch.zeros_like(state["0.parametrizations.weight.0.gaps"])
    with pytest.raises(ConfigError, match="the state must be that of a network like this one"):
        load_packed(lenet(), state)
