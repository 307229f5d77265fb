"""Batch normalization: output, statistics, first and second derivatives are those of torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nni_bayes_nas.layers.batch_norm import batch_norm


def derivatives(function, x, weight, bias, wanted):
    """Output, statistics, gradients, and the derivatives of a function of those gradients that are wanted."""
    statistics = [torch.full(x.shape[1:2], fill, dtype=x.dtype) for fill in (0.5, 2.0)]
    y = function(x.square(), *statistics, weight, bias)
    inputs = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    first = torch.autograd.grad((y * y.cos()).sum(), inputs, create_graph=True)
    scalar = sum((g * g.cos()).sum() for g, keep in zip(first, wanted, strict=False) if keep)
    second = torch.autograd.grad(scalar, inputs, allow_unused=True) if isinstance(scalar, torch.Tensor) else []
    return [y, *statistics, *first, *(torch.zeros(()) if g is None else g for g in second)]


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(2, 4),
    channels=st.integers(1, 3),
    size=st.sampled_from([(), (3,), (1, 1), (2, 3)]),
    weight=st.sampled_from(["none", "fixed", "learned", "zero"]),
    bias=st.booleans(),
    x_learned=st.booleans(),
    wanted=st.tuples(*[st.booleans()] * 3),
    channels_last=st.booleans(),
)
def test_all_derivatives_are_torchs(batch, channels, size, weight, bias, x_learned, wanted, channels_last):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, *size, dtype=torch.float64)
    if channels_last and len(size) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(x_learned)
    scale = None if weight == "none" else torch.randn(channels, dtype=torch.float64) * (weight != "zero")
    if weight in ("learned", "zero"):
        scale.requires_grad_(True)
    shift = torch.randn(channels, dtype=torch.float64, requires_grad=True) if bias else None
    if not any(t is not None and t.requires_grad for t in (x, scale, shift)):
        return
    settings = {"momentum": 0.3, "eps": 1e-3}
    plain = derivatives(lambda *args: F.batch_norm(*args, training=True, **settings), x, scale, shift, wanted)
    ours = derivatives(lambda *args: batch_norm(*args, **settings), x, scale, shift, wanted)
    torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-9)


def test_a_third_derivative_is_refused():
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(batch_norm(x, None, None).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)
