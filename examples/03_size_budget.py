"""A network for every budget: one search on the digits, then the largest derived network within each size asked for.

The search spends its steps once. `strategy.for_budget(max_params=...)` (or `max_macs`) then looks along lambda for the
largest network that fits, without an optimizer step; what it promises is counted on a network that is built anew. The
accuracy beside it is that of the search's own weights, with batch normalization calibrated for that network: a hint of
what the network can do, not its accuracy. One network is then trained from scratch. A budget below the smallest
network is refused, and the error names that size. No network access; about 40 seconds on two cores.

    python examples/03_size_budget.py
    python examples/03_size_budget.py --max-params 20000 --retrain-epochs 30
"""

import argparse

import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, TensorDataset, random_split

from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.layers.normalization import recalibrated
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.strategies import HyperDARTS

SHAPE = (1, 8, 8)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=12, help="of the search")
parser.add_argument("--retrain-epochs", type=int, default=10)
parser.add_argument("--max-params", type=int, help="budget of the network to train (default: half of the largest)")
arguments = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)  # networks as small as these lose time with more


def space() -> CellSpace:
    """Two cells for images of 8x8; a fresh space gives fresh weights."""
    return CellSpace(width=8, n_cells=2, n_nodes=2)


def training(epochs: int, train: Dataset, val: Dataset | None, rate: float) -> Classification:
    """NNI's evaluator: a search hands it a supernet, `fit` a network."""
    return Classification(
        learning_rate=rate,
        num_classes=10,
        train_dataloaders=DataLoader(train, batch_size=64, shuffle=True, drop_last=True),
        val_dataloaders=None if val is None else DataLoader(val, batch_size=64),
        max_epochs=epochs,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )


@torch.no_grad()
def accuracy(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of the objects that are classified rightly."""
    return float((network(data[0]).argmax(1) == data[1]).float().mean())


digits = load_digits()
everything = TensorDataset(torch.from_numpy(digits.images[:, None] / 16.0).float(), torch.from_numpy(digits.target))
# The weights learn on the first part, the structure on the second; the third is for the accuracies that are printed.
weights, structure, held = random_split(everything, [0.4, 0.4, 0.2], torch.Generator().manual_seed(0))
test = everything[held.indices]

supernet = space()  # the search turns it into the supernet, in place
strategy = HyperDARTS(lambda_range=(1e-3, 1.0), warmup_epochs=2)
NasExperiment(supernet, training(arguments.epochs, weights, structure, 3e-3), strategy).run()


def with_weights_of_the_search(choices: dict[str, object]) -> float:
    """Accuracy of a derived network as it stands in the supernet: no optimizer step."""
    network = supernet.freeze(choices)
    with recalibrated(network, network, DataLoader(everything[weights.indices][0], batch_size=128)):
        return accuracy(network, test)


def show(budget: dict[str, float]) -> int:
    """Print the largest derived network within a budget; gives its parameters."""
    found = strategy.for_budget(**budget)
    network = space().freeze(found.choices)
    params, macs = count_parameters(network), count_macs(network, SHAPE)
    (name, limit), *_ = budget.items()
    assert found.cost == {"max_params": params, "max_macs": macs}[name] <= limit
    score = with_weights_of_the_search(found.choices)
    print(f"{name} {limit:>9,.0f}: {params:6,d} parameters, {macs:9,d} MACs, lambda {found.lam:.3g}, {score:.3f}")
    return params


ends = [space().freeze(strategy.export(lam)) for lam in strategy.lambdas(2)]  # at the smallest and the largest lambda
large, small = (count_parameters(network) for network in ends)
dear, cheap = (count_macs(network, SHAPE) for network in ends)
print("budget, the largest derived network within it, its test accuracy with the weights of the search")
for share in (1.0, 0.75, 0.5, 0.25, 0.1):
    show({"max_params": small + share * (large - small)})
for share in (1.0, 0.5, 0.1):
    show({"max_macs": cheap + share * (dear - cheap)})
try:
    show({"max_params": small / 2})
except ConfigError as error:
    print(f"max_params {small / 2:>9,.0f}: refused: {error}")

budget = arguments.max_params or (small + large) / 2
found = strategy.for_budget(max_params=budget)
torch.manual_seed(0)
network = space().freeze(found.choices)
training(arguments.retrain_epochs, ConcatDataset([weights, structure]), None, 1e-2).fit(network)
assert count_parameters(network) <= budget
print(
    f"trained from scratch within {budget:,.0f}: {count_parameters(network):,d} parameters, "
    f"test accuracy {accuracy(network.eval(), test):.3f}"
)
