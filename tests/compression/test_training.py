"""Training over lambda: what is drawn, what learns when, and that large lambda leaves less."""

import copy
import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.compression import HyperVariational, finetune, kept, mean_network, prune
from nni_bayes_nas.compression.training import HyperVariationalModule, _Finetuning
from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.layers.variational import collect_kl, variational_layers, weight_noise

N = 256


def data(batch_size=32):
    """Two classes that two of ten features tell apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 10, generator=generator)
    y = (x[:, 0] + x[:, 1] + 0.3 * torch.randn(N, generator=generator) > 0).long()
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def model(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    knots = {} if "kind" in options else {"knots": 3}
    return HyperVariational(net, **{"lambda_range": (0.1, 3.0), **knots, **options})


def trained(net, epochs=2, callbacks=(), batch_size=32, **options):
    module = HyperVariationalModule(net, n_objects=N, learning_rate=1e-2, rho_learning_rate=3e-2, **options)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), **quiet)
    torch.manual_seed(0)
    trainer.fit(module, data(batch_size), data(batch_size))
    return module


class Watch(pl.Callback):
    """Which knots have moved, after every step."""

    def __init__(self):
        self.rows, self.rates = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows.append([bool(v.any()) for v in module.model.hyper.means.vectors])
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_what_knots_share_learns_first():
    watch = Watch()
    trained(model(), epochs=4, callbacks=[watch], shared_until=0.5)
    assert not any(any(row) for row in watch.rows[:16]) and all(watch.rows[-1])


@pytest.mark.parametrize("divide_batch", [False, True])
def test_the_hypernetwork_is_evaluated_once_for_each_lambda_of_a_step(divide_batch):
    net, calls = model(), {"means": [], "rhos": []}
    for name, places in calls.items():
        getattr(net.hyper, name).register_forward_pre_hook(lambda _, args, to=places: to.append(args[0]))
    module = HyperVariationalModule(net, n_objects=N, lambdas_per_step=3, divide_batch=divide_batch)
    module.terms(next(iter(data(32))), 5, 0.5)
    assert calls["means"] == calls["rhos"] and len(set(calls["means"])) == len(calls["means"]) == 3


def test_rates_are_constant_and_then_fall():
    watch = Watch()
    trained(model(), epochs=4, callbacks=[watch])
    assert watch.rates[0] == watch.rates[14] == [1e-2, 3e-2]
    assert watch.rates[24][0] == pytest.approx(1e-2 * (2 * (1 - 25 / 32) + 1e-3))
    assert watch.rates[24][1] == pytest.approx(3 * watch.rates[24][0])
    constant = Watch()
    trained(model(), callbacks=[constant], schedule="constant")
    assert len(constant.rates) == 16 and all(rates == [1e-2, 3e-2] for rates in constant.rates)


def test_without_a_shared_part_only_knots_learn():
    watch = Watch()
    net = model(shared_knots=False)
    shared = [h.shared.clone() for h in (net.hyper.means, net.hyper.rhos)]
    trained(net, callbacks=[watch])  # shared_until, .1, has nothing to say
    assert all(torch.equal(a, h.shared) for a, h in zip(shared, (net.hyper.means, net.hyper.rhos), strict=True))
    assert all(watch.rows[-1])


@pytest.mark.parametrize("options", [{}, {"lambdas_per_step": 3}, {"lambdas_per_step": 4, "divide_batch": True}])
def test_it_learns_at_every_lambda(options):
    module = trained(model(), epochs=20, **options)
    terms = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    assert {"val_accuracy/0.1", "val_accuracy/0.548", "val_accuracy/3", "train_loss", "train_complexity"} <= set(terms)
    assert min(terms[f"val_accuracy/{lam}"] for lam in ("0.1", "0.548", "3")) > 0.9


def test_large_lambda_leaves_less():
    module = trained(model(), epochs=40, lambdas_per_step=2)
    left = []
    for lam in (0.1, 3.0):
        network = mean_network(module.model.materialize(lam))
        gaussian = module.model.materialize(lam)
        prune(gaussian, threshold=1.0)
        left.append(kept(gaussian))
        assert kept(network) == 192
    assert left[1] < left[0]


def test_training_further():
    """A pruned network keeps its masks; Gaussian layers go on with their divergence, more of it at larger lambda."""
    net = trained(model(), epochs=5).model
    plain = mean_network(net.materialize(1.0))
    prune(plain, fraction=0.5)
    x, y = data().dataset.tensors
    before = nn.functional.cross_entropy(plain(x), y).item()
    finetune(plain, data(), 5, 1e-2)
    assert nn.functional.cross_entropy(plain(x), y).item() < before and kept(plain) == 96
    divergences = []
    for lam in (0.1, 10.0):
        gaussian = net.materialize(1.0)
        finetune(gaussian, data(), 5, 1e-2, lam=lam)
        divergences.append(sum(kl.item() for kl in collect_kl(gaussian).values()))
    assert divergences[1] < divergences[0]


def test_training_further_is_training_whatever_mode_a_network_comes_in():
    """Statistics of the batch and the noise of the weights, which evaluation mode would leave out; the mode stays."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    before = plain[1].running_mean.clone()
    finetune(plain, data(), 1, 1e-3)
    assert not torch.equal(plain[1].running_mean, before) and not plain.training
    net = trained(model(), epochs=5).model
    ends = []
    for mode in (True, False):
        gaussian = net.materialize(1.0).train(mode)
        torch.manual_seed(3)
        finetune(gaussian, data(), 2, 1e-2)
        assert gaussian.training is mode
        ends.append(torch.cat([layer.rho.flatten() for layer in variational_layers(gaussian).values()]))
    torch.testing.assert_close(*ends)


def test_weights_that_are_functions_of_lambda_are_not_trained_as_those_of_a_network():
    net = HyperVariational(nn.Sequential(nn.Linear(10, 2)), kind="constant", lambda_range=1.0)
    with pytest.raises(ConfigError, match=r"got a HyperVariational, .*; take what materialize\(lam\) gives"):
        finetune(net, data(), 1, 1e-3)


def test_a_network_that_comes_in_evaluation_mode_learns_with_noise():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    ends = []
    for mode in (True, False):
        made = HyperVariational(copy.deepcopy(net).train(mode), lambda_range=(0.1, 3.0), knots=3)
        trained(made.train(mode), epochs=2)
        ends.append(made.at(1.0).values["0.rho"].detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": -1}, "epochs` must not be negative, got -1"),
        ({"learning_rate": 0.0}, "learning_rate` must be positive, got 0"),
        ({"lam": -1.0}, "lam` must be at least 0 and finite, got -1"),
        ({"n_objects": 0}, "n_objects` must be the size of the training set, got 0"),
    ],
)
def test_further_trainings_that_cannot_be(options, match):
    given = {"epochs": 1, "learning_rate": 1e-3, **options}
    with pytest.raises(ConfigError, match=match):
        finetune(nn.Sequential(nn.Linear(10, 2)), data(), given.pop("epochs"), given.pop("learning_rate"), **given)


def test_standard_deviations_have_a_rate_of_their_own():
    """Adam's first step is a rate long, whatever the gradient; that of SGD is as long as the gradient."""
    moved = {}
    for optimizer in ("adam", "sgd"):
        gaussian = trained(model(), epochs=1).model.materialize(1.0)
        before = {name: value.clone() for name, value in gaussian.named_parameters()}
        finetune(gaussian, data(N), 1, 1e-6, rho_learning_rate=1e-2, optimizer=optimizer)
        for name, value in gaussian.named_parameters():
            key = optimizer, name.rpartition(".")[2]
            moved[key] = max(moved.get(key, 0.0), float((value - before[name]).detach().abs().max()))
    assert moved["adam", "weight"] < 1e-5 and moved["adam", "rho"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["sgd", "weight"] < 1e-5 and 0 < moved["sgd", "rho"] < 1e-2


def test_a_divergence_that_is_not_finite_names_its_layer():
    gaussian = trained(model(), epochs=1).model.materialize(1.0)
    with torch.no_grad():
        gaussian[2].rho[0] = float("nan")
        gaussian[2].weight[0] = 0.0
    with pytest.raises(NumericsError, match=r"divergence of 2` is nan at step 0"):
        finetune(gaussian, data(), 1, 1e-3)


def test_an_output_that_is_not_finite_names_its_layer():
    plain = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        plain[2].bias[0] = float("nan")
    with pytest.raises(NumericsError, match=r"output of 2` is nan at step 0"):
        finetune(plain, data(), 1, 1e-3)
    net = HyperVariational(plain, lambda_range=(0.1, 3.0))
    with pytest.raises(NumericsError, match=r"output of 2 at lambda .* is nan at step 0"):
        trained(net, epochs=1)
    nothing = torch.full((2, 10), float("nan"))
    with pytest.raises(NumericsError, match=r"inputs` is nan at step 0"):
        finetune(model().materialize(1.0), DataLoader(TensorDataset(nothing, torch.zeros(2).long())), 1, 1e-3)


def test_training_on_clips_gradients():
    """SGD at rate 1: the first step moves the bias of two outputs by the gradient, at most its norm or entry."""

    def moved(**options):
        net = nn.Linear(10, 2)
        nn.init.zeros_(net.weight)
        before = [p.detach().clone() for p in net.parameters()]
        finetune(net, data(N), 1, 1.0, optimizer="sgd", **options)
        return torch.cat([(a - b.detach()).flatten() for a, b in zip(before, net.parameters(), strict=True)])

    assert float(moved().norm()) > 0.2
    assert float(moved(gradient_clip=0.01).norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(moved(gradient_clip=0.01, clip_by="value").abs().max()) == pytest.approx(0.01, rel=1e-3)


def test_a_last_batch_that_is_smaller_than_the_lambdas_of_a_step():
    """Seven batches of 36 objects and one of 4: of six lambda two have none there."""
    module = trained(model(), epochs=1, batch_size=36, lambdas_per_step=6, divide_batch=True)
    assert math.isfinite(float(module.trainer.callback_metrics["train_loss"]))


@pytest.mark.parametrize("weights", ["variational", "point"])
def test_one_lambda_and_points(weights):
    net = model(kind="constant", lambda_range=1.0, weights=weights)
    module = trained(net, epochs=10, optimizer="sgd" if weights == "point" else "adam")
    assert float(module.trainer.callback_metrics["val_accuracy/1"]) > 0.85
    # Several values of lambda are of hypernetworks: one lambda is one pass.
    several = HyperVariationalModule(net, n_objects=N, lambdas_per_step=5, divide_batch=True)
    assert several.lambdas_at(3) == [1.0]


@pytest.mark.parametrize("n", [1, 3])
def test_lambdas_of_a_step_depend_on_seed_and_step_alone(n):
    one, other = (HyperVariationalModule(model(), n_objects=N, lambdas_per_step=n, seed=seed) for seed in (0, 1))
    lams = [one.lambdas_at(step) for step in range(640)]
    assert [one.lambdas_at(step) for step in range(640)] == lams != [other.lambdas_at(step) for step in range(640)]
    assert all(len(found) == n for found in lams)
    # Stratified: each of eight equal parts of the range has its share, in every block.
    logs = torch.tensor(lams[: 64 // n]).log().flatten()
    counts = torch.histc((logs - math.log(0.1)) / math.log(30), 8, 0, 1)
    assert float(counts.min()) >= 6 and float(counts.max()) <= 12


def test_normalization_of_every_lambda():
    """Validation is by the statistics of the batch, and changes no running ones; J by those of the network itself."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
    module = trained(HyperVariational(net, lambda_range=(0.1, 3.0), knots=3), epochs=10)
    assert float(module.trainer.callback_metrics["val_accuracy/0.1"]) > 0.85
    before = module.model.network[1].running_mean.clone()
    (x, y) = data(N).dataset.tensors

    def log_likelihood(outputs, y):
        return -nn.functional.cross_entropy(outputs, y, reduction="sum")

    found = module.model.train().elbo(0.1, [(x, y)], log_likelihood, calibration=[x])
    assert torch.equal(module.model.network[1].running_mean, before)
    plain = module.model.materialize(0.1, [x]).eval()
    with torch.no_grad():
        assert found["expected_log_likelihood"] == pytest.approx(float(log_likelihood(plain(x), y)), rel=0.2)


def kl_to_prior(network, prior, lam, sd=0.7):
    """By torch.distributions; of the best width for every weight log(1 + mu^2 / sigma^2) / 2."""
    total = 0.0
    for layer in variational_layers(network).values():
        mean, width = layer.weight.detach(), normal.sd(layer.rho.detach())
        if prior == "ard":
            total += float((1 + (mean / width).square()).log().sum() / 2)
        else:
            theirs = Normal(0.0, sd * lam**-0.5 if prior == "scaled" else sd)
            total += float(kl_divergence(Normal(mean, width), theirs).sum())
    return total


@pytest.mark.parametrize("prior", ["fixed", "scaled", "ard"])
def test_the_loss_of_a_step_is_the_bound_per_object(prior):
    """Mean cross-entropy of the batch, and lambda KL over the objects of the training set, not over the batch."""
    width = {"prior_sd": 0.7} if prior in ("fixed", "scaled") else {}
    net = model(prior=prior, rho=-2.0, **width)
    module = HyperVariationalModule(net, n_objects=N, lambdas_per_step=3)
    x, y = next(iter(data(32)))
    with weight_noise(net.network, False):
        found = module.terms((x, y), 5, 1.0)
    losses, complexities = [], []
    for lam in module.lambdas_at(5):
        at = net.materialize(lam)
        losses.append(float(nn.functional.nll_loss(mean_network(at)(x).log_softmax(-1), y).detach()))
        price = 1.0 if prior == "scaled" else lam
        complexities.append(price * kl_to_prior(at, prior, lam) / N)
        # Trained further at this lambda it is the same.
        further = _Finetuning(at.train(), (1e-3, 1e-3), "adam", price, N)
        further._trainer = SimpleNamespace(global_step=0)
        with weight_noise(at, False):
            assert float(further.training_step((x, y), 0).detach()) == pytest.approx(
                losses[-1] + complexities[-1], rel=1e-5
            )
    assert float(found["loss"].detach()) == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert float(found["complexity"].detach()) == pytest.approx(sum(complexities) / 3, rel=1e-5)


class Spoil(pl.Callback):
    """The gradient of the first parameter is no number."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("nan"))


class SpoilBetween(pl.Callback):
    """A knot between the three places that are looked at is no number."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.model.hyper.means.vectors[1].data.fill_(float("nan"))


def test_what_the_last_step_spoils_is_named():
    """No loss comes after it that could say so."""
    with pytest.raises(NumericsError, match=r"`0.weight at lambda 0.1` is nan at step 1"):
        trained(model(), epochs=1, batch_size=N, callbacks=[Spoil()])
    with pytest.raises(NumericsError, match=r"`means.vectors.1 of the hypernetwork` is nan at step 1"):
        trained(model(knots=5, shared_knots=False), epochs=1, batch_size=N, callbacks=[SpoilBetween()])
    plain = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    plain[2].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NumericsError, match=r"`2.weight` is nan at step 1"):
        finetune(plain, data(N), 1, 1e-3)


def test_what_is_no_number_is_named():
    net = model(kind="linear")
    net.hyper.rhos.vectors[0].data[0] = float("nan")
    net.hyper.rhos.vectors[1].data[0] = float("nan")
    with pytest.raises(NumericsError, match=r"divergence of 0 at lambda .* is nan at step 0"):
        trained(net, epochs=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_objects": 0}, "n_objects` must be the size of the training set, got 0"),
        ({"learning_rate": 0.0}, "learning_rate` must be positive"),
        ({"rho_learning_rate": -1.0}, "rho_learning_rate` must be positive"),
        ({"lambdas_per_step": 0}, "lambdas_per_step` must be at least 1"),
        ({"warmup": 1.5}, r"warmup` must lie in \[0, 1\]"),
        ({"shared_until": -0.1}, r"shared_until` must lie in \[0, 1\]"),
        ({"schedule": "linear"}, "schedule` must be one of falling, constant"),
        ({"optimizer": "lbfgs"}, "optimizer` must be one of adam, sgd, got 'lbfgs'"),
    ],
)
def test_trainings_that_cannot_be(options, match):
    with pytest.raises(ConfigError, match=match):
        HyperVariationalModule(model(), **{"n_objects": N, **options})
