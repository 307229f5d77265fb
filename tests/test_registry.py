"""Names become classes: the registry's own, the user's own, and what goes wrong with either."""

import enum
import json
import math
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.registry import (
    DATA_SETS,
    NETWORKS,
    PLANS,
    SEARCH_SPACES,
    STRATEGIES,
    check_name,
    check_names,
    fill_args,
    resolve,
)

ENTRIES = [
    (kind, name, registry)
    for kind, registry in (
        ("strategy", STRATEGIES),
        ("search space", SEARCH_SPACES),
        ("plan", PLANS),
        ("network", NETWORKS),
        ("data set", DATA_SETS),
    )
    for name in registry
]


class Scheme(enum.StrEnum):
    PENALTY = "penalty"
    TARGET = "target"


class Base:
    def __init__(self, depth: int = 2, name: str | None = None) -> None:
        self.depth, self.name = depth, name


class Derived(Base):
    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        rates: tuple[float, ...] = (0.1, 1.0),
        scheme: Scheme = Scheme.TARGET,
        kind: Literal["a", "b"] = "a",
        hook: Any = print,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.width, self.rates, self.scheme, self.kind, self.hook = width, rates, scheme, kind, hook


class Strict(Base):
    """Hands **kwargs on to a base of which it sets a demanded argument itself, as the built-in strategies do."""

    def __init__(self, width: int = 1, **kwargs: Any) -> None:
        super().__init__(depth=3, **kwargs)


class Wrapped(Base):
    """As nni.trace leaves a class: a subclass whose __init__ takes everything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def free(x: int = 1, **kwargs: Any) -> None:
    """Takes any name."""


@pytest.mark.parametrize(("kind", "name", "registry"), ENTRIES)
def test_every_entry_resolves(kind: str, name: str, registry: dict[str, tuple[str, str]]) -> None:
    found = resolve(kind, name, registry)
    assert callable(found)
    assert found.__name__ == registry[name][0].partition(":")[2]
    assert "\n" not in registry[name][1]


def test_unknown_names() -> None:
    known = "known: dirichlet_darts, hyper_darts, regularized_darts"
    with pytest.raises(ConfigError, match=rf"did you mean `hyper_darts`\?\n{known}"):
        resolve("strategy", "hyperdarts", STRATEGIES)
    with pytest.raises(
        ConfigError, match="unknown plan `x`\nknown: architecture_prediction, compression, posterior_refinement, search"
    ):
        check_name("plan", "x", PLANS)
    with pytest.raises(ConfigError, match=r"package\.module:Attr"):
        check_name("strategy", "a b:C", STRATEGIES)
    with pytest.raises(ConfigError, match=r"package\.module:Attr"):
        check_name("strategy", "my_module:", STRATEGIES)
    check_names(Config())
    with pytest.raises(ConfigError, match="unknown search space `cel`, did you mean `cell`"):
        check_names(Config.from_dict({"space": {"name": "cel"}}))


def test_a_module_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spaces_of_a_user.py").write_text("class MySpace:\n    class Inner: pass\nSIZE = 3\n")
    (tmp_path / "broken_of_a_user.py").write_text("def f(:\n")
    (tmp_path / "wants_of_a_user.py").write_text("import not_installed_anywhere\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert resolve("search space", "spaces_of_a_user:MySpace", SEARCH_SPACES).__name__ == "MySpace"
    assert resolve("search space", "spaces_of_a_user:MySpace.Inner", SEARCH_SPACES).__name__ == "Inner"
    for name, says in [
        ("spaces_of_a_user:MySpac", "did you mean `MySpace`"),
        ("spaces_of_a_user:SIZE", "must be a class or a function"),
        ("space_of_a_user:MySpace", "no module named `space_of_a_user`\nmodules are looked for in the folder where"),
        ("broken_of_a_user:f", "SyntaxError"),
        ("wants_of_a_user:f", "no module named `not_installed_anywhere`"),
    ]:
        with pytest.raises(ConfigError) as caught:
            resolve("search space", name, SEARCH_SPACES)
        assert says in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3


def test_fill_args_fills_and_converts() -> None:
    filled = fill_args(Derived, {"width": 8, "rates": ["1e-3", 1], "depth": 4}, "space.args", given=("in_channels",))
    assert filled == {
        "width": 8,
        "rates": (1e-3, 1.0),
        "scheme": "target",
        "kind": "a",
        "depth": 4,
    }
    assert Derived(3, **filled).depth == 4


def test_defaults_that_no_configuration_may_hold_are_the_targets_own() -> None:
    """They are not given, and so not checked as if the user had given them."""

    def load(path: str = None, cap: float = math.inf, size: int = 3, of: int | None = None) -> None: ...  # noqa: RUF013

    assert fill_args(load, {}, "data.args") == {"size": 3, "of": None}
    assert fill_args(load, {"path": "x", "cap": 2}, "data.args") == {"path": "x", "cap": 2.0, "size": 3, "of": None}


def test_whole_numbers_as_keys_come_back_from_json() -> None:
    def target(widths: dict[int, int]) -> None: ...

    for given in ({"1": 16, "-2": 8}, {1: 16, -2: 8}):
        assert fill_args(target, {"widths": given}, "space.args") == {"widths": {1: 16, -2: 8}}
    with pytest.raises(ConfigError, match="whole number"):
        fill_args(target, {"widths": {"a": 1}}, "space.args")


def test_fill_args_sees_through_wrappers() -> None:
    assert fill_args(Wrapped, {}, "space.args") == {"depth": 2, "name": None}
    with pytest.raises(ConfigError, match="did you mean `depth`"):
        fill_args(Wrapped, {"dept": 3}, "space.args")
    assert fill_args(Strict, {}, "space.args") == {"width": 1}
    assert fill_args(free, {"y": [1]}, "data.args") == {"x": 1, "y": [1]}


def test_fill_args_sees_through_nni_trace() -> None:
    nni = pytest.importorskip("nni")
    traced = nni.trace(Base)
    assert fill_args(traced, {"depth": 3}, "strategy.args") == {"depth": 3, "name": None}
    with pytest.raises(ConfigError, match="whole number"):
        fill_args(traced, {"depth": "x"}, "strategy.args")


def test_fill_args_sees_through_a_model_space() -> None:
    """NNI replaces the __init__ of a ModelSpace by one that takes everything."""
    pytorch = pytest.importorskip("nni.nas.nn.pytorch")

    class Space(pytorch.ModelSpace):
        def __init__(self, in_channels: int, width: int = 8) -> None:
            super().__init__()

    class Wide(Space):
        def __init__(self, in_channels: int, heads: int = 1, **kwargs: Any) -> None:
            super().__init__(in_channels, **kwargs)

    class Alias(Space):
        pass

    for space in (Space, Alias):
        assert fill_args(space, {}, "space.args", given=("in_channels",)) == {"width": 8}
        with pytest.raises(ConfigError, match="did you mean `width`"):
            fill_args(space, {"widht": 3}, "space.args", given=("in_channels",))
    assert fill_args(Wide, {"width": 4}, "space.args", given=("in_channels",)) == {"heads": 1, "width": 4}
    with pytest.raises(ConfigError, match="did you mean `heads`"):
        fill_args(Wide, {"head": 3}, "space.args", given=("in_channels",))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"widht": 8}, "unknown key `space.args.widht`, did you mean `width`?"),
        ({"width": 8, "zzz": 1}, "`Derived` takes width, rates, scheme, kind, hook, depth, name"),
        ({"width": "8"}, "`space.args.width` must be a whole number"),
        ({}, "`space.args.width` is missing"),
        ({"width": 8, "scheme": "targte"}, "did you mean 'target'?"),
        ({"width": 8, "kind": "c"}, "must be one of 'a', 'b'"),
        ({"width": 8, "depth": 1.5}, "`space.args.depth`"),
    ],
)
def test_fill_args_refuses(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fill_args(Derived, args, "space.args", given=("in_channels",))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(("kind", "name", "registry"), [entry for entry in ENTRIES if entry[0] != "plan"])
def test_built_in_arguments_survive_json(kind: str, name: str, registry: dict[str, tuple[str, str]]) -> None:
    """What fill_args returns for a built-in goes through the trial's JSON and comes back the same."""
    target = resolve(kind, name, registry)
    required = ("in_channels", "num_classes", "input_shape", "shape", "config", "data", "seed")
    filled = fill_args(target, {}, "args", given=required)
    again = fill_args(target, json.loads(json.dumps(filled)), "args", given=required)
    assert json.dumps(again) == json.dumps(filled)
    with pytest.raises(ConfigError, match=r"unknown key `args\.no_such_argument`"):
        fill_args(target, {"no_such_argument": 1}, "args", given=required)
