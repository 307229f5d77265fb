"""Bayesian choice of architecture: a Dirichlet posterior over structures, and Gaussian weights if wanted."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nni_bayes_nas.bayes import dirichlet, law, normal
from nni_bayes_nas.complexity.axis import LambdaAxis
from nni_bayes_nas.compression.lambda_weights import LambdaWeights, Meaning, settle
from nni_bayes_nas.compression.weight_hypernet import Kind
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.layers.gaussian_output import Estimator
from nni_bayes_nas.layers.variational import to_variational

from .bayesian import BayesianModule, BayesOptions, Dependence, Scheme, fraction_of
from .bayesian_checks import Family, check_bayes
from .bilevel import BilevelModule
from .costs import CostKind
from .differentiable import DifferentiableStrategy
from .fused import Execution
from .gates import GateWalk
from .guards import guards_of
from .option_checks import check_lambda
from .relaxations import Mixing, Relaxation, TemperatureSchedule
from .step_options import StepOptions
from .structure_loss import Complexity, Scale, StructureLoss

_RELAXATIONS: dict[str, Relaxation] = {
    "dirichlet": "dirichlet",
    "concrete": "gumbel",
    "logistic_normal": "logistic_normal",
    "softmax": "softmax",
}


class DirichletDARTS(DifferentiableStrategy):
    """Joint variational inference of structure and weights.

    Every edge has a posterior q(gamma) = Dir(a) over the weights of its operations, with the prior Dir(b), and weights
    may have Gaussian posteriors. What is maximized is the bound of `bayes.elbo`, on all data at once ("single_level"),
    or by the structure on one half and by the weights on the other ("bilevel"). Architectures are derived from the mean
    of the posterior, or drawn from it: `posterior`.

    Args:
        family: Of the posterior of the structure: "dirichlet"; "concrete" (Gumbel-softmax, its temperature that of the
            mixing); "logistic_normal"; "softmax": no draws, one point of the simplex, the baseline of the others.
        prior: Concentration of every option a priori; 1 is uniform, below 1 sparse.
        none_prior: That of "none", which makes an edge absent; None: as the others.
        floor: Below all concentrations of the posterior, at least .05; priors lie above it. For "dirichlet".
        scheme: "single_level" or "bilevel".
        weights: "point", or "variational": Gaussian.
        dependence: Of variational weights on the structure: "independent", "gated" or "scaled"; see `BayesOptions`.
        weight_prior: "empirical_bayes", "ard", "fixed" with `weight_prior_sd`, or "log_uniform", which is improper: no
            bound on the evidence.
        weight_prior_sd: Standard deviation of the prior "fixed".
        rho: Logarithm of the weights' standard deviations at first.
        estimator: How their noise comes into the outputs, "local" or "flipout".
        weight_hypernet: How the weights depend on lambda, of which `lambda_range` is the range: "constant": not at all;
            "linear", "piecewise_linear" (with `n_knots`), "low_rank" or "mlp": one lambda gives concentrations, means
            and standard deviations, and multiplies all their divergences; see `materialize`.
        weight_rank: Of "low_rank" and "mlp", see `WeightHypernet`.
        weight_hidden: Units of these.
        accumulate: Whether the halves of a step on a single level run one after the other, which takes a third
            to almost half less memory; batch normalization then sees the statistics of each half.
        kl_structure: Weight of the structure's divergence; 1 gives the bound.
        kl_weights: Weight of that of the weights.
        kl_warmup: Share of the structure steps until they count in full.
        draw_per: "object": a draw for every object of a mini-batch; "step": one for all.
        mixing: "probabilities", or "marginals"; see `relaxations.mixing_weights`.
        mixing_temperature: Of the mixing weights at the end of the search; it falls from 1.
        temperature_schedule: How temperatures fall after the warm-up.
        one_hot_passes: Passes of single architectures per weight step.
        lambda_range: Range of lambda for q(structure | lambda) from one search; None for one posterior.
        hypernet: How concentrations depend on lambda: "linear", "piecewise_linear" or "mlp".
        n_knots: Of "piecewise_linear".
        complexity: "none"; with lambda "penalty" or "target", as in HyperDARTS.
        complexity_weight: Factor of the complexity term.
        target_scale: As in HyperDARTS.
        target_range: As in HyperDARTS.
        cost: What complexity counts.
        latency_table: File of the table, for cost "latency".
        partial_channels: Of so many equal parts of the channels the operations see the first, the others pass them by
            (Xu et al., 2020, arXiv 1907.05737). 1: they see all; 4 is usual. For weights that are points. What is
            derived must be trained anew: the weights of the other channels have not learned.
        keep_options: Progressive pruning (Chen et al., 2021, arXiv 2006.10355): the structure steps are divided into
            one stage more than there are numbers here, and after each stage but the last every choice keeps so many of
            its most probable options. What is left is the posterior given that one of these is chosen.
        execution: As in RegularizedDARTS.
        cuda_graphs: As in RegularizedDARTS; for weights that are points.
        arc_learning_rate: Of Adam on the structure parameters.
        warmup_epochs: Epochs in which only the weights learn; 40 % of the search is usual.
        gradient_clip_val: Norm to which the gradient of the weights is clipped.
        seed: Of the initial structure and of every draw.
        input_shape: Shape of one object; None reads it off the evaluator's data.
        mutation_hooks: Hooks of the user's own for NNI, tried before ours.
        auxiliary: Guards against collapse, see `Guards`: weight of an identity on every edge during the search.
        auxiliary_end: Its weight at the end, to which it falls; None leaves it constant.
        normalize: Whether batch normalization follows every operation that does not end in it.
        without: Options that cannot be chosen, "none" say.
    """

    module_class: ClassVar[type[BilevelModule]] = BayesianModule
    bayesian: ClassVar[bool] = True

    def __init__(
        self,
        *,
        family: Family = "dirichlet",
        prior: float = 1.0,
        none_prior: float | None = None,
        floor: float = dirichlet.FLOOR,
        scheme: Scheme = "single_level",
        weights: Literal["point", "variational"] = "point",
        dependence: Dependence = "independent",
        weight_prior: normal.Prior = "empirical_bayes",
        weight_prior_sd: float = 1.0,
        rho: float = -5.0,
        estimator: Estimator = "local",
        weight_hypernet: Kind = "constant",
        weight_rank: int = 4,
        weight_hidden: int = 32,
        accumulate: bool = False,
        kl_structure: float = 1.0,
        kl_weights: float = 1.0,
        kl_warmup: float = 0.5,
        draw_per: Literal["object", "step"] = "object",
        mixing: Mixing = "probabilities",
        mixing_temperature: float = 1.0,
        temperature_schedule: TemperatureSchedule = "geometric",
        one_hot_passes: int = 0,
        lambda_range: tuple[float, float] | None = None,
        hypernet: Literal["linear", "piecewise_linear", "mlp"] = "piecewise_linear",
        n_knots: int = 5,
        complexity: Complexity = "none",
        complexity_weight: float = 1.0,
        target_scale: Scale = "log",
        target_range: tuple[float, float] = (0.95, 0.05),
        cost: CostKind = "params",
        latency_table: str | None = None,
        partial_channels: int = 1,
        keep_options: tuple[int, ...] = (),
        execution: Execution = "auto",
        cuda_graphs: bool = False,
        arc_learning_rate: float = 0.05,
        warmup_epochs: int = 1,
        gradient_clip_val: float | None = 5.0,
        seed: int = 0,
        input_shape: Sequence[int] | None = None,
        mutation_hooks: list[Any] | None = None,
        auxiliary: float = 0.0,
        auxiliary_end: float | None = None,
        normalize: bool = False,
        without: tuple[str, ...] = (),
    ) -> None:
        self.bayes = BayesOptions(
            scheme=scheme,
            prior=prior,
            none_prior=none_prior,
            kl_structure=kl_structure,
            kl_weights=kl_weights,
            kl_warmup=kl_warmup,
            weights=weights,
            dependence=dependence,
            weight_prior=weight_prior,
            weight_prior_sd=weight_prior_sd,
            rho=rho,
            estimator=estimator,
            weight_hypernet=weight_hypernet,
            weight_rank=weight_rank,
            weight_hidden=weight_hidden,
            accumulate=accumulate,
        )
        check_bayes(family, self.bayes, lambda_range, complexity, floor)
        check_lambda(n_knots, target_range)
        if weight_hypernet != "constant" and (auxiliary or normalize or partial_channels > 1):
            raise ConfigError(
                "with weights that depend on lambda every network must be a part of the supernet, got auxiliary "
                f"{auxiliary}, normalize {normalize} and partial_channels {partial_channels}; leave these out."
            )
        self._n_knots = n_knots
        self._hyper: LambdaWeights | None = None
        if cuda_graphs and accumulate:
            raise ConfigError("cuda_graphs records a step as one pass, got accumulate too; leave one out.")
        if cuda_graphs and weights == "variational":
            raise ConfigError(
                "cuda_graphs needs weights that are points, got weights='variational', whose noise has a generator of "
                "its own; leave one out."
            )
        if partial_channels > 1 and weights == "variational":
            raise ConfigError(
                "partial_channels needs weights that are points: a divergence would count those that no object sees; "
                f"got {partial_channels} and weights='variational'; leave one out."
            )
        super().__init__(
            structure={
                "relaxation": _RELAXATIONS[family],
                "mixing": mixing,
                "hypernet": "constant" if lambda_range is None else hypernet,
                "n_knots": n_knots,
                "floor": floor,
                "axis": None if lambda_range is None else LambdaAxis(*lambda_range),
            },
            loss=StructureLoss(complexity, complexity_weight, target_scale=target_scale, target_range=target_range),
            step=StepOptions(
                lambda_per="object" if draw_per == "object" and weight_hypernet == "constant" else "step",
                mixing_temperature=mixing_temperature,
                temperature_schedule=temperature_schedule,
                one_hot_passes=one_hot_passes,
                execution=execution,
                cuda_graphs=cuda_graphs,
                draw_per=draw_per,
                partial_channels=partial_channels,
                keep_options=tuple(keep_options),
            ),
            cost=cost,
            latency_table=latency_table,
            validation_points=(0.0,) if lambda_range is None else (0.0, 0.5, 1.0),
            arc_learning_rate=arc_learning_rate,
            arc_weight_decay=0.0,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            seed=seed,
            input_shape=input_shape,
            mutation_hooks=mutation_hooks,
            guards=guards_of(auxiliary, auxiliary_end, normalize, without),
        )

    @property
    def batches_per_step(self) -> int:
        """Of a single level the halves of the data are one."""
        return 2 if self.bayes.scheme == "single_level" else 1

    def mutate_model(self, model: Any) -> Any:
        """Turn the model space into a supernet, in place, its weights variational if they are to be."""
        supernet = super().mutate_model(model)
        self._binding.joint = self.bayes.scheme == "single_level"
        self._binding.kind = (self._binding.kind, self.bayes.weights, self.bayes.estimator)
        if self.bayes.weights == "variational":
            to_variational(
                supernet,
                prior=self.bayes.weight_prior,
                prior_sd=self.bayes.weight_prior_sd,
                rho=self.bayes.rho,
                estimator=self.bayes.estimator,
            )
        return supernet

    def module_options(self) -> dict[str, Any]:
        """Priors, and under which choices the layers with Gaussian weights are there."""
        supernet: nn.Module = self._mutating
        walk = GateWalk(supernet, list(self._binding.units.values()))
        if self.bayes.dependence == "scaled" and walk.unclear:
            raise SpaceError(
                "weights scaled by gamma need operations through whose last layers a factor passes, but not so "
                f"{', '.join(walk.unclear[:5])}; set dependence to gated or independent."
            )
        if self.bayes.none_prior is not None and all(law.column_of_none(unit) is None for unit in self.structure.units):
            raise SpaceError(
                f"none_prior is that of options called none, got {self.bayes.none_prior}, but no choice of this space "
                "has one; leave it out."
            )
        kind = self.bayes.weight_hypernet
        self._hyper = None
        if kind != "constant":
            if frozen := [name for name, p in supernet.named_parameters() if not p.requires_grad]:
                raise SpaceError(
                    f"weights that depend on lambda must not be frozen, but {frozen[0]} has requires_grad=False; leave "
                    "weight_hypernet out, or unfreeze it."
                )
            sizes: dict[str, Any] = {"rank": self.bayes.weight_rank, "hidden": self.bayes.weight_hidden}
            self._hyper = LambdaWeights(supernet, kind, knots=self._n_knots, seed=self.seed, **sizes)
        return {"bayes": self.bayes, "gates": walk.gates, "factors": walk.factors, "hyper": self._hyper}

    @property
    def lambda_weights(self) -> LambdaWeights | None:
        """The weights as functions of lambda; None where they are not, or before the search."""
        return self._hyper

    def settle(self, lam: float | None = None) -> None:
        """The supernet's own weights become those at lambda, of the low end without one; nothing where they are fixed.

        Raises:
            ConfigError: Lambda lies outside the trained range.
            RuntimeError: There was no search.
        """
        self._searched_yet()
        if self._hyper is not None and self.axis is not None:
            with torch.no_grad():
                values = self._hyper(fraction_of(self.axis, self.structure.position(lam)))
            settle(self._mutating, values)

    def materialize(self, lam: float | None = None, choices: Mapping[str, Any] | None = None) -> nn.Module:
        """A network of its own, of the weights' posterior at lambda: Gaussian layers where weights are variational.

        It costs no optimizer step, and can be pruned and trained further (`compression`). The running statistics of
        batch normalization are those of the search: recalibrate them (`layers.normalization.recalibrate`).

        Args:
            lam: Lambda; None: the low end of its range, or where there is none.
            choices: The architecture; None: what is derived at lambda.

        Raises:
            ConfigError: Lambda lies outside the trained range; guards that have added identities to the supernet, or
                normalization by the statistics of the batch, which no network of its own has; a part of the channels.
            RuntimeError: There was no search.
        """
        if self.guards.auxiliary or self.guards.normalize or self.step.partial_channels > 1:
            raise ConfigError(
                "what is materialized must be a part of the supernet, which an auxiliary identity, normalization by a "
                f"guard and partial channels are not; got auxiliary {self.guards.auxiliary}, normalize "
                f"{self.guards.normalize} and partial_channels {self.step.partial_channels}; search without them, or "
                "retrain."
            )
        self.settle(lam)
        supernet: Any = self._mutating
        network: nn.Module = copy.deepcopy(supernet.freeze(dict(self.export(lam) if choices is None else choices)))
        return network.requires_grad_(True)

    def restore(self, space: nn.Module, state: Mapping[str, Tensor]) -> None:
        """What `materialize` needs, of a search that has ended, where weights depend on lambda.

        Args:
            space: The space that was searched, as it was before.
            state: Of `searched`.

        Raises:
            ConfigError: The state is of another space, or of a strategy with other options.
        """
        self._mutating = self.mutate_model(space)
        self.measure(self._mutating, self.input_shape or ())
        self.module_options()
        try:
            self.searched.load_state_dict(dict(state))
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"the state must be that of a search with this space and strategy, but: {said}; use its configuration."
            ) from error

    @property
    def searched(self) -> nn.ModuleDict:
        """The structure, and the weights as functions of lambda: all that a search whose weights are such has learned.

        Raises:
            RuntimeError: Weights do not depend on lambda, or there was no search.
        """
        self._searched_yet()
        if self._hyper is None:
            raise RuntimeError("only weights that depend on lambda are kept; set weight_hypernet, and search.")
        bayes, axis, options = self.bayes, self.axis, self.structure
        meaning = {
            "lambda_range": None if axis is None else [axis.low, axis.high],
            "family": options.relaxation,
            "floor": options.floor,
            "weight_hypernet": bayes.weight_hypernet,
            "weight_prior": [bayes.weight_prior, bayes.weight_prior_sd],
            "n_knots": self._n_knots,
            "choices": {unit.label: list(unit.shape) for unit in options.units},
            "shapes": {name: list(value.shape) for name, value in self._mutating.named_parameters()},
        }
        return nn.ModuleDict({"of": Meaning(meaning), "structure": self.structure, "weights": self._hyper})

    def _searched_yet(self) -> None:
        if getattr(self, "_mutating", None) is None:
            raise RuntimeError("nothing was searched yet, and networks are read off a search; run it, or restore one.")

    def check_beside(self) -> None:
        """See `DifferentiableStrategy`; weights that depend on lambda are of one search."""
        super().check_beside()
        if self.bayes.weight_hypernet != "constant":
            raise ConfigError(
                "searches side by side have weights that do not depend on lambda, got weight_hypernet "
                f"{self.bayes.weight_hypernet!r}; set search.replicas to 1."
            )

    def check_search(self, search: Any) -> None:
        """Raise ConfigError for section `search` of a configuration, where this strategy cannot search so."""
        if self.bayes.scheme == "single_level" and search.structure_fraction != 0.5:
            raise ConfigError(
                "a single level takes as many objects from both parts of the data, got search.structure_fraction "
                f"{search.structure_fraction}; set it to 0.5, or scheme to bilevel."
            )
        if self.bayes.weights == "variational" and search.optimizer == "psgld":
            raise ConfigError(
                "search.optimizer psgld draws weights from their posterior, but weights='variational' has a Gaussian "
                "for it; set weights to point, or search.optimizer to sgd or adam."
            )


__all__ = ["DirichletDARTS", "Family"]
