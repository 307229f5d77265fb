"""Adam's own moments as statistics, and moments of what is optimized again."""

import itertools

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim import ConstantSGD, PreconditionedSGLD
from nni_bayes_nas.optim.moments import AdamMoments, fill_moments
from nni_bayes_nas.optim.selection import scores
from nni_bayes_nas.optim.selective import SelectiveOptimization

BETAS = (0.9, 0.999)


def stepped(gradients, make=torch.optim.Adam, **options):
    """Optimizer and parameter after steps with these gradients."""
    w = torch.nn.Parameter(torch.zeros(gradients.shape[1:], dtype=gradients.dtype))
    optimizer = make([w], lr=1e-3, **options)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    return optimizer, {"w": w}


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam])
def test_they_are_weighted_means_of_the_gradients(make):
    g = torch.randn(40, 3, dtype=torch.float64)
    found = AdamMoments(*_alone(stepped(g, make)), batch_size=5)
    for value, beta, x in ((found.mean(), BETAS[0], g), (found.second_moment(), BETAS[1], g.square())):
        weights = torch.tensor([beta ** (39 - i) for i in range(40)], dtype=torch.float64)
        torch.testing.assert_close(value["w"], (weights / weights.sum()) @ x)
    torch.testing.assert_close(found.per_object_variance()["w"], 5 * found.variance()["w"])


@pytest.mark.parametrize("steps", [2, 30, 400])
def test_the_variance_has_no_bias(steps):
    """Of independent gradients, in the mean over many entries; both betas equal, so that the weights are."""
    torch.manual_seed(0)
    g = 2 + 3 * torch.randn(steps, 40_000, dtype=torch.float64)
    found = AdamMoments(*_alone(stepped(g, betas=(0.9, 0.9))), batch_size=1).variance()["w"]
    assert abs(float(found.mean()) - 9) < 4 * float(found.std()) / 200


def test_what_has_no_such_moments_is_refused():
    optimizer, parameters = stepped(torch.randn(3, 2), torch.optim.SGD)
    with pytest.raises(ConfigError, match="must be those of Adam, after a step, but of w there are none"):
        AdamMoments([optimizer], parameters, 1)
    once = AdamMoments(*_alone(stepped(torch.randn(1, 2))), batch_size=1)
    with pytest.raises(ConfigError, match="needs at least 2 steps"):
        once.variance()
    never = torch.nn.Parameter(torch.zeros(2))
    optimizer.add_param_group({"params": [never]})
    adam, parameters = stepped(torch.randn(3, 2))
    adam.add_param_group({"params": [never]})
    found = AdamMoments([adam], {**parameters, "never": never}, 1)
    assert not found.mean()["never"].any() and not found.variance()["never"].any() and found.mean()["w"].any()
    for criterion in ("gradient", "effective_perturbation"):
        with pytest.raises(ConfigError, match=f"{criterion} is none of moments of gradients"):
            scores(criterion, once, torch.Generator())


def _alone(made):
    return [made[0]], made[1]


def test_a_thawed_entry_takes_a_step_as_any_other():
    """One of two had no gradient for 200 steps: without its moments its step would be more than three times as long."""
    g = torch.ones(200, 2, dtype=torch.float64)
    g[:, 1] = 0
    lengths = {}
    for filled in (False, True):
        optimizer, parameters = stepped(g)
        if filled:
            # As they are before they are clipped to a fifth.
            mean, square = {"w": torch.tensor([5.0, 2.5])}, {"w": torch.tensor([25.0, 6.25])}
            masks = [{"w": torch.tensor(each)} for each in ([False, True], [True, False])]
            fill_moments([optimizer], parameters, masks[0], mean, square, masks[1])
        before = parameters["w"].detach().clone()
        parameters["w"].grad = torch.tensor([1.0, 0.5], dtype=torch.float64)
        optimizer.step()
        lengths[filled] = ((before - parameters["w"]) / 1e-3).tolist()
    assert lengths[True] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert lengths[False][1] > 1.3 and lengths[False][0] == pytest.approx(1.0, abs=1e-6)


THAWING = {
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
    "centered rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1e-1),
    "psgld": lambda p: PreconditionedSGLD(p, 1e-3, n_objects=1000, temperature=0.0),
    "constant": lambda p: ConstantSGD(p, 1e-3, n_objects=1000, gather=20, max_lr=10.0),
}


@pytest.mark.parametrize("make", THAWING.values(), ids=THAWING)
def test_a_first_step_is_as_long_as_that_of_what_was_active(make):
    """Two equal entries; one is held, its gradient zero, for three hundred steps, then filled."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.zeros(2000, dtype=torch.float64))
    optimizer, held = make([w]), torch.arange(2000) < 1000

    def step(hold):
        before = w.detach().clone()
        w.grad = 0.3 + 0.1 * torch.randn_like(w)
        if hold:
            w.grad[held] = 0.0
        optimizer.step()
        return before - w.detach()

    for i in range(400):
        step(hold=i >= 100)
    if "acc_delta" in optimizer.state[w]:  # of Adadelta's own steps nobody knows
        optimizer.state[w]["acc_delta"][held] = optimizer.state[w]["acc_delta"][~held]
    mean, square = torch.full_like(w, 0.3), torch.full_like(w, 0.3**2 + 0.1**2)
    fill_moments([optimizer], {"w": w}, {"w": held}, {"w": mean}, {"w": square}, {"w": ~held})
    moved = step(hold=False)
    assert float(moved[held].mean()) == pytest.approx(float(moved[~held].mean()), rel=0.15)


class Slope(pl.LightningModule):
    """A gradient that is the same at every step, of rows of different size."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 8, bias=False)

    def training_step(self, batch, batch_idx):
        return (torch.arange(1.0, 9.0) * self.net(batch[0])).sum(1).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


class Lengths(pl.Callback):
    def __init__(self):
        self.found, self.last = [], None

    def on_train_batch_end(self, trainer, module, *args):
        now = module.net.weight.detach().clone()
        if self.last is not None:
            self.found.append(float((now - self.last).abs().max()) / 1e-3)
        self.last = now


@pytest.mark.parametrize("granularity", ["neuron", "weight"])
def test_what_is_chosen_anew_takes_no_leap(granularity):
    """Chance picks other ones every ten steps; under Adam a step of a constant gradient is the rate."""
    callback = SelectiveOptimization(
        active=0.5, criterion="random", granularity=granularity, start=10, thaw_every=10, probe=3, seed=1
    )
    lengths, chosen = Lengths(), []
    inner = callback._choose

    def record(trainer, module):
        inner(trainer, module)
        chosen.append(callback.active["net.weight"].clone())

    callback._choose = record
    trainer = pl.Trainer(
        max_epochs=10,
        callbacks=[callback, lengths],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Slope(), DataLoader(TensorDataset(torch.ones(32, 4)), batch_size=4))
    assert len(chosen) >= 5 and any(not torch.equal(a, b) for a, b in itertools.pairwise(chosen))
    assert max(lengths.found) == pytest.approx(1.0, abs=2e-2)
