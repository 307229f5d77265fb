"""Train fewer parameters for less time: what freezing saves, and what it costs, on scikit-learn's digits.

A small convolutional network is trained five ways with the same batches: as usual; with the beginning frozen that takes
the most time for the least gain, as it is measured after a fifth of the steps; with a tenth of the neurons optimized
further; with the output layer alone; and as usual, but only for as long as the second took. The figure shows the
validation accuracy against the process time, and what is optimized, layer by layer. Half a minute.

    python examples/07_selective_training.py
    python examples/07_selective_training.py --epochs 60 --criterion gradient --output runs/mine.png
"""

import argparse
import logging
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from nni_bayes_nas.config import DataConfig
from nni_bayes_nas.experiment.data import batches, load_data
from nni_bayes_nas.optim import SelectiveOptimization
from nni_bayes_nas.optim.selection import NEEDS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=40)
# Those by which "auto" can tell what a layer is worth.
MEASURES = [name for name in NEEDS if name not in ("random", "gain_per_flop")]
parser.add_argument("--criterion", default="gain", choices=MEASURES, help="see nni_bayes_nas.optim.selection.scores")
parser.add_argument("--output", type=Path, default=Path("runs/selective-training.png"))
COLOURS = ("#777777", "#d55e00", "#0072b2", "#009e73", "#e69f00")


class Classifier(pl.LightningModule):
    """A convolutional network; Adam, its rate falling in a straight line."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def training_step(self, batch, batch_idx):
        """Mean cross-entropy."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        """See the class."""
        optimizer, steps = torch.optim.Adam(self.parameters(), 1e-3), self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(1e-3, 1 - step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Curve(pl.Callback):
    """Validation accuracy against process time; the looking itself is not counted."""

    def __init__(self, x, y):
        self.x, self.y, self.points, self.aside = x, y, [], 0.0

    def on_train_start(self, trainer, module):
        """The clock."""
        self.began = time.process_time()

    def on_train_epoch_end(self, trainer, module):
        """A point of the curve."""
        now = time.process_time()
        module.eval()
        with torch.no_grad():
            accuracy = float((module.net(self.x).argmax(1) == self.y).double().mean())
        module.train()
        self.points.append((now - self.began - self.aside, 100 * accuracy))
        self.aside += time.process_time() - now


def train(data, epochs, steps, selection=None):
    """Its curve, and what the selection says."""
    curve = Curve(*data.val.tensors)
    chosen = [] if selection is None else [SelectiveOptimization(**selection)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        max_steps=steps,
        callbacks=[*chosen, curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), batches(data.train, 32, seed=0))
    return curve.points, chosen[0].freeze_report() if chosen else None


def draw(found, path):
    """Accuracy against time, and what is optimized."""
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for colour, (name, (points, _)) in zip(COLOURS, found.items(), strict=True):
        curves.plot(
            *zip(*points, strict=True), color=colour, label=f"{name}: {points[-1][1]:.1f} %, {points[-1][0]:.1f} s"
        )
    best = max(accuracy for points, _ in found.values() for _, accuracy in points)
    curves.set(xlabel="process time, s", ylabel="validation accuracy, %", ylim=(best - 12, best + 0.5))
    curves.legend(fontsize=8, frameon=False, loc="lower right")
    reports = [
        (name, colour, report) for colour, (name, (_, report)) in zip(COLOURS, found.items(), strict=True) if report
    ]
    layers = [name for name in reports[0][2]["layers"] if name.endswith("weight")]
    for place, (name, colour, report) in enumerate(reports):
        rows = [report["layers"][layer] for layer in layers]
        shares = [100 * row["active"] / row["parameters"] for row in rows]
        bars.bar([i + 0.27 * (place - 1) for i in range(len(layers))], shares, 0.25, color=colour, label=name)
    bars.set_xticks(range(len(layers)), [layer.removesuffix(".weight") for layer in layers])
    bars.set(ylabel="weights that are optimized, %", xlabel="layer", ylim=(0, 130), yticks=range(0, 101, 20))
    bars.legend(fontsize=8, frameon=False, loc="upper left")
    for axes in (curves, bars):
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Train, compare, draw."""
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data = load_data(DataConfig())
    steps = options.epochs * len(batches(data.train, 32, seed=0))
    shared = {"criterion": options.criterion, "start": 0.2, "window": 50}
    train(data, 1, 16)  # a process has costs of its own at its first training
    found = {
        "all": train(data, options.epochs, steps),
        "beginning frozen": train(data, options.epochs, steps, {**shared, "active": "auto", "granularity": "prefix"}),
        "a tenth of the neurons": train(
            data, options.epochs, steps, {**shared, "active": 0.1, "granularity": "neuron", "always": ["net.11"]}
        ),
        "output layer alone": train(data, options.epochs, steps, {**shared, "active": 650, "granularity": "prefix"}),
    }
    took = found["beginning frozen"][0][-1][0] / found["all"][0][-1][0]
    fewer = max(2, round(took * steps))
    found["all, for as long as that"] = train(data, options.epochs, fewer)
    print(f"\n{'':<28}{'accuracy, %':>12}{'process s':>11}{'ms a step':>18}{'optimized':>12}  nothing kept, because")
    for name, (points, report) in found.items():
        milliseconds = optimized = why = ""
        if report:
            times = report["milliseconds"]
            milliseconds = f"{times['before']:.1f} -> {times['after']:.1f}"
            optimized, why = sum(row["active"] for row in report["layers"].values()), report["no_cache"] or ""
        print(f"{name:<28}{points[-1][1]:>12.2f}{points[-1][0]:>11.1f}{milliseconds:>18}{optimized:>12}  {why}")
    draw(found, options.output)
    print(f"\n{options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
