"""The built-in data sets: files as torchvision stores them, folders of images, tables; what is missing is said."""

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.errors import DataError
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.data_sets import load_image_folder


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: two zero bytes, type 8 (unsigned byte), axes, lengths, values."""
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_fashion_mnist_from_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    written = {}
    for word, n in (("train", 80), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        write_idx(folder / f"{word}-images-idx3-ubyte", images)
        write_idx(folder / f"{word}-labels-idx1-ubyte", labels)
        written[word] = images, labels
    data = load_data(DataConfig(name="fashion_mnist", root=str(tmp_path)))
    assert data.shape == (1, 28, 28) and data.num_classes == 10 and len(data.test) == 20
    assert data.test.tensors[1].tolist() == written["t10k"][1].tolist()
    got = data.test[:][0].flatten().double()
    assert float(torch.corrcoef(torch.stack([got, torch.from_numpy(written["t10k"][0]).flatten().double()]))[0, 1]) > (
        1 - 1e-9
    )


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    """Color images, channels first; the checksums are the original's, so the test's own files pass unchecked."""
    original = getattr(torchvision.datasets, kind)
    monkeypatch.setattr(original, "_check_integrity", lambda self: True)
    folder = tmp_path / original.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    key = "labels" if kind == "CIFAR10" else "fine_labels"
    n_classes = 10 if kind == "CIFAR10" else 100
    for file, _ in [*original.train_list, *original.test_list]:
        pixels = rng.integers(0, 256, (200, 3 * 32 * 32), dtype=np.uint8)
        content = {"data": pixels, key: [i % n_classes for i in range(200)]}
        (folder / file).write_bytes(pickle.dumps(content))
    meta = {original.meta["key"]: [str(i) for i in range(n_classes)]}
    (folder / original.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load_data(DataConfig(name=name, root=str(tmp_path), val_fraction=0.5))
    assert data.shape == (3, 32, 32) and data.num_classes == n_classes and len(data.test) == 200
    last = pixels.reshape(200, 3, 32, 32)
    got = data.test[:][0]
    for channel in range(3):
        pair = torch.stack([got[:, channel].flatten().double(), torch.from_numpy(last[:, channel]).flatten().double()])
        assert float(torch.corrcoef(pair)[0, 1]) > 1 - 1e-9


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"data\.download"):
        load_data(DataConfig(name=name, root=str(tmp_path)))
    with pytest.raises(DataError, match=r"data\.root must name"):
        load_data(DataConfig(name=name))


def test_diabetes_is_a_table_of_real_targets() -> None:
    data = load_data(DataConfig(name="diabetes", task="regression"))
    assert data.shape == (10,) and sum(len(part) for part in (data.train, data.val, data.test)) == 442
    assert 140 < data.target_mean < 165 and 70 < data.target_sd < 85


def paint(path: Path, color: Any, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def folder_of(root: Path, n: int = 8, **options: Any) -> Path:
    for i in range(n):
        paint(root / "red" / f"{i}.png", (200 + i, 0, 0), **options)
        paint(root / "blue" / "deeper" / f"{i}.jpeg", (0, 0, 200 + i), **options)
    (root / ".hidden").mkdir()
    (root / "notes.txt").write_text("no class")
    return root


def test_image_folder_numbers_classes_by_name(tmp_path: Path) -> None:
    config = DataConfig(name="image_folder", root=str(folder_of(tmp_path / "images")))
    x, y = load_image_folder(config)
    assert x.dtype == np.uint8 and x.shape == (16, 3, 6, 6)
    # Blue comes first.
    assert (x[y == 0][:, 2] > 150).all() and (x[y == 1][:, 0] >= 200).all() and (x[y == 1][:, 2] == 0).all()
    data = load_data(config)
    assert data.shape == (3, 6, 6) and data.num_classes == 2


def test_image_folder_with_a_test_set(tmp_path: Path) -> None:
    folder_of(tmp_path / "train")
    paint(tmp_path / "test" / "red" / "0.png", (255, 0, 0))
    paint(tmp_path / "test" / "red" / "1.png", (250, 0, 0))
    data = load_data(DataConfig(name="image_folder", root=str(tmp_path)))
    assert data.test.tensors[1].tolist() == [1, 1]
    paint(tmp_path / "test" / "green" / "0.png", (0, 255, 0))
    with pytest.raises(DataError, match="green"):
        load_data(DataConfig(name="image_folder", root=str(tmp_path)))


def test_images_are_resized_without_being_squeezed(tmp_path: Path) -> None:
    """Of a wide image the middle square is kept."""
    for i, name in enumerate(("a", "b")):
        image = Image.new("RGB", (40, 10), (0, 0, 0))
        image.paste((255, 255, 255), (15, 0, 25, 10))
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
        paint(tmp_path / name / "1.png", 100 * i, size=(7, 9), mode="L")
    config = DataConfig(name="image_folder", root=str(tmp_path), image_size=5)
    x, _ = load_image_folder(config)
    assert x.shape == (4, 3, 5, 5) and (x[0] > 200).all() and (x[0, :, :, 1:4] == 255).all()
    gray, _ = load_image_folder(DataConfig(name="image_folder", root=str(tmp_path), image_size=5, grayscale=True))
    assert gray.shape == (4, 1, 5, 5)
    with pytest.raises(DataError, match=r"one size.*data\.image_size"):
        load_image_folder(DataConfig(name="image_folder", root=str(tmp_path)))


def test_images_of_16_bits_and_turned_ones(tmp_path: Path) -> None:
    """The upper eight bits are kept; what a camera has turned is turned back."""
    wide = np.full((4, 6), 1000, np.uint16)
    wide[0] = 65_535
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 6), 200, np.uint16)).save(tmp_path / name / "2.png")  # dark, with the others' scale
        Image.fromarray(wide).save(tmp_path / name / "0.png")
        turned = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(6, 4))
        exif = turned.getexif()
        exif[0x0112] = 6  # to be turned clockwise
        turned.save(tmp_path / name / "1.png", exif=exif)
    x, _ = load_image_folder(DataConfig(name="image_folder", root=str(tmp_path), grayscale=True))
    assert x.shape == (6, 1, 4, 6) and (x[0, 0, 0] == 255).all() and (x[0, 0, 1:] == 1000 >> 8).all()
    assert (x[2] == 0).all()
    assert x[1, 0].tolist() == np.rot90(np.arange(24).reshape(6, 4), -1).tolist()


def test_image_folders_without_classes_are_refused(tmp_path: Path) -> None:
    def message(root: Path | None) -> str:
        with pytest.raises(DataError) as caught:
            load_data(DataConfig(name="image_folder", root=None if root is None else str(root)))
        return str(caught.value)

    assert "data.root must name" in message(None)
    assert "is no folder" in message(tmp_path / "nowhere")
    assert "at least 2 folders" in message(tmp_path)
    paint(tmp_path / "cats" / "0.png", 0)
    assert "['cats']" in message(tmp_path)
    (tmp_path / "dogs").mkdir()
    assert "dogs" in message(tmp_path) and "has none of" in message(tmp_path)
    (tmp_path / "dogs" / "0.png").write_bytes(b"no image")
    assert "must be readable" in message(tmp_path) and "dogs/0.png' is not" in message(tmp_path)
    whole = (tmp_path / "cats" / "0.png").read_bytes()
    (tmp_path / "dogs" / "0.png").write_bytes(whole[: len(whole) // 2])  # a download that broke off
    assert "dogs/0.png' is not" in message(tmp_path)
    (tmp_path / "train").mkdir()
    assert "only train" in message(tmp_path)
