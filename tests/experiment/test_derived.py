"""What a search knows without training: against NNI's own freeze, finite differences, and by hand."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nni.mutable import Categorical
from nni.nas.nn.pytorch import ModelSpace, MutableBatchNorm2d, MutableConv2d
from torch import Tensor, nn

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.compliance import stable
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.data import DataSplits, load_data
from nni_bayes_nas.experiment.derived import SharedWeights, measure
from nni_bayes_nas.experiment.evaluator import ClassificationModule, RegressionModule
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.experiment.step_counter import count_optimizer_steps
from nni_bayes_nas.layers.normalization import batch_norms, batch_statistics, recalibrated

CELL = {"name": "cell", "args": {"width": 4, "n_cells": 2, "n_nodes": 2, "dropout": 0.3, "affine": True}}
CHAIN = {"name": "chain", "args": {"width": 4, "depth": 2}}


class Widths(ModelSpace):
    """A width that is a choice, with NNI's own normalization."""

    def __init__(self) -> None:
        super().__init__()
        width = Categorical([2, 6], label="width")
        self.conv, self.norm = MutableConv2d(1, width, 3), MutableBatchNorm2d(width)
        self.last = MutableConv2d(width, 10, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.relu(self.norm(self.conv(x)))).mean((-2, -1))


def searched(space: dict[str, Any], **strategy: Any) -> tuple[Any, DataSplits]:
    """A supernet with random statistics of normalization, and a structure that has preferences, as after a search."""
    name = strategy.pop("name", "hyper_darts")
    config = Config.from_dict({"space": space, "strategy": {"name": name, "args": strategy}, "data": {"limit": 300}})
    data = load_data(config.data)
    found = build_strategy(config, data, 0)
    found._mutating = found.mutate_model(build_space(config, data, 0))
    evaluator = ClassificationModule(num_classes=10, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    evaluator.set_model(found._mutating)
    # NNI's property looks the search module up in the space of a search that has run.
    finished = {"oneshot_module": found.configure_oneshot_module(evaluator)}
    found.__class__ = type("Finished", (type(found),), finished)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.structure.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        found.size_control.solve(found.step.mixing_temperature)
        for norm in batch_norms(found._mutating):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
            if norm.affine:
                norm.weight.uniform_(0.5, 2.0, generator=generator)
    return found, data


@pytest.fixture(scope="module")
def cells() -> tuple[Any, DataSplits, SharedWeights]:
    strategy, data = searched(CELL)
    return strategy, data, SharedWeights(strategy, data.train, data.val)


def test_one_hot_is_nnis_weight_preserving_freeze_recalibrated_by_hand(
    cells: tuple[Any, DataSplits, SharedWeights],
) -> None:
    strategy, data, shared = cells
    supernet = shared.network
    x, y = data.val.tensors
    seen = set()
    for choices in strategy.structure.random_samples(3, generator=torch.Generator().manual_seed(1)):
        frozen: Any = copy.deepcopy(supernet.freeze(choices))
        frozen.train()
        for module in frozen.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        for norm in batch_norms(frozen):
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for start in range(0, len(data.train), 128):
                frozen(data.train.tensors[0][start : start + 128])
            logits = frozen.eval()(x)
        terms = shared.one_hot(choices)
        assert terms["accuracy"] == pytest.approx(float((logits.argmax(-1) == y).float().mean()), abs=1e-6)
        assert terms["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-4)
        seen.add(terms["loss"])
    assert len(seen) == 3


def test_one_hot_and_mixture_of_a_mutable_width() -> None:
    """By hand: the first channels of every layer, normalized by statistics of the calibration data alone."""
    strategy, data = searched({"name": f"{__name__}:Widths"}, name="regularized_darts")
    shared = SharedWeights(strategy, data.train, data.val)
    shared.calibration = shared.calibration[:1]
    supernet: Any = shared.network
    x, y = shared.calibration[0], data.val.tensors[1]
    buffers = [buffer.clone() for buffer in supernet.buffers()]

    def by_hand(weights: Tensor) -> dict[str, float]:
        # NNI weighs the channels of a kernel: those beyond the small width are there with the weight of the large one.
        share = torch.tensor([1.0, 1.0, *[float(weights[1])] * 4])
        kernel, bias = supernet.conv.weight * share.view(-1, 1, 1, 1), supernet.conv.bias * share
        hidden = nn.functional.conv2d(x, kernel, bias)
        statistics = hidden.mean((0, 2, 3)), hidden.transpose(0, 1).flatten(1).var(1)
        hidden = nn.functional.conv2d(data.val.tensors[0], kernel, bias)
        norm = supernet.norm
        hidden = nn.functional.batch_norm(hidden, *statistics, norm.weight, norm.bias, eps=norm.eps).relu()
        last = supernet.last.weight * share.view(1, -1, 1, 1)
        logits = nn.functional.conv2d(hidden, last, supernet.last.bias).mean((-2, -1))
        accuracy = float((logits.argmax(-1) == y).float().mean())
        return {"accuracy": accuracy, "loss": float(nn.functional.cross_entropy(logits, y))}

    with torch.no_grad():
        expected = [by_hand(torch.tensor([1.0, 0.0])), by_hand(torch.tensor([0.0, 1.0]))]
        mixed = by_hand(strategy.structure.mean(None, shared.temperature)["width"])
    found = [shared.one_hot({"width": width}) for width in (2, 6)]
    for terms, known in zip([*found, shared.mixture(None)], [*expected, mixed], strict=True):
        assert {name: terms[name] for name in known} == pytest.approx(known, rel=1e-4)
    assert found[0]["loss"] != found[1]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(buffers, supernet.buffers(), strict=True))


def test_looking_leaves_the_supernet_bit_for_bit(cells: tuple[Any, DataSplits, SharedWeights]) -> None:
    strategy, _, shared = cells
    lam = strategy.lambdas(3)[1]
    choices = strategy.export(lam)
    names = {**shared.module.state_dict(), **strategy.structure.state_dict()}
    before = {name: value.clone() for name, value in names.items()}
    modes = [m.training for m in shared.network.modules()]
    noise = torch.get_rng_state()
    first = shared.one_hot(choices), shared.mixture(lam), shared.price(lam)
    assert shared.price(lam) == first[2] and shared.mixture(lam) == first[1] and shared.one_hot(choices) == first[0]
    after = {**shared.module.state_dict(), **strategy.structure.state_dict()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [m.training for m in shared.network.modules()]
    assert all(p.grad is None for p in [*shared.module.parameters(), *strategy.structure.parameters()])
    assert torch.equal(noise, torch.get_rng_state())
    assert strategy.export(lam) == choices


def test_a_cold_mixture_is_the_derived_network(cells: tuple[Any, DataSplits, SharedWeights]) -> None:
    """At temperature 1 it is not; the mixture is looked at on fewer objects, so these are given to both."""
    strategy, data, _ = cells
    shared = SharedWeights(strategy, data.train, data.val)
    shared.calibration = shared.calibration[:1]
    for lam in strategy.lambdas(3):
        one_hot = shared.one_hot(strategy.export(lam))
        shared.temperature = 1e-6
        cold = shared.mixture(lam)
        assert cold == pytest.approx(one_hot, rel=1e-4)
        shared.temperature = 1.0
        assert abs(shared.mixture(lam)["loss"] - one_hot["loss"]) > 1e-2


@pytest.mark.parametrize(
    "args",
    [
        {"mixing_temperature": 0.5},
        {"hypernet": "linear", "complexity": "penalty", "cost": "macs", "mixing_temperature": 1.0},
        {"hypernet": "mlp", "relaxation": "sigmoid", "mixing_temperature": 0.5},
        {"hypernet": "linear", "axis": "literal", "relaxation": "identity", "lambda_range": [-1.0, 2.0]},
    ],
)
def test_the_price_is_the_slope_of_loss_over_cost(args: dict[str, Any]) -> None:
    strategy, data = searched(CHAIN, **args)
    strategy._mutating.double()
    strategy.structure.double()
    shared = SharedWeights(strategy, data.train, data.val)
    shared.validation = [[x.double(), y] for x, y in shared.validation]
    structure, axis = strategy.structure, strategy.axis
    low, high = axis.domain
    u = low + 0.4 * (high - low)

    def at(flat: Tensor) -> tuple[float, float]:
        """Loss of the mixture and E[cost] of outputs of the hypernetwork."""
        losses = []
        with torch.no_grad(), recalibrated(shared.network, shared.network, []), batch_statistics(shared.network):
            for x, y in shared.validation[:4]:
                shared.binding.weights = structure.weights_of(flat, shared.temperature)
                losses.append(float(nn.functional.cross_entropy(shared.network(x), y)))
            cost = float(structure.expected_of(strategy.cost, flat, shared.temperature))
        return sum(losses) / len(losses), cost / (strategy.cost_bounds[1] - strategy.cost_bounds[0])

    # Along the chord that the docstring means: a hundredth of the range to both sides.
    step = 0.01 * (high - low)
    with torch.no_grad():
        here, before, after = (structure.logits(torch.tensor(v).double()) for v in (u, u - step, u + step))
    # Small: the loss has kinks.
    h = 1e-5
    (loss_up, cost_up), (loss_down, cost_down) = (at(here + sign * h * (after - before)) for sign in (1, -1))
    assert abs(cost_up - cost_down) > 1e-9
    slope = -(loss_up - loss_down) / (cost_up - cost_down)
    assert shared.price(float(axis.to_lambda(torch.tensor(u).double()))) == pytest.approx(slope, rel=1e-4)


def test_a_mixture_that_is_all_but_one_network_has_a_price() -> None:
    """Its slopes are far below single precision; their ratio is that of the nearest exchange of two options."""
    strategy, data = searched(CHAIN, mixing_temperature=0.005, hypernet="piecewise_linear")
    shared = SharedWeights(strategy, data.train, data.val)
    lam = strategy.lambdas(5)[2]
    flat = strategy.structure.logits(strategy.structure.position(lam)).detach().double()
    weights = strategy.structure.weights_of(flat, 0.005)
    assert all(float(1 - w.max()) < 1e-9 for w in weights.values())
    single = shared.price(lam)
    strategy._mutating.double()
    shared.validation = [[x.double(), y] for x, y in shared.validation]
    strategy.structure.double()
    assert single is not None and single == pytest.approx(shared.price(lam), rel=1e-3)


def test_a_structure_without_lambda_has_no_price() -> None:
    strategy, data = searched(CHAIN, name="regularized_darts")
    shared = SharedWeights(strategy, data.train, data.val)
    assert shared.price(None) is None
    # By hand, with the statistics that the mixture leaves behind on the calibration data.
    strategy._binding.weights = strategy.structure.mean(None)
    x, y = data.val.tensors
    with torch.no_grad(), recalibrated(shared.network, shared.network, shared.calibration):
        hits = (shared.network(x).argmax(1) == y).double().mean()
    assert shared.mixture(None)["accuracy"] == pytest.approx(float(hits))


def test_where_lambda_changes_nothing_there_is_no_price() -> None:
    strategy, data = searched(CHAIN, hypernet="linear")
    with torch.no_grad():
        strategy.structure.logits.knots[1].copy_(strategy.structure.logits.knots[0])
    assert SharedWeights(strategy, data.train, data.val).price(0.01) is None


def test_nothing_is_trained(cells: tuple[Any, DataSplits, SharedWeights]) -> None:
    strategy, _, shared = cells
    with count_optimizer_steps() as counter:
        for lam in strategy.lambdas(2):
            shared.price(lam), shared.mixture(lam), shared.one_hot(strategy.export(lam))
    assert counter.steps == 0


def test_measure_weighs_batches_by_their_objects() -> None:
    x, y = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])
    module = ClassificationModule(num_classes=3, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    terms = measure(module, lambda batch: batch, [[x[:7], y[:7]], [x[7:], y[7:]]])
    found = x.argmax(-1)
    precision = [float((y[found == k] == k).float().mean()) if bool((found == k).any()) else 0.0 for k in range(3)]
    assert terms["accuracy"] == pytest.approx(float((found == y).float().mean()))
    assert terms["loss"] == pytest.approx(float(nn.functional.cross_entropy(x, y)), rel=1e-5)
    assert terms["precision"] == pytest.approx(sum(precision) / 3, rel=1e-5)


def test_measure_of_a_regression_is_in_the_units_of_the_targets() -> None:
    x, y = torch.tensor([[0.0], [1.0], [2.0], [4.0]]), torch.tensor([0.5, 1.0, 1.5, 3.0])
    module = RegressionModule(target_sd=10.0, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    terms = measure(module, lambda batch: batch, [[x[:3], y[:3]], [x[3:], y[3:]]])
    squares = float((x[:, 0] - y).square().sum())
    assert terms["rmse"] == pytest.approx(10 * (squares / 4) ** 0.5, rel=1e-5)
    assert terms["r2"] == pytest.approx(1 - squares / float((y - y.mean()).square().sum()), rel=1e-5)


@pytest.mark.parametrize("strategy", [{"args": {"complexity": "penalty", "lambda_range": "auto"}}, {}])
def test_a_finished_search_is_read_off_again_without_training(tmp_path: Path, strategy: dict[str, Any]) -> None:
    """What a run is left with after a crash between search and reading: all of it comes from the checkpoint."""
    values = {
        "space": CHAIN,
        "strategy": strategy,
        "data": {"limit": 200},
        "search": {"epochs": 3, "warmup_epochs": 1, "batch_size": 32, "lambdas": 3, "random": 1},
    }

    def run(report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        return run_search(Config.from_dict(values), {"trial": "search-s0", "seed": 0}, tmp_path, report)

    first = run(lambda terms: None)
    epochs: list[dict[str, Any]] = []
    with count_optimizer_steps() as counter:
        again = run(epochs.append)
    assert counter.steps == 0 and epochs == []
    assert stable(again) == stable(first)
    row = first["architectures"][0]
    assert set(row) >= {"price", "mixture_accuracy", "one_hot_accuracy"}
    assert Architecture.from_json((tmp_path / "architecture.json").read_text()).key == Architecture(row["choices"]).key
