"""Data: digits (embedded), MNIST, npz files, a user's own function; and loaders that repeat bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, TensorDataset

from nni_bayes_nas import registry
from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.errors import DataError, NniBayesNasError

_SPLIT_SEED = 20_261_122  # one split for all seeds: test objects of one run are never training objects of another


@dataclass(frozen=True)
class DataSplits:
    """Training, validation and test data: x `(n, channels, height, width)` float32, y `(n,)` int64.

    Inputs are standardized per channel with the mean and sd of the training set.
    """

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    num_classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one object."""
        return tuple(self.train.tensors[0].shape[1:])


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
    x, y, x_test, y_test = _arrays(raw, config.name)
    num_classes = int(y.max()) + 1
    order = np.random.default_rng(_SPLIT_SEED)
    if x_test is None or y_test is None:
        keep, held = _stratified(y, config.test_fraction, order)
        x, y, x_test, y_test = x[keep], y[keep], x[held], y[held]
    train, val = _stratified(y, config.val_fraction, order)
    if config.limit is not None:
        train = train[: config.limit]
    for part, n in (("training", len(train)), ("validation", len(val)), ("test", len(x_test))):
        if n == 0:
            raise DataError(
                f"the {part} set of data `{config.name}` must not be empty, got no object of {len(x)}; "
                "change data.val_fraction, data.test_fraction or data.limit."
            )
    mean = x[train].mean((0, 2, 3), keepdims=True)
    sd = x[train].std((0, 2, 3), keepdims=True) + 1e-6

    def dataset(inputs: Any, targets: Any) -> TensorDataset:
        return TensorDataset(torch.from_numpy((inputs - mean) / sd).float(), torch.from_numpy(targets).long())

    return DataSplits(dataset(x[train], y[train]), dataset(x[val], y[val]), dataset(x_test, y_test), num_classes)


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


def load_digits(config: DataConfig) -> tuple[Any, Any]:
    """scikit-learn's digits: 1,797 real 8x8 images in 10 classes (Alpaydin & Kaynak, 1998); no network."""
    from sklearn import datasets

    digits = datasets.load_digits()
    return digits.images[:, None] / 16.0, digits.target


def load_mnist(config: DataConfig) -> tuple[Any, Any, Any, Any]:
    """MNIST through torchvision: 60,000 + 10,000 images, 28x28."""
    from torchvision.datasets import MNIST

    if config.root is None:
        raise DataError("data.root must name the folder that holds MNIST, got none; add e.g. --set data.root=data.")
    parts = []
    for train in (True, False):
        try:
            data = MNIST(config.root, train=train, download=config.download)
        except RuntimeError as error:
            raise DataError(
                f"data.root must hold MNIST where data.download is false, but {config.root!r} does not "
                f"({str(error).splitlines()[0]}); set data.download=true or another data.root."
            ) from error
        parts += [data.data.numpy()[:, None] / 255.0, data.targets.numpy()]
    return parts[0], parts[1], parts[2], parts[3]


def load_npz(config: DataConfig) -> tuple[Any, ...]:
    """A NumPy archive at `data.path` with x, y and, if there is a test set of its own, x_test, y_test."""
    if config.path is None or not Path(config.path).is_file():
        raise DataError(
            f"data.path must name an .npz file, got {config.path!r}; write one with numpy.savez(path, x=x, y=y)."
        )
    with np.load(config.path, allow_pickle=False) as archive:
        names = set(archive.files)
        if not {"x", "y"} <= names or len(names & {"x_test", "y_test"}) == 1:
            raise DataError(
                f"data.path must hold the arrays x and y, and both or none of x_test and y_test, got {sorted(names)}."
            )
        return tuple(archive[n] for n in ("x", "y", "x_test", "y_test") if n in names)


def _arrays(raw: Any, name: str) -> tuple[Any, Any, Any, Any]:
    if not isinstance(raw, (tuple, list)) or len(raw) not in (2, 4):
        raise DataError(f"data `{name}` must give (x, y) or (x, y, x_test, y_test), got {type(raw).__name__}.")
    arrays = [a.numpy() if isinstance(a, Tensor) else np.asarray(a) for a in raw]
    for x, y in zip(arrays[::2], arrays[1::2], strict=True):
        if x.ndim != 4 or not np.issubdtype(x.dtype, np.number):
            raise DataError(
                f"x of data `{name}` must be numbers (n, channels, height, width), got {x.dtype} {x.shape}."
            )
        if y.ndim != 1 or len(y) != len(x) or not np.issubdtype(y.dtype, np.integer) or (len(y) and y.min() < 0):
            raise DataError(
                f"y of data `{name}` must be {len(x)} class numbers 0, 1, ..., one per object, got {y.dtype} {y.shape}."
            )
        if not np.isfinite(x).all():
            raise DataError(
                f"x of data `{name}` must be finite, but it has NaN or infinite values; clean the data first."
            )
    if len(arrays[0]) < 10 or int(arrays[1].max()) < 1:
        raise DataError(f"data `{name}` must have at least 10 objects in 2 classes, got {len(arrays[0])} objects.")
    if len(arrays) == 4:
        if arrays[2].shape[1:] != arrays[0].shape[1:]:
            raise DataError(
                f"x_test of data `{name}` must have objects of the shape of x, {arrays[0].shape[1:]}, "
                f"got {arrays[2].shape[1:]}."
            )
        if len(arrays[3]) and int(arrays[3].max()) > int(arrays[1].max()):
            raise DataError(
                f"y_test of data `{name}` must hold classes of y, 0 to {int(arrays[1].max())}, "
                f"got {int(arrays[3].max())}."
            )
    x, y = arrays[0].astype(np.float64), arrays[1]
    return (x, y, None, None) if len(arrays) == 2 else (x, y, arrays[2].astype(np.float64), arrays[3])


def _stratified(y: Any, fraction: float, rng: np.random.Generator) -> tuple[Any, Any]:
    """Indices of the rest and of the held-out `fraction`, each class split alike; both shuffled."""
    rest, held = [], []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        n = round(len(members) * fraction)
        held.append(members[:n])
        rest.append(members[n:])
    return rng.permutation(np.concatenate(rest)), rng.permutation(np.concatenate(held))


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
    """A data loader of whole batches; shuffled if a seed is given."""
    from nni.nas.evaluator.pytorch import DataLoader

    return DataLoader(data, sampler=EpochBatches(len(data), batch_size, seed), batch_size=None)


def halves(data: TensorDataset, fraction: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Split for the bilevel search: objects for the weights, and the `fraction` for the structure."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    n = round(len(data) * fraction)
    parts = order[n:], order[:n]
    if min(len(p) for p in parts) < 1:
        raise DataError(f"search.structure_fraction must leave objects for both steps, got {fraction} of {len(data)}.")
    first, second = (TensorDataset(*(t[part] for t in data.tensors)) for part in parts)
    return first, second
