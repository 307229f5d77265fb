"""The configuration of an experiment: frozen dataclasses, strict reading, YAML.

Defaults live here and nowhere else. A section's ``args`` belong to the class or function that its ``name`` means;
``nni_bayes_nas.registry.fill_args`` checks them against its signature.
"""

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nni_bayes_nas.coercion import (
    closest,
    coerce,
    plain,
    require,
    require_at_least,
    require_inside,
    require_name,
    shown,
)
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.yaml_text import parse_yaml, to_yaml

__all__ = [
    "Config",
    "DataConfig",
    "ExperimentConfig",
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

Precision = Literal["32-true", "bf16-mixed"]
"""Lightning's names: single precision, or passes through the network in bfloat16 with all else in single precision."""

# numpy's and Lightning's seeds are 32 bits wide; the rest is room for seed + searches + repeats.
_MAX_SEED = 2**32 - 2**16


@dataclass(frozen=True)
class SpaceConfig:
    """The search space: a registry name or ``package.module:Class``; ``args`` go to the class."""

    name: str = "cell"
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_name("space.name", self.name)


@dataclass(frozen=True)
class StrategyConfig:
    """The strategy: a registry name or ``package.module:Class``; ``args`` go to the class."""

    name: str = "hyper_darts"
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_name("strategy.name", self.name)


@dataclass(frozen=True)
class DataConfig:
    """The data: a registry name or ``package.module:function``.

    ``task`` says what y is: classes, or real targets. ``root`` and ``download`` are for data sets from files, ``path``
    for ``npz``, ``image_size`` (pixels) and ``grayscale`` for ``image_folder``, ``args`` for a function of the user.
    ``test_fraction`` is used only where the data have no test set of their own. ``limit`` and ``val_limit`` keep the
    first so many training and validation objects after the seeded shuffle; ``skip`` leaves out so many training objects
    before them. ``on_gpu``: on a GPU all data lie in its memory, if they take no more than a quarter of what is free.
    """

    name: str = "digits"
    task: Literal["classification", "regression"] = "classification"
    root: str | None = None
    download: bool = False
    path: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    val_fraction: float = 0.15
    test_fraction: float = 0.2
    skip: int = 0
    limit: int | None = None
    val_limit: int | None = None
    image_size: int | None = None
    grayscale: bool = False
    on_gpu: bool = True

    def __post_init__(self) -> None:
        require_name("data.name", self.name)
        require_inside("data.val_fraction", self.val_fraction)
        require_inside("data.test_fraction", self.test_fraction)
        total = self.val_fraction + self.test_fraction
        require(total < 1, "data.val_fraction + data.test_fraction", "must be less than 1", total, "lower one of them")
        require_at_least("data.skip", self.skip, 0)
        require_at_least("data.limit", self.limit, 1)
        require_at_least("data.val_limit", self.val_limit, 1)
        require_at_least("data.image_size", self.image_size, 1)
        missing = self.name == "npz" and self.path is None
        require(not missing, "data.path", "must name the .npz file", self.path, "set it, for example data/images.npz")


@dataclass(frozen=True)
class SearchConfig:
    """The search trials.

    ``searches`` independent searches run with seeds seed, seed + 1, ... From each, ``lambdas`` architectures are read
    off on a log-spaced grid of the strategy's range, both ends included, and ``random`` architectures of matched
    sizes are drawn beside them (0: none). Without lambda one is read off (``derive``): by the mean of the structure, as
    the best of ``derive_draws`` draws by validation loss, or by what hurts most when it is taken away; ``samples`` more
    are drawn from the posterior. ``collapse``: whether signs of it are watched, and end the search. With ``variants``
    there are as many searches for each of its entries, mappings from paths below ``strategy.args`` and ``search``,
    ``data.limit`` or ``data.skip`` to values. ``structure_fraction`` of the training set is for the structure step.
    ``replicas`` searches run in one trial, side by side: for small networks. ``precision``: ``bf16-mixed`` lets the
    supernet, and nothing else, compute in bfloat16.
    """

    epochs: int = 30
    warmup_epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0
    searches: int = 1
    replicas: int = 1
    variants: list[dict[str, Any]] = field(default_factory=list)
    lambdas: int = 8
    random: int = 6
    samples: int = 0
    derive: Literal["mean", "best_of", "perturbation"] = "mean"
    derive_draws: int = 50
    collapse: Literal["ignore", "watch", "stop"] = "ignore"
    structure_fraction: float = 0.5
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        _check_training("search", self)
        require_at_least("search.warmup_epochs", self.warmup_epochs, 0)
        require(
            self.warmup_epochs < self.epochs,
            "search.warmup_epochs",
            f"must be less than search.epochs ({self.epochs})",
            self.warmup_epochs,
            "the structure is not trained during the warm-up: lower it, or raise search.epochs",
        )
        for name in ("searches", "replicas", "derive_draws", "lambdas", "random", "samples"):
            least = {"lambdas": 2, "random": 0, "samples": 0}.get(name, 1)
            require_at_least(f"search.{name}", getattr(self, name), least)
        require_inside("search.structure_fraction", self.structure_fraction)


@dataclass(frozen=True)
class RetrainConfig:
    """The retrain trials; ``repeats`` of them per architecture, with seeds seed .. seed + repeats - 1.

    ``replicas`` of the repeats of one architecture run in one trial, side by side: for small networks on a GPU, where
    each by itself would leave most of it idle.

    ``space`` holds arguments of the space that take the place of those in ``space.args``: retraining at another scale
    (more cells, another width, a stem for larger images). The choices of the architecture must fit them.

    Augmentation of training images: ``crop_padding`` pixels around, then a crop of the old size; ``horizontal_flip`` of
    every other object; ``cutout``, the side in pixels of a square that is set to the mean. ``drop_path`` is the
    probability at the end of training (``space.args`` of the cell space); ``auxiliary_weight`` counts where
    ``retrain.space`` asks for an auxiliary classifier. ``precision`` is that of the training, as in the search; what
    is reported and exported is measured in single precision.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0
    repeats: int = 1
    replicas: int = 1
    space: dict[str, Any] = field(default_factory=dict)
    crop_padding: int = 0
    horizontal_flip: bool = False
    cutout: int = 0
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.4
    drop_path: float = 0.0
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        _check_training("retrain", self)
        require_at_least("retrain.repeats", self.repeats, 1)
        require_at_least("retrain.replicas", self.replicas, 1)
        require_at_least("retrain.crop_padding", self.crop_padding, 0)
        require_at_least("retrain.cutout", self.cutout, 0)
        for name in ("label_smoothing", "drop_path"):
            value = getattr(self, name)
            require(0 <= value < 1, f"retrain.{name}", "must lie in [0, 1)", value, "0 means none")
        weight = self.auxiliary_weight
        require(weight >= 0, "retrain.auxiliary_weight", "must not be negative", weight, "0.4 is the default")
        both = "drop_path" in self.space and self.drop_path > 0
        require(not both, "retrain.drop_path", "must not be given in retrain.space too", self.drop_path, "keep one")


@dataclass(frozen=True)
class RefineConfig:
    """The plan ``posterior_refinement``: what becomes of a search's posterior by short trainings.

    ``candidates`` are its most probable architectures, of at most ``max_params`` parameters. ``evaluations`` of them
    are trained for ``epochs``, ``parallel`` at a time, as a Gaussian process proposes whose prior mean is
    ``prior_weight`` times the posterior's log-probability: by Thompson sampling or expected improvement. The
    ``finalists`` best are trained for ``final_epochs``, and what the process then thinks best of these is retrained.
    """

    candidates: int = 512
    max_params: int | None = None
    evaluations: int = 14
    parallel: int = 2
    epochs: int = 3
    finalists: int = 2
    final_epochs: int = 8
    prior_weight: float = 1.0
    acquisition: Literal["thompson", "expected_improvement"] = "thompson"

    def __post_init__(self) -> None:
        for name in ("candidates", "max_params", "evaluations", "parallel", "epochs", "finalists", "final_epochs"):
            require_at_least(f"refine.{name}", getattr(self, name), 1)
        weight, most = self.prior_weight, min(self.candidates, self.evaluations)
        require(weight >= 0, "refine.prior_weight", "must not be negative", weight, "0 is a flat prior")
        rule = f"must be at most refine.evaluations and refine.candidates ({most})"
        require(self.finalists <= most, "refine.finalists", rule, self.finalists, "lower it")


@dataclass(frozen=True)
class ExperimentConfig:
    """How the trials run.

    ``concurrency`` null means the number of GPUs, or on the CPU 2 but no more than its cores; ``threads`` null means
    cores // concurrency, at least 1. ``retries`` is how often a dead trial is run again; ``trial_timeout`` is in
    seconds. ``fork``: trials on this machine's CPU are forks of a process that has torch imported, on Linux.
    """

    name: str = "nni-bayes-nas"
    plan: str = "search_and_retrain"
    concurrency: int | None = None
    threads: int | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    port: int = 8080
    retries: int = 1
    trial_timeout: float | None = None
    fork: bool = True

    def __post_init__(self) -> None:
        require_name("experiment.name", self.name)
        require_name("experiment.plan", self.plan)
        require_at_least("experiment.concurrency", self.concurrency, 1)
        require_at_least("experiment.threads", self.threads, 1)
        require(1 <= self.port <= 65535, "experiment.port", "must lie in 1..65535", self.port, "8080 is the default")
        require_at_least("experiment.retries", self.retries, 0)
        timeout = self.trial_timeout
        positive = timeout is None or timeout > 0
        require(positive, "experiment.trial_timeout", "must be positive", timeout, "seconds; null means no limit")


@dataclass(frozen=True)
class ReportConfig:
    """The report; ``title`` null means the experiment's name."""

    title: str | None = None


@dataclass(frozen=True)
class Config:
    """The full configuration of one experiment."""

    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
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
    free = [name for name in known if name.endswith(".args") or name == "retrain.space"]
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
    inner = "space" if key == "retrain" else "args"
    if isinstance(value, dict) and inner in value and value[inner] is None:
        return {**value, inner: {}}
    return value


def _check_training(section: str, config: SearchConfig | RetrainConfig) -> None:
    require_at_least(f"{section}.epochs", config.epochs, 1)
    require_at_least(f"{section}.batch_size", config.batch_size, 1)
    rate, clip, decay, momentum = config.learning_rate, config.gradient_clip, config.weight_decay, config.momentum
    require(rate > 0, f"{section}.learning_rate", "must be positive", rate, "0.05 is the default")
    require(0 <= momentum < 1, f"{section}.momentum", "must lie in [0, 1)", momentum, "0 means none")
    require(decay >= 0, f"{section}.weight_decay", "must not be negative", decay, "0 means none")
    require(clip > 0, f"{section}.gradient_clip", "must be positive", clip, "a large value such as 1e6 means none")
