"""Every kind of NNI's choices: search two steps, export, freeze a fresh space; the predicted size is the real one."""

from typing import Any

import pytest
import torch
from nni.mutable import Categorical
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.nn.pytorch import (
    Cell,
    InputChoice,
    LayerChoice,
    ModelSpace,
    MutableBatchNorm2d,
    MutableConv2d,
    Repeat,
)
from nni.nas.space import RawFormatModelSpace
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.strategies import HyperDARTS, RegularizedDARTS
from nni_bayes_nas.strategies.structure import Structure

SHAPE = (2, 6, 6)


def conv(kernel: int, width: int = 4) -> nn.Module:
    return nn.Conv2d(width, width, kernel, padding=kernel // 2)


class Body(ModelSpace):
    """Stem, what a test is about, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.body = self.make()
        self.classifier = nn.Linear(4, 3)

    def make(self) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.body(self.stem(x)).mean((-2, -1)))


class Layers(Body):
    def make(self) -> nn.Module:
        return nn.Sequential(
            *(LayerChoice({"one": conv(1), "three": conv(3), "none": nn.Identity()}, label=f"l{i}") for i in range(2))
        )


class SharedLabel(Body):
    def make(self) -> nn.Module:
        return nn.Sequential(*(LayerChoice([conv(1), conv(3)], label="both") for _ in range(2)))


class Nested(Body):
    def make(self) -> nn.Module:
        inner = LayerChoice({"one": conv(1), "three": conv(3)}, label="inner")
        return LayerChoice({"skip": nn.Identity(), "deep": nn.Sequential(conv(1), inner)}, label="outer")


class Depths(Body):
    def make(self) -> nn.Module:
        return Repeat(lambda i: conv(1 + 2 * (i % 2)), (1, 3), label="depth")


class DepthsWithChoices(Body):
    def make(self) -> nn.Module:
        return Repeat(lambda i: LayerChoice([conv(1), conv(3)], label=f"l{i}"), (0, 2), label="depth")


class Inputs(Body):
    n_chosen = 1

    def make(self) -> nn.Module:
        self.paths = nn.ModuleList([LayerChoice([conv(1), conv(5)], label="path"), conv(3), conv(1)])
        return InputChoice(n_candidates=3, n_chosen=self.n_chosen, label="input")

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.classifier(self.body([path(x) for path in self.paths]).mean((-2, -1)))


class TwoInputs(Inputs):
    n_chosen = 2


class Kernels(Body):
    def make(self) -> nn.Module:
        kernel = Categorical([1, 3], label="kernel")
        return MutableConv2d(4, 4, kernel, padding=kernel // 2, bias=False)


class Widths(Body):
    def make(self) -> nn.Module:
        width = Categorical([2, 4], label="width")
        return nn.Sequential(
            MutableConv2d(4, width, 1), MutableBatchNorm2d(width), MutableConv2d(width, 4, 3, padding=1)
        )


class PlainMutables(Body):
    """NNI's operations without a choice among their arguments, as the hub's spaces are full of them."""

    def make(self) -> nn.Module:
        plain = nn.Sequential(MutableConv2d(4, 4, 3, padding=1, bias=False), MutableBatchNorm2d(4))
        return nn.Sequential(LayerChoice({"plain": plain, "skip": nn.Identity()}, label="l"))


class CellOfModules(Body):
    """A cell whose operations are modules, not factories."""

    def make(self) -> nn.Module:
        return Cell([conv(1), conv(3)], num_nodes=1, num_ops_per_node=1, num_predecessors=1, label="cell")


class CellOfFactories(Body):
    def make(self) -> nn.Module:
        operations = {"one": lambda node, slot, chosen: conv(1), "three": lambda node, slot, chosen: conv(3)}
        return Cell(operations, num_nodes=1, num_ops_per_node=1, num_predecessors=1, label="cell")


PER_OBJECT = [
    Layers,
    SharedLabel,
    Nested,
    Depths,
    DepthsWithChoices,
    Inputs,
    TwoInputs,
    PlainMutables,
    CellOfModules,
    CellOfFactories,
]
SINGLE_LAMBDA = [Kernels, Widths]


def search(space: type[Body], strategy: Any) -> Any:
    """Two steps with NNI's own evaluator; returns NNI's space of models."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, *SHAPE, generator=generator), torch.arange(16) % 3)
    evaluator = Classification(
        num_classes=3,
        train_dataloaders=DataLoader(data, batch_size=8),
        val_dataloaders=DataLoader(data, batch_size=8),
        max_epochs=1,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
    )
    torch.manual_seed(0)
    before = RawFormatModelSpace(space(), evaluator)
    strategy(before, SequentialExecutionEngine())
    return evaluator


STRATEGIES = {
    "hyper_per_object": lambda: HyperDARTS(warmup_epochs=0),
    "hyper_per_step": lambda: HyperDARTS(warmup_epochs=0, lambda_per="step"),
    "regularized": lambda: RegularizedDARTS(penalty=0.1, l1=1e-3),
}
CASES = [(space, name) for space in PER_OBJECT for name in STRATEGIES]
CASES += [(space, name) for space in SINGLE_LAMBDA for name in STRATEGIES if name != "hyper_per_object"]


@pytest.mark.parametrize(("space", "name"), CASES, ids=[f"{space.__name__}-{name}" for space, name in CASES])
def test_searches_and_exports(space: type[Body], name: str) -> None:
    strategy = STRATEGIES[name]()
    evaluator = search(space, strategy)
    # What NNI's evaluators report and checkpoints monitor.
    assert 0 <= float(evaluator.trainer.callback_metrics["val_acc"]) <= 1
    fresh = Structure(strategy.structure.units, **strategy._structure_options)
    moved = strategy.structure.reference.detach() - fresh.reference.detach()
    # Two steps of Adam. At a given size there is nothing to learn about two options.
    free = len(moved) - len(strategy.structure.units)
    assert float(moved.abs().max()) > 1e-3 or (strategy.structure.per_node and free == 1)
    models = list(strategy.list_models(limit=3))
    assert models
    assert len({Architecture(model.sample).key for model in models}) == len(models)
    drawn = strategy.structure.random_samples(4, generator=torch.Generator().manual_seed(0))
    for choices in [*(model.sample for model in models), *drawn]:
        network = Architecture(choices).build(space())
        assert network(torch.zeros(2, *SHAPE)).shape == (2, 3)
        assert strategy.predicted_cost("params", choices) == count_parameters(network)
        if strategy.cost.kind == "exact":
            assert strategy.predicted_cost("macs", choices) == count_macs(network, SHAPE)


@pytest.mark.parametrize("space", [*PER_OBJECT, *SINGLE_LAMBDA], ids=lambda space: space.__name__)
def test_one_architecture_in_the_supernet_is_the_network_with_its_weights(space: type[Body]) -> None:
    """What is skipped is what the frozen network does not have: against NNI's weight-preserving freeze."""
    strategy = RegularizedDARTS(seed=1)
    supernet = strategy.mutate_model(space()).eval()
    x = torch.randn(3, *SHAPE)
    for choices in strategy.structure.random_samples(4, generator=torch.Generator().manual_seed(0)):
        with strategy._binding.only(choices, x):
            inside = supernet(x)
        # NNI cannot freeze mutable operations with their weights: there the mixture with one-hot weights must do.
        if space in (*SINGLE_LAMBDA, PlainMutables):
            strategy._binding.weights = {
                unit.label: w if isinstance(unit, law.Node) else w[0]
                for unit in strategy.structure.units
                for w in [law.one_hot(unit, choices)]
            }
            outside = supernet(x)
        else:
            outside = supernet.freeze(choices).eval()(x)
        torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-6)
    assert strategy._binding.kept is None


@pytest.mark.parametrize("space", [*PER_OBJECT, *SINGLE_LAMBDA], ids=lambda space: space.__name__)
def test_says_whether_its_expectation_is_exact(space: type[Body]) -> None:
    strategy = RegularizedDARTS()
    strategy.measure(strategy.mutate_model(space()), SHAPE)
    assert strategy.cost.kind == ("exact" if space in PER_OBJECT else "multilinear")


@pytest.mark.parametrize("space", SINGLE_LAMBDA, ids=lambda space: space.__name__)
def test_mutable_operations_need_one_lambda_per_step(space: type[Body]) -> None:
    with pytest.raises(SpaceError, match="lambda_per='step'"):
        HyperDARTS().mutate_model(space())


def test_list_models_gives_as_many_distinct_networks_as_asked_for() -> None:
    """A family of four on one axis: a grid of two positions sees two of them, a finer one all."""
    strategy = HyperDARTS(warmup_epochs=0, hypernet="piecewise_linear")
    evaluator = search(Layers, strategy)
    assert evaluator is not None
    with torch.no_grad():
        knots = strategy.structure.logits.knots
        knots.zero_()
        for i, label in enumerate(unit.label for unit in strategy.structure.units):
            assert label == f"l{i}"
        n = len(knots)
        for knot in range(n):
            u = knot / (n - 1)
            knots[knot, :3] = torch.tensor([0.0, 1 - 2 * u, -1.0])
            knots[knot, 3:] = torch.tensor([0.0, 1 - 3 * u, -1.0])
    samples = [model.sample for model in strategy.list_models(limit=3)]
    chosen = [(sample["l0"], sample["l1"]) for sample in samples]
    assert chosen == [("three", "three"), ("three", "one"), ("one", "one")]
    assert len(list(strategy.list_models(limit=2))) == 2
    assert len(list(strategy.list_models(limit=9))) == 3
    assert len(list(strategy.list_models(limit=None))) == 3
