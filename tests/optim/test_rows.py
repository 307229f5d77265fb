"""Layers of which some rows are optimized: the same outputs, the gradients of these rows, and their moments."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_bayes_nas.optim.rows import Rows, can_split, swap

LAYERS = {
    "linear": (lambda: nn.Linear(5, 6), (4, 5)),
    "linear without bias": (lambda: nn.Linear(5, 6, bias=False), (4, 5)),
    "linear of sequences": (lambda: nn.Linear(5, 6), (4, 3, 5)),
    "convolution": (lambda: nn.Conv2d(3, 6, 3, padding=1, stride=2), (4, 3, 8, 8)),
    "convolution without bias": (lambda: nn.Conv2d(3, 6, (3, 1), dilation=2, bias=False), (4, 3, 8, 8)),
}
layers = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
SOME = torch.tensor([0, 2, 5])


@layers
def test_outputs_and_gradients_are_those_of_the_layer(make, shape):
    torch.manual_seed(0)
    layer = make().double()
    plain = copy.deepcopy(layer)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x_plain = x.detach().clone().requires_grad_(True)
    rows = Rows(layer, SOME)
    out, expected = layer(x), plain(x_plain)
    assert torch.equal(out, expected)
    g = torch.randn_like(out)
    (out * g).sum().backward()
    (expected * g).sum().backward()
    torch.testing.assert_close(x.grad, x_plain.grad)
    torch.testing.assert_close(rows.weight.grad, plain.weight.grad[SOME])
    assert layer.weight.grad is None and (layer.bias is None or layer.bias.grad is None)
    if plain.bias is not None:
        torch.testing.assert_close(rows.bias.grad, plain.bias.grad[SOME])
    # An input that needs no gradient gets none.
    rows.weight.grad = None
    (layer(x.detach()) * g).sum().backward()
    torch.testing.assert_close(rows.weight.grad, plain.weight.grad[SOME])


@layers
def test_steps_are_the_layers_once_in_sync_and_it_can_be_undone(make, shape):
    torch.manual_seed(0)
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    rows = Rows(layer, SOME)
    with torch.no_grad():
        rows.weight += 1
    rows.sync()
    others = [i for i in range(6) if i not in SOME.tolist()]
    assert torch.equal(layer.weight[SOME], rows.weight) and torch.equal(layer.weight[others], before["weight"][others])
    assert set(layer.state_dict()) == set(before)
    rows.undo()
    layer(torch.randn(shape)).sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape and "forward" not in vars(layer)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_used_by_function_too_has_the_gradients_of_both(first):
    """A coder whose decoder is the transposed matrix; whichever of both comes first in the pass backward."""
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 6).double(), torch.randn(4, 5, dtype=torch.float64)
    plain, rows = copy.deepcopy(layer), Rows(layer, SOME)
    for one in (layer, plain):
        for _ in range(2):  # gradients of two batches add up
            h = torch.tanh(one(x))
            again = h @ one.weight + one(x).sum() if first else one(h @ one.weight).sum() + h @ one.weight
            (again - x + one.bias[:5]).square().sum().backward()
    torch.testing.assert_close(rows.weight.grad, plain.weight.grad[SOME])
    torch.testing.assert_close(rows.bias.grad, plain.bias.grad[SOME])
    assert layer.weight.grad is None and layer.bias.grad is None
    rows.undo()
    F.linear(x, layer.weight).sum().backward()
    assert layer.weight.grad is not None


def test_with_mixed_precision():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 6), torch.randn(4, 5)
    plain, rows = copy.deepcopy(layer), Rows(layer, SOME)
    for one in (layer, plain):
        with torch.autocast("cpu", torch.bfloat16):
            one(x).square().mean().backward()
    assert rows.weight.grad.dtype == torch.float32
    torch.testing.assert_close(rows.weight.grad, plain.weight.grad[SOME], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_moments_go_with_the_rows_and_back(kind):
    """A training of the rows alone is that of the whole with the gradients of the others at zero."""
    torch.manual_seed(0)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    layer, x = nn.Linear(5, 6), torch.randn(8, 5)
    plain = copy.deepcopy(layer)
    first, second = kind(layer.parameters(), 0.1, **options), kind(plain.parameters(), 0.1, **options)

    def step(one, optimizer, rows=None):
        optimizer.zero_grad()
        F.mse_loss(one(x), torch.ones(8, 6)).backward()
        optimizer.step()
        if rows is not None:
            rows.sync()

    for _ in range(3):
        step(layer, first)
        step(plain, second)
    rows = Rows(layer, SOME)
    swap(first, layer.weight, rows.weight, SOME, back=False)
    swap(first, layer.bias, rows.bias, SOME, back=False)
    assert [len(p) for group in first.param_groups for p in group["params"]] == [3, 3]
    frozen = plain.weight.detach()[[1, 3, 4]].clone()
    for _ in range(3):
        step(layer, first, rows)
        step(plain, second)
        torch.testing.assert_close(layer.weight[SOME], plain.weight[SOME])
        assert torch.equal(layer.weight[[1, 3, 4]], frozen)
    swap(first, layer.weight, rows.weight, SOME, back=True)
    swap(first, layer.bias, rows.bias, SOME, back=True)
    rows.undo()
    for name, value in first.state[layer.weight].items():
        if value is not None and value.dim() > 0:
            torch.testing.assert_close(value[SOME], second.state[plain.weight][name][SOME])
            assert not bool(value[[1, 3, 4]].any())
    step(layer, first)


def test_layers_that_have_no_rows_to_take():
    assert can_split(nn.Linear(2, 3)) and can_split(nn.Conv2d(1, 2, 3))
    masked = nn.Linear(2, 3)
    nn.utils.parametrizations.weight_norm(masked)
    taken = nn.Linear(2, 3)
    Rows(taken, torch.tensor([0]))
    others = [nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(1, 2, 3, padding="same"), nn.BatchNorm2d(2), masked, taken]
    assert not any(can_split(layer) for layer in others)
