"""The third door: NNI's own NasExperiment with one of our strategies, on a space and an evaluator of your own.

One search over the complexity parameter lambda gives a family of networks: `export_top_models(3)` reads three of them
off, from the largest to the smallest, without another optimizer step. No network; about half a minute on two cores.

    python examples/01_nas_experiment.py
    python examples/01_nas_experiment.py --resume runs/nas_experiment/last.ckpt    # goes on where a search was killed
"""

import argparse

import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split

from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.strategies import HyperDARTS


def convolution(width: int, kernel: int, groups: int = 1) -> nn.Module:
    """Convolution that keeps the size, batch normalization, ReLU."""
    layer = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())


class DigitsSpace(ModelSpace):
    """Four layers, each nothing, a depthwise or a full convolution."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.Sequential(*(LayerChoice(self.candidates(width), label=f"layer{i}") for i in range(4)))
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))

    def candidates(self, width: int) -> dict[str, nn.Module]:
        """What a layer may be."""
        convolutions = {"depthwise_3x3": (3, width), "conv_1x1": (1, 1), "conv_3x3": (3, 1)}
        return {"identity": nn.Identity()} | {name: convolution(width, *how) for name, how in convolutions.items()}

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, 1, 8, 8)` -> logits `(batch, 10)`."""
        return self.head(self.layers(self.stem(x)))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--output", default="runs/nas_experiment", help="where the search writes its checkpoint")
parser.add_argument("--resume", metavar="CHECKPOINT")
arguments = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)  # networks as small as these lose time with more
digits = load_digits()
data = TensorDataset(torch.from_numpy(digits.images[:, None] / 16.0).float(), torch.from_numpy(digits.target))
# The weights learn on the evaluator's training data, the structure on its validation data.
weights, structure = random_split(data, [0.5, 0.5])
evaluator = Classification(
    learning_rate=3e-3,
    num_classes=10,
    train_dataloaders=DataLoader(weights, batch_size=64, shuffle=True, drop_last=True),
    val_dataloaders=DataLoader(structure, batch_size=64, shuffle=True, drop_last=True),
    max_epochs=arguments.epochs,
    callbacks=[ModelCheckpoint(arguments.output, save_last=True)],
    **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
)
evaluator.fit_kwargs["ckpt_path"] = arguments.resume

experiment = NasExperiment(DigitsSpace(), evaluator, HyperDARTS(lambda_range=(1e-3, 1.0), warmup_epochs=2))
experiment.run()
print(f"validation accuracy while searching, averaged over lambda: {evaluator.trainer.callback_metrics['val_acc']:.3f}")
for choices in experiment.export_top_models(3, formatter="dict"):
    # A fresh space: the one above is the supernet now, and its weights were trained for all lambda at once.
    print(f"{count_parameters(DigitsSpace().freeze(choices)):6d} parameters: {choices}")
