"""What frozen layers give is kept for every object: the same training, told from augmented data, within limits."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.data import batches
from nni_bayes_nas.layers.variational import to_variational
from nni_bayes_nas.optim import SelectiveOptimization
from nni_bayes_nas.optim.cache import BatchIndices, is_the_same_twice, watch_indices
from nni_bayes_nas.optim.freeze_report import multiply_accumulates


class Model(pl.LightningModule):
    def __init__(self, layers, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(make() for make in layers)).to(dtype)
        self.losses = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-2, weight_decay=1e-3)


CNN = (
    lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    nn.Flatten,
    lambda: nn.Linear(64, 12),
    nn.ReLU,
    lambda: nn.Linear(12, 2),
)
MLP = (nn.Flatten, lambda: nn.Linear(36, 20), nn.ReLU, lambda: nn.Linear(20, 2))


def objects(n=64):
    torch.manual_seed(0)
    x = torch.randn(n, 1, 6, 6, dtype=torch.float64)
    return TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())


def fit(model, callback, loader=None, epochs=5):
    torch.manual_seed(0)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[callback], **quiet)
    trainer.fit(model, DataLoader(objects(), batch_size=16, shuffle=True) if loader is None else loader)
    return model.losses


SETTINGS = {
    "prefix": (CNN, {"granularity": "prefix", "active": 12 * 65 + 26}),
    "prefix and rows": (
        CNN,
        {"granularity": "neuron", "active": 65 * 3 + 26, "always": ["net.4"], "criterion": "gain"},
    ),
    "rows of the first layer": (MLP, {"granularity": "neuron", "active": 37 * 4 + 42, "always": ["net.3"]}),
    "cut within a row": (MLP, {"granularity": "neuron", "active": 37 * 4 + 42 + 10, "always": ["net.3"]}),
}
LOADERS = {
    "torch": lambda: DataLoader(objects(), batch_size=16, shuffle=True),
    "incomplete last": lambda: DataLoader(objects(60), batch_size=16, shuffle=True),
    "drop last": lambda: DataLoader(objects(60), batch_size=16, shuffle=True, drop_last=True),
    "ours": lambda: batches(objects(), 16, seed=0),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(("layers", "options"), SETTINGS.values(), ids=SETTINGS)
def test_the_training_is_the_same(layers, options, loader):
    with_cache = SelectiveOptimization(start=8, window=6, **options)
    first = fit(Model(layers), with_cache, loader())
    without = SelectiveOptimization(start=8, window=6, cache=False, **options)
    torch.testing.assert_close(torch.tensor(first), torch.tensor(fit(Model(layers), without, loader())))
    assert without.freeze_report()["no_cache"] == "cache=False, or data that are augmented"
    if "always" not in options or layers is MLP:
        assert with_cache.freeze_report()["cache_bytes"] > 0 and with_cache.freeze_report()["no_cache"] is None


def test_every_object_is_computed_once():
    """After the choice, which comes within an epoch: half of the objects of the batches of the next one are known."""
    model, seen = Model(CNN), []
    first = model.net[0]
    while isinstance(first, nn.Sequential):
        first = first[0]
    first.register_forward_pre_hook(lambda _, x: seen.append((model.trainer.global_step, len(x[0]))))
    callback = SelectiveOptimization(start=6, window=4, granularity="prefix", active=12 * 65 + 26)
    fit(model, callback)
    n = len(objects())
    assert callback.freeze_report()["no_cache"] is None
    assert sum(count for step, count in seen if step >= 6) == n
    assert sum(count for step, count in seen if step < 6) == 6 * 16


def test_rows_alone_train_as_masks_do(monkeypatch):
    """What the optimizer sees of a layer, some rows or all of it, changes nothing."""
    layers, options = SETTINGS["cut within a row"]
    by_rows = fit(Model(layers), SelectiveOptimization(start=8, cache=False, **options))
    monkeypatch.setattr("nni_bayes_nas.optim.holding._MOST", 0.0)
    by_masks = fit(Model(layers), SelectiveOptimization(start=8, cache=False, **options))
    torch.testing.assert_close(torch.tensor(by_rows), torch.tensor(by_masks))
    assert by_rows != [by_rows[0]] * len(by_rows)


class Epochs(torch.utils.data.Sampler):
    """Another order in every epoch, which it must be told."""

    def __init__(self, n):
        self.n, self.epoch = n, -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(torch.randperm(self.n, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self):
        return self.n


@pytest.mark.parametrize("whole", [True, False])
def test_samplers_are_told_the_epoch(whole):
    sampler = Epochs(64)
    batched = torch.utils.data.BatchSampler(sampler, 16, False)
    loader = DataLoader(objects(), batch_sampler=batched) if whole else DataLoader(objects(), 16, sampler=sampler)
    callback = SelectiveOptimization(start=6, window=4, granularity="prefix", active=12 * 65 + 26)
    fit(Model(CNN), callback, loader)
    assert sampler.epoch == 4 and callback.freeze_report()["no_cache"] is None


def test_normalization_by_the_batch_is_not_the_same_twice():
    """Frozen or not: it has no statistics of its own."""
    layers = (lambda: nn.Conv2d(1, 4, 3), lambda: nn.BatchNorm2d(4, track_running_stats=False), *CNN[1:])
    options = {"start": 8, "window": 6, "granularity": "prefix", "active": 12 * 65 + 26}
    callback = SelectiveOptimization(**options)
    kept = fit(Model(layers), callback)
    without = fit(Model(layers), SelectiveOptimization(cache=False, **options))
    torch.testing.assert_close(torch.tensor(kept), torch.tensor(without))
    assert callback._report["macs"]["after"]["forward"] > 0 and not is_the_same_twice(Model(layers).net)


def test_words_of_one_number():
    layers = (lambda: nn.Embedding(10, 8), lambda: nn.Linear(8, 2))
    x = torch.arange(64) % 10
    loader = DataLoader(TensorDataset(x, x % 2), batch_size=16)
    callback = SelectiveOptimization(start=6, window=4, granularity="prefix", active=18)
    losses = fit(Model(layers), callback, loader)
    assert callback.freeze_report()["no_cache"] is None and losses[-1] < losses[0]


class Augmented(Dataset):
    """Objects that are another one every time."""

    def __init__(self):
        self.data = objects()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + 1e-3 * torch.randn(()), y


class Moved(Augmented):
    """Objects of the same numbers in other places, every second time."""

    def __init__(self, move):
        super().__init__()
        self.move, self.times = move, 0

    def __getitem__(self, i):
        x, y = self.data[i]
        self.times += 1
        return (self.move(x) if (self.times // len(self)) % 2 else x), y


MOVES = {
    "flip": lambda x: x.flip(-1),
    "shift": lambda x: x.roll(1, -1),
    "turn": lambda x: x.rot90(1, (-2, -1)),
    "rows": lambda x: x[:, torch.tensor([1, 0, 2, 3, 4, 5])],
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_numbers_in_other_places_are_another_object(move):
    callback = SelectiveOptimization(start=8, window=6, granularity="prefix", active=12 * 65 + 26)
    plain = SelectiveOptimization(start=8, window=6, granularity="prefix", active=12 * 65 + 26, cache=False)
    losses = fit(Model(CNN), callback, DataLoader(Moved(move), batch_size=16))
    assert "the same object was another one" in callback.freeze_report()["no_cache"]
    expected = fit(Model(CNN), plain, DataLoader(Moved(move), batch_size=16))
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected))


class Random(nn.Module):
    """A block with dropout inside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(36, 36), nn.Dropout(0.5))

    def forward(self, x):
        return self.inner(x)


def test_what_is_not_the_same_twice_is_not_kept():
    for block in (Random, lambda: to_variational(nn.Linear(36, 36)), lambda: nn.BatchNorm1d(36, affine=False)):
        layers = (nn.Flatten, block, lambda: nn.Linear(36, 8), nn.ReLU, lambda: nn.Linear(8, 2))
        callback = SelectiveOptimization(start=8, window=6, granularity="prefix", active=18)
        fit(Model(layers), callback)
        assert "no frozen layer comes before" in callback.freeze_report()["no_cache"]


class Hidden(nn.Linear):
    """Random in a way that no name tells of."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class Counting(nn.Linear):
    """Changes a buffer in every pass."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return super().forward(x) * (1 + 0.1 * torch.sin(self.count))


@pytest.mark.parametrize(
    "block",
    [lambda: nn.Sequential(nn.Linear(36, 36), nn.RReLU()), lambda: Hidden(36, 36), lambda: Counting(36, 36)],
    ids=["RReLU", "functional", "buffer"],
)
def test_what_nobody_can_tell_from_its_name_is_noticed(block):
    layers = (nn.Flatten, block, lambda: nn.Linear(36, 8), nn.ReLU, lambda: nn.Linear(8, 2))
    losses = []
    for cache in (True, False):
        callback = SelectiveOptimization(start=8, window=6, granularity="prefix", active=37 * 8 + 18, cache=cache)
        losses.append(fit(Model(layers), callback, batches(objects(), 16, seed=0)))
        assert "gives something else" in callback.freeze_report()["no_cache"] or not cache
    if not isinstance(block(), Counting):  # which has counted one more
        torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]))


def test_loaders_that_are_watched_can_be_copied():
    loader = DataLoader(objects(), batch_size=16)
    watch_indices(loader)
    assert len(copy.deepcopy(loader).batch_sampler) == 4


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(objects())


WHY = {
    "augmented": (lambda: DataLoader(Augmented(), batch_size=16), {}, "the same object was another one"),
    "stream": (lambda: DataLoader(Stream(), batch_size=16), {}, "does not say which objects are in a batch"),
    "limit": (lambda: DataLoader(objects(), batch_size=16), {"cache_limit": 1000}, "are more than the 0 allowed"),
    "nothing": (
        lambda: DataLoader(objects(), batch_size=16),
        {"always": ["net.0.0"], "active": 90},
        "no frozen layer comes before all that is optimized",
    ),
}


@pytest.mark.parametrize(("loader", "options", "why"), WHY.values(), ids=WHY)
def test_where_nothing_is_kept_it_is_said(loader, options, why):
    options = {"granularity": "prefix", "active": 12 * 65 + 26, **options}
    callback = SelectiveOptimization(start=8, window=6, **options)
    losses = fit(Model(CNN), callback, loader())
    assert len(losses) == 20 and why in callback.freeze_report()["no_cache"]


def test_a_share_of_steps_that_nobody_knows():
    callback = SelectiveOptimization(start=0.2, active=10)
    with pytest.raises(ConfigError, match=r"start must be a number of steps where none are planned, got the share 0.2"):
        fit(Model(CNN), callback, DataLoader(Stream(), batch_size=16))


def test_networks_that_are_no_chain():
    class Other(Model):
        def __init__(self):
            super().__init__(MLP)
            self.scale = nn.Parameter(torch.ones(()))

    callback = SelectiveOptimization(start=8, active=50, granularity="weight")
    fit(Other(), callback)
    assert callback.freeze_report()["no_cache"] == "the network is no nn.Sequential"


def test_validation_is_not_looked_up():
    """Only training batches have indices; others go through the network as it is."""

    class Validated(Model):
        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("accuracy", (self.net(x).argmax(-1) == y).double().mean())

    model = Validated(CNN)
    callback = SelectiveOptimization(start=4, window=4, granularity="prefix", active=12 * 65 + 26)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=3, callbacks=[callback], **quiet)
    trainer.fit(model, DataLoader(objects(), batch_size=16, shuffle=True), DataLoader(objects(), batch_size=64))
    x, y = objects().tensors
    with torch.no_grad():
        accuracy = (model.eval().net(x).argmax(-1) == y).double().mean()
    assert float(trainer.callback_metrics["accuracy"]) == pytest.approx(float(accuracy))


def test_indices_of_batches():
    loader = DataLoader(objects(10), batch_size=4, shuffle=True)
    indices = watch_indices(loader)
    assert watch_indices(loader) is indices and len(loader) == 3
    for epoch in range(2):
        seen = [batch for batch in loader]
        for i, (x, _) in enumerate(seen):
            assert torch.equal(objects(10).tensors[0][indices.of(i)], x), epoch
    assert indices.of(3) is None and watch_indices([1, 2]) is None
    assert isinstance(loader.batch_sampler, BatchIndices)


def test_multiply_accumulates_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 2))
    parameters, places = dict(model.named_parameters()), {"0": 16}
    every = multiply_accumulates(parameters, {}, places)
    forward, later = 36 * 16 + 768 + 24, 768 + 24
    assert every == {"forward": forward, "inputs": later, "weights": forward, "total": 2 * forward + later}
    active = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in parameters.items()}
    active["2.weight"][:3] = True
    active["4.weight"][:] = True
    found = multiply_accumulates(parameters, active, places, cached=1)
    assert found == {"forward": 792, "inputs": 24, "weights": 192 + 24, "total": 792 + 24 + 216}
    # Three of twelve rows are computed, the others are known.
    rows = multiply_accumulates(parameters, active, places, cached=1, rows_cached=True)
    assert rows == {"forward": 192 + 24, "inputs": 24, "weights": 192 + 24, "total": 216 + 24 + 216}


def test_a_report_needs_a_choice():
    with pytest.raises(ConfigError, match=r"a freeze report needs a choice"):
        SelectiveOptimization(active=1).freeze_report()
