"""Convolution: outputs and all derivatives are those of torch's own, and none is taken that nobody asks for."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nni_bayes_nas.layers import convolution, depthwise
from nni_bayes_nas.layers.convolution import conv2d, depthwise_conv2d, pointwise_conv2d

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


def derivatives(output, inputs, gradient):
    """First, second and third."""
    found = [output]
    scalar = (output.sin() * gradient).sum()
    for order in range(3):
        again = order < 2
        found.append(torch.autograd.grad(scalar, inputs, create_graph=again))
        scalar = sum((g * g.cos()).sum() for g in found[-1])
    return found


@settings(max_examples=100, deadline=None)
@given(
    kernel=PAIR,
    stride=PAIR,
    dilation=PAIR,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    channels=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
    rest=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_all_derivatives_are_torchs(kernel, stride, dilation, padding, channels, rest, bias, channels_last):
    torch.manual_seed(0)
    inside, outside, groups = channels
    size = [max(1, d * (k - 1) + 1 - 2 * p) + r for d, k, p, r in zip(dilation, kernel, padding, rest, strict=True)]
    x = torch.randn(2, inside * groups, *size, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_(True)
    weight = torch.randn(outside * groups, inside, *kernel, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(outside * groups, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, shift) if t is not None]
    how = shift, stride, padding, dilation, groups
    plain, ours = F.conv2d(x, weight, *how), conv2d(x, weight, *how)
    gradient = torch.randn_like(plain)
    expected, found = derivatives(plain, inputs, gradient), derivatives(ours, inputs, gradient)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    size=st.sampled_from([1, 3, 5, 7, 9]),
    dilation=st.integers(1, 3),
    stride=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    channels_last=st.booleans(),
)
def test_all_derivatives_of_a_depthwise_one_are_torchs(size, dilation, stride, shape, channels_last):
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_(True)
    weight = torch.randn(shape[1], 1, size, size, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, weight, None, stride, dilation * (size - 1) // 2, dilation, shape[1])
    ours = depthwise_conv2d(x, weight, stride=stride, dilation=dilation)
    gradient = torch.randn_like(plain)
    expected, found = derivatives(plain, (x, weight), gradient), derivatives(ours, (x, weight), gradient)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("by_taps", [False, True])
def test_the_gradient_of_the_filters_is_taken_only_where_it_is_asked_for(by_taps, monkeypatch):
    calls, taps = [], []
    take, take_taps = convolution._filter_gradient, depthwise.filter_gradient
    spied = replace(convolution._OF_FILTERS, value=lambda *args: calls.append(1) or take(*args))
    monkeypatch.setattr(convolution, "_OF_FILTERS", spied)
    monkeypatch.setattr(depthwise, "filter_gradient", lambda *args: taps.append(1) or take_taps(*args))
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(3, 1, 5, 5, requires_grad=True)
    y = depthwise_conv2d(x, weight, dilation=2) if by_taps else conv2d(x, weight, padding=2, groups=3)
    (of_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    torch.autograd.grad(of_x.square().sum(), x, retain_graph=True)
    assert not calls
    of_x.square().sum().backward()
    assert calls and weight.grad is not None and len(taps) == len(calls) * by_taps


def test_what_was_written_to_is_not_taken_for_what_was_convolved():
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 1, 1, requires_grad=True)
    y = conv2d(x, weight)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_a_pointwise_one_is_a_product_of_matrices(batch, groups, channels, filters, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, groups * channels, size, size + 1, generator=generator, dtype=torch.float64)
    weight = torch.randn(groups * filters, channels, 1, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pointwise_conv2d(x, weight, groups), F.conv2d(x, weight, groups=groups))
