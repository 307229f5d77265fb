"""Average pooling and weighted sums in one pass: outputs and all derivatives are those of torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nni_bayes_nas.layers.combine import combine, mix
from nni_bayes_nas.layers.depthwise import average_pool2d, input_gradient, is_slow


def derivatives(output, inputs, gradient):
    first = torch.autograd.grad(output, inputs, gradient, create_graph=True)
    scalar = sum((g * g.cos()).sum() for g in first)
    return [output, *first, *torch.autograd.grad(scalar, inputs)]


def test_only_what_is_slow_in_onednn_is_replaced():
    x, three, five = torch.zeros(32, 2, 16, 16), torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 5, 5)
    assert is_slow(x, three, 1, 2) and is_slow(x, three, 2, 2) and is_slow(x, five, 1, 1)
    assert not is_slow(x, three, 1, 1) and not is_slow(x[:4], five, 1, 1) and not is_slow(x, five, 2, 1)
    assert not is_slow(x.double(), three.double(), 1, 2)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_lie_in_memory_as_what_they_are_made_of(stride):
    gradient = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    found = input_gradient(gradient, torch.randn(3, 1, 3, 3), (4 * stride, 4 * stride), stride, 1)
    assert found.is_contiguous(memory_format=torch.channels_last)


@given(size=st.sampled_from([1, 3, 5]), shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(2, 9)] * 2))
@settings(max_examples=50, deadline=None)
def test_average_pooling_is_torchs(size, shape):
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    plain = F.avg_pool2d(x.square(), size, 1, size // 2, count_include_pad=False)
    ours = average_pool2d(x.square(), size)
    gradient = torch.randn_like(plain)
    for a, b in zip(derivatives(plain, (x,), gradient), derivatives(ours, (x,), gradient), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("per_object", [False, True])
@given(n=st.integers(1, 4), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), channels_last=st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_sum_in_one_pass_is_the_sum_of_products(per_object, n, shape, channels_last):
    torch.manual_seed(0)
    items = [torch.randn(3, *shape, dtype=torch.float64) for _ in range(n)]
    if channels_last and len(shape) == 3:
        items = [item.contiguous(memory_format=torch.channels_last) for item in items]
    for item in items:
        item.requires_grad_(True)
    weights = torch.randn(*((3,) if per_object else ()), n, dtype=torch.float64, requires_grad=True)
    plain, ours = mix(items, weights.unbind(-1)), combine(items, weights)
    gradient = torch.randn_like(plain)
    inputs = [weights, *items]
    for a, b in zip(derivatives(plain, inputs, gradient), derivatives(ours, inputs, gradient), strict=True):
        torch.testing.assert_close(a, b)
