"""What is held: normalization that is thawed learns again, a matrix that is shared keeps both its gradients."""

import itertools

import pytorch_lightning as pl
import torch
from test_selective import Model, Stop, fit, selective
from torch.nn import functional as F

from nni_bayes_nas.optim.holding import Holding
from nni_bayes_nas.optim.selective import SelectiveOptimization


class Statistics(pl.Callback):
    """By step: whether the normalization learns its statistics, and what they are."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.found.append((module.net[1].training, module.net[1].running_mean.clone()))


def test_normalization_that_is_thawed_learns_again(tmp_path, monkeypatch):
    """Frozen from step 3 on, optimized again from step 9; a run that goes on from between does the same."""
    layers = iter(["net.4", "net.0", "net.0"])

    def choices(self, trainer, module, choose=SelectiveOptimization._choose):
        self.always = (layer := next(layers), *(["net.1"] if layer == "net.0" else []))
        choose(self, trainer, module)

    monkeypatch.setattr(SelectiveOptimization, "_choose", choices)
    options = {"granularity": "layer", "active": 400, "start": 3, "thaw_every": 6, "probe": 3, "criterion": "gradient"}
    watch, model = Statistics(), Model()
    whole = fit(model, selective(**options), watch)
    moves = [not torch.equal(a[1], b[1]) for a, b in itertools.pairwise(watch.found)]
    assert moves[:2] == [True] * 2 and not any(moves[3:8]) and all(moves[9:])
    assert model.net[1].training
    layers = iter(["net.4"])
    fit(Model(), selective(**options), Stop(1, tmp_path / "a.ckpt"))
    layers = iter(["net.0", "net.0"])
    states = fit(Model(), selective(**options), checkpoint=tmp_path / "a.ckpt")
    for a, b in zip(whole[4:], states, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


class Tied(Model):
    """Two layers with one matrix."""

    def __init__(self):
        super().__init__()
        self.net[4] = torch.nn.Linear(48, 8)
        self.more = torch.nn.Linear(48, 8)
        self.more.weight = self.net[4].weight

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.net[:4](x)
        return F.cross_entropy(self.net[6](torch.relu(self.net[4](features) + self.more(features) ** 2)), y)


def test_a_matrix_that_two_layers_share_has_gradients_from_both():
    """By rows or by masks, single weights of it go on; the same by weights, where nothing is split."""
    rows = {"granularity": "neuron", "active": 49 * 2 + 18, "always": ["net.6"], "criterion": "gradient"}
    model, callback = Tied(), selective(**rows)
    states = fit(model, callback)
    mask = callback.active["net.4.weight"]
    assert mask.any() and not mask.all() and torch.equal(states[6]["4.weight"][~mask], states[-1]["4.weight"][~mask])
    plain = Tied()
    holding = Holding(plain, [], callback.active)
    x = torch.randn(4, 1, 6, 6)
    plain.training_step((x, torch.arange(4) % 2), 0).backward()
    free = Tied()
    free.training_step((x, torch.arange(4) % 2), 0).backward()
    assert not holding.rows
    torch.testing.assert_close(plain.net[4].weight.grad[mask], free.net[4].weight.grad[mask])


def test_what_is_held_has_no_gradient_for_anyone_who_asks():
    """Second derivatives through a step that is only thought of, too; all of it is over when it is released."""
    model, x, y = Model(), torch.randn(4, 1, 6, 6), torch.arange(4) % 2
    weight = model.net[4].weight
    mask = torch.rand(weight.shape) < 0.5
    active = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()}
    holding = Holding(model, [], {**active, "net.4.weight": mask}, layers=False)

    def step():
        loss = F.cross_entropy(model.net(x), y)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        return gradient, torch.autograd.grad(gradient.square().sum(), weight)[0]

    for gradient in step():
        assert not gradient[~mask].any() and gradient[mask].any()
    holding.release()
    for gradient in step():
        assert gradient[~mask].any()
