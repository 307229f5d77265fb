"""The Lightning modules: losses against closed forms, and terms of an epoch that are no means over batches."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nni_bayes_nas.errors import NumericsError
from nni_bayes_nas.experiment import evaluator as evaluation
from nni_bayes_nas.experiment.data import batches

SGD = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}


class Outer(pl.LightningModule):
    """As the search module does: several loaders, but the evaluator is not told which."""

    def __init__(self, inner: evaluation.SupervisedModule) -> None:
        super().__init__()
        self.inner = inner

    def setup(self, stage: str) -> None:
        self.inner.trainer, self.inner.log = self.trainer, self.log  # type: ignore[method-assign]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        with torch.no_grad():
            self.inner.model.shift.fill_(float(dataloader_idx))
        self.inner.validation_step(batch, batch_idx)


class Shifted(nn.Module):
    """Returns its input, rolled by as many columns as the buffer says."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(int(self.shift), -1) + self.weight


def module(kind: str, network: nn.Module, **options: Any) -> evaluation.SupervisedModule:
    made: evaluation.SupervisedModule
    if kind == "classification":
        made = evaluation.ClassificationModule(num_classes=3, **SGD, **options)
    else:
        made = evaluation.RegressionModule(**{"target_sd": 2.0, **SGD, **options})
    made.set_model(network)
    return made


def training_loss(made: evaluation.SupervisedModule, *batch: Tensor) -> float:
    """The loss of a training step outside a trainer."""
    made.log = lambda *args, **kwargs: None  # type: ignore[assignment, method-assign]
    made.trainer = type("Trainer", (), {"global_step": 0})()
    return float(made.training_step(batch, 0).detach())


def macro_precision(predicted: Tensor, y: Tensor, n: int) -> float:
    """Mean over the classes that occur of the share of right ones among the objects given to a class, by counting."""
    shares = []
    for label in range(n):
        given, there = predicted == label, y == label
        if given.any() or there.any():
            shares.append(float((given & there).sum() / given.sum().clamp_min(1)))
    return sum(shares) / len(shares)


def test_precision_is_counted_over_the_epoch_of_each_loader(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (70,), generator=generator)
    x = nn.functional.one_hot(y, 3) + 0.8 * torch.randn(70, 3, generator=generator)
    inner = module("classification", Shifted())
    loader = batches(TensorDataset(x, y), 16, seed=None)
    trainer = evaluation.trainer(tmp_path, 1, "cpu", [])
    terms = trainer.validate(Outer(inner), [loader, loader, loader], verbose=False)
    for shift, row in enumerate(terms):
        predicted = x.roll(shift, -1).argmax(-1)
        over_all = macro_precision(predicted, y, 3)
        assert row[f"val_precision/dataloader_idx_{shift}"] == pytest.approx(over_all, abs=1e-6)
        by_batch = [macro_precision(predicted[i : i + 16], y[i : i + 16], 3) for i in range(0, 70, 16)]
        assert abs(sum(by_batch) / len(by_batch) - over_all) > 1e-3
        accuracy = float((predicted == y).float().mean())
        assert row[f"val_accuracy/dataloader_idx_{shift}"] == pytest.approx(accuracy, abs=1e-6)


def test_r2_and_rmse_are_counted_over_the_epoch_in_the_units_of_y(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, generator=generator)
    f = 0.5 * z + 0.3 * torch.randn(50, generator=generator)
    inner = module("regression", Shifted(), target_sd=40.0)
    loader = batches(TensorDataset(f[:, None], z), 16, seed=None)
    (row,) = evaluation.trainer(tmp_path, 1, "cpu", []).validate(inner, loader, verbose=False)
    errors = float(((z - f) ** 2).sum())
    assert row["val_r2"] == pytest.approx(1 - errors / float(((z - z.mean()) ** 2).sum()), abs=1e-5)
    assert row["val_rmse"] == pytest.approx(40.0 * math.sqrt(errors / 50), rel=1e-5)
    # The noise is that of the initialization: s = 1 in the units of z, 40 in those of y.
    expected = -torch.distributions.Normal(40.0 * f, 40.0).log_prob(40.0 * z).mean()
    assert row["val_nll"] == pytest.approx(float(expected), abs=1e-4)


@given(sd=st.floats(0.01, 100), log_sd=st.floats(-3, 3), seed=st.integers(0, 99))
def test_loss_is_the_gaussian_density_of_y(sd: float, log_sd: float, seed: int) -> None:
    z, f = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made = evaluation.RegressionModule(target_sd=sd, **SGD).double()
    made.log_sd.data.fill_(log_sd)
    s = sd * math.sqrt(math.exp(2 * log_sd) + made.least_sd**2)
    expected = -torch.distributions.Normal(sd * f, s).log_prob(sd * z).mean()
    assert float(made.loss(f[:, None], z).detach()) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def test_noise_is_learned_without_decay_and_finds_the_residuals(tmp_path: Path) -> None:
    """y = 3 x + noise of sd 0.5: the maximum of the likelihood is the residuals' own sd."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, generator=generator)
    z = 3 * x[:, 0] + 0.5 * torch.randn(400, generator=generator)
    made = evaluation.RegressionModule(target_sd=1.0, learning_rate=0.02, momentum=0.9, weight_decay=1e-3)
    made.set_model(nn.Linear(1, 1))
    trainer = evaluation.trainer(tmp_path, 40, "cpu", [])
    trainer.fit(made, batches(TensorDataset(x, z), 100, seed=0))
    residual = z - made(x).squeeze(-1).detach()
    assert math.exp(float(made.log_sd.detach())) == pytest.approx(float(residual.std(correction=0)), rel=0.02)
    weights, noise = trainer.optimizers[0].param_groups
    assert (weights["weight_decay"], noise["weight_decay"]) == (1e-3, 0.0)
    assert [id(p) for p in noise["params"]] == [id(made.log_sd)]
    assert {id(p) for p in weights["params"]} == {id(p) for p in made.model.parameters()}


def test_label_smoothing_acts_in_training_only() -> None:
    logits, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    smooth = module("classification", nn.Identity(), label_smoothing=0.3)
    target = 0.7 * nn.functional.one_hot(y, 3) + 0.3 / 3
    by_hand = -(target * logits.log_softmax(-1)).sum(-1).mean()
    assert training_loss(smooth, logits, y) == pytest.approx(float(by_hand), rel=1e-6)
    assert float(smooth.means(logits, y)["loss"]) == pytest.approx(
        float(-logits.log_softmax(-1).gather(1, y[:, None]).mean()), rel=1e-6
    )


class WithAuxiliary(nn.Module):
    """Sets its auxiliary output in training only."""

    def __init__(self, auxiliary: Tensor) -> None:
        super().__init__()
        self.auxiliary, self.auxiliary_logits = auxiliary, None

    def forward(self, x: Tensor) -> Tensor:
        self.auxiliary_logits = self.auxiliary if self.training else None
        return x


def test_auxiliary_head_counts_with_its_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, auxiliary = torch.randn(2, 6, 3, generator=generator)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    plain = float(nn.functional.cross_entropy(logits, y))
    extra = float(nn.functional.cross_entropy(auxiliary, y))
    made = module("classification", WithAuxiliary(auxiliary), auxiliary_weight=0.4)
    assert training_loss(made, logits, y) == pytest.approx(plain + 0.4 * extra, rel=1e-6)
    made.eval()
    assert training_loss(made, logits, y) == pytest.approx(plain, rel=1e-6)
    off = module("classification", WithAuxiliary(auxiliary))
    assert training_loss(off, logits, y) == pytest.approx(plain, rel=1e-6)
    broken = module("classification", WithAuxiliary(auxiliary * math.nan), auxiliary_weight=0.4)
    with pytest.raises(NumericsError, match="auxiliary_loss"):
        training_loss(broken, logits, y)


def test_no_evaluation_batch_holds_a_single_object() -> None:
    for n in (1, 2, 10, 255, 256, 257, 513, 769, 65537):
        loader = batches(TensorDataset(torch.zeros(n, 2), torch.zeros(n)), 256, seed=None)
        sizes = [len(index) for index in loader.sampler]
        assert sum(sizes) == n and (min(sizes) > 1 or n == 1)
        assert max(sizes) <= 258
    unchanged = batches(TensorDataset(torch.zeros(300, 2), torch.zeros(300)), 256, seed=None)
    assert [len(index) for index in unchanged.sampler] == [256, 44]
