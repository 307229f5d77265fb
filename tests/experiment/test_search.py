"""The search trial: optimizer steps are counted for real; data and loaders repeat."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nni_bayes_nas.config import Config, DataConfig
from nni_bayes_nas.errors import ConfigError, DataError, SpaceError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.data import EpochBatches, halves, load_data
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.experiment.step_counter import count_optimizer_steps


def test_the_global_hook_counts_a_forced_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], 0.1)
    with count_optimizer_steps() as counter:
        assert counter.steps == 0
        parameter.grad = torch.ones(1)
        optimizer.step()
    assert counter.steps == 1
    optimizer.step()
    assert counter.steps == 1


def test_digits_are_split_without_overlap_and_standardized() -> None:
    data = load_data(DataConfig())
    assert [len(part) for part in (data.train, data.val, data.test)] == [1222, 216, 359]
    assert data.shape == (1, 8, 8) and data.num_classes == 10
    assert abs(float(data.train.tensors[0].mean())) < 1e-3
    images = torch.cat([part.tensors[0] for part in (data.train, data.val, data.test)]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 1797


def test_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.random((60, 3, 8, 8), dtype=np.float32), y=np.arange(60) % 3)
    data = load_data(DataConfig(name="npz", path=str(tmp_path / "a.npz")))
    assert data.num_classes == 3 and data.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((20, 8, 8)), "y": np.arange(20) % 2}, r"\(n, channels, height, width\)"),
        ({"x": np.zeros((20, 1, 8, 8)), "y": np.zeros(20)}, "class numbers"),
        ({"x": np.zeros((20, 1, 8, 8)), "y": np.arange(10)}, "one per object"),
        ({"x": np.full((20, 1, 8, 8), np.nan), "y": np.arange(20) % 2}, "must be finite"),
        ({"x": np.zeros((20, 1, 8, 8))}, "arrays x and y"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name="npz", path=str(tmp_path / "a.npz")))


def test_what_a_file_raises_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"must name an \.npz file"):
        load_data(DataConfig(name="npz", path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize(("shape", "label", "message"), [((3, 8, 8), 0, "shape of x"), ((1, 8, 8), 7, "classes of y")])
def test_test_data_that_do_not_fit_are_refused(
    tmp_path: Path, shape: tuple[int, ...], label: int, message: str
) -> None:
    x, y = np.random.default_rng(0).random((20, 1, 8, 8)), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=np.zeros((4, *shape)), y_test=np.full(4, label))
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name="npz", path=str(tmp_path / "a.npz")))


def test_channels_and_classes_come_from_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.random((60, 3, 8, 8)), y=np.arange(60) % 4)
    for space in ("cell", "chain"):
        config = {"space": {"name": space}, "data": {"name": "npz", "path": str(tmp_path / "a.npz")}}
        validate(Config.from_dict(config))


def test_missing_mnist_is_refused_without_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="download"):
        load_data(DataConfig(name="mnist", root=str(tmp_path)))


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    first, second = EpochBatches(10, 3, seed=1), EpochBatches(10, 3, seed=1)
    assert torch.equal(torch.cat(list(first)), torch.cat(list(second)))
    second.set_epoch(1)
    assert not torch.equal(torch.cat(list(first)), torch.cat(list(second)))
    assert len(first) == len(list(first)) == 3
    in_order = EpochBatches(10, 3, seed=None)
    assert torch.cat(list(in_order)).tolist() == list(range(10)) and len(in_order) == 4


def test_halves_do_not_overlap() -> None:
    data = load_data(DataConfig(limit=100)).train
    weights, structure = halves(data, 0.3, seed=0)
    assert (len(weights), len(structure)) == (70, 30)
    joined = torch.cat([weights.tensors[0], structure.tensors[0]]).flatten(1)
    assert len(torch.unique(joined, dim=0)) == len(torch.unique(data.tensors[0].flatten(1), dim=0))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"space": {"args": {"in_channels": 3}}}, DataError, "must fit the space"),
        ({"space": {"args": {"num_classes": 4}}}, DataError, "10 classes"),
        ({"space": {"args": {"num_classes": 20}}}, DataError, "10 classes"),
        ({"space": {"args": {"num_classes": -3}}}, SpaceError, "calling it failed"),
        ({"space": {"args": {"dropout": 3.0}}}, SpaceError, "calling it failed"),
        ({"space": {"args": {"operations": ["skip_connect"]}}}, SpaceError, "different cost"),
        ({"strategy": {"args": {"arc_learning_rate": -1.0}}}, ConfigError, "must be positive"),
        ({"strategy": {"args": {"warmup_epochs": 99}}}, ConfigError, "search.warmup_epochs"),
        ({"data": {"args": {"a": 1}}}, DataError, "takes none"),
        ({"data": {"val_fraction": 0.001}}, DataError, "validation set"),
        ({"data": {"limit": 1}}, DataError, "structure_fraction"),
        ({"data": {"name": "nowhere:load"}}, ConfigError, "no module named"),
        ({"strategy": {"args": {"lambda_range": [1.0, 0.1]}}}, ConfigError, "0 < low < high"),
        ({"strategy": {"args": {"hyperne": "linear"}}}, ConfigError, "did you mean `hypernet`"),
        ({"space": {"args": {"operations": ["conv_9x9"]}}}, SpaceError, "conv_9x9"),
        ({"space": {"name": "chain", "args": {"width": "wide"}}}, ConfigError, "width"),
    ],
)
def test_mistakes_are_refused_before_time_is_spent(
    values: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        validate(Config.from_dict(values))


def test_the_effective_configuration_has_all_defaults() -> None:
    config = validate(Config.from_dict({"space": {"name": "chain"}}))
    assert config.space.args == {"width": 8, "depth": 3}
    assert config.strategy.args["hypernet"] == "price"
    assert validate(Config.from_dict(config.to_dict())) == config


def test_latencies_are_reported_where_there_is_a_table_of_them(tmp_path: Path) -> None:
    milliseconds = {"fixed": 8.0, "identity": 0.25, "conv_1x1": 0.5, "conv_3x3": 2.0}
    (tmp_path / "table.csv").write_text("".join(f"{name},{value}\n" for name, value in milliseconds.items()))
    values = {
        "space": {"name": "chain", "args": {"width": 4, "depth": 3}},
        "data": {"limit": 200},
        "search": {"epochs": 1, "warmup_epochs": 0, "batch_size": 64, "lambdas": 5, "random": 3},
    }
    table = {"cost": "latency", "latency_table": str(tmp_path / "table.csv")}
    for args, latency in ((table, True), ({}, False)):
        # Far from the ends of the cost: at an end there is no random architecture of the same size.
        args = {"target_range": [0.8, 0.2], "arc_learning_rate": 0.5, **args}
        config = Config.from_dict({**values, "strategy": {"args": args}})
        folder = tmp_path / str(len(args))
        folder.mkdir()
        result = run_search(config, {"trial": "search-s0", "seed": 0}, folder, lambda terms: None)
        rows = [*result["architectures"], *result["random"]]
        assert result["random"]
        for row in rows:
            by_hand = 8.0 + sum(milliseconds[choice] for choice in row["choices"].values())
            assert row.get("latency") == (pytest.approx(by_hand) if latency else None)
        assert all(("latency" in row) == latency for row in [*rows, *result["curve"]])
