"""Torch data sets as arrays: every object is read once, in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from nni_bayes_nas.errors import DataError


def arrays_of(data: Dataset[Any], name: str) -> tuple[Any, Any]:
    """Inputs and targets of all objects.

    A transform that draws at random is drawn from once for every object: augmentation belongs in the configuration.

    Args:
        data: With a length; its objects are pairs (x, y) of equal shapes: arrays, tensors, or PIL images.
        name: Of the data, for errors.

    Raises:
        DataError: It has no length, or an object is no such pair.
    """
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise DataError(f"data `{name}` must have a length, {type(data).__name__} has none; give a map-style data set.")
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return array_of(data.tensors[0], name), array_of(data.tensors[1], name)
    xs: list[Any] = []
    ys: list[Any] = []
    for i in range(len(data)):
        pair = data[i]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise DataError(
                f"objects of data `{name}` must be pairs (x, y), number {i} is a {type(pair).__name__}; let them be."
            )
        x = _pixels(pair[0]) if hasattr(pair[0], "getbands") else array_of(pair[0], name)
        if xs and x.shape != xs[0].shape:
            raise DataError(
                f"objects of data `{name}` must have one shape, number {i} has {x.shape} and the first {xs[0].shape}; "
                "give the data set a transform that resizes them."
            )
        xs.append(x)
        ys.append(array_of(pair[1], name))
    if not xs:
        raise DataError(f"data `{name}` must have objects, got none; check where they are looked for.")
    return np.stack(xs), np.stack(ys)


def array_of(values: Any, name: str) -> Any:
    """One array of numbers, of a tensor on whatever device or of what NumPy takes for one.

    Raises:
        DataError: It is none, like lists of different lengths.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(f"data `{name}` must be arrays of numbers, but one is none: {said}; make it one.") from error


def _pixels(image: Any) -> Any:
    """`(channels, height, width)` of a PIL image."""
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
