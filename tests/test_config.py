"""Reading and checking configurations: known answers, round trips, and what a user may get wrong."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.config import Config, coerce, config_to_yaml, load_config, located
from nni_bayes_nas.errors import ConfigError


class Order(enum.Enum):
    FIRST = "first"
    SECOND = "second"


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-3", float, 1e-3),
        ("-2E5", float, -2e5),
        (True, bool, True),
        ("a", str, "a"),
        (None, int | None, None),
        (3, int | None, 3),
        ("1e-3", float | None, 1e-3),
        ("1e-3", str | float, "1e-3"),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([1, "x"], tuple[int, str], (1, "x")),
        ([1, 2], list[int], [1, 2]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": [1]}, dict, {"a": [1]}),
        ("cpu", Literal["cpu", "gpu"], "cpu"),
        ("second", Order, Order.SECOND),
        ({"width": 3, "rate": 1}, Inner, Inner(3, 1.0)),
        ([{"width": 3}], list[Inner], [Inner(3)]),
        ({"x": [None]}, Any, {"x": [None]}),
    ],
)
def test_coerce_takes(value: Any, annotation: Any, expected: Any) -> None:
    result = coerce(value, annotation, "space.args.x")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "says"),
    [
        (True, int, "whole number"),
        (1, bool, "true or false"),
        ("3", int, "whole number"),
        (3.0, int, "whole number"),
        ("0.1", float, "must be a number"),
        (True, float, "must be a number"),
        (float("nan"), float, "finite"),
        (float("inf"), float, "finite"),
        (10**400, float, "finite"),
        (3, str, "quotes"),
        (None, int, "got None (null)"),
        ("ab", list[str], "must be a list"),
        ([1, 2, 3], tuple[int, int], "list of 2 values"),
        ([1, "x"], list[int], "`space.args.x[1]`"),
        ([("a", 1)], dict[str, int], "mapping"),
        ({1: 2}, dict[str, int], "must be strings"),
        ({"a": "b"}, dict[str, int], "`space.args.x.a`"),
        ("gup", Literal["cpu", "gpu"], "did you mean 'gpu'"),
        ("third", Order, "'first', 'second'"),
        ({"width": 3, "rat": 1}, Inner, "did you mean `rate`"),
        ({}, Inner, "`space.args.x.width` is missing"),
        ("x", int | float, "int or float"),
    ],
)
def test_coerce_refuses(value: Any, annotation: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        coerce(value, annotation, "space.args.x")
    assert says in str(caught.value)
    assert "space.args.x" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_an_empty_configuration_is_the_default() -> None:
    assert Config.from_dict({}) == Config()
    assert Config.from_dict({"search": None, "space": {"args": None}}) == Config()


def test_to_dict_is_plain_json_and_detached() -> None:
    config = Config.from_dict({"space": {"args": {"widths": (4, 8)}}})
    plain = config.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    plain["space"]["args"]["widths"].append(16)
    assert list(config.space.args["widths"]) == [4, 8]


_plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    args=st.dictionaries(st.text(min_size=1), _plain_values, max_size=3),
    epochs=st.integers(4, 500),
    rate=st.floats(1e-9, 10.0),
    title=st.none() | st.text(),
    seed=st.integers(0, 2**31),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    args: dict[str, Any],
    epochs: int,
    rate: float,
    title: str | None,
    seed: int,
) -> None:
    config = Config.from_dict(
        {
            "strategy": {"args": args},
            "search": {"epochs": epochs, "learning_rate": rate},
            "report": {"title": title},
            "seed": seed,
        }
    )
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    path = tmp_path_factory.mktemp("round-trip") / "config.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


@given(st.text(st.sampled_from("0123456789eE+-."), min_size=1, max_size=8))
def test_strings_that_look_like_numbers_survive_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    config = Config.from_dict({"space": {"args": {"x": text}}})
    path = tmp_path_factory.mktemp("strings") / "config.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(path).space.args["x"] == text


def test_dumped_yaml_is_read_alike_by_plain_yaml() -> None:
    config = Config.from_dict({"search": {"weight_decay": 1e-30}})
    assert Config.from_dict(yaml.safe_load(config_to_yaml(config))) == config


def test_overrides_and_seed(tmp_path: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("search: {epochs: 5}\nseed: 1\n")
    config = load_config(
        path,
        [
            "search.epochs=7",
            "search.learning_rate=1e-3",
            "space.args.widths=[4, 8]",
            "data.limit=null",
            "retrain.selection.active=0.1",
            "report.title=a=b",
        ],
        seed=9,
    )
    assert config.search.epochs == 7
    assert config.search.learning_rate == 1e-3
    assert config.space.args == {"widths": [4, 8]}
    assert config.retrain.selection == {"active": 0.1}
    assert config.report.title == "a=b"
    assert config.seed == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("serch: {epochs: 3}", "did you mean `search`?"),
        ("search: {epoch: 3}", "unknown key `search.epoch`, did you mean `epochs`?"),
        ("search: {epochs: many}", "`search.epochs` must be a whole number"),
        ("search: {epochs: 0}", "`search.epochs` must be at least 1"),
        ("search: {epochs: 3, warmup_epochs: 3}", "less than search.epochs (3)"),
        ("search: {lambdas: 1}", "`search.lambdas` must be at least 2"),
        ("search: {structure_fraction: 50}", "fraction, not a percentage"),
        ("search: {momentum: 1}", "[0, 1)"),
        ("search: {gradient_clip: 0}", "must be positive"),
        ("retrain: {repeats: 0}", "`retrain.repeats`"),
        ("retrain: {learning_rate: -1}", "`retrain.learning_rate`"),
        ("retrain: {weight_decay: -1e-3}", "`retrain.weight_decay`"),
        ("data: {val_fraction: 0.6, test_fraction: 0.5}", "less than 1"),
        ("data: {name: npz}", "`data.path` must name the .npz file"),
        ("data: {limit: 0}", "`data.limit`"),
        ("data: {name: ''}", "`data.name` must not be empty"),
        ("experiment: {device: cuda}", "'auto', 'cpu', 'gpu'"),
        ("experiment: {port: 80800}", "1..65535"),
        ("experiment: {concurrency: 0}", "`experiment.concurrency`"),
        ("experiment: {trial_timeout: 0}", "null means no limit"),
        ("seed: -1", "`seed` must lie in"),
        ("seed: 1.5", "`seed` must be a whole number"),
        ("seed:", "`seed` must be a whole number"),
        ("space: cell", "`space` must be a mapping"),
        ("space: {args: [1]}", "`space.args` must be a mapping"),
        ("space: {args: {1: 2}}", "must be strings"),
        ("1: 2", "must be strings"),
        ("- a", "must hold a mapping of sections"),
        ("search: {epochs: 3, epochs: 4}", "`epochs` is given twice"),
        ("search:\n  epochs: 3\n bad: 4", "is not valid YAML, line 3"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: \t- b", "not valid YAML"),
        # What JSON cannot hold: trials get the configuration so, and a search that has ended keeps it so.
        ("data: {args: {since: 2024-01-31}}", "`data.args.since` must be a number, a string, a bool, null, a list or"),
        ("data: {args: {cap: [1, .inf]}}", "`data.args.cap.1` must be a finite number, got inf"),
        ("data: {args: {widths: {1: 16}}}", "`data.args.widths` has a key that must be a string (put it in quotes)"),
        ("data: {args: {since: 2024-02-30}}", "is not valid YAML: day is out of range"),
    ],
)
def test_what_a_user_may_get_wrong(tmp_path: Any, text: str, says: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.epochs", "takes key.path=value"),
        ("=3", "takes key.path=value"),
        ("search.epoch=3", "did you mean `search.epochs`?"),
        ("serch.epochs=3", "did you mean `search.epochs`?"),
        ("search.epochs.x=3", "no such key"),
        ("space.args..x=3", "no such key"),
        ("space.argsx=3", "did you mean `space.args`?"),
        ("search.epochs=[", "the value of `--set search.epochs` is not valid YAML"),
        ("search.epochs=a", "`search.epochs` must be a whole number"),
        ("space.args.a.b=3", "`space.args.a` must be a mapping"),
        ("search=3", "`search` must be a mapping"),
    ],
)
def test_wrong_overrides(tmp_path: Any, override: str, says: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("space: {args: {a: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_unreadable_files(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"report: {title: caf\xe9}")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_an_earlier_bank_is_found_from_anywhere(tmp_path):
    for bank, found in (("runs/one", tmp_path / "runs" / "one"), ("/a/b", Path("/a/b")), ("~/c", Path.home() / "c")):
        assert located(Config.from_dict({"predict": {"bank": bank}}), tmp_path).predict.bank == str(found)
    assert located(Config.from_dict({}), tmp_path) == Config.from_dict({})
