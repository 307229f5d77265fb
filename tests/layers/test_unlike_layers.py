"""Models that are not all layers with weights of their own: what is refused, skipped, or passed by."""

import pytest
import torch
from torch import nn

from nni_bayes_nas.compression.pruning import prune
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.layers.variational import to_deterministic, to_variational, variational_layers, weight_noise


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), "1 (LSTM)"),
        (lambda: nn.Sequential(nn.Embedding(3, 2)), "0 (Embedding)"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 3)), "0 (ConvTranspose2d)"),
        (lambda: nn.MultiheadAttention(4, 2), "the model (MultiheadAttention)"),
        (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "0 (ParametrizedLinear)"),
    ],
)
def test_layers_that_cannot_be_converted_are_named(make, name):
    with pytest.raises(SpaceError, match="Linear and Conv2d layers alone") as error:
        to_variational(make())
    assert name in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_weights_that_are_anothers_too_are_refused():
    """Each of the two would have a posterior of its own; one layer that is used twice has one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(SpaceError, match=r"must have weights of its own, but 0\.weight and 2\.weight are one"):
        to_variational(model)
    assert list(variational_layers(to_variational(model, skip=["0", "2"]))) == []


def test_layers_have_noise_where_torch_would_pass_them_by():
    """In evaluation the fast path of an encoder reads the weights of its layers, and calls none of them."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    model, x = to_variational(model, rho=0.0, skip=["self_attn"]), torch.randn(2, 3, 8)
    before = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), weight_noise(model, True):
        assert not torch.equal(model(x), model(x))
    with torch.no_grad(), weight_noise(model, False):
        assert torch.equal(model(x), model(x))
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_networks_with_masks_are_made_plain_elsewhere():
    model = to_variational(nn.Sequential(nn.Linear(4, 4)))
    prune(model, fraction=0.5)
    with pytest.raises(ConfigError, match="without masks"):
        to_deterministic(model)


def test_what_is_skipped_stays_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    to_variational(model, skip=["1"])
    assert list(variational_layers(model)) == ["0"]
