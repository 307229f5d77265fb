"""Data of your own: a table of numbers, written as an .npz file, searched on the space of fully connected layers.

One search gives a family of networks from large to small; each is then trained from scratch, and test data are read
once. No network; about half a minute on two cores.

    python examples/04_own_data.py                       # classes: 569 tumors, 30 features, benign or malignant
    python examples/04_own_data.py --task regression     # real targets: 442 patients, 10 features

The same from the command line, with retraining as NNI trials and a report:

    nni-bayes-nas run examples/configs/diabetes.yaml --set data.name=npz --set data.path=runs/own_data/regression.npz
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.retrain import run_retrain
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.experiment.tasks import task_of

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", choices=["classification", "regression"], default="classification")
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--output", type=Path, default=Path("runs/own_data"))
arguments = parser.parse_args()

torch.set_num_threads(1)  # networks as small as these lose time with more
arguments.output.mkdir(parents=True, exist_ok=True)
table = load_breast_cancer() if arguments.task == "classification" else load_diabetes()
# Your own: x (objects, features), y (objects,), class numbers 0, 1, ... or real targets. Scales may differ per feature.
path = arguments.output / f"{arguments.task}.npz"
np.savez(path, x=table.data, y=table.target)

training = {"epochs": arguments.epochs, "batch_size": 32, "learning_rate": 0.02, "weight_decay": 0.1}
config = Config.from_dict(
    {
        "space": {"name": "dense", "args": {"width": 32}},
        "data": {"name": "npz", "path": str(path), "task": arguments.task},
        "search": {**training, "lambdas": 5, "random": 0},
        "retrain": training,
        "experiment": {"device": "cpu"},
    }
)
config = validate(config)  # refuses what does not fit, before time is spent


def trial(name: str) -> Path:
    """A fresh folder for checkpoint, metrics and architecture of one training."""
    folder = arguments.output / arguments.task / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


found = run_search(config, {"trial": "search-s0", "seed": 0}, trial("search-s0"), lambda row: None)
task = task_of(config.data)
print(f"searched {found['search']['steps']} steps in {found['search']['seconds']:.0f} s")
distinct = {row["params"]: row for row in reversed(found["architectures"])}
for size, row in sorted(distinct.items(), reverse=True):
    result = run_retrain(config, {**row, "seed": 0}, trial(f"retrain-{size}"), lambda row: None)
    scores = f"{task.title}: validation {result[task.val_score]:.3f}, test {result[task.test_score]:.3f}"
    print(f"{size:6d} parameters, {scores}, layers {list(row['choices'].values())}")
