"""Low precision: what computes in it, what does not, and how far the results are from those of single precision."""

import dataclasses

import pytest
import torch
from torch import nn

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.callbacks import METRICS
from nni_bayes_nas.experiment.record import read_rows
from nni_bayes_nas.experiment.replicas import run_searches
from nni_bayes_nas.experiment.retrain import run_retrain
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.layers.combine import combine
from nni_bayes_nas.precision import Autocast, in_full
from nni_bayes_nas.strategies.bilevel import BilevelModule
from nni_bayes_nas.strategies.structure import Structure

SMALL = {
    "space": {"name": "cell", "args": {"width": 4, "n_nodes": 2}},
    "data": {"limit": 160, "val_limit": 60},
    "search": {"epochs": 2, "warmup_epochs": 0, "batch_size": 40, "lambdas": 2, "random": 0},
    "retrain": {"epochs": 2, "batch_size": 40},
}


def config(precision="bf16-mixed", **args):
    parts = {name: {**SMALL[name], "precision": precision} for name in ("search", "retrain")}
    return Config.from_dict({**SMALL, **parts, "strategy": {"args": args}})


def searched(settings, folder, seed=0):
    folder.mkdir(parents=True)
    return run_search(settings, {"trial": folder.name, "seed": seed}, folder, lambda row: None)


def test_autocast_is_left_and_taken_up_again():
    x, full = torch.randn(3, 4), Autocast.now("cpu")
    assert not full.enabled
    with torch.autocast("cpu", torch.bfloat16):
        low = Autocast.now("cpu")
        with low.left():
            assert (x @ x.T).dtype == torch.float32
            with low.set():
                assert (x @ x.T).dtype == torch.bfloat16
            with full.set():
                assert (x @ x.T).dtype == torch.float32
        assert (x @ x.T).dtype == torch.bfloat16
    with low.set():
        assert (x @ x.T).dtype == torch.bfloat16
    assert in_full(x.bfloat16()).dtype == torch.float32 and in_full(x.double()).dtype == torch.float64


def test_weights_that_were_moved_in_place_are_seen():
    layer, x = nn.Linear(4, 2), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low = Autocast.now("cpu")
    with low.set():
        before = layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
            layer.bias.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)


def test_the_gradient_of_the_structure_sums_in_single_precision():
    # 4,096 products of 1.0 and one of 2^-4: bfloat16 has no number between 4,096 and 4,112.
    for shape in ((1, 1, 1, 4097), (1, 4097, 1, 1), (1, 3, 40, 40)):
        items = [torch.ones(shape, dtype=torch.bfloat16), torch.ones(shape, dtype=torch.bfloat16)]
        items[1].view(-1)[-1] = 2.0**-4
        weights = torch.tensor([0.5, 0.5], requires_grad=True)
        combine(items, weights).float().sum().backward()
        expected = torch.tensor([float(item.double().sum()) for item in items])
        torch.testing.assert_close(weights.grad, expected, rtol=1e-6, atol=0)


def recorded(monkeypatch):
    """Types of what a search computes with, and the mixing weights and the loss of its first pass."""
    types, first = {}, {}
    draw, task_loss, backward = Structure.draw, BilevelModule.task_loss, BilevelModule.backward

    def drawn(self, *args):
        result = draw(self, *args)
        types.setdefault("mixing", set()).update(w.dtype for w in result.values())
        first.setdefault("mixing", {k: w.detach().clone() for k, w in result.items()})
        return result

    def lost(self, *args):
        seen = types.setdefault("images", set())
        handles = [
            m.register_forward_hook(lambda m, a, y: seen.add(y.dtype)) for m in self.modules() if type(m) is nn.Conv2d
        ]
        result = task_loss(self, *args)
        for handle in handles:
            handle.remove()
        types.setdefault("loss", set()).add(result.dtype)
        first.setdefault("loss", result.detach())
        return result

    def through(self, loss, *args, **kwargs):
        backward(self, loss, *args, **kwargs)
        types.setdefault("gradients", set()).update(p.grad.dtype for p in self.parameters() if p.grad is not None)
        types.setdefault("kept", set()).update(
            t.dtype for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()
        )

    monkeypatch.setattr(Structure, "draw", drawn)
    monkeypatch.setattr(BilevelModule, "task_loss", lost)
    monkeypatch.setattr(BilevelModule, "backward", through)
    return types, first


@pytest.mark.parametrize(
    "args",
    [
        {"execution": "plain"},
        {"execution": "fused"},
        pytest.param({"execution": "fused", "normalize": True}, marks=pytest.mark.slow),
        pytest.param({"execution": "fused", "lambda_per": "object", "hypernet": "linear"}, marks=pytest.mark.slow),
        pytest.param({"order": 2}, marks=pytest.mark.slow),
        pytest.param({"order": 2, "second_order": "finite_difference"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_supernet_alone_computes_in_low_precision(tmp_path, monkeypatch, args):
    types, low = recorded(monkeypatch)
    result = searched(config(**args), tmp_path / "low")
    assert types["images"] == {torch.bfloat16}
    assert types["mixing"] == types["loss"] == {torch.float32}
    assert 0 < result["default"] <= 1
    monkeypatch.undo()
    others, full = recorded(monkeypatch)
    searched(config("32-true", **args), tmp_path / "full")
    assert others == {**types, "images": {torch.float32}} and torch.bfloat16 not in others["kept"]
    # The structure is the same to the bit; the loss has the three digits of bfloat16.
    assert all(torch.equal(low["mixing"][label], w) for label, w in full["mixing"].items())
    assert 0 < abs(float(low["loss"] - full["loss"])) < 0.02 * float(full["loss"])


@pytest.mark.slow
def test_searches_side_by_side_have_low_precision_too(tmp_path):
    seeds = {"search-s0": 0, "search-s1": 1}
    together = run_searches(config(), {"trial": "t", "seeds": seeds}, tmp_path / "together" / "t", lambda row: None)
    assert together["failures"] == []
    for name, seed in seeds.items():
        alone, full = (searched(config(p), tmp_path / p / name, seed) for p in ("bf16-mixed", "32-true"))
        losses = [r["search"]["terms"]["structure_task"] for r in (together["searches"][name], alone, full)]
        assert losses[0] != losses[2] and losses[1] != losses[2]
        assert losses[0] == pytest.approx(losses[2], rel=0.02) and losses[1] == pytest.approx(losses[2], rel=0.02)


def test_retraining_in_low_precision_is_measured_in_single_precision(tmp_path):
    settings = config()
    choices = searched(dataclasses.replace(settings, search=config("32-true").search), tmp_path / "s")
    parameters = {"trial": "r", "seed": 0, "choices": choices["architectures"][0]["choices"]}
    results = {}
    for precision in ("bf16-mixed", "32-true"):
        folder = tmp_path / precision
        folder.mkdir()
        run_retrain(config(precision), parameters, folder, lambda row: None)
        weights = torch.load(folder / "model.pt", weights_only=True)
        assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}
        results[precision] = [row["terms"] for row in read_rows(folder / METRICS)]
    for low, full in zip(results["bf16-mixed"], results["32-true"], strict=True):
        assert all(low[name] != full[name] for name in ("train_loss", "val_loss"))
        assert low == pytest.approx(full, rel=0.05, abs=0.05)


def test_precisions_are_those_of_lightning():
    with pytest.raises(ConfigError, match=r"search\.precision"):
        Config.from_dict({"search": {"precision": "bf16"}})
