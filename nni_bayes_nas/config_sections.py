"""The sections of a configuration, with their defaults and rules."""

from dataclasses import dataclass, field
from typing import Any, Literal

from nni_bayes_nas.coercion import require, require_at_least, require_inside, require_name

Precision = Literal["32-true", "bf16-mixed"]
"""Lightning's names: single precision, or passes through the network in bfloat16 with all else in single precision."""


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
    for ``npz`` and ``csv``, ``image_size`` (pixels) and ``grayscale`` for ``image_folder``, ``args`` for a function of
    the user. ``test_fraction`` is used only where the data have no test set of their own. ``limit`` and ``val_limit``
    keep the first so many training and validation objects after the seeded shuffle; ``skip`` leaves out so many before
    them. Splits are the same for all seeds; every ``val_split``, a number, draws other objects for validation, of what
    is not test data: for small data, whose few validation objects favour one network by chance. ``on_gpu``: on a GPU
    all data lie in its memory, if they take no more than a quarter of what is free.
    """

    name: str = "digits"
    task: Literal["classification", "regression"] = "classification"
    root: str | None = None
    download: bool = False
    path: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    val_fraction: float = 0.15
    val_split: int | None = None
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
        require_at_least("data.val_split", self.val_split, 0)
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
    supernet, and nothing else, compute in bfloat16. ``optimizer`` is that of the weights (``learning_rate`` of adam:
    0.002, say); ``psgld``, preconditioned SGLD, draws them from their posterior (0.003, say). ``rho_learning_rate`` is
    that of the logarithms of their standard deviations, where weights are Gaussian. ``selection``: as of retrainings,
    for the weights of the supernet; the structure is optimized to the end.
    """

    epochs: int = 30
    warmup_epochs: int = 3
    batch_size: int = 64
    optimizer: Literal["sgd", "adam", "psgld"] = "sgd"
    learning_rate: float = 0.05
    rho_learning_rate: float | None = None
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
    selection: dict[str, Any] | None = None

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
        rate = self.rho_learning_rate
        require(
            rate is None or rate > 0, "search.rho_learning_rate", "must be positive", rate, "0.005 is usual with adam"
        )


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
    is reported and exported is measured in single precision. ``selection``, arguments of ``SelectiveOptimization``:
    after some steps only a part of the parameters is optimized; null: all to the end.
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
    selection: dict[str, Any] | None = None

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


def _check_training(section: str, config: SearchConfig | RetrainConfig) -> None:
    require_at_least(f"{section}.epochs", config.epochs, 1)
    require_at_least(f"{section}.batch_size", config.batch_size, 1)
    rate, clip, decay, momentum = config.learning_rate, config.gradient_clip, config.weight_decay, config.momentum
    require(rate > 0, f"{section}.learning_rate", "must be positive", rate, "0.05 is the default")
    require(0 <= momentum < 1, f"{section}.momentum", "must lie in [0, 1)", momentum, "0 means none")
    require(decay >= 0, f"{section}.weight_decay", "must not be negative", decay, "0 means none")
    require(clip > 0, f"{section}.gradient_clip", "must be positive", clip, "a large value such as 1e6 means none")
