"""The callback: what is frozen stays to the bit, numbers are exact, choices come again, runs go on."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.optim import SGLD, ConstantSGD, PreconditionedSGLD
from nni_bayes_nas.optim.selection import GRANULARITIES, NEEDS
from nni_bayes_nas.optim.selective import SelectiveOptimization

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "sgld": lambda p: SGLD(p, 1e-2, n_objects=64, weight_decay=1e-2),
    "constant": lambda p: ConstantSGD(p, 1e-2, n_objects=64, gather=5),
    "fused": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, fused=True),
    "foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2, foreach=True),
    "psgld": lambda p: PreconditionedSGLD(p, 1e-3, n_objects=64, weight_decay=1e-2),
}


class Model(pl.LightningModule):
    def __init__(self, make=OPTIMIZERS["adam"]):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 3, 3, bias=False),
            torch.nn.BatchNorm2d(3),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(48, 8),
            torch.nn.ReLU(),
            torch.nn.Linear(8, 2),
        )
        self.make = make

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return self.make(self.net.parameters())


TOTAL = 27 + 6 + 48 * 8 + 8 + 16 + 2


class Watch(pl.Callback):
    """All parameters and statistics after every step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.states.append(copy.deepcopy(module.net.state_dict()))


def fit(model, *callbacks, checkpoint=None):
    """4 epochs of 4 steps; the states of the network after each."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 6, 6)
    loader = DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=16)
    watch = Watch()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, watch],
    )
    trainer.fit(model, loader, ckpt_path=checkpoint)
    return watch.states


def selective(**options):
    return SelectiveOptimization(**{"active": 100, "start": 6, "window": 5, "batch_size": 16, **options})


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(granularity, make):
    model, callback = Model(make), selective(granularity=granularity)
    states = fit(model, callback)
    assert sum(int(mask.sum()) for mask in callback.active.values()) == 100
    at, moved = states[5], 0
    for state in states[6:]:
        for name, mask in callback.active.items():
            name = name.removeprefix("net.")
            assert torch.equal(state[name][~mask], at[name][~mask]), name
    for name, mask in callback.active.items():
        name = name.removeprefix("net.")
        moved += int((states[-1][name] != at[name])[mask].sum())
    assert moved > 50 and all(p.requires_grad for p in model.parameters())


def test_before_the_choice_it_is_a_training_as_any_other():
    free, frozen = fit(Model(), pl.Callback()), fit(Model(), selective())
    for a, b in zip(free[:6], frozen[:6], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(free[6][name], frozen[6][name]) for name in free[6])


@pytest.mark.parametrize("criterion", NEEDS)
def test_every_criterion_picks_the_number(criterion):
    callback = selective(criterion=criterion, active=0.25, always=["net.6"])
    fit(Model(), callback)
    assert sum(int(mask.sum()) for mask in callback.active.values()) == round(0.25 * TOTAL)
    assert callback.active["net.6.weight"].all() and callback.active["net.6.bias"].all()


def test_a_frozen_prefix_has_no_gradient_no_moments_and_still_statistics():
    model, callback = Model(), selective(granularity="prefix", active=18)
    optimizer = []
    model.make = lambda p: optimizer.append(torch.optim.Adam(p, 1e-2)) or optimizer[0]
    states = fit(model, callback)
    assert callback.active["net.6.weight"].all() and not callback.active["net.4.weight"].any()
    assert len(optimizer[0].state) == 2
    means = [state["1.running_mean"] for state in states]
    assert not torch.equal(means[4], means[5]) and torch.equal(means[6], means[-1])
    assert [len(callback.seconds[name]) for name in ("before", "after")] == [6, 10]


def test_choices_come_again():
    """In a probe frozen parameters have gradients and do not move; then others may go on."""
    callback = selective(granularity="weight", active=60, thaw_every=5, probe=3)
    callback.probed = []
    inner = callback._choose

    def record(trainer, module):
        inner(trainer, module)
        callback.probed.append((trainer.global_step, {n: m.clone() for n, m in callback.active.items()}))

    callback._choose = record
    states = fit(Model(), callback)
    assert [step for step, _ in callback.probed] == [6, 11, 16]
    first, second = callback.probed[0][1], callback.probed[1][1]
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for (start, mask), stop in zip(callback.probed, (11, 16), strict=False):
        for state in states[start:stop]:
            for name in mask:
                short = name.removeprefix("net.")
                assert torch.equal(state[short][~mask[name]], states[start - 1][short][~mask[name]])


@pytest.mark.parametrize("zero_at", ["selection", "end"])
@pytest.mark.parametrize("keep_by", ["magnitude", "z", "random"])
def test_exactly_so_many_are_not_zero(keep_by, zero_at):
    model, callback = Model(), selective(kept=0.5, keep_by=keep_by, zero_at=zero_at, active=50, granularity="weight")
    states = fit(model, callback)
    n = round(0.5 * TOTAL)
    assert sum(int(mask.sum()) for mask in callback.kept.values()) == n
    # What is kept may be zero by itself: biases of the normalization that were frozen where they began.
    zeros = sum(int((p[callback.kept[name]] == 0).sum()) for name, p in model.named_parameters())
    assert sum(int((p != 0).sum()) for p in model.net.parameters()) == n - zeros and zeros <= 3
    for name, p in model.named_parameters():
        assert not bool(p[~callback.kept[name]].any())
        if zero_at == "selection":
            assert not bool((callback.active[name] & ~callback.kept[name]).any())
            assert not bool(states[6][name.removeprefix("net.")][~callback.kept[name]].any())


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_run_that_goes_on_is_the_same(epochs, tmp_path):
    """Stopped while gradients are gathered, after the choice, and in a probe."""
    options = {"granularity": "weight", "thaw_every": 7, "probe": 3, "start": 6}
    whole = fit(Model(), selective(**options))
    fit(Model(), selective(**options), Stop(epochs, tmp_path / "a.ckpt"))
    states = fit(Model(), selective(**options), checkpoint=tmp_path / "a.ckpt")
    for a, b in zip(whole[4 * epochs :], states, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


RESUMED = {
    "automatic": ({"granularity": "prefix", "active": "auto", "criterion": "gradient", "cache": False}, 2),
    "a probe begins with the epoch": ({"granularity": "neuron", "thaw_every": 6, "probe": 2, "start": 4}, 2),
    "a probe goes on": ({"granularity": "neuron", "thaw_every": 6, "probe": 3, "start": 3}, 2),
}


@pytest.mark.parametrize("make", ["adam", "sgd"])
@pytest.mark.parametrize("name", RESUMED)
def test_rows_and_automatic_choices_go_on(name, make, tmp_path, monkeypatch):
    """Moments of rows in a checkpoint, before a pass that needs those of the whole; a number that was found."""
    monkeypatch.setattr("nni_bayes_nas.optim.layer_cost.best_cut", lambda *_: 2)
    options, epochs = RESUMED[name]
    first = selective(**options)
    whole = fit(Model(OPTIMIZERS[make]), first)
    assert len(whole) == 16 and 0 < first.n_active < TOTAL
    fit(Model(OPTIMIZERS[make]), selective(**options), Stop(epochs, tmp_path / "a.ckpt"))
    again = selective(**options)
    states = fit(Model(OPTIMIZERS[make]), again, checkpoint=tmp_path / "a.ckpt")
    assert len(states) == 16 - 4 * epochs and again.n_active == first.n_active
    for a, b in zip(whole[4 * epochs :], states, strict=True):
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6)


def test_a_callback_serves_another_training():
    callback = selective(granularity="weight", active=60)
    first, second = fit(Model(), callback), fit(Model(), callback)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_accumulated_batches_are_one_step():
    model, callback = Model(), selective(granularity="weight", active=60, thaw_every=3, probe=2, start=2)
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(64, 1, 6, 6), torch.arange(64) % 2), batch_size=8)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=3, accumulate_grad_batches=2, callbacks=[callback], **quiet)
    trainer.fit(model, loader)
    assert sum(int(mask.sum()) for mask in callback.active.values()) == 60 and callback.has_ended


class TwoOptimizers(Model):
    """Manual optimization: every batch is a step of both."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        parts = list(self.net.parameters())
        return [torch.optim.Adam(parts[:3], 1e-2), torch.optim.Adam(parts[3:], 1e-2)]

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        for one in optimizers:
            one.zero_grad()
        self.manual_backward(loss)
        for one in optimizers:
            one.step()


def test_several_optimizers_of_one_batch():
    callback = selective(granularity="weight", active=60, start=5, criterion="gradient")
    states = fit(TwoOptimizers(), callback)
    assert sum(int(mask.sum()) for mask in callback.active.values()) == 60
    for name, mask in callback.active.items():
        short = name.removeprefix("net.")
        assert torch.equal(states[-1][short][~mask], states[3][short][~mask])


def test_a_training_that_breaks_leaves_the_network_as_any_other():
    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 12:
                raise RuntimeError("broken")

    model = Model()
    with pytest.raises(RuntimeError, match="broken"):
        fit(model, selective(granularity="neuron", active=60), Breaks())
    assert all(p.requires_grad for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


class Stop(pl.Callback):
    """Leaves a checkpoint after some epochs, of the planned ones, and ends."""

    def __init__(self, epochs, path):
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def test_with_nothing_to_optimize_the_training_ends():
    assert len(fit(Model(), selective(active=0))) == 6


def test_fewer_may_be_kept_at_the_end_than_went_on():
    callback, model = selective(granularity="weight", active=200, kept=50, zero_at="end"), Model()
    states = fit(model, callback)
    assert sum(int(mask.sum()) for mask in callback.active.values()) == 200
    assert sum(int(mask.sum()) for mask in callback.kept.values()) == 50
    left = sum(int((p != 0).sum()) for p in model.parameters())
    layers = callback.freeze_report()["layers"]
    assert {name: row["kept"] for name, row in layers.items()} == {k: int(v.sum()) for k, v in callback.kept.items()}
    assert left == 50 and sum(int((states[-1][name] != 0).sum()) for name, _ in model.net.named_parameters()) > 300


def test_shares_of_every_layer():
    """Of 27 and 6 parameters before the linear layers, 392, and 18."""
    model, callback = Model(), selective(scope="layer", granularity="weight", active=0.25, kept=0.5)
    fit(model, callback)
    for masks, share in ((callback.active, 0.25), (callback.kept, 0.5)):
        for layer, n in (("net.0", 27), ("net.1", 6), ("net.4", 392), ("net.6", 18)):
            found = sum(int(mask.sum()) for name, mask in masks.items() if name.startswith(layer))
            assert abs(found - share * n) <= 1
        assert sum(int(mask.sum()) for mask in masks.values()) == round(share * TOTAL)


BAD = {
    "criterion": ({"criterion": "best"}, r"criterion must be one of random, gradient"),
    "granularity": ({"granularity": "row"}, r"`granularity` must be one of weight, neuron, layer, prefix"),
    "scope": ({"scope": "network"}, r"`scope` must be one of global, layer"),
    "scope of layers": ({"scope": "layer", "granularity": "prefix"}, r"`scope` must be global where whole layers"),
    "share": ({"active": 1.5}, r"`active` must be a number, or a float in \[0, 1\], a share"),
    "negative": ({"active": -3}, r"`active` must be a number"),
    "word": ({"active": "half"}, r"`active` must be a number, or a float"),
    "window": ({"window": 1}, r"`window` must be a whole number of at least 2 steps"),
    "window of words": ({"window": "x"}, r"`window` must be a whole number of at least 2 steps, got 'x'"),
    "probe": ({"thaw_every": 20}, r"`thaw_every` must be more than the 20 steps of a probe"),
    "keep by": ({"kept": 0.5, "keep_by": "w"}, r"`keep_by` must be one of magnitude, z, random"),
}


@pytest.mark.parametrize(("options", "match"), BAD.values(), ids=BAD)
def test_what_cannot_be(options, match):
    with pytest.raises(ConfigError, match=match):
        selective(**options)


BAD_RUNS = {
    "too many": ({"active": TOTAL + 1}, Model(), rf"active must be at most the {TOTAL} parameters, got {TOTAL + 1}"),
    "late": ({"start": 16}, Model(), r"start must be from 2 to 15 of 16 planned steps, got 16"),
    "later": ({"start": 17}, Model(), r"start must be at most the 16 planned steps, got 17"),
    "not kept": ({"active": 0.5, "kept": 0.25}, Model(), r"what goes on must be kept: active \d+ of kept \d+"),
    "more than all kept": (
        {"kept": TOTAL + 1},
        Model(),
        rf"kept must be at most the {TOTAL} parameters, got {TOTAL + 1}",
    ),
    "name": ({"always": ["net.9"]}, Model(), r"always must name modules or parameters of the network, got 'net.9'"),
    "lbfgs": ({}, Model(torch.optim.LBFGS), r"needs an optimizer that steps each entry by its own gradient, got LBFGS"),
    "lbfgs's kin": ({}, Model(type("Mine", (torch.optim.LBFGS,), {})), r"its own gradient, got Mine"),
}


@pytest.mark.parametrize(("options", "model", "match"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_what_a_run_cannot_have(options, model, match):
    with pytest.raises(ConfigError, match=match):
        fit(model, selective(**options))


def test_by_what_the_optimizer_has():
    """Adam's moments pick as many, and nothing is gathered."""
    callback = selective(active=0.25, gradients="optimizer")
    fit(Model(), callback)
    assert sum(int(mask.sum()) for mask in callback.active.values()) == round(0.25 * TOTAL)
    assert callback._statistics is not None and callback._statistics.gather == ()
    with pytest.raises(ConfigError, match="must be those of Adam"):
        fit(Model(OPTIMIZERS["sgd"]), selective(active=0.25, gradients="optimizer"))


def test_options_of_moments():
    for options, said in (
        ({"criterion": "gradient"}, "by the optimizer's own moments"),
        ({"thaw_every": 90}, "must be steps where it is chosen anew"),
        ({"gradients": "mine"}, "gradients` must be one of steps, optimizer"),
    ):
        with pytest.raises(ConfigError, match=said):
            SelectiveOptimization(**{"active": 0.1, "gradients": "optimizer", **options})
