"""What is left out: exactly as much as is asked for, the least relevant first, for good."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.compression import (
    HyperVariational,
    accuracy_pruning_curve,
    description_length,
    kept,
    load_pruned,
    make_permanent,
    mean_network,
    prune,
    scores,
)
from nni_bayes_nas.compression.pruning import last_layer, masks, masks_of
from nni_bayes_nas.compression.shrink import shrink
from nni_bayes_nas.errors import ConfigError, NumericsError, SpaceError
from nni_bayes_nas.layers.variational import Variational, collect_kl, to_variational, weight_noise


def network(gaussian=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
    net = net.double()
    if gaussian:
        net = to_variational(net, prior="ard")
        for layer in net.modules():
            if isinstance(layer, Variational):
                nn.init.normal_(layer.rho, -2.0, 1.0)
    return net


X = torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
N_WEIGHTS = 36 + 80 + 15


def test_scores_rank_as_the_relative_density_does():
    net = network()
    for name, score in scores(net).items():
        layer = net.get_submodule(name)
        log_density = normal.log_relative_density(layer.weight, normal.sd(layer.rho))
        assert torch.equal(score.flatten().argsort(), log_density.flatten().argsort(descending=True))
        torch.testing.assert_close(score.square(), -2 * log_density.detach())
    # Where the density itself is zero, and the order lost.
    with torch.no_grad():
        net[5].weight.fill_(50.0).add_(torch.rand(3, 5))
        net[5].rho.fill_(-3.0)
    density = torch.exp(normal.log_relative_density(net[5].weight, normal.sd(net[5].rho))).detach()
    assert float(density.max()) == 0.0 and len(scores(net)["5"].unique()) == 15
    plain = network(gaussian=False)
    torch.testing.assert_close(scores(plain)["3"], plain[3].weight.detach().abs())
    # Beside Gaussian layers a point has no score that could be compared.
    mixed = to_variational(network(gaussian=False), skip=["3"])
    assert list(scores(mixed)) == ["0", "5"]
    assert list(prune(mixed, fraction=0.5, skip=["3", "5"])) == ["0"]


@given(st.floats(0.0, 0.99), st.sampled_from(["global", "layer"]), st.booleans())
def test_exactly_the_share_goes_and_it_is_the_least(fraction, scope, gaussian):
    net = network(gaussian)
    before = scores(net)
    found = prune(net, fraction=fraction, scope=scope)
    gone = sum(int((mask == 0).sum()) for mask in found.values())
    sizes = [N_WEIGHTS] if scope == "global" else [36, 80, 15]
    assert gone == sum(round(fraction * n) for n in sizes) and kept(net) == N_WEIGHTS - gone
    groups = [list(found)] if scope == "global" else [[name] for name in found]
    for names in groups:
        stays = torch.cat([before[name][found[name] > 0] for name in names])
        goes = torch.cat([before[name][found[name] == 0] for name in names])
        assert not len(stays) or not len(goes) or float(goes.max()) <= float(stays.min())


def test_a_threshold_in_standard_deviations():
    net = network()
    found = prune(net, threshold=0.5)
    plain = network()
    for name, mask in found.items():
        layer = plain.get_submodule(name)
        assert torch.equal(mask > 0, layer.weight.abs() > 0.5 * normal.sd(layer.rho))


def test_whole_filters():
    net = network()
    found = prune(net, fraction=0.5, structured=True, skip=["5"])
    assert set(found) == {"0", "3"}
    rows = [row for mask in found.values() for row in mask.flatten(1)]
    assert all(float(row.min()) == float(row.max()) for row in rows)
    gone = sum(int((mask == 0).sum()) for mask in found.values())
    assert 0.4 * 116 < gone <= 58 and int((scores(net)["5"] == 0).sum()) == 0


def test_outputs_are_no_neurons_that_could_go():
    net = network()
    assert set(prune(net, fraction=0.9, structured=True)) == {"0", "3"} and int((scores(net)["5"] == 0).sum()) == 0
    with pytest.raises(SpaceError, match="layers before the last one, Sequential has none to prune"):
        prune(nn.Sequential(nn.Linear(4, 3)), fraction=0.5, structured=True)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_best_row_of_a_layer_stays(scope):
    """98 % of 16 filters are all of them: a network without them would say the same of everything."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 8), nn.ReLU(), nn.Linear(8, 3))
    before = {name: score.flatten(1).mean(1) for name, score in scores(net).items()}
    found = prune(net, fraction=0.98, scope=scope, structured=True, skip=[])
    for name, mask in found.items():
        assert bool(mask[int(before[name].argmax())].all())
    assert scope == "global" or [int(mask.flatten(1)[:, 0].sum()) for mask in found.values()] == [1, 1, 1]


class Backwards(nn.Module):
    """Lists its classifier first."""

    def __init__(self):
        super().__init__()
        self.head, self.hidden = nn.Linear(6, 3), nn.Linear(4, 6)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


class Untraceable(Backwards):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def test_the_last_layer_is_that_of_the_last_call():
    assert last_layer(Backwards()) == "head" and last_layer(to_variational(Backwards())) == "head"
    assert last_layer(network()) == "5" and last_layer(Untraceable()) == "hidden"
    with pytest.raises(SpaceError, match="must have linear or convolutional layers, ReLU has none"):
        last_layer(nn.ReLU())
    kept = []
    rows = accuracy_pruning_curve(
        Backwards(), [0.5], lambda pruned: {}, structured=True, keep=lambda row, pruned: kept.append(pruned)
    )
    assert rows[0]["kept"] == 18 + 12 and "head" not in {n for n, m in masks_of(kept[0]).items() if not m.all()}


def test_weights_that_depend_on_lambda_are_pruned_at_one():
    """What lies in the layers of such a network are the values that it began with."""
    model = HyperVariational(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    calls = (
        lambda: prune(model, fraction=0.5),
        lambda: scores(model),
        lambda: mean_network(model),
        lambda: description_length(model),
    )
    for call in calls:
        with pytest.raises(
            ConfigError, match=r"weights must be those of one lambda.*take what materialize\(lam\) gives"
        ):
            call()
    prune(model.materialize(1.0), fraction=0.5)


def test_filters_that_are_gone_stay_gone_behind_any_activation():
    """SiLU has a slope at zero: their biases learn, and are taken out again, so that they can go."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1)),
        *(nn.Flatten(), nn.Linear(4 * 16, 3)),
    ).double()
    learned, kept = [], []

    def finetune(pruned, rate):
        pruned.train()
        optimizer = torch.optim.SGD(pruned.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            pruned(X).square().mean().backward()
            optimizer.step()
        gone = ~pruned[0].weight.flatten(1).any(1)
        learned.append(float(pruned[1].bias[gone].abs().max().detach()))

    accuracy_pruning_curve(
        net,
        [0.5],
        lambda pruned: {},
        scope="layer",
        structured=True,
        calibration=[X],
        finetune=finetune,
        keep=lambda row, pruned: kept.append(pruned),
    )
    assert learned[0] > 0 and shrink(kept[0])[0].out_channels == 4
    gone = ~kept[0][0].weight.flatten(1).any(1)
    assert int(gone.sum()) == 4 and not kept[0][1].bias[gone].any()


@pytest.mark.parametrize("prior", normal.PRIORS)
def test_what_is_left_out_is_zero_for_certain(prior):
    """Whatever its standard deviation is: it has no noise, and costs nothing."""
    net = network()
    prune(net, fraction=0.9)
    for layer in (m for m in net.modules() if isinstance(m, Variational)):
        layer.prior = prior
    wide = copy.deepcopy(net)
    with torch.no_grad():
        for layer in (m for m in wide.modules() if isinstance(m, Variational)):
            layer.rho.masked_fill_(layer.weight == 0, 3.0)
        with weight_noise(net, True), weight_noise(wide, True):
            torch.manual_seed(0)
            one = net(X)
            torch.manual_seed(0)
            torch.testing.assert_close(wide(X), one)
        assert [float(kl) for kl in collect_kl(net).values()] == [float(kl) for kl in collect_kl(wide).values()]
        # A layer without any weight.
        prune(net, threshold=1e9)
        with weight_noise(net, True):
            assert float((net(X) - net(X)).abs().max()) < 1e-4
        assert all(float(kl) == 0.0 for kl in collect_kl(net).values())
        make_permanent(wide)
        with weight_noise(wide, True):
            torch.manual_seed(0)
            torch.testing.assert_close(wide(X), one, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("gaussian", [True, False])
def test_masks_outlive_training_saving_and_loading(gaussian):
    net = network(gaussian)
    before = prune(net, fraction=0.8)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), torch.arange(8) % 3).backward()
        optimizer.step()
    for name, mask in before.items():
        assert torch.equal(net.get_submodule(name).weight == 0, mask == 0)
    assert kept(net) == N_WEIGHTS - round(0.8 * N_WEIGHTS)
    other = network(gaussian)
    load_pruned(other, copy.deepcopy(net.state_dict()))
    twin = copy.deepcopy(net)
    for one in (other, twin):
        assert all(torch.equal(a, b) for a, b in zip(masks_of(one).values(), before.values(), strict=True))
        torch.testing.assert_close(one.eval()(X), net.eval()(X))
    make_permanent(twin)
    assert not masks_of(twin) and set(twin.state_dict()) == set(network(gaussian).state_dict())
    torch.testing.assert_close(twin(X), net(X))


def test_pruned_twice():
    net = network()
    prune(net, fraction=0.5)
    first = {name: mask.clone() for name, mask in masks_of(net).items()}
    prune(net, fraction=0.9)
    assert kept(net) == N_WEIGHTS - round(0.9 * N_WEIGHTS)
    assert all(bool((first[name] >= mask).all()) for name, mask in masks_of(net).items())


def test_the_plain_network_of_the_means():
    net = network()
    prune(net, fraction=0.7)
    plain = mean_network(net)
    assert not any(isinstance(m, Variational) for m in plain.modules()) and kept(plain) == kept(net)
    with weight_noise(net, False):
        torch.testing.assert_close(plain(X), net(X))
    nn.functional.cross_entropy(plain(X), torch.arange(8) % 3).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert kept(plain) == kept(net) and any(isinstance(m, Variational) for m in net.modules())


@pytest.mark.parametrize("structured", [False, True])
def test_no_layer_is_left_without_a_weight(structured):
    """95 % of ten weights are ten, rounded."""
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 1))
    prune(net, fraction=0.95, scope="layer", structured=structured)
    assert int(torch.count_nonzero(net[2].weight)) == (10 if structured else 1)
    assert int(net[0].weight.any(1).sum()) == 1 if structured else int(torch.count_nonzero(net[0].weight)) == 5


def test_weights_that_are_no_numbers_have_no_rank():
    net = network()
    with torch.no_grad():
        next(layer for layer in net.modules() if isinstance(layer, Variational)).rho[0] = math.nan
    for how in ({"fraction": 0.5}, {"threshold": 1.0}):
        with pytest.raises(NumericsError, match=r"weights must be numbers to be ranked, but \w+ has NaN"):
            prune(net, **how)
    assert not masks_of(net)


def test_ties_are_broken_by_order():
    (mask,) = masks({"a": torch.ones(2, 5)}, fraction=0.3).values()
    assert mask.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "fraction or threshold must be given"),
        ({"fraction": 0.5, "threshold": 1.0}, "one of them"),
        ({"fraction": 1.0}, r"fraction must lie in \[0, 1\), got 1"),
        ({"fraction": -0.1}, r"fraction must lie in \[0, 1\)"),
        ({"threshold": -1.0}, "threshold must be at least 0"),
        ({"fraction": 0.5, "scope": "network"}, "scope must be 'global' or 'layer', got 'network'"),
        ({"fraction": 0.5, "skip": ["7"]}, r"skip must name linear or convolutional layers, got \['7'\]"),
    ],
)
def test_what_cannot_be_left_out(options, match):
    net = network()
    with pytest.raises(ConfigError, match=match):
        prune(net, **options)
    assert not masks_of(net)


def test_networks_without_weights_or_of_another_architecture():
    with pytest.raises(SpaceError, match="ReLU has none to prune"):
        prune(nn.ReLU(), fraction=0.5)
    net = network()
    prune(net, fraction=0.5)
    with pytest.raises(ConfigError, match="masks must be for the layers"):
        load_pruned(nn.Linear(3, 3), net.state_dict())
    with pytest.raises(ConfigError, match="state must be that of a network like this one"):
        load_pruned(network(gaussian=False), net.state_dict())


class Branches(nn.Module):
    """A convolution before normalization in one branch, one without any in the other."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(1, 6, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.norm(self.first(x))) + torch.relu(self.second(x))


def test_filters_go_with_bias_and_normalization():
    torch.manual_seed(0)
    net = nn.Sequential(Branches(), nn.Flatten(), nn.Linear(96, 3)).double().train()
    nn.init.normal_(net[0].norm.bias)
    before = copy.deepcopy(net.state_dict())
    found = prune(net, fraction=0.5, scope="layer", structured=True, skip=["2"])
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    # Behind a ReLU they stay zero in training too.
    for layer, mask in found.items():
        gone = mask.flatten(1).any(1) == 0
        outputs = net[0].norm(net[0].first(X)) if layer == "0.first" else net[0].second(X)
        assert int(gone.sum()) == 3 and not outputs[:, gone].any() and outputs[:, ~gone].any()
    # Single weights take nothing with them.
    other = nn.Sequential(Branches(), nn.Flatten(), nn.Linear(96, 3)).double()
    other.load_state_dict(before)
    prune(other, fraction=0.9)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items() if "bias" in name)
