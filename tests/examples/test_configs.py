"""The configurations that are offered: each is read, checked as before a run, and fits its data; no data are needed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.config import load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import build
from nni_bayes_nas.experiment.data import DataSplits

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def noise(name: str) -> DataSplits:
    """A few images of a data set's shape and ten classes."""
    parts = [TensorDataset(torch.randn(20, *SHAPES[name]), torch.arange(20) % 10) for _ in range(3)]
    return DataSplits(*parts, 10, torch.zeros(1), torch.ones(1))


@pytest.fixture(params=sorted(SHAPES))
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(build, "load_data", lambda config: noise(config.name))
    yield request.param


def test_every_file_is_a_configuration() -> None:
    files = sorted(CONFIGS.glob("*.yaml"))
    assert {"demo-digits", "diabetes", "mnist", "cifar10"} <= {file.stem for file in files}
    for file in files:
        assert build.effective(load_config(file)).experiment.name == file.stem


@pytest.mark.parametrize(
    ("file", "plan"),
    [
        ("compress-digits", "compression"),
        ("predict-digits", "architecture_prediction"),
        ("joint-digits", "search_and_retrain"),
    ],
)
def test_those_of_digits_pass_the_checks_before_a_run(file: str, plan: str) -> None:
    build.validate(load_config(CONFIGS / f"{file}.yaml", [f"experiment.plan={plan}"]))


def test_data_are_asked_for_by_root(name: str) -> None:
    data = load_config(CONFIGS / f"{name}.yaml").data
    assert data.name == name and data.root is not None and not data.download


def test_it_passes_the_checks_before_a_run_at_both_scales(name: str) -> None:
    config = build.validate(load_config(CONFIGS / f"{name}.yaml"))
    data = noise(name)
    space = build.build_space(config, data, 0)
    random = np.random.RandomState(0)  # NNI asks for the legacy generator
    architecture = Architecture(
        {label: choice.random(random_state=random) for label, choice in space.simplify().items()}
    )
    searched, trained = architecture.build(space), build.build_network(config, data, 0, architecture)
    assert count_parameters(trained) > 2 * count_parameters(searched)
    assert trained.eval()(data.test[:2][0]).shape == (2, 10)


@pytest.mark.parametrize("name", ["mnist"], indirect=True)
def test_other_numbers_of_unshared_cells_are_refused(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", ["retrain.space.n_cells=3"])
    with pytest.raises(ConfigError, match=r"`retrain\.space` .*\n.*space\.args\.share"):
        build.validate(config)
