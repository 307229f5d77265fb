"""Trainings that are not of one chain, one optimizer and one step a batch; and what is refused."""

import copy
import itertools
import pickle
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from test_selective import OPTIMIZERS, Model, Stop, fit, selective
from torch import nn
from torch.nn import functional as F

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim import SGLD
from nni_bayes_nas.optim.layer_cost import LayerCosts
from nni_bayes_nas.optim.options import check_training
from nni_bayes_nas.optim.rows import Rows


class Twice(Model):
    """The chain that runs is made of modules that have another name first."""

    def __init__(self):
        super().__init__()
        layers = list(self.net)
        del self.net
        self.backbone, self.head = nn.Sequential(*layers[:4]), nn.Sequential(*layers[4:])
        self.net = nn.Sequential(self.backbone, self.head)


@pytest.mark.parametrize("granularity", ["neuron", "layer"])
def test_modules_with_two_names(granularity):
    """It trains, rows of the head are by themselves, and what is kept of the beginning is what it gives."""
    options = {"granularity": granularity, "always": ["head"], "active": 410}
    kept, plain = selective(**options), selective(cache=False, **options)
    ours, theirs = fit(Twice(), kept), fit(Twice(), plain)
    assert all(torch.allclose(ours[-1][name], theirs[-1][name], atol=1e-5) for name in theirs[-1])
    assert not torch.equal(ours[-1]["1.0.weight"], ours[5]["1.0.weight"])
    assert (
        kept.freeze_report()["no_cache"] is None
        and plain.freeze_report()["no_cache"] == "cache=False, or data that are augmented"
    )


class Steps(Model):
    """Two steps a batch, of one optimizer; or one of each of two."""

    def __init__(self, two=False):
        super().__init__(OPTIMIZERS["sgd"])
        self.automatic_optimization, self.two, self.seen = False, two, []

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers() if self.two else [self.optimizers()] * 2
        for optimizer in optimizers:
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            self.seen.append(copy.deepcopy(self.net.state_dict()))

    def configure_optimizers(self):
        if not self.two:
            return super().configure_optimizers()
        return [self.make(self.net[:4].parameters()), self.make(self.net[4:].parameters())]


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_what_is_frozen_stays_within_a_batch_too(granularity):
    """Behind every step the weights are those that run: the next pass sees the active ones where they are now."""
    model, callback = Steps(), selective(granularity=granularity)
    fit(model, callback)
    for name, mask in callback.active.items():
        name = name.removeprefix("net.")
        values = [state[name] for state in model.seen[6:]]
        assert all(torch.equal(value[~mask], values[0][~mask]) for value in values), name
        moved = [not torch.equal(a[mask], b[mask]) for a, b in itertools.pairwise(values)]
        assert not bool(mask.any()) or name.startswith("1.") or sum(moved) > len(moved) / 2, name


def test_choices_come_again_with_two_optimizers(monkeypatch):
    """Two steps a batch: no step of the last one of a probe is looked at by itself."""
    callback, chosen = selective(start=5, thaw_every=6, probe=2, criterion="gradient"), []
    choose = type(callback)._choose
    monkeypatch.setattr(
        type(callback), "_choose", lambda self, *a: chosen.append(self.steps_done(a[0])) or choose(self, *a)
    )
    fit(Steps(two=True), callback)
    assert chosen == [6, 12, 18, 24, 30]


def test_a_penalty_of_gradients_through_rows_is_refused():
    layer = nn.Linear(4, 6)
    rows, x = Rows(layer, torch.tensor([1, 3])), torch.randn(5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
    rows.undo()


def test_callbacks_that_average_are_refused():
    averages = pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-2)
    with pytest.raises(ConfigError, match="the callback StochasticWeightAveraging, which writes averages into them"):
        fit(Model(), selective(), averages)


@pytest.mark.parametrize(
    ("devices", "precision", "match"),
    [(2, "32-true", "`devices` must be 1 with"), (1, "16-mixed", "`precision` must have no steps that are skipped")],
)
def test_trainings_whose_gradients_are_not_those_of_a_step(devices, precision, match):
    trainer = SimpleNamespace(world_size=devices, precision=precision, callbacks=[])
    with pytest.raises(ConfigError, match=match):
        check_training(trainer, [], thaws=False)


@pytest.mark.parametrize("name", ["Adagrad", "Rprop"])
def test_optimizers_that_cannot_go_on_without_their_state(name):
    make = getattr(torch.optim, name)
    fit(Model(lambda p: make(p, 1e-3)), selective())
    with pytest.raises(ConfigError, match=f"cannot go on with {name}, got thaw_every"):
        fit(Model(lambda p: make(p, 1e-3)), selective(thaw_every=8, probe=4))


def test_a_checkpoint_behind_the_choice_without_one(tmp_path):
    fit(Model(), Stop(2, tmp_path / "a.ckpt"))
    with pytest.raises(ConfigError, match=r"`start` must lie behind the 8 steps of the checkpoint, which has made no"):
        fit(Model(), selective(), checkpoint=tmp_path / "a.ckpt")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_samplers_can_be_copied(copied):
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    one = SGLD([p], 1e-2, n_objects=5, seed=3)
    other = copied(one)
    (q,) = other.param_groups[0]["params"]
    q.grad = torch.ones(3)
    one.step()
    other.step()
    torch.testing.assert_close(p, q)


class Words(pl.LightningModule):
    """Embedding, attention, layer normalization: objects are eight words."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(10, 8), nn.LayerNorm(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        h = self.embedding(x)
        return self.head((h + self.attention(h, h, h, need_weights=False)[0] + self.norm(h)).mean(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize("granularity", ["weight", "neuron", "layer"])
def test_words(granularity):
    """Frozen to the bit, in modules that are no chain of matrices."""
    torch.manual_seed(0)
    x = torch.randint(10, (64, 8))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x > 4).sum(1).gt(4).long()), batch_size=16)
    model, callback, before = Words(), selective(active=120, granularity=granularity), {}

    class At(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 6:
                before.update(copy.deepcopy(module.state_dict()))

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    pl.Trainer(accelerator="cpu", max_epochs=4, callbacks=[callback, At()], **quiet).fit(model, loader)
    after, moved = model.state_dict(), 0
    for name, mask in callback.active.items():
        assert torch.equal(after[name][~mask], before[name][~mask]), name
        moved += int((after[name] != before[name])[mask].sum())
    assert moved > 0 and sum(int(mask.sum()) for mask in callback.active.values()) == 120


def test_sparse_gradients_are_refused():
    x = torch.randint(10, (64, 8))
    model = Words()
    model.embedding.sparse = True
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x > 4).sum(1).gt(4).long()), batch_size=16)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with pytest.raises(ConfigError, match="embedding has sparse=True; set it to False"):
        pl.Trainer(accelerator="cpu", max_epochs=4, callbacks=[selective()], **quiet).fit(model, loader)


def test_costs_of_attention_and_of_normalized_words():
    model = Words()
    costs = LayerCosts(model)
    model(torch.randint(10, (3, 8)))
    costs.remove()
    # Matrices of attention, of which torch calls one without its module, are used once a word.
    names = ("embedding", "norm", "attention", "attention.out_proj")
    assert costs.places == {**dict.fromkeys(names, 8), "head": 1}
    assert set(costs.seconds) == {"embedding", "norm", "attention", "head"}
    images = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5), nn.PReLU(3))
    costs = LayerCosts(images)
    images(torch.zeros(2, 3, 6, 4))
    costs.remove()
    assert costs.places == {"0": 18, "1": 18, "2": 30}
