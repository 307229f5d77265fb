"""The built-in data sets: arrays (x, y) or (x, y, x_test, y_test), images as 8-bit numbers where they are stored so."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.errors import DataError


def load_digits(config: DataConfig) -> tuple[Any, Any]:
    """scikit-learn's digits: 1,797 real 8x8 images in 10 classes (Alpaydin & Kaynak, 1998); no network."""
    from sklearn import datasets

    digits = datasets.load_digits()
    return digits.images[:, None] / 16.0, digits.target


def load_diabetes(config: DataConfig) -> tuple[Any, Any]:
    """scikit-learn's diabetes: 442 patients, 10 features, progression after a year (Efron et al., 2004); no network."""
    from sklearn import datasets

    diabetes = datasets.load_diabetes()
    return diabetes.data, diabetes.target


def load_mnist(config: DataConfig) -> tuple[Any, ...]:
    """MNIST through torchvision: 60,000 + 10,000 images, 1x28x28, 10 classes."""
    return _torchvision(config, "MNIST")


def load_fashion_mnist(config: DataConfig) -> tuple[Any, ...]:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017) through torchvision: 60,000 + 10,000 images, 1x28x28, 10 classes."""
    return _torchvision(config, "FashionMNIST")


def load_cifar10(config: DataConfig) -> tuple[Any, ...]:
    """CIFAR-10 (Krizhevsky, 2009) through torchvision: 50,000 + 10,000 images, 3x32x32, 10 classes.

    Its files are pickles; torchvision reads them only where their checksums are those of the original.
    """
    return _torchvision(config, "CIFAR10")


def load_cifar100(config: DataConfig) -> tuple[Any, ...]:
    """CIFAR-100 (Krizhevsky, 2009) through torchvision: 50,000 + 10,000 images, 3x32x32, 100 classes; see CIFAR-10."""
    return _torchvision(config, "CIFAR100")


def _torchvision(config: DataConfig, name: str) -> tuple[Any, ...]:
    from torchvision import datasets

    root = _root(config, f"the folder that holds {name}", "add e.g. --set data.root=data")
    parts: list[Any] = []
    for train in (True, False):
        try:
            data = getattr(datasets, name)(root, train=train, download=config.download)
        except RuntimeError as error:
            raise DataError(
                f"data.root must hold {name} where data.download is false, but {config.root!r} does not "
                f"({str(error).splitlines()[0]}); set data.download=true or another data.root."
            ) from error
        images = np.asarray(data.data)
        parts += [images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2), np.asarray(data.targets)]
    return tuple(parts)


def load_npz(config: DataConfig) -> tuple[Any, ...]:
    """A NumPy archive at `data.path` with x, y and, if there is a test set of its own, x_test, y_test."""
    if config.path is None:
        raise DataError("data.path must name an .npz file, got none; write one with numpy.savez(path, x=x, y=y).")
    path = Path(config.path).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"data.path must name an .npz file, but there is no {path}; check it.")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"data.path must name an .npz file, but {config.path} is none; write one with numpy.savez(path, x=x, y=y)."
        ) from error
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise DataError(
            f"data.path must name an .npz file, but {config.path} holds one array; write numpy.savez(path, x=x, y=y)."
        )
    with loaded as archive:
        names = set(archive.files)
        if not {"x", "y"} <= names or len(names & {"x_test", "y_test"}) == 1:
            raise DataError(
                f"data.path must hold the arrays x and y, and both or none of x_test and y_test, got {sorted(names)}."
            )
        return tuple(archive[n] for n in ("x", "y", "x_test", "y_test") if n in names)


def load_image_folder(config: DataConfig) -> tuple[Any, ...]:
    """A folder with one folder of images per class, or with folders `train` and `test` that hold these.

    Classes are numbered in the alphabetical order of their folders in the training data. `data.image_size` scales the
    shorter side of every image to so many pixels and cuts the middle square out; `data.grayscale` keeps one channel.
    Images are turned as their camera says; of 16 bits the upper eight are kept.

    Raises:
        DataError: Fewer than two classes, a class without an image, or images of different sizes without
            `data.image_size`.
    """
    wanted = "the folder of the images, with one folder per class"
    root = Path(_root(config, wanted, "add e.g. --set data.root=images"))
    if not root.is_dir():
        raise DataError(f"data.root must name {wanted}, but {str(root)!r} is no folder; check the path.")
    inner = [name for name in ("train", "test") if (root / name).is_dir()]
    if len(inner) == 1:
        raise DataError(
            f"data.root must have both or none of the folders train and test, but {str(root)!r} has only {inner[0]}; "
            "add the other, or give the folder of the classes itself as data.root."
        )
    folder = root / "train" if inner else root
    classes = _class_names(folder)
    if len(classes) < 2:
        raise DataError(
            f"an image folder must have at least 2 folders of images, one per class, but {str(folder)!r} has "
            f"{classes or 'none'}; sort the images into folders named after their classes."
        )
    if not inner:
        return _images(folder, classes, config)
    if strange := [name for name in _class_names(root / "test") if name not in classes]:
        raise DataError(
            f"the folder test may hold classes of the folder train only, but {strange[:3]} are not among them; "
            "rename or remove these folders."
        )
    return *_images(folder, classes, config), *_images(root / "test", classes, config, partial=True)


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, classes: list[str], config: DataConfig, *, partial: bool = False) -> tuple[Any, Any]:
    """8-bit images `(n, channels, height, width)` and the classes `(n,)`; `partial`: classes may be missing."""
    from PIL import Image, ImageOps
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = [p for p in sorted((folder / name).rglob("*")) if p.suffix.lower() in IMG_EXTENSIONS]
        if not found and not partial:
            raise DataError(
                f"every class of an image folder must have images, but {str(folder / name)!r} has none of "
                f"{', '.join(IMG_EXTENSIONS)}; add some or remove the folder."
            )
        files += [(path, label) for path in found]
    size = config.image_size
    x: Any = None
    for i, (path, _) in enumerate(files):
        try:
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                if upright.mode.startswith("I"):  # `convert` would make white of all that is above 255
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                image = upright.convert("L" if config.grayscale else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"an image must be readable, but {str(path)!r} is not: {error}; remove it.") from error
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
        if x is None:
            x = np.empty((len(files), *pixels.shape), dtype=np.uint8)
        if pixels.shape != x.shape[1:]:
            raise DataError(
                f"the images of a folder must have one size, but {path.name!r} has {pixels.shape[1:]} and the first "
                f"{x.shape[2:]} (height, width); set data.image_size, which resizes them all."
            )
        x[i] = pixels
    if x is None:
        raise DataError(f"an image folder must hold images, but {str(folder)!r} holds none; check data.root.")
    return x, np.array([label for _, label in files])


def _root(config: DataConfig, what: str, remedy: str) -> str:
    if config.root is None:
        raise DataError(f"data.root must name {what}, got none; {remedy}.")
    return str(Path(config.root).expanduser())
