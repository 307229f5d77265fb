"""Gaussian layers: noise of the analytic size, divergences that mean something, conversion there and back."""

import copy
import math

import pytest
import torch
from torch import nn

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.gaussian_output import gaussian_like
from nni_bayes_nas.layers.variational import (
    ESTIMATORS,
    VariationalConv2d,
    VariationalLinear,
    collect_kl,
    divergences,
    to_deterministic,
    to_variational,
    variational_layers,
    weight_noise,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, stride=2), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 3),
    ).double()


def layer(make, rho=-1.0, **options):
    torch.manual_seed(0)
    return to_variational(make().double(), rho=rho, **options)


LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2, bias=False, stride=2, dilation=2, padding=2), (4, 7, 7)),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", LAYERS)
def test_noise_has_the_analytic_size(name, estimator):
    """Var[out] = conv(x^2, sigma^2), mean = conv(x, mu) + bias; over many draws."""
    make, shape = LAYERS[name]
    found = layer(make, estimator=estimator)
    x = torch.randn(1, *shape, dtype=torch.float64)
    with torch.no_grad(), weight_noise(found, False):
        mean = found(x)
        plain = copy.deepcopy(found)
        plain.weight.copy_(normal.sd(found.rho).square())
        if plain.bias is not None:
            plain.bias.zero_()
        variance = plain(x.square())
    n = 4000
    with torch.no_grad():
        # One object after the other: the draws of flipout in one batch share weights.
        drawn = torch.cat([found(x) for _ in range(n)])
    # The largest of some outputs, each within 4 standard errors but for one in 16,000: 5 for all of them.
    squares = (drawn - mean[0]).square()
    assert bool(((drawn.mean(0) - mean[0]).abs() < 5 * (variance / n).sqrt()).all())
    assert bool(((squares.mean(0) - variance[0]).abs() < 5 * squares.std(0) / n**0.5 + 1e-12).all())


@pytest.mark.parametrize("name", LAYERS)
def test_flipout_noise_differs_between_objects_of_a_batch(name):
    make, shape = LAYERS[name]
    found = layer(make, estimator="flipout")
    x = torch.randn(1, *shape, dtype=torch.float64).expand(2000, *shape)
    with torch.no_grad():
        noise = found(x) - found.eval()(x)
    a, b = noise[0::2].flatten(1), noise[1::2].flatten(1)
    products = (a * b).mean(1)
    assert abs(float(products.mean())) < 4 * float(products.std()) / len(products) ** 0.5


def test_flipout_shares_noise_over_the_places_of_an_image():
    """A filter of one pixel on an image of one colour: one draw of the weights gives equal noise everywhere."""
    found = layer(lambda: nn.Conv2d(2, 3, 1), estimator="flipout")
    x = torch.ones(4, 2, 5, 5, dtype=torch.float64)
    noise = (found(x) - found.eval()(x)).detach()
    torch.testing.assert_close(noise, noise[:, :, :1, :1].expand_as(noise))


def test_two_passes_in_training_differ_and_two_in_evaluation_do_not():
    model = to_variational(network(), rho=-1.0)
    x = torch.randn(8, 2, 9, 9, dtype=torch.float64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    with weight_noise(model, True):
        assert not torch.equal(model(x), model(x))
    model.train()
    with weight_noise(model, False):
        assert torch.equal(model(x), model(x))
    assert not torch.equal(model(x), model(x))


def test_conversion_there_and_back():
    model = network()
    x = torch.randn(8, 2, 9, 9, dtype=torch.float64)
    before = model.eval()(x)
    names, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    weights = {name: p for name, p in model.named_parameters()}
    assert to_variational(model) is model
    assert [type(m) for m in variational_layers(model).values()] == [*[VariationalConv2d] * 2, VariationalLinear]
    assert all(p is dict(model.named_parameters())[name] for name, p in weights.items())
    assert set(model.state_dict()) - set(names) == {"0.rho", "3.0.rho", "5.rho"}
    assert torch.equal(model(x), before)
    to_deterministic(model)
    assert [type(m) for m in model.modules()] == kinds and list(model.state_dict()) == names
    assert torch.equal(model(x), before)
    assert not any(hasattr(m, "prior") for m in model.modules())


def test_a_model_that_is_one_layer():
    model = nn.Linear(3, 2)
    found = to_variational(model)
    assert isinstance(found, VariationalLinear) and found.weight is model.weight
    assert type(to_deterministic(found)) is nn.Linear


def test_a_shared_layer_is_converted_once():
    shared = nn.Linear(3, 3)
    model = to_variational(nn.Sequential(shared, nn.ReLU(), shared))
    assert model[0] is model[2] and len(collect_kl(model)) == 1


def test_state_dicts_of_the_same_model_fit():
    first, second = to_variational(network()), to_variational(network(), rho=-2.0)
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("prior", normal.PRIORS)
def test_divergences_of_all_layers(prior):
    model = to_variational(network(), prior=prior, prior_sd=0.3)
    found = collect_kl(model)
    assert list(found) == ["0", "3.0", "5"]
    last = model[5]
    torch.testing.assert_close(found["5"], normal.kl_to_prior(last.weight, normal.sd(last.rho), prior, 0.3))
    sum(found.values()).backward()
    assert all(layer.rho.grad is not None for layer in variational_layers(model).values())


@pytest.mark.parametrize("prior", normal.PRIORS)
def test_divergences_together_are_those_of_each(prior):
    model = to_variational(nn.Sequential(network(), network()), prior=prior, prior_sd=0.3)
    for layer in variational_layers(model).values():
        nn.init.normal_(layer.rho, -2.0, 0.5)
        nn.init.normal_(layer.weight)
    layers = list(variational_layers(model).values())
    torch.testing.assert_close(divergences(layers), torch.stack([layer.kl() for layer in layers]))
    assert len(set(divergences(layers).tolist())) == len(layers) == 6


def test_noise_is_standard_normal_in_every_order_in_memory():
    for x in (torch.empty(20, 30, 10, 10), torch.empty(20, 30, 10, 10).to(memory_format=torch.channels_last)):
        noise = gaussian_like(x)
        assert noise.shape == x.shape and noise.stride() == x.stride()
        assert abs(float(noise.mean())) < 4 * x.numel() ** -0.5
        assert abs(float(noise.square().mean()) - 1) < 4 * (2 / x.numel()) ** 0.5


def test_noise_has_the_quantiles_of_a_normal_distribution():
    """The largest distance of the distribution functions (Kolmogorov), for a p of .0001; draws repeat with the seed."""
    torch.manual_seed(0)
    x = torch.empty(1_000_003)
    noise = gaussian_like(x)
    ours = torch.special.ndtr(noise.double()).sort().values
    distance = (ours - torch.arange(1, len(x) + 1) / len(x)).abs().max()
    assert float(distance) < 2.23 / len(x) ** 0.5
    assert abs(float(torch.corrcoef(noise[: 10**6].reshape(4, -1)).fill_diagonal_(0).abs().max())) < 4 / 500
    torch.manual_seed(0)
    assert torch.equal(gaussian_like(x), noise) and not torch.equal(gaussian_like(x), noise)
    assert gaussian_like(x.double()).unique().numel() > 60_000


def test_functions_of_torch_func_see_through_noise():
    found = layer(lambda: nn.Conv2d(2, 2, 2))
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)

    def output(rho):
        torch.manual_seed(0)
        return torch.func.functional_call(found, {"rho": rho}, (x,)).square().sum()

    rho = found.rho.detach().clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(output(rho), rho)
    torch.testing.assert_close(torch.func.grad(output)(rho.detach()), expected)


def test_noise_can_be_differentiated_twice():
    found = layer(lambda: nn.Conv2d(2, 2, 2))
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)

    def output(rho):
        torch.manual_seed(0)
        return torch.func.functional_call(found, {"rho": rho}, (x,))

    assert torch.autograd.gradgradcheck(output, (found.rho.detach().clone().requires_grad_(True),))


@pytest.mark.parametrize("prior", normal.PRIORS)
def test_before_normalization_the_scale_of_the_weights_costs_nothing(prior):
    """w -> c w, means and sds alike, c of every filter its own: neither what is computed nor the divergence changes."""
    model = to_variational(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12)).double(), prior=prior, rho=-2.0
    )
    x = torch.randn(6, 3, 5, 5, dtype=torch.float64)
    torch.manual_seed(1)
    output, value = model(x), model[0].kl()
    times = torch.tensor([7.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(times.view(-1, 1, 1, 1))
        model[0].bias.mul_(times)
        model[0].rho.add_(times.log().view(-1, 1, 1, 1))
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), output, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model[0].kl(), value)


CHAINS = {
    "depthwise separable": lambda: [nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 6, 1, bias=False)],
    "of low rank": lambda: [nn.Flatten(), nn.Linear(100, 2, bias=False), nn.Linear(2, 6)],
    "ReLU and pooling between": lambda: [
        nn.Conv2d(4, 3, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 6, 1),
    ],
}


@pytest.mark.parametrize("prior", normal.PRIORS)
@pytest.mark.parametrize("name", CHAINS)
def test_through_other_layers_the_scale_of_all_filters_costs_nothing(name, prior):
    layers = CHAINS[name]()
    norm = nn.BatchNorm1d(6, eps=1e-12) if name == "of low rank" else nn.BatchNorm2d(6, eps=1e-12)
    model = to_variational(nn.Sequential(*layers, norm).double(), prior=prior, rho=-2.0)
    first, last = list(variational_layers(model).values())
    assert (first.normalized, last.normalized) == ("layer", "filters")
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    torch.manual_seed(1)
    output, values = model(x), [layer.kl() for layer in (first, last)]
    with torch.no_grad():
        first.weight.mul_(7.0)
        first.rho.add_(math.log(7.0))
        last.weight.mul_(0.3)
        last.rho.add_(math.log(0.3))
    torch.manual_seed(1)
    torch.testing.assert_close(model(x), output, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close([layer.kl() for layer in (first, last)], values)


def test_scales_that_nothing_takes_away():
    kinds = [
        nn.Conv2d(2, 2, 1),
        nn.Sigmoid(),
        nn.Conv2d(2, 2, 1),
        nn.Conv2d(2, 2, 1),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 1),
    ]
    found = variational_layers(to_variational(nn.Sequential(*kinds)))
    # The first is behind a sigmoid, the second has a bias, nothing follows the last.
    assert [layer.normalized for layer in found.values()] == [None, None, "filters", None]


def test_without_normalization_a_fixed_prior_knows_the_scale():
    model = to_variational(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), prior="fixed")
    before = float(model[0].kl().detach())
    with torch.no_grad():
        model[0].weight.mul_(7.0)
    assert float(model[0].kl().detach()) > before + 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_means_and_deviations(estimator):
    found = layer(lambda: nn.Conv2d(2, 2, 2), estimator=estimator)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    weight, rho = (p.detach().clone().requires_grad_(True) for p in (found.weight, found.rho))

    def output(weight, rho):
        torch.manual_seed(0)
        return torch.func.functional_call(found, {"weight": weight, "rho": rho}, (x,))

    assert torch.autograd.gradcheck(output, (weight, rho))


def test_inputs_that_are_zero_give_finite_gradients():
    found = to_variational(nn.Linear(3, 2))
    found(torch.zeros(4, 3)).sum().backward()
    assert bool(torch.isfinite(found.rho.grad).all())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prior": "flat"}, "prior must be one of fixed, empirical_bayes, ard, log_uniform, got 'flat'"),
        ({"prior_sd": 0.0}, "prior_sd is a standard deviation and must be above 0, got 0.0"),
        ({"rho": -20.0}, r"rho must be in \[-12, 3\], got -20.0"),
        ({"estimator": "mean"}, "estimator must be one of local, flipout, got 'mean'"),
        ({"skip": ["head"]}, r"skip must name modules of the model, got \['head'\]"),
    ],
)
def test_options_that_cannot_be(options, match):
    model = network()
    with pytest.raises(ConfigError, match=match):
        to_variational(model, **options)
    assert not variational_layers(model)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_what_is_kept_for_the_backward_pass(order):
    """Beside output and input variance and noise; no squares of the input.

    What is allocated and not given back is counted: the process's resident memory is the system's to shrink.
    """
    layer = to_variational(nn.Conv2d(16, 16, 1, bias=False).to(memory_format=order)).train()
    layer(torch.randn(1, 16, 8, 8)).sum().backward()  # what is made once
    x = torch.randn(8, 16, 32, 32).to(memory_format=order).requires_grad_()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        output = layer(x)
    kept = sum(event.self_cpu_memory_usage for event in profiler.events()) / (4 * output.numel())
    assert kept == pytest.approx(3, abs=0.02)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_same_noise(order):
    torch.manual_seed(0)
    layer = to_variational(nn.Conv2d(3, 4, 3, padding=1).double().to(memory_format=order), rho=-1.0).train()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64).to(memory_format=order).requires_grad_()
    tensors = (x, layer.weight, layer.rho, layer.bias)
    torch.manual_seed(1)
    output = layer(x)
    upward = torch.randn_like(output)
    found = torch.autograd.grad((output * upward).sum(), tensors)
    torch.manual_seed(1)
    mean = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    noise = gaussian_like(mean)
    variance = torch.nn.functional.conv2d(x.square(), layer.rho.exp().square(), padding=1)
    expected = torch.autograd.grad(((mean + variance.sqrt() * noise) * upward).sum(), tensors)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
