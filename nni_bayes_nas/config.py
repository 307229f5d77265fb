"""The configuration of an experiment: frozen dataclasses, strict reading, YAML.

Defaults live in its sections (``config_sections``) and nowhere else. A section's ``args`` belong to the class or
function that its ``name`` means; ``nni_bayes_nas.registry.fill_args`` checks them against its signature.
"""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_bayes_nas.coercion import (
    closest,
    coerce,
    plain,
    require,
    require_json,
    shown,
)
from nni_bayes_nas.config_plans import CompressConfig, PredictConfig, RefineConfig
from nni_bayes_nas.config_sections import (
    DataConfig,
    ExperimentConfig,
    Precision,
    ReportConfig,
    RetrainConfig,
    SearchConfig,
    SpaceConfig,
    StrategyConfig,
)
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.yaml_text import parse_yaml, to_yaml

__all__ = [
    "CompressConfig",
    "Config",
    "DataConfig",
    "ExperimentConfig",
    "Precision",
    "PredictConfig",
    "RefineConfig",
    "ReportConfig",
    "RetrainConfig",
    "SearchConfig",
    "SpaceConfig",
    "StrategyConfig",
    "coerce",
    "config_to_yaml",
    "load_config",
]

# numpy's and Lightning's seeds are 32 bits wide; the rest is room for seed + searches + repeats.
_MAX_SEED = 2**32 - 2**16


@dataclass(frozen=True)
class Config:
    """The full configuration of one experiment."""

    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        seed = self.seed
        require(0 <= seed <= _MAX_SEED, "seed", f"must lie in 0..{_MAX_SEED}", seed, "use a small whole number")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Reads plain JSON or YAML types; what is left out, or null where a section stands, takes its default.

        Raises:
            ConfigError: An unknown key (the nearest known one is named), a wrong type, a value out of range.

        >>> Config.from_dict({"search": {"epochs": 5}}).search.epochs
        5
        """
        if not isinstance(values, dict):
            raise ConfigError(f"a configuration must be a mapping of sections, got {shown(values)}")
        config: Config = coerce({key: _without_null(key, value) for key, value in values.items()}, cls, "")
        require_json(values)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration, defaults included, as new plain JSON types."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values


def load_config(path: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> Config:
    """Reads a YAML file, then applies ``key.path=value`` overrides (YAML values), then ``seed``.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or a value in it or in an override is not allowed.
    """
    values = parse_yaml(_read(Path(path)), f"`{path}`")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"`{path}` must hold a mapping of sections, got {shown(values)}")
    for override in overrides:
        _apply_override(values, override)
    if seed is not None:
        values["seed"] = seed
    return Config.from_dict(values)


def located(config: Config, base: Path) -> Config:
    """With the path of an earlier bank made absolute: what is learned from a run later is looked for from elsewhere.

    Args:
        config: The configuration.
        base: The folder that relative paths count from.
    """
    bank = config.predict.bank
    if bank is None:
        return config
    return dataclasses.replace(
        config, predict=dataclasses.replace(config.predict, bank=str((base / Path(bank).expanduser()).resolve()))
    )


def config_to_yaml(config: Config) -> str:
    """The full effective configuration as YAML; ``load_config`` reads it back to an equal object."""
    return to_yaml(config.to_dict())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the configuration `{path}` cannot be read: {cause}\ngive the path of a YAML file") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f"`--set` takes key.path=value, got {override!r}; for example --set search.epochs=3")
    _check_override_path(path)
    *parents, last = path.split(".")
    target = values
    for depth, key in enumerate(parents, start=1):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise ConfigError(f"`--set {path}`: `{'.'.join(parents[:depth])}` must be a mapping, got {shown(target)}")
    target[last] = parse_yaml(text, f"the value of `--set {path}`")


def _check_override_path(path: str) -> None:
    known = _known_paths()
    # Below these the keys belong to a class that is not imported here: `fill_args` checks them.
    inner = (".args", ".selection")
    free = [name for name in known if name.endswith(inner) or name in ("retrain.space", "compress.network_args")]
    if path in known or any(path.startswith(f"{name}.") for name in free):
        if all(path.split(".")):
            return
    raise ConfigError(f"`--set {path}`: no such key, {closest(path, [name for name in known if '.' in name])}")


def _known_paths() -> list[str]:
    known: list[str] = []
    for name, section in typing.get_type_hints(Config).items():
        known.append(name)
        if dataclasses.is_dataclass(section):
            known.extend(f"{name}.{item.name}" for item in dataclasses.fields(section))
    return known


def _without_null(key: str, value: Any) -> Any:
    """Takes a section, an ``args`` or ``retrain.space`` whose lines are all commented out (YAML: null) for empty."""
    if value is None and key != "seed":
        return {}
    inner = {"retrain": "space", "compress": "network_args"}.get(key, "args")
    if isinstance(value, dict) and inner in value and value[inner] is None:
        return {**value, inner: {}}
    return value
