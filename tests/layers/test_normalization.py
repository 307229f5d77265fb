"""Batch normalization of shared weights: statistics by hand, and nothing left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import ModelSpace, MutableBatchNorm2d, MutableConv2d
from torch import Tensor, nn
from torch.nn import functional

from nni_bayes_nas.compression.hyper_variational import expected_log_likelihood
from nni_bayes_nas.layers.normalization import batch_norms, batch_statistics, recalibrate, recalibrated
from nni_bayes_nas.layers.variational import to_variational, weight_noise
from nni_bayes_nas.strategies import RegularizedDARTS


class Widths(ModelSpace):
    """NNI's own normalization, of a width that is a choice: as a supernet it is a `MixedBatchNorm2d`."""

    def __init__(self) -> None:
        super().__init__()
        width = Categorical([2, 4], label="width")
        self.conv, self.norm = MutableConv2d(2, width, 3), MutableBatchNorm2d(width, momentum=0.3)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(x))


def supernet(width: int) -> Any:
    """A supernet that runs one width, with statistics of an earlier life."""
    torch.manual_seed(0)
    strategy = RegularizedDARTS()
    module = strategy.mutate_model(Widths())
    strategy._binding.weights = {"width": torch.tensor([float(width == 2), float(width == 4)])}
    for _ in range(3):
        module(torch.randn(8, 2, 6, 6))
    return module


def network() -> nn.Module:
    """Layers of both kinds, one without running statistics, one frozen, with statistics of an earlier life."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Flatten(),
        nn.BatchNorm1d(48, momentum=0.3),
    )
    for _ in range(3):
        layers(torch.randn(8, 2, 6, 6))
    layers[1].eval()
    return layers


def state(module: nn.Module) -> list[Any]:
    buffers = [(name, buffer.clone()) for name, buffer in module.named_buffers()]
    return [
        *buffers,
        *((name, p.detach().clone()) for name, p in module.named_parameters()),
        *((m.training, getattr(m, "momentum", None)) for m in module.modules()),
        *((dict(getattr(m, "init_arguments", {})), len(m._forward_pre_hooks)) for m in module.modules()),
    ]


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for (name, was), (_, now) in zip(before, after, strict=True):
        assert torch.equal(was, now) if isinstance(was, Tensor) else was == now, name


def batches(n: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Of unlike sizes, means and variances: a mean over batches is not one over objects.
    return [(i + 1) * torch.randn(4 + 2 * i, 2, 6, 6, generator=generator) + i for i in range(n)]


def test_statistics_are_the_means_over_batches_of_those_of_each_batch() -> None:
    module = network()
    first, untracked, last = batch_norms(module)
    assert untracked.running_mean is None
    with recalibrated(module, module, batches()):
        assert not any(m.training for m in module.modules())
        with torch.no_grad():
            inputs = [module[0](x) for x in batches()]
            torch.testing.assert_close(first.running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
            variances = [x.transpose(0, 1).flatten(1).var(1) for x in inputs]
            torch.testing.assert_close(first.running_var, torch.stack(variances).mean(0))
            # Further on, what a layer sees has been normalized by the batch before it.
            flat = [functional.batch_norm(x, None, None, training=True) for x in inputs]
            flat = [functional.batch_norm(x, None, None, training=True).flatten(1) for x in flat]
            torch.testing.assert_close(last.running_mean, torch.stack([x.mean(0) for x in flat]).mean(0))
            torch.testing.assert_close(last.running_var, torch.stack([x.var(0) for x in flat]).mean(0))


def test_without_a_batch_the_statistics_are_those_of_a_new_layer() -> None:
    module = network()
    with recalibrated(module, module, []):
        assert float(batch_norms(module)[0].running_mean.abs().max()) == 0.0
        assert torch.equal(batch_norms(module)[0].running_var, torch.ones(3))


@pytest.mark.parametrize("fails", ["block", "forward", "nothing"])
def test_recalibration_puts_everything_back(fails: str) -> None:
    module = network()
    before = state(module)

    def forward(x: Tensor) -> Any:
        if fails == "forward":
            module(x)
            raise ZeroDivisionError
        return module(x)

    def use() -> None:
        with recalibrated(module, forward, batches()):
            module.train()
            module(batches()[0])
            if fails == "block":
                raise ZeroDivisionError

    if fails == "nothing":
        use()
    else:
        with pytest.raises(ZeroDivisionError):
            use()
    assert_same(before, state(module))


def test_the_buffers_stay_the_same_tensors() -> None:
    """An optimizer, a checkpoint or another module may hold them."""
    module = network()
    held = [id(buffer) for buffer in module.buffers()]
    with recalibrated(module, module, batches()), batch_statistics(module):
        module(batches()[0])
    assert [id(buffer) for buffer in module.buffers()] == held


def test_batch_statistics_are_those_of_the_batch_and_leave_the_running_ones() -> None:
    module = network()
    module.eval()
    before = state(module)
    x = batches()[1]
    with batch_statistics(module), torch.no_grad():
        hidden = module[0](x)
        out = module[1](hidden)
        mean, var = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), keepdim=True, unbiased=False)
        expected = (hidden - mean) / (var + module[1].eps).sqrt()
        torch.testing.assert_close(out, expected)
        assert not module[2].training, "dropout stays as it was"
    assert_same(before, state(module))
    with torch.no_grad():
        assert not torch.allclose(module[1](hidden), out)


@pytest.mark.parametrize("use", [lambda m: batch_statistics(m), lambda m: recalibrated(m, m, [])])
def test_a_module_without_batch_normalization(use: Callable[[nn.Module], Any]) -> None:
    module = nn.Linear(2, 2)
    with use(module):
        module(torch.ones(1, 2))
    assert module.training


@pytest.mark.parametrize("width", [2, 4])
def test_nnis_normalization_of_mutable_width_is_recalibrated(width: int) -> None:
    """It reads its momentum elsewhere than torch's layers; channels beyond the width carry zeros."""
    module = supernet(width)
    before = state(module)
    with recalibrated(module, module, batches(8)):
        with torch.no_grad():
            inputs = [module.conv(x) for x in batches(8)]
        assert all(bool((x[:, width:] == 0).all()) for x in inputs)
        torch.testing.assert_close(module.norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
        variances = [x.transpose(0, 1).flatten(1).var(1) for x in inputs]
        torch.testing.assert_close(module.norm.running_var, torch.stack(variances).mean(0))
        held = [buffer.clone() for buffer in module.norm.buffers()]
        with batch_statistics(module):
            module(batches()[2])
        assert all(torch.equal(a, b) for a, b in zip(held, module.norm.buffers(), strict=True))
    assert_same(before, state(module))


def test_batch_statistics_leave_nnis_normalization_of_mutable_width() -> None:
    module = supernet(2).eval()
    before = state(module)
    x = batches()[1]
    with batch_statistics(module), torch.no_grad():
        expected = functional.batch_norm(module.conv(x), None, None, module.norm.weight, module.norm.bias, True)
        torch.testing.assert_close(module(x), expected)
    assert_same(before, state(module))


def test_statistics_with_the_noise_of_the_weights() -> None:
    """Filters that are noise alone have, by their means, no variance at all; what they say is as large as the noise."""
    torch.manual_seed(0)
    net = to_variational(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), rho=-1.0)
    with torch.no_grad():
        net[0].weight.zero_()
    x = torch.randn(64, 2, 6, 6)
    recalibrate(net.eval(), [x])
    before = net[1].running_var.clone()
    assert float(before.max()) < 1e-6
    with torch.no_grad():
        with weight_noise(net, True):
            assert float(net(x).var()) > 10
        with weight_noise(net, True, [x] * 8):
            assert float(net(x).var()) == pytest.approx(1.0, abs=0.3)
        with weight_noise(net, True):
            found = expected_log_likelihood(net, [(x, x)], lambda y, _: y.square().mean(), calibration=[x] * 8)
    assert found == pytest.approx(1.0, abs=0.3) and torch.equal(net[1].running_var, before)
