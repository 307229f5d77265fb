"""Splits and loaders: training, validation and test data, standardized, in batches that repeat bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, TensorDataset

from nni_bayes_nas import registry
from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.errors import DataError, NniBayesNasError
from nni_bayes_nas.experiment.data_objects import array_of, arrays_of
from nni_bayes_nas.experiment.tasks import Task, task_of

_SPLIT_SEED = 20_261_122  # one split for all seeds: test objects of one run are never training objects of another
_SHARE_OF_MEMORY = 0.25  # of a GPU, that the data may take; the rest is for the network
BATCH_OF_FIRST = 128
# Where it holds a mapping, this process keeps the data set that it loaded last: for processes that run many trainings
# of one data set, whose files do not change.
KEPT: ContextVar[dict[str, DataSplits] | None] = ContextVar("KEPT", default=None)
_CHUNK = 4096  # objects that are standardized at a time: double precision for all of them may not fit the memory


class Images(TensorDataset):
    """Images of 8-bit values, which are standardized when they are taken out: a quarter of the memory.

    Args:
        pixels: `(n, channels, height, width)`, uint8; the first of `tensors`.
        targets: `(n,)`.
        levels: What each of the 256 values of a channel becomes, `(channels, 256)`, float32.
    """

    def __init__(self, pixels: Tensor, targets: Tensor, levels: Tensor) -> None:
        super().__init__(pixels, targets)
        self.levels = levels

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        whole = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32) and index.dim() == 1
        pixels, targets = (t.index_select(0, index.to(t.device)) if whole else t[index] for t in self.tensors)
        channels = len(self.levels)
        first = torch.arange(0, 256 * channels, 256, dtype=torch.int32, device=pixels.device).reshape(-1, 1, 1)
        at = (pixels + first).flatten()
        return self.levels.flatten().index_select(0, at).reshape(pixels.shape), targets


def part_of(data: TensorDataset, index: Any) -> TensorDataset:
    """Some objects of a data set, in a set of its kind; an index tensor copies them, a slice does not."""
    x, y = (t[index] for t in data.tensors)
    return Images(x, y, data.levels) if isinstance(data, Images) else TensorDataset(x, y)


@dataclass(frozen=True)
class DataSplits:
    """Training, validation and test data.

    x is `(n, features)` or `(n, channels, height, width)` float32, standardized per feature or channel with the mean
    and sd of the training set; images of 8-bit values are kept as they are, see `Images`. y is `(n,)`: class numbers,
    int64; or for regression targets standardized with the training mean and sd, float32.

    Attributes:
        num_classes: Outputs that a network needs: one per class, or 1 for regression.
        mean: What was subtracted from x, float32, `(1, features)` or `(1, channels, 1, 1)`.
        sd: What x was divided by, as `mean`.
        task: Name of the task.
        target_mean: What was subtracted from the targets; 0 for classes.
        target_sd: What they were divided by; 1 for classes.
    """

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    num_classes: int
    mean: Tensor
    sd: Tensor
    task: str = "classification"
    target_mean: float = 0.0
    target_sd: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one object."""
        return tuple(self.train.tensors[0].shape[1:])

    @property
    def n_bytes(self) -> int:
        """Memory that the objects and targets of all parts take."""
        return sum(t.nbytes for part in (self.train, self.val, self.test) for t in part.tensors)

    def to(self, device: torch.device | str) -> DataSplits:
        """The same, objects and targets in the memory of a device."""

        def moved(part: TensorDataset) -> TensorDataset:
            x, y = (t.to(device) for t in part.tensors)
            return Images(x, y, part.levels.to(device)) if isinstance(part, Images) else TensorDataset(x, y)

        return dataclasses.replace(self, train=moved(self.train), val=moved(self.val), test=moved(self.test))


def load_data(config: DataConfig) -> DataSplits:
    """The data set of a configuration, split and standardized.

    Raises:
        DataError: If data are missing or do not have the form that is asked for.
    """
    loader, args = data_arguments(config)
    try:
        raw = loader(config) if config.name in registry.DATA_SETS else loader(**args)
    except NniBayesNasError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"data `{config.name}` must load, but loading failed: {said}") from error
    task = task_of(config)
    x, y, x_test, y_test = _arrays(raw, config.name, task)
    del raw
    n_objects, outputs = len(x), task.outputs(y)
    order = np.random.default_rng(_SPLIT_SEED)
    if x_test is None or y_test is None:
        keep, held = task.split(y, config.test_fraction, order)
        x, y, x_test, y_test = x[keep], y[keep], x[held], y[held]
    if config.val_split is not None:
        order = np.random.default_rng([_SPLIT_SEED, config.val_split])
    train, val = task.split(y, config.val_fraction, order)
    train, val = train[config.skip :][: config.limit], val[: config.val_limit]
    for part, n, least in (
        ("training", len(train), 1),
        ("validation", len(val), task.least),
        ("test", len(x_test), task.least),
    ):
        if n < least:
            raise DataError(
                f"the {part} set of data `{config.name}` must have at least {least} object(s), got {n} of {n_objects}; "
                "change data.val_fraction, data.test_fraction, data.skip, data.limit or data.val_limit."
            )
    mean, sd = _moments(x[train])
    target_mean, target_sd = task.scale(y[train])

    def dataset(inputs: Any, part: Any, targets: Any) -> TensorDataset:
        encoded = torch.from_numpy(task.encode(targets[part], target_mean, target_sd))
        if inputs.dtype == np.uint8 and inputs.ndim == 4:
            return Images(torch.from_numpy(inputs[part]), encoded, _levels(mean, sd))
        return TensorDataset(_standardized(inputs, part, mean, sd), encoded)

    return DataSplits(
        dataset(x, train, y),
        dataset(x, val, y),
        dataset(x_test, np.arange(len(x_test)), y_test),
        outputs,
        torch.from_numpy(mean).float(),
        torch.from_numpy(sd).float(),
        task.name,
        target_mean,
        target_sd,
    )


def load_data_on(device: str, config: DataConfig, shared: dict[str, Any] | None = None) -> DataSplits:
    """`load_data`, in the memory of the device where the configuration wants it and there is room.

    Args:
        device: "cpu" or "gpu".
        config: Of the data.
        shared: What trainings side by side have in common: equal data are loaded once. Others load them anew, unless
            `KEPT` holds a mapping.
    """
    kept = KEPT.get() if shared is None else None
    known = kept if kept is not None else {} if shared is None else shared.setdefault("data", {})
    key = repr((device, config))
    if key not in known:
        if kept is not None:
            kept.clear()  # before the next is loaded: both may not fit the memory
        known[key] = _placed(load_data(config), device, config.on_gpu)
    found: DataSplits = known[key]
    return found


def _placed(data: DataSplits, device: str, wanted: bool) -> DataSplits:
    if device != "gpu" or not wanted:
        return data
    free, _ = torch.cuda.mem_get_info()
    # A search takes the halves of the training data out of it, which copies them.
    needed = data.n_bytes + sum(t.nbytes for t in data.train.tensors)
    return data.to("cuda") if needed <= free * _SHARE_OF_MEMORY else data


def data_arguments(config: DataConfig) -> tuple[Any, dict[str, Any]]:
    """The function that loads the data, and the arguments of a user's own with their defaults filled in.

    Raises:
        ConfigError: The function is unknown, or does not take these arguments.
    """
    loader = registry.resolve("data set", config.name, registry.DATA_SETS)
    if config.name not in registry.DATA_SETS:
        return loader, registry.fill_args(loader, config.args, "data.args")
    if config.args:
        raise DataError(f"data.args are for a function of your own, but data `{config.name}` takes none; remove them.")
    return loader, {}


def _arrays(raw: Any, name: str, task: Task) -> tuple[Any, Any, Any, Any]:
    if isinstance(raw, Dataset):
        raw = arrays_of(raw, name)
    elif isinstance(raw, (tuple, list)) and len(raw) == 2 and all(isinstance(part, Dataset) for part in raw):
        raw = (*arrays_of(raw[0], name), *arrays_of(raw[1], name))
    if not isinstance(raw, (tuple, list)) or len(raw) not in (2, 4):
        raise DataError(
            f"data `{name}` must give (x, y) or (x, y, x_test, y_test), or one or two torch data sets, got "
            f"{type(raw).__name__}."
        )
    arrays = [array_of(a, name) for a in raw]
    for x, y in zip(arrays[::2], arrays[1::2], strict=True):
        if x.ndim not in (2, 4) or not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x) or 0 in x.shape[1:]:
            raise DataError(
                f"x of data `{name}` must be numbers (n, features) or (n, channels, height, width), "
                f"got {x.dtype} {x.shape}; for gray images add the axis of the channel: x[:, None]."
            )
        if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] == x.shape[2] > 4:
            raise DataError(
                f"x of data `{name}` must be (n, channels, height, width), got {x.shape}, where channels come last; "
                "give x.transpose(0, 3, 1, 2)."
            )
        if y.ndim != 1 or len(y) != len(x):
            raise DataError(
                f"y of data `{name}` must be {len(x)} targets (n,), one per object, got {y.dtype} {y.shape}."
            )
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            raise DataError(
                f"x of data `{name}` must be finite, but it has NaN or infinite values; clean the data first."
            )
    task.check(arrays[1], name)
    if len(arrays) == 2:
        return arrays[0], arrays[1], None, None
    if arrays[2].shape[1:] != arrays[0].shape[1:] or (arrays[2].dtype == np.uint8) != (arrays[0].dtype == np.uint8):
        raise DataError(
            f"x_test of data `{name}` must have objects of the shape of x, {arrays[0].dtype} {arrays[0].shape[1:]}, "
            f"got {arrays[2].dtype} {arrays[2].shape[1:]}."
        )
    task.check_test(arrays[1], arrays[3], name)
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _moments(x: Any) -> tuple[Any, Any]:
    """Mean and standard deviation per channel or feature in double precision, shaped to be broadcast against `x`.

    8-bit values count as v / 255; their sums are exact and need no copy in double precision.
    """
    axes = (0, *range(2, x.ndim))
    if x.dtype == np.uint8:
        counts = np.zeros((x.shape[1], 256), dtype=np.int64)
        for start in range(0, len(x), _CHUNK):
            chunk = x[start : start + _CHUNK]
            counts += np.stack([np.bincount(chunk[:, c].ravel(), minlength=256) for c in range(x.shape[1])])
        levels = np.arange(256) / 255.0
        mean = (counts @ levels) / counts.sum(1)
        spread = (counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, sd = mean.reshape(shape), np.sqrt(spread).reshape(shape)
    else:
        mean, sd = x.mean(axes, keepdims=True, dtype=np.float64), x.std(axes, keepdims=True, dtype=np.float64)
    if x.ndim == 4:
        return mean, sd + 1e-6
    # A feature that never varies in the training data says nothing: it must not explode where it does vary.
    return mean, np.where(sd > 1e-9 * np.abs(mean), sd, 1.0)


def _levels(mean: Any, sd: Any) -> Tensor:
    """What standardization makes of 8-bit values, by channel."""
    levels = (np.arange(256) / 255.0 - mean.reshape(-1, 1)) / sd.reshape(-1, 1)
    return torch.from_numpy(levels.astype(np.float32))


def _standardized(x: Any, part: Any, mean: Any, sd: Any) -> Tensor:
    result = np.empty((len(part), *x.shape[1:]), dtype=np.float32)
    for start in range(0, len(part), _CHUNK):
        chunk = x[part[start : start + _CHUNK]]
        values = chunk / 255.0 if chunk.dtype == np.uint8 else chunk.astype(np.float64)
        result[start : start + _CHUNK] = (values - mean) / sd
    return torch.from_numpy(result)


class EpochBatches(Sampler[Tensor]):
    """Index tensors of the batches of an epoch, shuffled by (seed, epoch) alone, so that a resumed run repeats them.

    Lightning calls `set_epoch`. For a `DataLoader` with `batch_size=None`, over a data set that takes index tensors.

    Args:
        n: Number of objects.
        batch_size: Objects per batch.
        seed: Of the order; None keeps the order of the data and the incomplete last batch.
    """

    def __init__(self, n: int, batch_size: int, seed: int | None) -> None:
        self.n = n
        self.batch_size = min(batch_size, n)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size if self.seed is not None else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.seed is None:
            order = torch.arange(self.n)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.n, generator=generator)
        for i in range(len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]


def batches(data: TensorDataset, batch_size: int, *, seed: int | None) -> Any:
    """A data loader of whole batches; shuffled if a seed is given.

    Without a seed no batch holds a single object, which batch normalization of vectors cannot take: it grows instead.
    """
    from nni.nas.evaluator.pytorch import DataLoader

    while seed is None and len(data) % batch_size == 1 < len(data):
        batch_size += 1
    return DataLoader(data, sampler=EpochBatches(len(data), batch_size, seed), batch_size=None)


def first_batches(data: TensorDataset, n: int, device: torch.device) -> list[list[Tensor]]:
    """Batches of the first `n` objects, in the memory of a device: to calibrate a network by, or to look at one."""
    return [[t.to(device) for t in batch] for batch in batches(part_of(data, slice(n)), BATCH_OF_FIRST, seed=None)]


def halves(data: TensorDataset, fraction: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Split for the bilevel search: objects for the weights, and the `fraction` for the structure."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    n = round(len(data) * fraction)
    parts = order[n:], order[:n]
    if min(len(p) for p in parts) < 1:
        raise DataError(f"search.structure_fraction must leave objects for both steps, got {fraction} of {len(data)}.")
    first, second = (part_of(data, part) for part in parts)
    return first, second


def steps_per_epoch(data: TensorDataset, fraction: float, batch_size: int) -> int:
    """Of a search, whose smaller part begins anew where it ends; see `halves`."""
    return max(len(batches(part, batch_size, seed=0)) for part in halves(data, fraction, 0))
