"""Attacks: on a linear classifier, where the worst case is known; and what must hold for any."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import attacks
from nni_bayes_nas.experiment.attacks import Box

BOX = Box(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(1.0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 3)).eval()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    ).eval()


def data(n=24):
    x = torch.rand(n, 2, 4, 4, generator=generator(1))
    return x, torch.randint(0, 3, (n,), generator=generator(2))


def losses(net, x, y):
    with torch.no_grad():
        return F.cross_entropy(net(x), y, reduction="none")


def every(net, x, y, epsilon):
    return {
        "fgsm": attacks.fgsm(net, x, y, epsilon, BOX),
        "pgd": attacks.pgd(net, x, y, epsilon, BOX, steps=8, restarts=2, generator=generator()),
        "square": attacks.square(net, x, y, epsilon, BOX, queries=30, generator=generator()),
        "noise": attacks.noise(x, epsilon, BOX, generator()),
    }


def test_two_classes_of_a_linear_network_by_hand():
    """The margin falls by epsilon times the L1 norm of the difference of the weights, away from the edges."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).eval()
    x = torch.full((1, 2, 4, 4), 0.5)
    y = net(x).argmax(-1)
    w = net[1].weight[int(y)] - net[1].weight[1 - int(y)]
    for attacked in (attacks.fgsm(net, x, y, 0.1, BOX), attacks.pgd(net, x, y, 0.1, BOX, generator=generator())):
        before, after = net(x)[0], net(attacked)[0]
        margin = (before[y] - before[1 - y]) - (after[y] - after[1 - y])
        assert float(margin.detach()) == pytest.approx(0.1 * float(w.detach().abs().sum()), rel=1e-4)


@pytest.mark.parametrize("make", [linear, network])
def test_nothing_is_changed_at_zero(make):
    net, (x, y) = make(), data()
    for name, attacked in every(net, x, y, 0.0).items():
        assert torch.equal(attacked, x), name


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 0.6))
def test_images_stay_in_their_box(epsilon):
    net, (x, y) = network(), data(8)
    for name, attacked in every(net, x, y, epsilon).items():
        assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1, name
        if name != "noise":
            assert float((attacked - x).abs().max()) <= epsilon + 1e-6, name


@pytest.mark.parametrize("make", [linear, network])
def test_attacks_raise_the_loss(make):
    net, (x, y) = make(), data()
    clean = losses(net, x, y)
    found = {name: losses(net, a, y) for name, a in every(net, x, y, 0.2).items()}
    assert float(found["pgd"].mean()) >= float(found["square"].mean()) > float(clean.mean())
    assert float(found["pgd"].mean()) >= float(found["fgsm"].mean())


@pytest.mark.parametrize("seed", range(60))
def test_no_object_that_fgsm_turns_is_right_under_pgd(seed):
    """Of a network of large weights the largest loss on the way may be one of an object that is still right."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
        x = torch.rand(256, 1, 4, 4)
        y = net(x + 0.1 * torch.randn_like(x)).argmax(-1)
        clean = net(x).argmax(-1) == y
    found = {}
    for name, attack in (
        ("fgsm", lambda: attacks.fgsm(net, x, y, 0.05, BOX)),
        ("pgd", lambda: attacks.pgd(net, x, y, 0.05, BOX, steps=8, restarts=2, generator=generator())),
        ("square", lambda: attacks.square(net, x, y, 0.05, BOX, queries=3, generator=generator())),
    ):
        found[name] = net(attack()).argmax(-1) == y
    assert not bool((found["pgd"] & ~found["fgsm"]).any()) and not bool((found["square"] & ~clean).any())


def test_accuracy_falls_with_epsilon():
    net, (x, _) = network(), data(200)
    y = net(x).argmax(-1)
    values = [
        attacks.accuracy(net, attacks.pgd(net, x, y, e, BOX, steps=10, generator=generator()), y)
        for e in (0.0, 0.05, 0.1, 0.2, 0.4)
    ]
    assert values[0] == 1.0 and values == sorted(values, reverse=True) and values[-1] < 0.9


def test_equal_generators_give_equal_images():
    net, (x, y) = network(), data()
    first, second = every(net, x, y, 0.2), every(net, x, y, 0.2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_epsilon_is_in_the_units_of_the_data():
    """Standardized inputs: an epsilon of .1 of the data is .1 / sd of the input."""
    net, (x, y) = network(), data()
    box = Box(torch.full((2, 1, 1), -2.0), torch.full((2, 1, 1), 2.0), torch.tensor([4.0, 2.0]).reshape(2, 1, 1))
    z = x * 2 - 1
    change = (attacks.fgsm(net, z, y, 0.1, box) - z).abs().amax((0, 2, 3))
    assert change.tolist() == pytest.approx([0.4, 0.2], abs=1e-6)


def test_the_mode_of_the_network_is_left_as_it_was():
    net, (x, y) = network().train(), data()
    attacks.accuracy(net, x, y)
    assert net.training


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_epsilon_below_zero_is_refused(epsilon):
    net, (x, y) = network(), data(2)
    for attack in (attacks.fgsm, attacks.pgd, attacks.square):
        with pytest.raises(ConfigError, match="at least 0"):
            attack(net, x, y, epsilon, BOX)
    with pytest.raises(ConfigError, match="at least 0"):
        attacks.noise(x, epsilon, BOX)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("seed", range(3))
def test_against_the_adversarial_robustness_toolbox(seed):
    """FGSM is theirs to the pixel; PGD of as many steps and starts leaves as few objects right, but for one of 100.

    Theirs draws its starts from numpy's own generator.
    """
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(seed)
    np.random.seed(seed)
    net, epsilon = network(), 0.1
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    x = torch.rand(256, 2, 4, 4, generator=generator(seed))
    y = net(x + 0.02).argmax(-1)
    theirs = PyTorchClassifier(net, nn.CrossEntropyLoss(), (2, 4, 4), 3, clip_values=(0.0, 1.0), device_type="cpu")
    labels = F.one_hot(y, 3).numpy()
    fgsm = FastGradientMethod(theirs, eps=epsilon).generate(x.numpy(), labels)
    torch.testing.assert_close(attacks.fgsm(net, x, y, epsilon, BOX), torch.from_numpy(fgsm), rtol=0, atol=1e-6)
    settings_ = {"eps": epsilon, "eps_step": 2.5 * epsilon / 20, "max_iter": 20, "num_random_init": 2, "verbose": False}
    pgd = ProjectedGradientDescentPyTorch(theirs, **settings_).generate(x.numpy(), labels)
    ours = attacks.pgd(net, x, y, epsilon, BOX, steps=20, restarts=3, generator=generator(seed))
    left = attacks.accuracy(net, torch.from_numpy(pgd), y)
    assert attacks.accuracy(net, ours, y) <= left + 0.01 and left < 0.95


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_network_on_a_gpu_is_attacked_there():
    x, y = data()
    here = every(network().double(), x.double(), y, 0.1)
    there = every(network().double().cuda(), x.double().cuda(), y.cuda(), 0.1)
    for name, attacked in there.items():
        assert attacked.is_cuda
        torch.testing.assert_close(attacked.cpu(), here[name], rtol=1e-8, atol=1e-8)
