"""NNI's pruning by the relative density of Gaussian weights."""

import pytest
import torch
from torch import nn

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.compression.pruning import masks_of, prune
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.variational import (
    collect_kl,
    to_deterministic,
    to_variational,
    variational_layers,
    weight_noise,
)
from nni_bayes_nas.strategies.nni_pruner import RelativeDensityPruner

TYPES = ["VariationalLinear", "VariationalConv2d"]


def network():
    torch.manual_seed(0)
    net = to_variational(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)))
    for layer in variational_layers(net).values():
        nn.init.normal_(layer.rho, -3.0, 1.5)
    return net


def scores(net):
    layers = variational_layers(net).items()
    return {name: (layer.weight / normal.sd(layer.rho)).detach().square() for name, layer in layers}


@pytest.mark.parametrize("gaussian", [True, False])
def test_the_least_relevant_weights_go(gaussian):
    net = network()
    expected = scores(net)
    sd = {name: normal.sd(layer.rho).detach() for name, layer in variational_layers(net).items()}
    if gaussian:
        pruner = RelativeDensityPruner(net, [{"op_types": TYPES, "sparse_ratio": 0.75}])
    else:
        types = ["Linear", "Conv2d"]
        pruner = RelativeDensityPruner(to_deterministic(net), [{"op_types": types, "sparse_ratio": 0.75}], sd)
    _, masks = pruner.compress()
    assert set(masks) == set(expected)
    for name, score in expected.items():
        mask = masks[name]["weight"]
        assert float(mask.mean()) == pytest.approx(0.25, abs=0.01)
        assert float(score[mask > 0].min()) >= float(score[mask == 0].max())
    pruner.unwrap_model()


def test_what_is_masked_has_no_noise_and_costs_nothing():
    net = network()
    expected = network()
    pruned = RelativeDensityPruner(net, [{"op_types": TYPES, "sparse_ratio": 0.75}]).pruned()
    prune(expected, fraction=0.75, scope="layer")
    assert {n: m.tolist() for n, m in masks_of(pruned).items()} == {
        n: m.tolist() for n, m in masks_of(expected).items()
    }
    ours, theirs = (sum(float(kl.detach()) for kl in collect_kl(one).values()) for one in (pruned, expected))
    assert ours == pytest.approx(theirs) and ours < sum(float(kl.detach()) for kl in collect_kl(network()).values())
    with torch.no_grad():
        for layer in variational_layers(pruned).values():
            layer.rho.masked_fill_(layer.weight == 0, 3.0)  # as wide as can be
        x = torch.randn(2, 1, 4, 4)
        outputs = []
        for one in (pruned, expected):
            with weight_noise(one, True):
                torch.manual_seed(1)
                outputs.append(one(x))
    torch.testing.assert_close(*outputs)


def test_one_share_of_all_layers():
    net = network()
    expected = scores(net)
    config = [{"op_types": TYPES, "sparse_ratio": 0.8, "global_group_id": "all"}]
    _, masks = RelativeDensityPruner(net, config).compress()
    kept = torch.cat([expected[name][masks[name]["weight"] > 0] for name in expected])
    gone = torch.cat([expected[name][masks[name]["weight"] == 0] for name in expected])
    assert len(kept) == pytest.approx(0.2 * 196, abs=2) and float(kept.min()) >= float(gone.max())


def test_whole_filters_go_by_the_sum_of_their_weights():
    """A granularity of NNI's: of a filter the density at zero is the product of those of its weights."""
    net = network()
    expected = scores(net)["0"].flatten(1).sum(1)
    config = [{"op_types": ["VariationalConv2d"], "sparse_ratio": 0.5, "granularity": "out_channel"}]
    _, masks = RelativeDensityPruner(net, config).compress()
    kept = masks["0"]["weight"].flatten(1)
    assert bool((kept == kept[:, :1]).all())
    assert set(expected.topk(2).indices.tolist()) == set(kept[:, 0].nonzero().flatten().tolist())


def test_biases_go_with_their_filters():
    """As in the network that NNI masks."""
    net = network()
    with torch.no_grad():
        for layer in variational_layers(net).values():
            layer.bias.fill_(1.0)
    config = [{"op_types": ["VariationalConv2d"], "sparse_ratio": 0.5, "granularity": "out_channel"}]
    pruner = RelativeDensityPruner(net, config)
    pruner.compress()
    x = torch.randn(3, 1, 4, 4)
    with torch.no_grad(), weight_noise(net, False):
        expected = net(x)
        pruned = pruner.pruned()
        assert pruned[0].bias.tolist() == pruned[0].weight.flatten(1).any(1).double().tolist()
        torch.testing.assert_close(pruned(x), expected)


def test_layers_without_standard_deviations_are_named():
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    config = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]
    with pytest.raises(ConfigError, match=r"sd must hold the standard deviations .* but '[02]' has weights of shape"):
        RelativeDensityPruner(plain, config)
    with pytest.raises(ConfigError, match="'2' has weights of shape"):
        RelativeDensityPruner(plain, config, {"0": torch.ones(3, 4), "2": torch.ones(3, 3)})
