"""Layers of several networks as one wide layer: equal to each layer by itself, gradients and statistics too."""

import copy

import pytest
import torch
from torch import nn

from nni_bayes_nas.layers.side_by_side import SameMode, WideLayer, adaptive_max_pool2d, widened

LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped convolution": lambda: nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False),
    "convolution, reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "convolution, as large as its input": lambda: nn.Conv2d(4, 4, 5, padding="same", dilation=2),
    "normalization": lambda: nn.BatchNorm2d(4),
    "normalization without scale": lambda: nn.BatchNorm2d(4, affine=False, momentum=0.3),
    "largest of a window": lambda: nn.MaxPool2d(3, 2, 1),
    "mean of a window": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "mean of all": lambda: nn.AdaptiveAvgPool2d(1),
}
OTHERS = {
    "normalization with all batches": lambda: nn.BatchNorm2d(4, momentum=None),
    "normalization without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "largest with its place": lambda: nn.MaxPool2d(2, return_indices=True),
    "groups": lambda: nn.GroupNorm(2, 4),
    "whole objects": lambda: nn.Flatten(),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3),
}


def layers_of(make, n):
    found = []
    for seed in range(n):
        torch.manual_seed(seed)
        layer = make().double()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        found.append(layer)
    return found


def stacked(layers, x):
    template = copy.deepcopy(layers[0])
    wide = WideLayer(template)
    names = [*dict(layers[0].named_parameters()), *dict(layers[0].named_buffers())]
    own = {name: torch.stack([getattr(layer, name) for layer in layers]) for name in names}

    def one(tensors, x):
        for name, tensor in tensors.items():
            (template._parameters if name in template._parameters else template._buffers)[name] = tensor
        return wide(x)

    return torch.vmap(one)(own, x), own


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_wide_layer_equals_each_by_itself(name, training):
    layers = [layer.train(training) for layer in layers_of(LAYERS[name], 3)]
    x = torch.randn(3, 5, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert all(map(WideLayer.fits, layers))
    together, own = stacked(layers, x)
    leaves = [x, *(p for layer in layers for p in layer.parameters())]
    ours = torch.autograd.grad(together.square().sum(), leaves)
    alone = torch.stack([layer(part) for layer, part in zip(layers, x, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)
    for a, b in zip(ours, torch.autograd.grad(alone.square().sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    for buffer in dict(layers[0].named_buffers()):
        theirs = torch.stack([getattr(layer, buffer) for layer in layers])
        torch.testing.assert_close(own[buffer], theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_left_to_torch(name):
    assert not WideLayer.fits(OTHERS[name]())


def test_a_layer_that_computes_something_else_is_left_to_torch():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    assert not WideLayer.fits(Doubled(4, 4, 1))


def test_an_image_without_a_batch_is_left_to_torch():
    layers = layers_of(lambda: nn.Conv2d(4, 6, 3), 2)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    together, _ = stacked(layers, x)
    torch.testing.assert_close(together, torch.stack([layer(part) for layer, part in zip(layers, x, strict=True)]))


def test_a_layer_that_runs_wide_can_be_widened():
    layer = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    for part in layer:
        part.forward = WideLayer(part)
    wide = widened(layer, 3)
    assert wide[0].weight.shape == (18, 4, 3, 3) and wide[0].groups == 3 and wide[1].num_features == 18
    assert not any("forward" in part.__dict__ for part in wide)


def test_modes_are_those_of_the_other_module_at_every_call():
    ours, theirs = (nn.Sequential(nn.BatchNorm2d(2), nn.Dropout()) for _ in range(2))
    follow = SameMode(ours, theirs)
    theirs[0].eval()
    theirs[0].momentum = 0.0
    follow()
    assert not ours[0].training and ours[1].training and ours[0].momentum == 0.0


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_adaptive_pooling_side_by_side(order):
    x = torch.randn(6, 4, 7, 7).contiguous(memory_format=order).unflatten(0, (3, 2))
    expected = torch.stack([nn.functional.adaptive_max_pool2d(part, 3) for part in x])
    assert torch.equal(torch.vmap(lambda part: adaptive_max_pool2d(part, 3))(x), expected)
    assert torch.equal(adaptive_max_pool2d(x[0], 3), expected[0])
