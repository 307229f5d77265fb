"""Networks that are differentiated twice: layers whose second derivatives cost less than torch's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nni_bayes_nas.layers.batch_norm import batch_norm
from nni_bayes_nas.layers.convolution import conv2d
from nni_bayes_nas.precision import Autocast


class DifferentiatedTwice(TorchFunctionMode):
    """Inside the block, 2d convolutions and batch normalizations in training are those of this package.

    They compute the same, by whatever module they are called; the gradients of what is computed inside may be
    differentiated once. On other devices than a CPU, under autocast, in half precision and without gradients torch's
    own stay.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for each of its functions."""
        replacement = _REPLACEMENTS.get(func)
        result = None if replacement is None or not torch.is_grad_enabled() else replacement(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if not (_plain(input) and input.dim() == 4) or isinstance(padding, str):
        return None
    return conv2d(input, weight, bias, stride, padding, dilation, groups)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    # A single value per channel is left to torch, which refuses it.
    if not (training and _plain(input)) or input.numel() == input.shape[1]:
        return None
    return batch_norm(input, running_mean, running_var, weight, bias, momentum=momentum, eps=eps)


def _plain(x: Tensor) -> bool:
    """Whether x lies on a CPU, and nothing casts between precisions."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not Autocast.now("cpu").enabled


# By the functions as torch hands them to a mode.
_REPLACEMENTS: dict[Any, Callable[..., Tensor | None]] = {F.conv2d: _conv2d, F.batch_norm: _batch_norm}
