"""The search step of a Bayesian choice of architecture: one bound for structure and weights, or one for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nni_bayes_nas.bayes import dirichlet, elbo, law, normal, objective
from nni_bayes_nas.complexity.axis import Axis
from nni_bayes_nas.compression.lambda_weights import LambdaWeights, swapped
from nni_bayes_nas.compression.weight_hypernet import Kind
from nni_bayes_nas.errors import NumericsError
from nni_bayes_nas.layers.finite import check_layers
from nni_bayes_nas.layers.gaussian_output import Estimator
from nni_bayes_nas.layers.replicas import gradients_of
from nni_bayes_nas.layers.variational import Variational, divergences

from .bilevel import BilevelModule
from .gates import GateTable, as_weights_lie
from .passes import counted, n_objects

Dependence = Literal["independent", "gated", "scaled"]
DEPENDENCES: tuple[Dependence, ...] = ("independent", "gated", "scaled")
Scheme = Literal["single_level", "bilevel"]


@dataclass(frozen=True)
class BayesOptions:
    """Priors, posteriors and how much their divergences weigh.

    Attributes:
        scheme: "single_level": structure and weights maximize one bound on all data; "bilevel": the structure one on
            the half of the data that the weights do not see.
        prior: Concentration of every option a priori.
        none_prior: That of "none"; None: as the others.
        kl_structure: Weight of the divergence of the structure; 1 gives the bound.
        kl_weights: Weight of that of the weights.
        kl_warmup: Share of the structure steps until the divergences count in full.
        weights: "point" or "variational".
        dependence: Of the weights on the structure: "independent": q(w) does not know it; "gated": an operation's
            divergence counts as far as it is on (`normal.gated_kl`), for the structure too; "scaled": w = gamma v,
            biases too, whose divergence to the prior N(0, gamma^2 s^2) is free of gamma, while the operation's output
            has a factor more for each of its layers, see `gates.own_factors`.
        weight_prior: See `normal.kl_to_prior`.
        weight_prior_sd: Of the prior "fixed".
        rho: Logarithm of the weights' standard deviations at first.
        estimator: See `nni_bayes_nas.layers.variational`.
        accumulate: Whether the halves of a step of a single level run one after the other, each normalized by its own
            statistics, and their gradients are added.
        weight_hypernet: How the weights depend on lambda, see `WeightHypernet`; "constant": not at all. Where they do,
            lambda is that of the bound: it multiplies all divergences, those of the structure and of the weights, and
            all objects of a step share one.
        weight_rank: Of the kinds "low_rank" and "mlp", see `WeightHypernet`.
        weight_hidden: Units of these.
    """

    scheme: Scheme = "single_level"
    prior: float = 1.0
    none_prior: float | None = None
    kl_structure: float = 1.0
    kl_weights: float = 1.0
    kl_warmup: float = 0.5
    weights: Literal["point", "variational"] = "point"
    dependence: Dependence = "independent"
    weight_prior: normal.Prior = "empirical_bayes"
    weight_prior_sd: float = 1.0
    rho: float = -5.0
    estimator: Estimator = "local"
    accumulate: bool = False
    weight_hypernet: Kind = "constant"
    weight_rank: int = 4
    weight_hidden: int = 32


class BayesianModule(BilevelModule):
    """Bilevel or single-level search whose loss is a bound on the evidence.

    Args:
        bayes: Priors and weights of the divergences.
        gates: See `gates.GateWalk`; empty for weights that are points.
        factors: See `gates.GateWalk`.
        hyper: The weights as functions of lambda; None where they are not.
        **options: Of `BilevelModule`.
    """

    def __init__(
        self,
        training_module: Any,
        *,
        bayes: BayesOptions,
        gates: Mapping[Variational, Any],
        factors: Mapping[str, Mapping[int, int]],
        hyper: LambdaWeights | None = None,
        **options: Any,
    ) -> None:
        super().__init__(training_module, **options)
        self.bayes = bayes
        if hyper is not None:
            # There the evaluator's optimizer finds its parameters.
            training_module.lambda_weights = hyper
        self._position: Tensor | None = None
        self._price = 1.0
        self.gates = dict(gates)
        self._gate_table: GateTable | None = None
        self._scale_by_structure(factors)

    def _scale_by_structure(self, factors: Mapping[str, Mapping[int, int]]) -> None:
        if self.bayes.dependence == "scaled":
            units = self.binding.units
            self.structure.own_factors = {k: as_weights_lie(units[k], values) for k, values in factors.items()}

    # -- weights at lambda -----------------------------------------------------------------------------------------

    @property
    def hyper(self) -> LambdaWeights | None:
        """The weights as functions of lambda; None where they are not."""
        found: LambdaWeights | None = getattr(self.training_module, "lambda_weights", None)
        return found

    @contextlib.contextmanager
    def weights_at(self, position: Tensor) -> Iterator[None]:
        """Inside the block the supernet has the weights of a position of lambda, `()`, if they depend on it."""
        hyper, axis = self.hyper, self.structure.axis
        if hyper is None or axis is None:
            yield
            return
        self._position = position
        self._price = float(axis.to_lambda(position.double()))
        try:
            with swapped(self.training_module.model, hyper(fraction_of(axis, position))):
                yield
        finally:
            self._position, self._price = None, 1.0

    def positions(self, n_objects: int, step: int, phase: int) -> list[Tensor]:
        """See `BilevelModule`; where weights depend on lambda all objects have one, and draws of their own."""
        found = super().positions(n_objects, step, phase)
        if self.hyper is None or self.step_options.draw_per == "step":
            return found
        return [u.expand(n_objects) for u in found]

    def one_hot_positions(self, generator: torch.Generator) -> list[Tensor]:
        """See `BilevelModule`; where weights depend on lambda, at that of the step."""
        if self._position is None:
            return super().one_hot_positions(generator)
        return [self._position] * self.step_options.one_hot_passes

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """See `SearchValidation`; with the weights of the position."""
        with self.weights_at(self.validation_positions()[dataloader_idx]):
            return super().validation_step(batch, batch_idx, dataloader_idx)

    # -- the bound -------------------------------------------------------------------------------------------------

    def divergences(self, positions: list[Tensor], part: str) -> dict[str, Tensor]:
        """The divergence of the structure, per object of a part of the data: what is added to the task loss."""
        kl = torch.stack([self._structure_kl(u) for u in positions]).mean()
        terms = self._per_object({"structure_kl": kl}, part)
        if self.bayes.dependence == "gated" and self.bayes.scheme == "bilevel":
            # What operations cost that are on: of the weights it is paid in their own step.
            terms |= self.weight_divergences(self.draws(positions, self.current_step, 0), part, single=False)
        return terms

    def _structure_kl(self, u: Tensor) -> Tensor:
        # Where all objects have one position, the divergence of one is that of all.
        at = u if self.structure.axis is not None else self.structure.reference.new_zeros(())
        prior = self.bayes.prior, self.bayes.none_prior
        kl: Tensor = self.structure.divergence(at, *prior).mean()
        if not bool(torch.isfinite(kl)):
            for label, value in self.structure.divergences(at, *prior).items():
                objective.check_finite(f"structure_kl of {label}", value, step=self.current_step)
        return kl

    def divergence_of(self, choices: Mapping[str, Any]) -> float:
        """What the bound takes for an architecture, per object of all data, beside its loss: see `BilevelModule`.

        KL of the weights that are on, where they depend on the structure (of scaled ones that of v: what is off is 0 in
        the posterior and in the prior), and -log p(architecture).
        """
        kl = self.bayes.kl_structure * self.surprise_of(choices)
        if self.gates and self.bayes.dependence != "independent":
            weights = self.binding.weights_of(choices, self.structure.reference)
            with torch.no_grad():
                on = self.gate_table(weights)
                kl += self.bayes.kl_weights * float((on * divergences(list(self.gates))).sum())
        return kl / self.n_training("all")

    def surprise_of(self, choices: Mapping[str, Any]) -> float:
        """-log p(architecture) a priori, in nats: the divergence of a structure that is this one for certain."""
        units = self.structure.units
        prior = [dirichlet.mean(law.prior_concentrations(u, self.bayes.prior, self.bayes.none_prior)) for u in units]
        return -float(torch.stack([law.log_prob(u, p, dict(choices)) for u, p in zip(units, prior, strict=True)]).sum())

    def weight_divergences(
        self, draws: list[dict[str, Tensor]], part: str, *, single: bool = True
    ) -> dict[str, Tensor]:
        """The divergence of the weights, per object of a part of the data, in the mean of the passes of a step.

        Args:
            draws: Mixing weights of the mixture.
            part: Of the data.
            single: Whether single architectures have passes too, whose gates are 0 or 1.
        """
        if not self.gates:
            return {}
        each = divergences(list(self.gates))
        if not bool(torch.isfinite(each).all()):
            bad = int(torch.isfinite(each).logical_not().nonzero()[0])
            name = self._name_of(list(self.gates)[bad])
            objective.check_finite(f"weight_kl of {name}", each[bad], step=self.current_step)
        if self.bayes.dependence != "gated":
            return self._per_object({"weight_kl": each.sum()}, part)
        gates = torch.stack([self.gate_table(weights) for weights in draws]).mean(0)
        if single and self.step_options.one_hot_passes:  # the structure has a part in the mixture alone
            for choices, count in counted(self.single_architectures(self.current_step)):
                gates = gates + count * self.gate_table(self.binding.weights_of(choices, gates))
            gates = gates * self._share_of_mixture
        return self._per_object({"weight_kl": normal.gated_kl(gates, each)}, part)

    @property
    def _share_of_mixture(self) -> float:
        """Part of the mixture in the task loss, the rest of which is that of single architectures."""
        return 1.0 / (1 + self.step_options.one_hot_passes)

    @property
    def gate_table(self) -> GateTable:
        """How much of each Gaussian layer is there."""
        if self._gate_table is None:
            self._gate_table = GateTable(self.binding.units, self.gates.values())
        return self._gate_table

    def _name_of(self, layer: Variational) -> str:
        return next(str(name) for name, module in self.training_module.named_modules() if module is layer)

    def _per_object(self, divergences: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        weights = {
            "structure_kl": self._price * self.bayes.kl_structure,
            "weight_kl": self._price * self.bayes.kl_weights,
        }
        warmth = elbo.warmth(self.progress, self.bayes.kl_warmup)
        return elbo.divergence_terms(divergences, self.n_training(part), weights, warmth)

    def _log_warmth(self) -> None:
        self.log("kl_warmth", elbo.warmth(self.progress, self.bayes.kl_warmup), on_step=False, on_epoch=True)

    def n_training(self, part: str) -> int:
        """Objects of the data of one of the steps, "train" or "val", or of both, "all"."""
        loaders = self.trainer.train_dataloader
        parts = ("train", "val") if part == "all" else (part,)
        return sum(len(loaders[name].dataset) for name in parts)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _step(self, batch: Any, batch_idx: int) -> None:
        if self.bayes.scheme == "bilevel":
            super()._step(batch, batch_idx)
            self._log_warmth()
            return
        step = self._begin_step(batch_idx)
        self._log_warmth()
        learning = self.trainer.current_epoch >= self.warmup_epochs
        if self.hyper is not None:
            # In the warm-up the weights learn what they share at all lambda.
            self.hyper.share(not learning)
        joined = _joined(batch["train"], batch["val"])
        positions = self.positions(n_objects(joined), step, 1)
        with self.weights_at(positions[0].flatten()[0]):
            parts = [batch["train"], batch["val"]] if self.bayes.accumulate else [joined]
            self._joint_step(parts, batch_idx, step, positions, learning=learning)

    def _joint_step(
        self, parts: list[Any], batch_idx: int, step: int, positions: list[Tensor], *, learning: bool
    ) -> None:
        optimizer = self.architecture_optimizers()
        optimizer.zero_grad()
        with torch.set_grad_enabled(learning):
            draws = self.draws(positions, step, 1)
        # First, so that weights that are not finite are named, and not the loss that they make.
        terms = self.weight_divergences(draws, "all")
        task = self._accumulated(parts, batch_idx, draws, step)
        if learning:
            temperature = self.temperature(self.structure_loss.temperature)
            terms |= self.structure_loss.terms(self.costs, positions, temperature, exploring=self.exploring)
            terms |= self.divergences(positions, "all")
        factors = {name: self.structure_loss.factors().get(name, 1.0) for name in terms}
        for name in terms:
            if name != "weight_kl":  # which all passes share; the structure sees the mixture alone
                factors[name] *= self._share_of_mixture
        total = objective.total({"task": task, **terms}, factors, step=step)
        self.advance_optimization(total, batch_idx, self.gradient_clip_val)
        if learning:
            for parameter in self.arch_parameters():
                if parameter.grad is not None:
                    objective.check_finite("gradient of the structure", parameter.grad, step=step)
            optimizer.step()
        self.advance_lr_schedulers(batch_idx)
        logged = {f"structure_{name}": value.detach() for name, value in terms.items()}
        self.log_dict({**logged, "structure_loss": total.detach()}, on_step=False, on_epoch=True)

    def weight_loss(self, batch: Any, batch_idx: int, draws: list[dict[str, Tensor]], step: int) -> Tensor:
        """See `BilevelModule`; of weights that depend on lambda a loss that is not finite names the layer."""
        try:
            return super().weight_loss(batch, batch_idx, draws, step)
        except NumericsError:
            if self.hyper is not None:
                model = self.training_module.model
                check_layers(model, model, batch[0], at=f" at lambda {self._price:g}", step=step)
            raise

    def _accumulated(self, parts: list[Any], batch_idx: int, draws: list[dict[str, Tensor]], step: int) -> Tensor:
        """The loss over some batches as if they were one, of which the last alone keeps its activations.

        The gradients of the others come in as those of a sum g . p, whose value is taken out again.
        """
        if len(parts) == 1:
            return self.weight_loss(parts[0], batch_idx, draws, step)
        n, start = [n_objects(part) for part in parts], 0
        total = self.structure.reference.new_zeros(())
        inputs = [p for p in self.training_module.parameters() if p.requires_grad]
        inputs += [w for one in draws for w in one.values() if w.requires_grad]
        for part, size in zip(parts, n, strict=True):
            # Per object there is a first axis of all of them; draws of a step are of every part.
            mine = [
                {k: w[start : start + size] if w.dim() == self._dims(k) + 1 else w for k, w in one.items()}
                for one in draws
            ]
            start += size
            loss = self.weight_loss(part, batch_idx, mine, step) * (size / sum(n))
            if start < sum(n):
                found = self.replica.together(gradients_of, (loss, inputs))
                carried = torch.stack([(g * p).sum() for g, p in zip(found, inputs, strict=True)]).sum()
                loss = loss.detach() + carried - carried.detach()
            total = total + loss
        return total

    def _dims(self, label: str) -> int:
        return 2 if isinstance(self.binding.units[label], law.Node) else 1


def _joined(first: Any, second: Any) -> Any:
    """Two batches as one."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    return [torch.cat(pair) for pair in zip(first, second, strict=True)]


def fraction_of(axis: Axis, position: Tensor) -> float:
    """Where a position of lambda, `()`, lies in its range, from 0 to 1: as a hypernetwork of weights takes it."""
    low, high = axis.domain
    return min(1.0, max(0.0, (float(position) - low) / (high - low)))


__all__ = ["DEPENDENCES", "BayesOptions", "BayesianModule", "Dependence", "Scheme", "fraction_of"]
