"""Parts of data sets, as tasks."""

import json

import numpy as np
from PIL import Image
from small_predict import config
from test_data_sets import write_idx

from nni_bayes_nas.experiment.parts import Parts
from nni_bayes_nas.prediction.tasks import Task


def test_tasks_of_every_kind_of_data(tmp_path):
    """Files of tables and arrays, folders of images, MNIST: parts of each, with classes and features of their own."""
    generator = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = generator.normal(size=(600, 5)) + y[:, None]
    lines = [",".join([*map(str, row), f"c{label}"]) for row, label in zip(x, y, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,c,d,e,kind", *lines]), encoding="utf-8")
    np.savez(tmp_path / "arrays.npz", x=x[:, :4].astype(np.float32), y=y)
    for label in range(3):
        (folder := tmp_path / "images" / f"c{label}").mkdir(parents=True)
        for i in range(60):
            pixels = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    (raw := tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for part, n in (("train", 900), ("t10k", 50)):
        write_idx(raw / f"{part}-images-idx3-ubyte", generator.integers(0, 255, (n, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    listed = [
        {"name": "csv", "path": str(tmp_path / "table.csv")},
        {"name": "npz", "path": str(tmp_path / "arrays.npz")},
        {"name": "image_folder", "root": str(tmp_path / "images")},
        {"name": "mnist", "root": str(tmp_path)},
    ]
    sizes = {"csv": (5, 3), "npz": (4, 3), "image_folder": (48, 3), "mnist": (784, 10)}
    parts = Parts(config(own=False, sources=listed))
    tasks = parts.tasks(16)
    assert [task.source for task in tasks] == [*sizes] * 4
    for task in tasks:
        data, (n_features, n_classes) = parts.data(task), sizes[task.source]
        assert data.x.shape[1] == len(task.features) <= n_features and 2 <= len(task.classes) <= n_classes
        assert len(data.x) == len(data.y) >= 2 * len(task.classes) and set(data.y.tolist()) <= {*range(n_classes)}
        assert Task.from_dict(json.loads(task.to_json())) == task
    assert len({(task.source, task.features, task.classes) for task in tasks}) > 4
