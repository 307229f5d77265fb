"""Splits and standardization: vectors, images of 8 bits, regression targets; what does not fit is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from nni_bayes_nas.config import Config, DataConfig
from nni_bayes_nas.errors import ConfigError, DataError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.data import (
    KEPT,
    DataSplits,
    Images,
    batches,
    halves,
    load_data,
    load_data_on,
    part_of,
)


def npz(folder: Path, **arrays: Any) -> DataConfig:
    """Arrays in a file; what is no array is an option of the data."""
    options = {name: arrays.pop(name) for name in list(arrays) if not isinstance(arrays[name], np.ndarray)}
    np.savez(folder / "a.npz", **arrays)
    return DataConfig(name="npz", path=str(folder / "a.npz"), **options)


def parts(data: DataSplits) -> list[torch.Tensor]:
    return [tensor for part in (data.train, data.val, data.test) for tensor in part.tensors]


def test_the_split_of_digits_never_changes() -> None:
    """Numbers in results of earlier versions stay comparable: the same objects, the same bits."""
    hashes = [hashlib.sha256(t.numpy().tobytes()).hexdigest()[:12] for t in parts(load_data(DataConfig()))]
    assert hashes[1::2] == ["b8e9519ca082", "2ea13c4d4b82", "a5dac5e438be"]
    assert hashes[::2] == ["02101f31ce83", "3e31d8524b75", "8a8a9ad47372"]


def test_another_split_for_validation_leaves_the_test_data_alone() -> None:
    usual, zero, one = (load_data(DataConfig(val_split=n)) for n in (None, 0, 1))
    for other in (zero, one):
        # The scale is that of the other training data.
        raw, same = (d.test.tensors[0] * d.sd + d.mean for d in (other, usual))
        assert torch.allclose(raw, same, atol=1e-4) and torch.equal(other.test.tensors[1], usual.test.tensors[1])
        assert len(other.val) == len(usual.val) and not torch.equal(other.val.tensors[1], usual.val.tensors[1])
    assert not torch.equal(zero.val.tensors[1], one.val.tensors[1])
    again = load_data(DataConfig(val_split=1))
    assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(again), strict=True))


def test_vectors_are_standardized_per_feature(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([1e3, 0.0, -5.0], [1e2, 1e-3, 4.0], (200, 3)).astype(np.float32)
    x = np.concatenate([x, np.full((200, 1), 0.1, np.float32)], 1)
    data = load_data(npz(tmp_path, x=x, y=np.arange(200) % 4))
    train = data.train.tensors[0].double()
    assert data.shape == (4,) and data.num_classes == 4
    assert torch.allclose(train.mean(0), torch.zeros(4).double(), atol=1e-3)
    assert torch.allclose(train[:, :3].std(0, correction=0), torch.ones(3).double(), atol=1e-3)
    # A feature that never varies must not explode.
    assert float(train[:, 3].abs().max()) < 1e-6


def test_images_of_8_bits_are_standardized_as_floats_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (120, 3, 5, 4), dtype=np.uint8)
    y = np.arange(120) % 3
    small = load_data(npz(tmp_path, x=x, y=y))
    large = load_data(npz(tmp_path, x=x / 255.0, y=y))
    for part in ("train", "val", "test"):
        ours, theirs = getattr(small, part), getattr(large, part)
        assert all(torch.equal(a, b) for a, b in zip(ours[:], theirs[:], strict=True))
        assert all(
            torch.equal(a, b) for a, b in zip(ours[torch.tensor([3, 1])], theirs[torch.tensor([3, 1])], strict=True)
        )
        assert torch.equal(ours[2][0], theirs[2][0])
        assert (ours.tensors[0].dtype, ours[:][0].dtype) == (torch.uint8, torch.float32)
    assert small.n_bytes < large.n_bytes / 3


def test_parts_of_images_are_images(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (120, 3, 5, 4), dtype=np.uint8)
    data = load_data(npz(tmp_path, x=x, y=np.arange(120) % 3)).train
    for part in halves(data, 0.5, 0):
        assert isinstance(part, Images) and any(torch.equal(part[0][0], one) for one in data[:][0])
    assert torch.equal(part_of(data, slice(2, 5))[:][0], data[2:5][0])
    some = next(iter(batches(data, 7, seed=0)))[0]
    assert some.shape == (7, 3, 5, 4) and some.dtype == torch.float32
    there = load_data(npz(tmp_path, x=x, y=np.arange(120) % 3)).to("meta")
    assert there.train[:][0].device.type == "meta" and there.shape == (3, 5, 4)


def test_test_data_of_their_own_take_the_moments_of_the_training_data(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 2
    data = load_data(npz(tmp_path, x=x, y=y, x_test=x + 10.0, y_test=y))
    assert len(data.test) == 50 and torch.equal(data.test.tensors[1], torch.from_numpy(y))
    assert float(data.test.tensors[0].mean()) > 5.0


def test_regression_targets_are_standardized_with_the_training_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 2)), rng.normal(1e6, 30.0, 100)
    data = load_data(npz(tmp_path, x=x, y=y, task="regression"))
    assert data.task == "regression" and data.num_classes == 1
    train = data.train.tensors[1]
    assert train.dtype == torch.float32 and abs(float(train.mean())) < 1e-5
    assert float(train.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    back = torch.cat(parts(data)[1::2]).double() * data.target_sd + data.target_mean
    assert np.allclose(np.sort(back.numpy()), np.sort(y), atol=1e-3)


def test_every_object_keeps_its_target(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(size=90)
    for limits in ({}, {"limit": 20, "val_limit": 5}):
        data = load_data(npz(tmp_path, x=np.stack([y, 2 * y], 1), y=y, task="regression", **limits))
        for part in (data.train, data.val, data.test):
            assert torch.allclose(part.tensors[0][:, 0] * 0 + part.tensors[1], part.tensors[0][:, 1], atol=0.5)
            order = part.tensors[0][:, 0].argsort()
            assert torch.equal(order, part.tensors[1].argsort())


def test_val_limit_keeps_the_first_validation_objects() -> None:
    full, cut = load_data(DataConfig()), load_data(DataConfig(val_limit=50))
    assert len(cut.val) == 50
    assert all(torch.equal(a[:50], b) for a, b in zip(full.val.tensors, cut.val.tensors, strict=True))
    assert torch.equal(full.train.tensors[0], cut.train.tensors[0])
    assert torch.equal(full.test.tensors[0], cut.test.tensors[0])


def test_skip_and_limit_take_a_part_of_the_training_objects() -> None:
    whole = load_data(DataConfig()).train.tensors[1]
    part = load_data(DataConfig(skip=100, limit=50))
    assert torch.equal(part.train.tensors[1], whole[100:150])
    assert torch.equal(part.test.tensors[1], load_data(DataConfig()).test.tensors[1])


def test_class_numbers_may_be_regression_targets() -> None:
    data = load_data(DataConfig(task="regression"))
    assert data.num_classes == 1 and len(torch.unique(data.train.tensors[1])) == 10


def test_classes_may_be_missing_in_every_part(tmp_path: Path) -> None:
    """Of all targets none is missing: one class has a single object, which the validation set cannot have."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.r_[np.arange(60) % 6, 6])
    x = rng.normal(size=(len(y), 2))
    for values in ({}, {"x_test": x[:4], "y_test": np.full(4, 5)}):
        data = load_data(npz(tmp_path, x=x, y=y, limit=3, val_limit=2, **values))
        assert data.num_classes == 7
        assert max(len(torch.unique(targets)) for targets in parts(data)[1::2]) < 7


GOOD = np.random.default_rng(0).normal(size=(40, 3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": GOOD, "y": GOOD[:, 0]}, r"class numbers.*data\.task: regression"),
        ({"x": GOOD, "y": np.array(["a", "b"] * 20)}, r"class numbers.*return_inverse"),
        ({"x": GOOD, "y": np.arange(40) % 2 - 1}, "class numbers"),
        ({"x": GOOD, "y": np.zeros(40, int)}, "2 classes"),
        ({"x": GOOD, "y": np.ones(40, int)}, r"1 class\(es\)"),
        ({"x": GOOD, "y": np.arange(40) % 4 + 1}, "4 numbers up to 4 without 0; .*return_inverse.*task: regression"),
        ({"x": GOOD, "y": np.arange(40) % 2 * 2}, "2 numbers up to 2 without 1;"),
        ({"x": GOOD, "y": np.arange(40, dtype=np.uint8) * 3 + 25}, "40 numbers up to 142 without 0;"),
        ({"x": GOOD, "y": np.array(["a", "b"] * 20), "task": "regression"}, r"real numbers.*classification"),
        ({"x": GOOD, "y": np.where(np.arange(40) == 3, np.nan, 1.0), "task": "regression"}, "y of .* must be finite"),
        ({"x": GOOD, "y": np.ones(40), "task": "regression"}, "targets differ"),
        ({"x": GOOD, "y": GOOD[:, :1], "task": "regression"}, r"targets \(n,\), one per object"),
        ({"x": GOOD, "y": GOOD[:9, 0], "task": "regression"}, "one per object"),
        ({"x": GOOD[:9], "y": GOOD[:9, 0], "task": "regression"}, "at least 10 objects"),
        ({"x": np.where(GOOD > 2, np.inf, GOOD), "y": np.arange(40) % 2}, "x of .* must be finite"),
        ({"x": GOOD[:, :, None], "y": np.arange(40) % 2}, r"\(n, features\)"),
        ({"x": GOOD + 0j, "y": np.arange(40) % 2}, r"\(n, features\)"),
        ({"x": np.zeros((40, 8, 8, 3)), "y": np.arange(40) % 2}, r"channels come last; give x.transpose\(0, 3, 1, 2\)"),
        ({"x": GOOD[:, :0], "y": np.arange(40) % 2}, r"\(n, features\)"),
        ({"x": GOOD, "y": GOOD[:, 0], "task": "regression", "val_limit": 1}, "at least 2 object"),
        ({"x": GOOD, "y": np.arange(40) % 2, "x_test": GOOD, "y_test": GOOD[:, 0]}, "classes of y"),
        ({"x": GOOD, "y": np.arange(40) % 2, "x_test": GOOD, "y_test": np.arange(40) % 2 - 1}, "classes of y"),
        ({"x": GOOD, "y": GOOD[:, 0], "x_test": GOOD, "y_test": np.full(40, np.inf), "task": "regression"}, "y_test"),
    ],
)
def test_data_that_do_not_fit_the_task_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_data(npz(tmp_path, **values))
    assert len(str(caught.value).splitlines()) <= 3


class Objects(Dataset):
    """Pairs of a picture and its class, drawn from arrays, as a user's own data set gives them."""

    def __init__(self, x: Any, y: Any, kind: str = "tensor") -> None:
        self.x, self.y, self.kind = x, y, kind

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        x = self.x[index]
        if self.kind == "image":
            return Image.fromarray(x.transpose(1, 2, 0)), int(self.y[index])
        if self.kind == "ragged" and index == 3:
            return x[:, :2], self.y[index]
        return x if self.kind == "alone" else (torch.from_numpy(x), self.y[index])


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(())


def given(raw: Any, monkeypatch: pytest.MonkeyPatch) -> DataSplits:
    """Of a function of the user's that returns this."""
    monkeypatch.setattr("nni_bayes_nas.registry.resolve", lambda *_: lambda: raw)
    return load_data(DataConfig(name="mine:load"))


def test_torch_data_sets_are_read_as_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 3, 5, 4), dtype=np.uint8)
    y = np.arange(60) % 3
    whole = parts(given((x, y), monkeypatch))
    for one in (Objects(x, y), Objects(x, y, "image"), TensorDataset(torch.from_numpy(x), torch.from_numpy(y))):
        assert all(torch.equal(a, b) for a, b in zip(parts(given(one, monkeypatch)), whole, strict=True))
    both = given((Objects(x[:40], y[:40]), Objects(x[40:], y[40:])), monkeypatch)
    assert both.test.tensors[1].tolist() == y[40:].tolist() and len(both.train) + len(both.val) == 40
    # Tensors of any kind: those of a graph, and of half the bits.
    floats = torch.from_numpy(x[:, :, 0, 0]).float().requires_grad_().bfloat16()
    assert given((floats, torch.from_numpy(y)), monkeypatch).shape == (3,)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (Objects(GOOD, np.arange(40) % 2, "alone"), r"pairs \(x, y\), number 0 is a ndarray"),
        (Objects(np.zeros((40, 3, 4, 4)), np.arange(40) % 2, "ragged"), r"one shape, number 3 has \(3, 2, 4\)"),
        (Objects(GOOD[:0], GOOD[:0, 0]), "must have objects, got none"),
        (Endless(), "must have a length, Endless has none"),
        (({"a": 1},), "or one or two torch data sets, got tuple"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "must be arrays of numbers, but one is none"),
    ],
)
def test_what_is_no_data_set_is_refused(raw: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=message):
        given(raw, monkeypatch)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"name": "diabetes", "task": "regression"}}, r"shape \(10,\).*space\.name=dense"),
        ({"data": {"name": "diabetes", "task": "regression"}, "space": {"name": "chain"}}, "space.name=dense"),
        ({"data": {"name": "diabetes"}, "space": {"name": "dense"}}, r"data\.task: regression"),
        (
            {"data": {"task": "regression"}, "space": {"name": "chain", "args": {"num_classes": 10}}},
            "one real target.*10 outputs",
        ),
        ({"space": {"name": "dense", "args": {"in_features": 3}}}, "forward pass"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate(Config.from_dict(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "regresion"}, "did you mean 'regression'"),
        ({"val_limit": 0}, "data.val_limit"),
        ({"image_size": 0}, "data.image_size"),
        ({"grayscale": "yes"}, "true or false"),
    ],
)
def test_options_of_the_data_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({"data": values})


def test_regression_takes_spaces_of_images_too() -> None:
    validate(Config.from_dict({"data": {"task": "regression"}, "space": {"name": "chain"}}))


def test_data_go_to_a_gpu_where_they_are_wanted_and_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(DataConfig())
    assert data.n_bytes == 1797 * (64 * 4 + 8)
    n_bytes = (1797 + len(data.train)) * (64 * 4 + 8)  # of what a search has, the halves of the training data included
    monkeypatch.setattr(DataSplits, "to", lambda self, device: device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 * n_bytes, 80 << 30))
    assert load_data_on("gpu", DataConfig()) == "cuda"
    for device, config, free in (
        ("cpu", DataConfig(), 4 * n_bytes),
        ("gpu", DataConfig(on_gpu=False), 4 * n_bytes),
        ("gpu", DataConfig(), 4 * n_bytes - 1),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 << 30))
        assert isinstance(load_data_on(device, config), DataSplits)


def test_trainings_side_by_side_load_equal_data_once() -> None:
    shared: dict[str, Any] = {}
    first, second, other = (load_data_on("cpu", DataConfig(limit=n), shared) for n in (50, 50, 60))
    assert first is second and len(first.train) == 50 and len(other.train) == 60
    assert load_data_on("cpu", DataConfig(limit=50)) is not first


def test_data_on_another_device_are_the_same() -> None:
    data = load_data(DataConfig())
    there = data.to("meta")
    assert there.n_bytes == data.n_bytes and there.shape == data.shape and there.mean is data.mean
    assert {t.device.type for part in (there.train, there.val, there.test) for t in part.tensors} == {"meta"}
    (part, _) = halves(there.train, 0.5, 0)
    x, y = next(iter(batches(part, 64, seed=0)))
    assert x.device.type == y.device.type == "meta" and x.shape == (64, 1, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_of_data_on_a_gpu_are_those_of_the_others() -> None:
    data = load_data(DataConfig())
    there = load_data_on("gpu", DataConfig())
    for here, on_gpu in zip(batches(data.train, 64, seed=3), batches(there.train, 64, seed=3), strict=True):
        assert all(b.is_cuda and torch.equal(a, b.cpu()) for a, b in zip(here, on_gpu, strict=True))


def test_a_process_keeps_the_data_it_loaded_last_where_it_is_told_to() -> None:
    one, other = DataConfig(limit=100), DataConfig(limit=90)
    assert load_data_on("cpu", one) is not load_data_on("cpu", one)
    token = KEPT.set({})
    try:
        first = load_data_on("cpu", one)
        assert load_data_on("cpu", one) is first
        # What trainings side by side share is theirs.
        shared: dict[str, Any] = {}
        assert load_data_on("cpu", one, shared) is load_data_on("cpu", one, shared) is not first
        assert len(load_data_on("cpu", other).train) == 90
        assert load_data_on("cpu", one) is not first
    finally:
        KEPT.reset(token)
