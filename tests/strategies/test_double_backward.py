"""Operations without a double backward are found and named; those with a dear one are replaced."""

import contextlib
from typing import Any

import pytest
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.space import RawFormatModelSpace
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.data import TensorDataset

from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers import twice
from nni_bayes_nas.strategies import RegularizedDARTS, second_order
from nni_bayes_nas.strategies.second_order import check_double_backward, hypergradient


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).unflatten(-1, (3, 1, 4)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)


def traces(net: nn.Module) -> list[Tensor]:
    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters())]
    return [t.detach().clone() for t in tensors] + [torch.get_rng_state()]


@pytest.mark.parametrize(
    ("layer", "words"),
    [(Sine, ["`body.1` (Sine)"]), (Attention, ["`body.1` (Attention)", "scaled_dot_product"])],
)
def test_an_operation_without_a_double_backward(layer: Any, words: list[str]) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 4), layer(), nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    net = nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})
    net.forward = lambda x: net["head"](net["body"](x))  # type: ignore[method-assign]
    alpha, x = nn.Parameter(torch.ones(())), torch.randn(2, 3, 4)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = traces(net)

    def loss() -> Tensor:
        return (alpha * net(x)).square().mean()

    def second_order(method: Any) -> Any:
        return hypergradient(loss, loss, list(net.parameters()), [alpha], learning_rate=0.1, method=method, module=net)

    for refused in (lambda: check_double_backward(net, x), lambda: second_order("exact")):
        with pytest.raises(SpaceError, match="double backward") as caught:
            refused()
        message = str(caught.value)
        assert all(word in message for word in [*words, "finite_difference", "order=1"]) and "\n" not in message
        assert all(torch.equal(a, b) for a, b in zip(before, traces(net), strict=True))
    assert torch.isfinite(second_order("finite_difference")[1][0])


def test_what_can_be_differentiated_twice_passes() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 2))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    x = torch.randn(2, 4)
    before = traces(net)
    check_double_backward(net, x)
    assert all(torch.equal(a, b) for a, b in zip(before, traces(net), strict=True))


def test_other_errors_are_passed_on() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        check_double_backward(nn.Linear(3, 2), torch.zeros(2, 4))


class SineSpace(ModelSpace):
    """One of two layers, of which one cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        candidates = {"sine": nn.Sequential(nn.Linear(4, 4), Sine()), "plain": nn.Linear(4, 4)}
        self.layer = LayerChoice(candidates, label="layer")
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def test_a_strategy_refuses_before_the_first_step() -> None:
    data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)

    def search(**options: Any) -> Any:
        evaluator = Classification(
            num_classes=3,
            train_dataloaders=DataLoader(data, batch_size=4),
            val_dataloaders=DataLoader(data, batch_size=4),
            max_epochs=1,
            **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
        )
        RegularizedDARTS(order=2, **options)(RawFormatModelSpace(SineSpace(), evaluator), SequentialExecutionEngine())
        return evaluator.trainer

    with pytest.raises(SpaceError, match=r"`layer\.sine\.1` \(Sine\)"):
        search()
    assert search(second_order="finite_difference").global_step == 4


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_the_layers_of_the_exact_product_are_those_with_cheap_second_derivatives(method: Any, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())
    net = net.double()
    alpha, x = nn.Parameter(torch.rand(16).double()), torch.randn(5, 2, 6, 6).double()

    def gradient() -> Tensor:
        losses = [lambda: (alpha * net(x)).tanh().square().sum(), lambda: (alpha * net(x)).square().sum()]
        options = {"learning_rate": 0.1, "method": method, "module": net}
        return hypergradient(*losses, list(net.parameters()), [alpha], **options)[1][0]

    calls: list[str] = []
    for name in ("conv2d", "batch_norm"):
        real = getattr(twice, name)
        spied = lambda *args, name=name, real=real, **options: calls.append(name) or real(*args, **options)  # noqa: E731
        monkeypatch.setattr(twice, name, spied)
    ours = gradient()
    assert calls == (["conv2d", "batch_norm", "conv2d"] if method == "exact" else [])
    monkeypatch.setattr(second_order, "DifferentiatedTwice", contextlib.nullcontext)
    torch.testing.assert_close(gradient(), ours, rtol=1e-9, atol=1e-12)
    assert len(calls) == (3 if method == "exact" else 0)
