"""The sections of a configuration that are each of one plan, with their defaults and rules."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from nni_bayes_nas.coercion import require, require_at_least
from nni_bayes_nas.config_sections import DataConfig


@dataclass(frozen=True)
class RefineConfig:
    """The plan ``posterior_refinement``: what becomes of a search's posterior by short trainings.

    Short trainings settle what a good set of candidates leaves open; among many they favor what learns fast
    (`nasbench201.py`).

    Attributes:
        candidates: Most probable architectures of the search.
        max_params: Of at most so many parameters.
        evaluations: So many of them are trained, as a Gaussian process proposes.
        parallel: At a time.
        epochs: Of such a training.
        rungs: Pairs: how many of the best are then trained for how many epochs; the best of the last one is retrained.
        prior_weight: The process' prior mean is this times the posterior's log-probability; 0: flat.
        acquisition: How it proposes.
    """

    candidates: int = 32
    max_params: int | None = None
    evaluations: int = 14
    parallel: int = 2
    epochs: int = 3
    rungs: tuple[tuple[int, int], ...] = ((2, 8),)
    prior_weight: float = 1.0
    acquisition: Literal["thompson", "expected_improvement"] = "thompson"

    def __post_init__(self) -> None:
        for name in ("candidates", "max_params", "evaluations", "parallel", "epochs"):
            require_at_least(f"refine.{name}", getattr(self, name), 1)
        most, weight = min(self.candidates, self.evaluations), self.prior_weight
        require(weight >= 0, "refine.prior_weight", "must not be negative", weight, "0 is a flat prior")
        for (before, fewer), rung in pairwise(((most, self.epochs), *self.rungs)):
            rule = f"must be pairs, of a number from 1 to {before} and then of more than {fewer} epochs"
            require(1 <= rung[0] <= before and rung[1] > fewer, "refine.rungs", rule, rung, "[[4, 8], [2, 16]], say")


@dataclass(frozen=True)
class CompressConfig:
    """The plan ``compression``: weights as functions of lambda, and what of them can be left out.

    Attributes:
        network: A name of ``nni-bayes-nas list``, package.module:function, or "space": the derived network of
            ``architecture`` in the space of the run.
        network_args: Of the function.
        architecture: An architecture.json or its choices; a run keeps the choices.
        kinds: For each of these a hypernetwork is trained over ``lambda_range`` and read off at ``lambdas``.
        direct: For each of these lambda a network at it alone.
        lambdas: Where hypernetworks are read off.
        lambda_range: Lowest and highest lambda.
        axis: "log", drawn log-uniformly; "literal": lambda as it is, drawn uniformly, may begin at 0.
        weights: "variational", or "point": the baseline with L2 decay.
        priors: All of it with each of these.
        prior_sd: Standard deviation of "fixed", and of "scaled" at lambda 1.
        rho: Logarithm of the weights' standard deviations at first.
        skip: Modules of the network that, with what is in them, stay points and whole.
        knots: Of kind "piecewise_linear": how many, or their places from 0 to 1.
        rank: Of "low_rank" and "mlp".
        hidden: Units of these.
        epochs: Of a training.
        batch_size: Of a step.
        learning_rate: Of means and points at the first step.
        rho_learning_rate: Of the logarithms of the standard deviations.
        lambdas_per_step: Values of lambda that share a mini-batch; direct runs have one.
        divide_batch: Whether each of them sees a part of its own of it.
        warmup: Share of the steps until the divergence counts in full.
        shared_until: Share of the steps, at the beginning, in which of a piecewise linear hypernetwork only the part is
            trained that all knots share.
        shared_knots: Whether its knots share a part that all of them train.
        optimizer: "adam", or "sgd" with momentum .9.
        schedule: "falling" linearly to zero, or "constant" rates.
        gradient_clip: Norm to which the gradient is clipped; null: not.
        gradient_clip_value: Or the size to which every entry of it is.
        inputs: "raw" takes the standardization of the data back; "standardized" does not.
        fractions: Shares of the weights that are left out.
        scope: Of all layers together ("global"), or of each ("layer").
        structured: Whether whole neurons and filters go, of a network that is a chain, which becomes a smaller one.
        finetune_epochs: What is pruned is trained on for so many, by plain cross-entropy.
        finetune_learning_rate: At their first step; of several the one that gives, with the share left out, the largest
            validation accuracy.
        finetune_batch_size: Of their steps; null: `batch_size`.
        posterior_finetune_epochs: What is read off is also trained on at its lambda by the bound, before it is pruned,
            at the rates of this section, of searches too.
        draws: Of the weights, for the predictive distribution.
        repeats: Trainings of each, with other seeds.
    """

    network: str = "mlp"
    network_args: dict[str, Any] = field(default_factory=dict)
    architecture: str | dict[str, Any] | None = None
    kinds: tuple[Literal["linear", "piecewise_linear", "low_rank", "mlp"], ...] = ("piecewise_linear",)
    direct: tuple[float, ...] = ()
    lambdas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    lambda_range: tuple[float, float] = (0.1, 3.0)
    axis: Literal["log", "literal"] = "log"
    weights: Literal["variational", "point"] = "variational"
    priors: tuple[Literal["fixed", "scaled", "empirical_bayes", "ard", "log_uniform"], ...] = ("ard",)
    prior_sd: float = 1.0
    rho: float = -5.0
    skip: tuple[str, ...] | None = None
    knots: int | tuple[float, ...] = 5
    rank: int = 4
    hidden: int = 32
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    rho_learning_rate: float = 5e-3
    lambdas_per_step: int = 1
    divide_batch: bool = False
    warmup: float = 0.2
    shared_until: float = 0.1
    shared_knots: bool = True
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["falling", "constant"] = "falling"
    gradient_clip: float | None = None
    gradient_clip_value: float | None = None
    inputs: Literal["raw", "standardized"] = "raw"
    fractions: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
    scope: Literal["global", "layer"] = "global"
    structured: bool = False
    finetune_epochs: int = 0
    finetune_learning_rate: float | tuple[float, ...] = 1e-3
    finetune_batch_size: int | None = None
    posterior_finetune_epochs: int | None = None
    draws: int = 10
    repeats: int = 1

    @property
    def finetune_learning_rates(self) -> tuple[float, ...]:
        """Of what is pruned: those that are tried."""
        given = self.finetune_learning_rate
        return given if isinstance(given, tuple) else (given,)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lambdas_per_step", "draws", "repeats", "rank", "hidden"):
            require_at_least(f"compress.{name}", getattr(self, name), 1)
        require_at_least("compress.finetune_epochs", self.finetune_epochs, 0)
        if self.finetune_batch_size is not None:
            require_at_least("compress.finetune_batch_size", self.finetune_batch_size, 1)
        if self.posterior_finetune_epochs is not None:
            require_at_least("compress.posterior_finetune_epochs", self.posterior_finetune_epochs, 1)
            rule = "must be left out where compress.weights is point: points have no bound"
            given = self.posterior_finetune_epochs
            require(self.weights == "variational", "compress.posterior_finetune_epochs", rule, given, "leave it out")
        both = bool(self.kinds or self.direct)
        require(both, "compress.kinds", "must name a hypernetwork where compress.direct is empty", [], "add one")
        for fraction in self.fractions:
            rule = "must be shares that are left out, in [0, 1)"
            require(0 <= fraction < 1, "compress.fractions", rule, fraction, "0.9 leaves one weight in ten")
        low, high = self.lambda_range
        for lam in self.lambdas if self.kinds else ():
            rule = f"must lie in compress.lambda_range, {low:g} to {high:g}"
            require(low <= lam <= high, "compress.lambdas", rule, lam, "widen the range")
        has = bool(self.lambdas) or not self.kinds
        require(has, "compress.lambdas", "must name what is read off", [], "[0.1, 1.0], say")
        require(bool(self.priors), "compress.priors", "must name a prior", [], "[ard], say")
        of_points = self.weights != "point" or self.priors == ("fixed",)
        rule = "must be [fixed], N(0, prior_sd^2), for weights that are points"
        require(of_points, "compress.priors", rule, list(self.priors), "set it, or weights to variational")
        whole = self.weights != "point" or not self.skip
        rule = "must be left out for weights that are points, which are ranked all together"
        require(whole, "compress.skip", rule, list(self.skip or ()), "leave it out, or set weights to variational")
        require(bool(self.fractions), "compress.fractions", "must name a share that is left out", [], "[0.0, 0.9], say")
        learns = not self.kinds or self.shared_until < 1
        rule = "must be below 1, for knots to differ"
        require(learns, "compress.shared_until", rule, self.shared_until, "0.1 is the default")
        for name in ("kinds", "direct", "priors", "lambdas", "fractions"):
            given = getattr(self, name)
            require(len(set(given)) == len(given), f"compress.{name}", "must be distinct", given, "leave one out")
        rates = self.finetune_learning_rates
        for rate in rates:
            require(rate > 0, "compress.finetune_learning_rate", "must be positive", rate, "0.001 is the default")
        distinct = bool(rates) and len(set(rates)) == len(rates)
        rule = "must be a rate, or distinct ones"
        require(distinct, "compress.finetune_learning_rate", rule, list(rates), "[0.001, 0.008], say")
        if not self.finetune_epochs:
            rule = "must be left out without compress.finetune_epochs, which are none"
            size = self.finetune_batch_size
            require(size is None, "compress.finetune_batch_size", rule, size, "3 epochs are usual")
            require(len(rates) == 1, "compress.finetune_learning_rate", rule, list(rates), "3 epochs are usual")
        if self.divide_batch:
            rule = "must leave an object of the batch for every lambda"
            n = self.lambdas_per_step
            require(n <= self.batch_size, "compress.lambdas_per_step", rule, n, "lower it, or divide_batch: false")
        for lam in self.direct:
            require(lam >= 0, "compress.direct", "must not be negative", lam, "1 gives the evidence bound")
        for name in ("gradient_clip", "gradient_clip_value"):
            clip = getattr(self, name)
            require(clip is None or clip > 0, f"compress.{name}", "must be positive", clip, "null means none")
        one = self.gradient_clip is None or self.gradient_clip_value is None
        rule = "must be null beside gradient_clip, which is that of the norm"
        require(one, "compress.gradient_clip_value", rule, self.gradient_clip_value, "leave one out")
        fits = (self.architecture is not None) == (self.network == "space")
        rule = "must be an architecture.json for the network `space`, and null for others"
        require(fits, "compress.architecture", rule, self.architecture, "a retrain trial's folder has one")


def _sources() -> tuple[DataConfig, ...]:
    made_up = "nni_bayes_nas.experiment.data_tables:synthetic"
    tables = [DataConfig(made_up, args={"kind": kind, "n_classes": n}) for kind, n in (("blobs", 4), ("linear", 3))]
    return (DataConfig("digits"), DataConfig("wine"), DataConfig("breast_cancer"), *tables)


@dataclass(frozen=True)
class PredictConfig:
    """The plan ``architecture_prediction``: networks for the data, from searches on small parts of data sets.

    Attributes:
        sources: Data sets, each a section like ``data``, of which parts are searched: some of the objects, classes and
            features, noise.
        own: Whether parts of the data are searched too.
        bank: A bank.jsonl, or the folder of an earlier run, to begin with.
        tasks: Parts that are searched.
        tasks_per_trial: In one trial.
        shares: Least and largest share of the objects.
        least_objects: Of a part, whatever its share.
        factors: Budgets of connections, times the features.
        dense_share: One more, a share of those of the dense network ``deepest``; null: none.
        methods: Of an inner search.
        candidates: Networks of each method, with each budget.
        top: Of these, the best that are kept.
        others: Further networks that are kept, to compare with.
        repeats: Trainings of what is kept.
        steps: Of such a training.
        max_depth: Hidden layers of a network, at most.
        widths: That they may have.
        deepest: Widths of the hidden layers of the dense network.
        kinds: Decoders.
        dim: Width of the meta-model.
        fit_steps: In which it learns.
        held_out: Share of the tasks that it does not learn from: they show its errors.
        draws: Networks that it draws for the data, with each budget.
        rank_steps: Of the trainings by which these are ranked, too.
        refine_steps: Of the trainings by whose largest weights their connections are chosen; 0: connections stay as
            they were drawn.
        verify: So many of the best are trained on all data, and as many tries of each of ``baselines``.
        baselines: What predictions are compared with.
        train_steps: Of a training on all data.
        cells: Parts of those sources that are images whose cells are searched too, as space, strategy and search say.
        cell_replicas: Of such searches, side by side.
        cell_draws: The most probable cells for the data that are retrained.
    """

    sources: tuple[DataConfig, ...] = field(default_factory=_sources)
    own: bool = True
    bank: str | None = None
    tasks: int = 40
    tasks_per_trial: int = 10
    shares: tuple[float, float] = (0.01, 0.1)
    least_objects: int = 32
    factors: tuple[float, ...] = (1.0, 2.0, 5.0)
    dense_share: float | None = 0.1
    methods: tuple[Literal["random", "evolution", "snip", "magnitude"], ...] = (
        "random",
        "evolution",
        "snip",
        "magnitude",
    )
    candidates: int = 16
    top: int = 4
    others: int = 8
    repeats: int = 3
    steps: int = 300
    max_depth: int = 3
    widths: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32)
    deepest: tuple[int, ...] = (32, 32, 32)
    kinds: tuple[Literal["seq2seq", "doubly_recurrent"], ...] = ("doubly_recurrent",)
    dim: int = 64
    fit_steps: int = 400
    held_out: float = 0.15
    draws: int = 16
    rank_steps: int = 180
    refine_steps: int = 80
    verify: int = 3
    baselines: tuple[Literal["random", "relevance", "snip", "magnitude", "adanet", "low_rank", "dense"], ...] = (
        "random",
        "dense",
    )
    train_steps: int = 1000
    cells: int = 0
    cell_replicas: int = 4
    cell_draws: int = 3

    def __post_init__(self) -> None:
        names = ("tasks_per_trial", "least_objects", "candidates", "top", "repeats", "steps", "max_depth", "dim")
        for name in (
            *names,
            "fit_steps",
            "draws",
            "rank_steps",
            "verify",
            "train_steps",
            "cell_replicas",
            "cell_draws",
        ):
            require_at_least(f"predict.{name}", getattr(self, name), 1)
        for name in ("tasks", "others", "refine_steps", "cells"):
            require_at_least(f"predict.{name}", getattr(self, name), 0)
        for name in ("factors", "methods", "kinds", "widths", "deepest"):
            require(
                bool(getattr(self, name)), f"predict.{name}", "must not be empty", [], "leave it out for the default"
            )
        some = bool(self.sources) or self.own or not self.tasks
        require(some, "predict.sources", "must name data sets", [], "[{name: digits}]")
        has = self.tasks > 0 or self.bank is not None
        require(has, "predict.tasks", "must be at least 1 without predict.bank", self.tasks, "40, say")
        budgets = len(self.factors) + (self.dense_share is not None)
        differ = self.bank is not None or self.tasks * budgets > 1
        rule = "must give at least two searches with the budgets, or there is nothing to tell apart"
        require(differ, "predict.tasks", rule, self.tasks, "40, say")
        require(min(self.factors) > 0, "predict.factors", "must be positive", self.factors, "[1, 2, 5], say")
        require(min(self.deepest) > 0, "predict.deepest", "must be positive", self.deepest, "[32, 32, 32], say")
        low, high = self.shares
        require(0 < low <= high <= 1, "predict.shares", "must rise, in (0, 1]", self.shares, "[0.01, 0.1], say")
        for name in ("factors", "methods", "kinds", "baselines"):
            given = getattr(self, name)
            require(len(set(given)) == len(given), f"predict.{name}", "must be distinct", given, "leave one out")
        require(min(self.widths) >= 1, "predict.widths", "must be at least 1", self.widths, "[2, 4, 8], say")
        several = self.top + self.others
        require(several >= 2, "predict.top", "must be at least 2 with predict.others", several, "4 and 8 are usual")
        require(
            self.dim % 4 == 0, "predict.dim", "must be a multiple of 4, the heads of attention", self.dim, "64, say"
        )
        share, held = self.dense_share, self.held_out
        require(share is None or 0 < share <= 1, "predict.dense_share", "must lie in (0, 1]", share, "0.1, or null")
        require(0 <= held < 1, "predict.held_out", "must lie in [0, 1)", held, "0 shows no errors")
