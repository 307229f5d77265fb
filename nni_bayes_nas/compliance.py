"""Compliance suites: what every strategy and every space must pass, the user's own included.

Subclass a suite in a test module and give it what to test:

    class TestMyStrategy(StrategyCompliance):
        name = "my_module:MyStrategy"

    class TestMySpace(SpaceCompliance):
        name = "my_module:MySpace"
        args = {"width": 8}

Needs pytest (the `dev` extra).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import NumericsError, SpaceError
from nni_bayes_nas.experiment import search
from nni_bayes_nas.experiment.build import build_space, build_strategy
from nni_bayes_nas.experiment.callbacks import METRICS
from nni_bayes_nas.experiment.data import load_data


class Interrupted(Exception):
    """Stands for the death of a trial between two epochs."""


class StrategyCompliance:
    """A strategy searches a small space, repeats, resumes, refuses NaN, and exports from the mean.

    Attributes:
        name: Registry name or "module:Class".
        args: Arguments of the strategy.
        space: Section `space` of the configuration.
        epochs: Length of the searches, at least 3; the one that dies does so in the last epoch but one.
    """

    name: str
    args: ClassVar[dict[str, Any]] = {}
    space: ClassVar[dict[str, Any]] = {"name": "chain", "args": {"width": 4, "depth": 2}}
    epochs = 3

    @classmethod
    def config(cls) -> Config:
        """The configuration of the searches."""
        return Config.from_dict(
            {
                "space": cls.space,
                "strategy": {"name": cls.name, "args": cls.args},
                "data": {"limit": 256},
                "search": {"epochs": cls.epochs, "warmup_epochs": 1, "batch_size": 32, "lambdas": 3, "random": 2},
            }
        )

    @classmethod
    def run(cls, directory: Path, *, die_after: int | None = None, **search_options: Any) -> dict[str, Any]:
        """One search in `directory`; dies after an epoch if asked to."""
        config = cls.config().to_dict()
        config["search"].update(search_options)
        directory.mkdir(parents=True, exist_ok=True)

        def report(terms: dict[str, Any]) -> None:
            # The checkpoint of epoch e is on disk when epoch e + 1 reports.
            if die_after is not None and terms["epoch"] > die_after:
                raise Interrupted

        return search.run_search(Config.from_dict(config), {"trial": "search-s0", "seed": 0}, directory, report)

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
        """An undisturbed search: its folder and its result."""
        directory = tmp_path_factory.mktemp("undisturbed") / "search-s0"
        return directory, cls.run(directory)

    def test_exports_architectures_of_the_space(self, undisturbed: tuple[Path, dict[str, Any]]) -> None:
        """Every architecture is one of the space, and its size is that of the network."""
        config = self.config()
        data = load_data(config.data)
        architectures = [*undisturbed[1]["architectures"], *undisturbed[1]["random"]]
        assert architectures
        for row in architectures:
            network = Architecture(row["choices"]).build(build_space(config, data, 0))
            assert count_parameters(network) == row["params"]
            assert count_macs(network, data.shape) == row["macs"]

    def test_no_optimizer_step_after_the_search(self, undisturbed: tuple[Path, dict[str, Any]]) -> None:
        """Reading architectures off trains nothing."""
        assert undisturbed[1]["search"]["optimizer_steps_after_search"] == 0
        assert undisturbed[1]["search"]["steps"] > 0

    def test_repeats_bit_for_bit(self, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        """The same seed gives the same losses and architectures."""
        again = self.run(tmp_path / "search-s0")
        assert rows(tmp_path / "search-s0") == rows(undisturbed[0])
        assert stable(again) == stable(undisturbed[1])

    def test_resumes_to_the_same_result(self, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        """A search that died goes on and ends as an undisturbed one."""
        with pytest.raises(Interrupted):
            self.run(tmp_path / "search-s0", die_after=self.epochs - 3)
        assert len(rows(tmp_path / "search-s0")) < len(rows(undisturbed[0]))
        resumed = self.run(tmp_path / "search-s0")
        assert rows(tmp_path / "search-s0") == rows(undisturbed[0])
        assert stable(resumed) == stable(undisturbed[1])

    def test_refuses_not_a_number(self, tmp_path: Path) -> None:
        """A diverged search stops with an error that names the term."""
        with pytest.raises(NumericsError, match=r"`.+` is (nan|-?inf) at step \d+"):
            self.run(tmp_path / "search-s0", learning_rate=1e30, gradient_clip=1e30)

    def test_exports_from_the_mean(self) -> None:
        """Exporting twice, and after a draw for training, gives the same."""
        config = self.config()
        data = load_data(config.data)
        strategy = build_strategy(config, data, 0)
        strategy.mutate_model(build_space(config, data, 0))
        first = strategy.export(strategy.lambdas(2)[0])
        for _ in range(3):
            strategy.structure.draw(
                torch.zeros(()) if strategy.axis is None else strategy.axis.positions(torch.rand(8))
            )
            assert strategy.export(strategy.lambdas(2)[0]) == first

    def test_refuses_choices_that_it_cannot_relax(self) -> None:
        """A numerical choice is refused by name."""
        config = self.config()
        data = load_data(config.data)
        with pytest.raises(SpaceError, match="`rate`"):
            build_strategy(config, data, 0).mutate_model(_numerical_space())


class SpaceCompliance:
    """A space builds repeatably, gives logits, and its parts cost what its networks cost.

    Attributes:
        name: Registry name or "module:Class".
        args: Arguments of the space.
        data: Section `data` of the configuration.
        strategy: Section `strategy`: what relaxes the space and measures it.
        samples: Random architectures that are built.
    """

    name: str
    args: ClassVar[dict[str, Any]] = {}
    data: ClassVar[dict[str, Any]] = {}
    strategy: ClassVar[dict[str, Any]] = {"name": "regularized_darts"}
    samples = 8

    @pytest.fixture(scope="class")
    @classmethod
    def setting(cls) -> tuple[Config, Any, Any, list[dict[str, Any]]]:
        """Configuration, data, a strategy on the mutated space, random architectures."""
        config = Config.from_dict(
            {"space": {"name": cls.name, "args": cls.args}, "data": cls.data, "strategy": cls.strategy}
        )
        data = load_data(config.data)
        strategy = build_strategy(config, data, 0)
        strategy.measure(strategy.mutate_model(build_space(config, data, 0)), data.shape)
        drawn = strategy.structure.random_samples(cls.samples, generator=torch.Generator().manual_seed(0))
        return config, data, strategy, drawn

    def test_networks_give_logits(self, setting: Any) -> None:
        """Every architecture runs forward and backward."""
        config, data, _, drawn = setting
        x, _ = data.train[:4]
        for choices in drawn:
            network = Architecture(choices).build(build_space(config, data, 0))
            logits = network(x)
            assert logits.shape == (4, data.num_classes)
            logits.square().mean().backward()

    def test_predicted_cost_is_the_counted_one(self, setting: Any) -> None:
        """The sum over the parts of the supernet equals the count on the network."""
        config, data, strategy, drawn = setting
        if strategy.cost.kind != "exact":
            pytest.skip("operations with mutable arguments: the expectation treats their choices as independent parts")
        for choices in drawn:
            network = Architecture(choices).build(build_space(config, data, 0))
            assert strategy.predicted_cost("params", choices) == count_parameters(network)
            assert strategy.predicted_cost("macs", choices) == count_macs(network, data.shape)

    def test_cheapest_and_dearest_bound_all(self, setting: Any) -> None:
        """No architecture costs less than the cheapest or more than the dearest."""
        low, high = setting[2].cost_bounds
        assert low < high
        assert all(low <= setting[2].predicted_cost("params", choices) <= high for choices in setting[3])

    def test_weights_depend_on_the_seed_alone(self, setting: Any) -> None:
        """Two instances of one seed are equal, of two seeds are not."""
        config, data, _, drawn = setting
        first, again, other = (
            Architecture(drawn[0]).build(build_space(config, data, s)).state_dict() for s in (0, 0, 1)
        )
        assert all(torch.equal(first[k], again[k]) for k in first)
        assert any(not torch.equal(first[k], other[k]) for k in first)

    def test_json_round_trip(self, setting: Any) -> None:
        """An architecture survives JSON, and names its network by one key."""
        for choices in setting[3]:
            architecture = Architecture(choices)
            read = Architecture.from_json(architecture.to_json())
            assert read.key == architecture.key
            read.check(build_space(setting[0], setting[1], 0))


def rows(directory: Path) -> list[dict[str, Any]]:
    """The metrics of a trial."""
    return [json.loads(line) for line in (directory / METRICS).read_text(encoding="utf-8").splitlines()]


def stable(result: dict[str, Any]) -> dict[str, Any]:
    """A search's result without what depends on the clock."""
    search_row = {k: v for k, v in result["search"].items() if not k.endswith("seconds")}
    return {**{k: v for k, v in result.items() if k != "stage_seconds"}, "search": search_row}


def _numerical_space() -> Any:
    from nni.mutable import Numerical
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableDropout

    class NumericalSpace(ModelSpace):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = LayerChoice([torch.nn.Identity(), torch.nn.ReLU()], label="layer")
            self.dropout = MutableDropout(Numerical(0.0, 0.5, label="rate"))

        def forward(self, x: torch.Tensor) -> Any:
            return self.dropout(self.layer(x))

    return NumericalSpace()
