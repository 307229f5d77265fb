"""The sections of a configuration, with their defaults and rules."""

from dataclasses import dataclass, field
from typing import Any, Literal

from nni_bayes_nas.coercion import require, require_at_least, require_inside, require_name

Precision = Literal["32-true", "bf16-mixed"]
"""Lightning's names: single precision, or passes through the network in bfloat16 with all else in single precision."""


@dataclass(frozen=True)
class SpaceConfig:
    """The search space.

    Attributes:
        name: A name of ``nni-bayes-nas list`` or ``package.module:Class``.
        args: Of the class.
    """

    name: str = "cell"
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_name("space.name", self.name)


@dataclass(frozen=True)
class StrategyConfig:
    """The strategy.

    Attributes:
        name: A name of ``nni-bayes-nas list`` or ``package.module:Class``.
        args: Of the class.
    """

    name: str = "hyper_darts"
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_name("strategy.name", self.name)


@dataclass(frozen=True)
class DataConfig:
    """The data. Splits are the same for all seeds.

    Attributes:
        name: A name of ``nni-bayes-nas list`` or ``package.module:function``.
        task: What y is: classes ("classification"), or real targets ("regression").
        root: Folder of data sets from files.
        download: Whether they may be fetched.
        path: File of ``npz`` and ``csv``.
        args: Of a function of your own.
        val_fraction: Share of what is not test data that is for validation, by which things are chosen.
        val_split: A number: other objects for validation, of what is not test data. For small data, whose few
            validation objects favour one network by chance.
        test_fraction: Share for the test, of data that have no test set of their own.
        skip: So many training objects are left out, after the seeded shuffle and before ``limit``.
        limit: So many training objects are kept.
        val_limit: So many validation objects are kept.
        image_size: Side in pixels to which ``image_folder`` brings its images.
        grayscale: Whether it makes them gray.
        on_gpu: On a GPU all data lie in its memory, if they take no more than a quarter of what is free.
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

    Attributes:
        epochs: Of a search.
        warmup_epochs: At the beginning, in which only the weights learn.
        batch_size: Of each of the two steps.
        optimizer: Of the weights: "sgd", "adam", or "psgld", preconditioned SGLD, which draws them from their
            posterior.
        learning_rate: Of the weights at the first step, then it falls as a cosine; of "adam" 0.002, say, of "psgld"
            0.003.
        rho_learning_rate: Of the logarithms of their standard deviations, where weights are Gaussian; null: the same.
        momentum: Of "sgd".
        weight_decay: Of the weights.
        gradient_clip: Norm to which their gradient is clipped.
        searches: Independent searches, with seeds seed, seed + 1, ...
        replicas: So many of them run in one trial, side by side: for small networks.
        variants: As many searches for each of these, which are mappings from paths below ``strategy.args`` and
            ``search``, ``data.limit`` or ``data.skip`` to values.
        lambdas: Architectures that are read off, on a log-spaced grid of the strategy's range, both ends included.
        random: Architectures of matched sizes that are drawn at random and trained beside them; 0: none.
        samples: Architectures that are drawn from the posterior too.
        derive: How one is read off without lambda: by the "mean" of the structure, as the "best_of" draws by
            validation loss, or, "perturbation", by what hurts most when it is taken away.
        derive_draws: Of "best_of".
        collapse: "watch": signs of a collapse are logged; "stop": they end the search, too; "ignore": neither.
        structure_fraction: Share of the training set that is for the structure step.
        precision: "32-true", or "bf16-mixed": the supernet, and nothing else, computes in bfloat16.
        selection: As of retrainings, for the weights of the supernet; the structure is optimized to the end.
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
    """The retrain trials.

    Attributes:
        epochs: Of a training.
        batch_size: Of a step.
        learning_rate: Of SGD with Nesterov momentum at the first step, then it falls as a cosine.
        momentum: Of it.
        weight_decay: L2 decay.
        gradient_clip: Norm to which the gradient is clipped.
        repeats: Trainings of an architecture, with seeds seed .. seed + repeats - 1.
        replicas: So many of them run in one trial, side by side.
        space: Arguments of the space in the place of those in ``space.args``: retraining at another scale (more cells,
            another width, a stem for larger images). The choices of the architecture must fit them.
        crop_padding: Augmentation of training images: so many pixels around, then a crop of the old size.
        horizontal_flip: Likewise: of each object with probability 1/2.
        cutout: Likewise: the side in pixels of a square that is set to the mean.
        label_smoothing: Share of the probability that goes to all classes.
        auxiliary_weight: Of the loss of an auxiliary classifier, where ``retrain.space`` asks for one.
        drop_path: Probability at the end of the training that a path of a cell is left out.
        precision: "32-true" or "bf16-mixed", of the training; what is reported and exported is measured in single
            precision.
        selection: Arguments of ``SelectiveOptimization``: after some steps only a part of the parameters is optimized;
            null: all to the end.
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

    Attributes:
        name: In NNI's web UI and the report.
        plan: What trials there are: "search_and_retrain" or "posterior_refinement"; the commands `compress` and
            `predict` have plans of their own.
        concurrency: Trials at a time; null: the number of GPUs, or on the CPU 2 but no more than its cores.
        threads: Of a trial on the CPU; null: cores // concurrency, at least 1.
        device: "auto", "cpu" or "gpu".
        port: Of NNI's manager and web UI.
        retries: How often a dead trial is run again; it goes on from its last checkpoint.
        trial_timeout: In seconds; null: none.
        fork: Trials on this machine's CPU are forks of a process that has torch imported, on Linux.
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
    """The report.

    Attributes:
        title: Its title; null: the experiment's name.
    """

    title: str | None = None


def _check_training(section: str, config: SearchConfig | RetrainConfig) -> None:
    require_at_least(f"{section}.epochs", config.epochs, 1)
    require_at_least(f"{section}.batch_size", config.batch_size, 1)
    rate, clip, decay, momentum = config.learning_rate, config.gradient_clip, config.weight_decay, config.momentum
    require(rate > 0, f"{section}.learning_rate", "must be positive", rate, "0.05 is the default")
    require(0 <= momentum < 1, f"{section}.momentum", "must lie in [0, 1)", momentum, "0 means none")
    require(decay >= 0, f"{section}.weight_decay", "must not be negative", decay, "0 means none")
    require(clip > 0, f"{section}.gradient_clip", "must be positive", clip, "a large value such as 1e6 means none")
