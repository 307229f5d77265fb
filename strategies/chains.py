"""Operations as chains of layers: what the fused supernet knows how to run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from nni.nas.hub.pytorch import nasbench201, nasnet
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from nni_bayes_nas.layers.convolution import depthwise_conv2d, is_plain_convolution
from nni_bayes_nas.layers.depthwise import average_pool2d, is_slow, pools_slowly
from nni_bayes_nas.layers.flow import is_chain
from nni_bayes_nas.layers.variational import Variational, VariationalConv2d

_WRAPPERS = (nasbench201.ReLUConvBN, nasbench201.SepConv)
# Filters times channels up to which a call costs more than its products on a GPU.
_NARROW = 64 * 64
_CONVOLUTIONS = (nn.Conv2d.forward, VariationalConv2d.forward)
_ZEROS = (nasbench201.Zero, nasnet.Zero)


@dataclass(frozen=True)
class Chain:
    """An operation as layers one after another.

    Attributes:
        head: The ReLU or the pooling at the beginning, which equal ones on the same input share.
        body: Convolutions, and normalization and ReLU between them.
        norm: The batch normalization at the end.
        signature: Equal for operations that differ in nothing but their parameters.
        modules: All modules of the operation.
    """

    head: nn.Module | None
    body: tuple[Any, ...]
    norm: Any | None
    signature: tuple[Hashable, ...]
    modules: tuple[nn.Module, ...]

    @property
    def kind(self) -> Hashable:
        """Equal for operations that can run as one: their parameters may differ, and the size of odd square filters."""
        return tuple(map(_up_to_size, self.signature))

    @property
    def head_signature(self) -> Hashable:
        """Equal for heads that compute the same."""
        return None if self.head is None else self.signature[0]


def recognize(operation: nn.Module) -> Chain | None:
    """The chain of layers that an operation is, or None."""
    layers = _flattened(operation)
    if layers is None:
        return None
    signature = [_signature(layer) for layer in layers]
    if any(s is None for s in signature):
        return None
    rest = list(layers)
    head = rest.pop(0) if rest and isinstance(rest[0], (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d)) else None
    first = head if isinstance(head, nn.ReLU) else rest[0] if rest else None
    if isinstance(first, nn.ReLU) and first.inplace:  # would write to what others share
        return None
    norm = rest.pop() if rest and isinstance(rest[-1], nn.BatchNorm2d) else None
    if any(isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) for layer in rest):
        return None
    return Chain(head, tuple(rest), norm, tuple(signature), tuple(operation.modules()))


def _flattened(operation: Any) -> list[nn.Module] | None:
    if isinstance(operation, nn.Sequential):
        if not is_chain(operation):
            return None
        parts = [_flattened(child) for child in operation]
        return None if any(p is None for p in parts) else [m for part in parts for m in part or []]
    if type(operation) in _WRAPPERS:
        return _flattened(operation.op)
    if type(operation) is nasbench201.Pooling and operation.preprocess is None:
        return _flattened(operation.op)
    return [] if type(operation) is nn.Identity else [operation]


def _signature(layer: Any) -> Hashable | None:
    """What a layer computes but for its parameters; None for a kind of layer that is not known here."""
    forward = type(layer).forward
    if forward in _CONVOLUTIONS and is_plain_convolution(layer) and layer.padding_mode == "zeros":
        shape, bias = tuple(layer.weight.shape), layer.bias is not None
        noise = layer.estimator if isinstance(layer, Variational) else None
        return "conv", shape, (bias, noise), layer.stride, layer.padding, layer.dilation, layer.groups
    if isinstance(layer, nn.BatchNorm2d) and forward is _BatchNorm.forward and _is_known(layer):
        return "norm", layer.num_features, layer.eps, layer.affine, layer.track_running_stats
    if forward is nn.ReLU.forward:
        return ("relu",)
    if forward is nn.MaxPool2d.forward and not layer.return_indices:
        return "max", layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
    if forward is nn.AvgPool2d.forward:
        pooling = layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode
        return "avg", *pooling, layer.count_include_pad, layer.divisor_override
    return None


def _up_to_size(signature: Hashable) -> Hashable:
    """The signature of a layer without the size of its filters, where smaller ones are larger ones with a rim of zeros.

    So it is at stride 1 and with padding that keeps the size. Those of wide layers, or of one channel alone, are left
    as they are: products with zeros cost more there than a call.
    """
    if not (isinstance(signature, tuple) and signature[0] == "conv"):
        return signature
    _, (filters, channels, *size), kind, stride, padding, dilation, groups = signature
    keeps = size[0] == size[1] and size[0] % 2 == 1 and padding == (size[0] // 2,) * 2
    if groups != 1 or filters * channels > _NARROW or not keeps or (stride, dilation) != ((1, 1), (1, 1)):
        return signature
    return "conv of any size", filters, channels, kind


def _is_known(norm: nn.BatchNorm2d) -> bool:
    """Whether its running statistics are means that forget, or it has none."""
    return norm.running_mean is None or (norm.momentum is not None and norm.track_running_stats)


def run_layer(layer: Any, x: Tensor) -> Tensor:
    """The output of a layer of a chain, the faster way where there is one."""
    if isinstance(layer, nn.Conv2d) and _is_depthwise(layer):
        stride, dilation = layer.stride[0], layer.dilation[0]
        if is_slow(x, layer.weight, stride, dilation):

            def apply(x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
                return depthwise_conv2d(x, weight, stride=stride, dilation=dilation)

            return layer.output(x, apply) if isinstance(layer, Variational) else apply(x, layer.weight, None)
    if isinstance(layer, nn.AvgPool2d) and pools_slowly(x):
        size = _pair(layer.kernel_size)[0]
        if _keeps_size(layer, size):
            return average_pool2d(x, size)
    result: Tensor = layer(x)
    return result


def _is_depthwise(layer: nn.Conv2d) -> bool:
    """Whether it has one filter per channel, square and odd, and as much padding as keeps the size at stride 1."""
    if not (layer.groups == layer.in_channels == layer.out_channels > 1 and layer.bias is None):
        return False
    size, stride, dilation = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
    expected = (size, size), (stride, stride), (dilation, dilation), (dilation * (size - 1) // 2,) * 2
    return size % 2 == 1 and expected == (layer.kernel_size, layer.stride, layer.dilation, layer.padding)


def _keeps_size(pool: nn.AvgPool2d, size: int) -> bool:
    """Whether an average pooling is the one of `average_pool2d`."""
    shape = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)
    counts_pixels = not pool.count_include_pad and pool.divisor_override is None and not pool.ceil_mode
    return size % 2 == 1 and shape == ((size, size), (1, 1), (size // 2, size // 2)) and counts_pixels


def _pair(n: int | tuple[int, int]) -> tuple[int, int]:
    return (n, n) if isinstance(n, int) else n


def is_zero(operation: nn.Module) -> bool:
    """Whether an operation of NNI's hub gives zeros."""
    return type(operation) in _ZEROS


def hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether anybody listens to the calls of modules, who would hear nothing of a fused one."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)
