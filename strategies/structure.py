"""The distribution over structures: where its parameters come from and what is read off it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nni_bayes_nas.bayes import dirichlet, law
from nni_bayes_nas.complexity.axis import Axis, LambdaAxis, LiteralAxis
from nni_bayes_nas.complexity.expected import CostModel
from nni_bayes_nas.complexity.hypernet import Hypernet, HypernetKind
from nni_bayes_nas.complexity.price import PriceHypernet
from nni_bayes_nas.complexity.price_range import GRID_POINTS

from .pruning import given_up
from .relaxations import (
    FIRST_RHO,
    Mixing,
    Relaxation,
    divergence,
    log_draw,
    log_probabilities,
    log_probabilities_of_node,
    mixing_weights,
)


class Structure(nn.Module):
    """Distribution over the architectures of a space, as a function of u, the position of lambda.

    Logits come from a hypernetwork, probabilities and mixing weights from a relaxation. With a `constant` hypernetwork,
    "softmax" and "probabilities" it is the structure of DARTS (Liu, Simonyan & Yang, 2019, Eq. 2). What is exported is
    derived from the mean probabilities, never from a draw.

    Args:
        units: What is chosen in the space, in a fixed order.
        relaxation: How logits become probabilities and mixing weights.
        mixing: "probabilities" or "marginals", see `relaxations.mixing_weights`.
        hypernet: Where the logits come from; "price" is `PriceHypernet`.
        n_knots: Knots of a `piecewise_linear` or `price` hypernetwork.
        axis: Range of lambda; None for a structure that does not depend on it.
        observed: Whether the search finds out what lambda means: its range, its positions, or both.
        automatic_range: Whether the ends of the range are among it; `axis` is where they begin.
        prunes: Whether options may be given up during the search.
        floor: Of the concentrations of "dirichlet".
        seed: Of the initial logits, N(0, 1e-3^2) as in DARTS, equal at all u.

    Attributes:
        own_factors: By label, how many times more than once the mixing weights of the options count, integers of the
            shape of these: where an operation's own weights are scaled by it, see `BayesOptions.dependence`.
    """

    table: Tensor
    pruned: Tensor
    stage: Tensor

    def __init__(
        self,
        units: Sequence[law.Unit],
        *,
        relaxation: Relaxation = "softmax",
        mixing: Mixing = "probabilities",
        hypernet: HypernetKind | Literal["price"] = "constant",
        n_knots: int = 5,
        axis: Axis | None = None,
        observed: bool = False,
        automatic_range: bool = False,
        prunes: bool = False,
        floor: float = dirichlet.FLOOR,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.units = tuple(units)
        self.floor = floor
        self.own_factors: dict[str, Tensor] = {}
        self._axis = axis
        self.observed = observed
        self.range_is_automatic = automatic_range
        self._read: tuple[tuple[int, int], Axis | None] | None = None
        if observed:
            # (lambda, position) of what was found, the last row repeated; nothing at first.
            self.register_buffer("table", torch.zeros(GRID_POINTS + 1, 2, dtype=torch.float64))
        self.relaxation = relaxation
        self.mixing = mixing
        # At a price, the edges of a node share one normalizer, and "none" takes what is left: it has no logit.
        self.per_node = hypernet == "price"
        self.shapes = [
            (rows, width - 1) if self.per_node and isinstance(unit, law.Node) else (rows, width)
            for unit, (rows, width) in zip(self.units, (unit.shape for unit in self.units), strict=True)
        ]
        # Units of one width share one softmax: a call per edge costs more than the whole group.
        self._groups: list[tuple[int, list[int]]] = [
            (width, [i for i, shape in enumerate(self.shapes) if shape[1] == width])
            for width in sorted({width for _, width in self.shapes})
        ]
        self._total = sum(rows * width for rows, width in self.shapes)
        self._prunes = prunes
        if prunes:
            self.register_buffer("pruned", torch.zeros(self._total, dtype=torch.bool))
            self.register_buffer("stage", torch.zeros((), dtype=torch.long))
        # A logistic-normal structure has a standard deviation beside every logit.
        self._with_rho = relaxation == "logistic_normal"
        self.logits = _hypernet(hypernet, self._total * (1 + self._with_rho), n_knots, axis, seed)
        initial = 1e-3 * torch.randn(self._total, generator=torch.Generator().manual_seed(seed))
        if relaxation == "identity":
            initial += torch.cat([torch.full((rows * width,), 1.0 / width) for rows, width in self._in_groups()])
        if relaxation == "dirichlet":  # where it is uniform
            initial += dirichlet.raw_of(torch.ones(()), floor)
        if self._with_rho:
            initial = torch.cat([initial, torch.full((self._total,), FIRST_RHO)])
        self.logits.initialize(initial)

    @property
    def axis(self) -> Axis | None:
        """Range of lambda; where the search finds it out, as it stands now."""
        if not self.observed:
            return self._axis
        # Read again only where the table was written to: on an accelerator every look waits for the device.
        state = id(self.table), self.table._version
        if self._read is None or self._read[0] != state:
            self._read = state, self._axis_of(self.found)
        return self._read[1]

    def _axis_of(self, points: list[tuple[float, float]]) -> Axis | None:
        if len(points) < 2:  # nothing was found
            return self._axis
        assert isinstance(self._axis, LambdaAxis)
        ends = LambdaAxis(points[0][0], points[-1][0]) if self.range_is_automatic else self._axis
        return ends.bent(points) if len(points) > 2 else ends

    @property
    def found(self) -> list[tuple[float, float]]:
        """What the search has found out of lambda: (lambda, position), both growing; empty where it did not."""
        return list(dict(self.table.tolist()).items()) if self.lambda_found else []

    def set_axis(self, points: Sequence[tuple[float, float]] | None) -> None:
        """Say what lambda means: at most `GRID_POINTS + 1` of (lambda, position), both growing; None forgets it."""
        points = points or [(0.0, 0.0)]
        rows = [*points, *[points[-1]] * (len(self.table) - len(points))]
        self.table.copy_(self.table.new_tensor(rows))

    @property
    def lambda_found(self) -> bool:
        """Whether the search has found out what lambda means."""
        return self.observed and bool(self.table[0, 0] > 0)

    def _in_groups(self) -> list[tuple[int, int]]:
        return [self.shapes[i] for _, members in self._groups for i in members]

    @property
    def reference(self) -> Tensor:
        """A tensor of the device and dtype of the structure."""
        return self.logits.reference

    def position(self, lam: float | None, *, extrapolate: bool = False) -> Tensor:
        """Position u of lambda on the axis, `()`; 0 for a structure without an axis, None is the lowest lambda.

        Raises:
            ConfigError: If lambda lies outside the range, unless asked to extrapolate.
        """
        axis = self.axis
        if axis is None:
            return self.reference.new_zeros(())
        return self.reference.new_tensor(axis.domain[0] if lam is None else axis.to_u(lam, extrapolate=extrapolate))

    def _blocks(self, flat: Tensor) -> list[tuple[Tensor, list[int]]]:
        """Outputs of the hypernetwork, `(*batch, n)`, as one `(*batch, rows, width)` per group of units."""
        start, blocks = 0, []
        for width, members in self._groups:
            rows = sum(self.shapes[i][0] for i in members)
            block = flat[..., start : start + rows * width].reshape(*flat.shape[:-1], rows, width)
            blocks.append((block, members))
            start += rows * width
        return blocks

    def _split(self, blocks: Iterable[tuple[Tensor, list[int]]]) -> list[Tensor]:
        result: list[Tensor] = [torch.empty(0)] * len(self.units)
        for block, members in blocks:
            at = 0
            for i in members:
                result[i] = block[..., at : at + self.shapes[i][0], :]
                at += self.shapes[i][0]
        return result

    def _log_probs(self, flat: Tensor) -> list[Tensor]:
        if self.per_node:
            return [
                log_probabilities_of_node(x) if isinstance(unit, law.Node) else log_probabilities(x, self.relaxation)
                for unit, x in zip(self.units, self._split(self._blocks(flat)), strict=True)
            ]
        masks = self._blocks(self.pruned) if self._prunes else [(None, members) for _, members in self._groups]
        return self._split(
            (log_probabilities(x, self.relaxation, mask, self.floor), members)
            for (x, members), (mask, _) in zip(self._blocks(flat), masks, strict=True)
        )

    def _masks(self) -> Sequence[Tensor | None]:
        """Options that are given up, `(rows, width)` a unit; None where none can be."""
        return self._split(self._blocks(self.pruned)) if self._prunes else [None] * len(self.units)

    @torch.no_grad()
    def prune(self, keep: Sequence[int], n: int) -> None:
        """Go through the first n stages, each of which leaves so many of the most probable options of every row."""
        while int(self.stage) < n:
            grid = torch.linspace(0, 1, GRID_POINTS if self.axis is not None else 1).to(self.reference)
            going = [given_up(u, p, keep[int(self.stage)]) for u, p in zip(self.units, self.probs(grid), strict=True)]
            self.pruned |= torch.cat([going[i].flatten() for _, members in self._groups for i in members])
            self.stage += 1

    def pruned_pairs(self) -> dict[str, frozenset[tuple[int, int]]]:
        """What is given up, by label of the unit: (row, option) pairs."""
        named = zip(self.units, self._masks(), strict=True)
        return {u.label: frozenset((i, j) for i, j in m.nonzero().tolist()) for u, m in named if m is not None}

    def probs(self, u: Tensor) -> list[Tensor]:
        """Mean probabilities at u; `(*batch,)` -> one `(*batch, rows, width)` per unit."""
        return [log_probs.exp() for log_probs in self._log_probs(self.logits(u))]

    def named_probs(self, u: Tensor) -> dict[str, dict[str, float]]:
        """Mean probabilities at u, `()`, by label and option; the edges of a node are labelled `cell/node_edge`."""
        parts = [law.named(unit, probs) for unit, probs in zip(self.units, self.probs(u), strict=True)]
        return {label: row for part in parts for label, row in part.items()}

    def sample_at(self, u: Tensor, temperature: float, generator: torch.Generator) -> dict[str, Any]:
        """One architecture drawn from the law at u, `()`, sharpened by the temperature."""
        with torch.no_grad():
            sharp = [(x / temperature) for x in self._log_probs(self.logits(u))]
        choices: dict[str, Any] = {}
        for unit, logs in zip(self.units, sharp, strict=True):
            # A node's rows keep their ratios, on which the law of its edges depends; "none" does not count there.
            counted = logs[..., :-1] if isinstance(unit, law.Node) else logs
            scale = counted.logsumexp((-2, -1), keepdim=True)
            choices.update(law.sample(unit, (logs - scale).clamp_max(0.0).exp().cpu(), generator))
        return choices

    def draw(self, u: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Mixing weights for one pass, by unit label, as a `Binding` holds them; u is `()` or `(batch,)`.

        Args:
            u: Positions of lambda, one for all objects or one for each.
            temperature: Sharpens the weights; 1 leaves them as they are.
            generator: Of the noise of "gumbel"; without one there is no noise, and the weights are the mean.
        """
        return self.weights_of(self.logits(u), temperature, generator)

    def weights_of(
        self, flat: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """As `draw`, from outputs of the hypernetwork, `(*batch, n)`."""
        raw = self._split(self._blocks(flat))
        rho = self._split(self._blocks(flat[..., self._total :])) if self._with_rho else [None] * len(raw)
        weights, masks = {}, self._masks()
        for i, (unit, log_probs) in enumerate(zip(self.units, self._log_probs(flat), strict=True)):
            if generator is not None:
                log_probs = log_draw(raw[i], log_probs, rho[i], self.relaxation, generator, masks[i], self.floor)
            factor = mixing_weights(unit, raw[i], log_probs, self.relaxation, self.mixing, temperature)
            if unit.label in self.own_factors:
                own = self.own_factors[unit.label][..., : factor.shape[-1]].to(factor.device)
                factor = factor.pow(1 + own)
            weights[unit.label] = factor if isinstance(unit, law.Node) else factor.squeeze(-2)
        return weights

    def divergence(self, u: Tensor, prior: float = 1.0, none: float | None = None) -> Tensor:
        """KL of the structure to its prior at u, summed over all units, in nats; `(*batch,)`."""
        return torch.stack(list(self.divergences(u, prior, none).values())).sum(0)

    def divergences(self, u: Tensor, prior: float = 1.0, none: float | None = None) -> dict[str, Tensor]:
        """KL of every unit to its prior at u, by label, summed over its rows, in nats; `(*batch,)`.

        Args:
            u: Positions of lambda.
            prior: Concentration of every option; 1 is uniform.
            none: That of "none", which makes edges absent; None: as the others.
        """
        flat = self.logits(u)
        rho = self._split(self._blocks(flat[..., self._total :])) if self._with_rho else [None] * len(self.units)
        parts = {}
        for unit, x, r, mask in zip(self.units, self._split(self._blocks(flat)), rho, self._masks(), strict=True):
            b = law.prior_concentrations(unit, prior, none).to(x)
            parts[unit.label] = divergence(x, r, self.relaxation, b, mask, self.floor).sum(-1)
        return parts

    def mean(self, lam: float | None = None, temperature: float = 1.0) -> dict[str, Tensor]:
        """Mixing weights without noise at lambda, by unit label."""
        return self.draw(self.position(lam), temperature)

    def set_costs(self, cost: CostModel) -> None:
        """Tell a `price` hypernetwork what the options cost.

        An option costs what the expected cost grows by with its probability, at equal probabilities of all options:
        its own cost where the cost is a sum over the options.
        """
        if not isinstance(self.logits, PriceHypernet):
            return
        gains = self._gains(cost)
        flat = torch.cat([gains[i].flatten() for _, members in self._groups for i in members])
        self.logits.set_costs(flat.to(self.reference))

    def expected_of(self, cost: CostModel, flat: Tensor, temperature: float = 1.0) -> Tensor:
        """As `expected_cost`, from outputs of the hypernetwork, `(*batch, n)`."""
        log_probs = self._log_probs(flat)
        return cost.expected([law.sharpened(u, p, temperature) for u, p in zip(self.units, log_probs, strict=True)])

    def entropy(self, lam: float | None = None) -> Tensor:
        """Entropy of the law of architectures at lambda, in nats; `()`."""
        probs = self.probs(self.position(lam))
        return torch.stack([law.entropy(unit, p) for unit, p in zip(self.units, probs, strict=True)]).sum()

    def expected_cost(self, cost: CostModel, u: Tensor, temperature: float = 1.0) -> Tensor:
        """E[cost] under the (sharpened) law at u, in the unit of `cost`; `(*batch,)`."""
        return self.expected_of(cost, self.logits(u), temperature)

    def log_prob(self, choices: Mapping[str, Any], lam: float | None = None) -> Tensor:
        """Log-probability of an architecture at lambda, in nats; `()`."""
        probs = self.probs(self.position(lam))
        parts = [law.log_prob(unit, p, dict(choices)) for unit, p in zip(self.units, probs, strict=True)]
        return torch.stack(parts).sum()

    def sample(self, lam: float | None = None, n: int = 1, *, generator: torch.Generator) -> list[dict[str, Any]]:
        """`n` architectures drawn from the law at lambda."""
        return law.samples(self.units, [p.detach().cpu() for p in self.probs(self.position(lam))], n, generator)

    def random_samples(
        self, n: int, *, generator: torch.Generator, cost: CostModel | None = None, tilt: float = 0.0
    ) -> list[dict[str, Any]]:
        """`n` architectures drawn without looking at the data: the random baseline.

        Without a tilt all options are equally probable. With one, an option's probability is multiplied by
        exp(-tilt * cost / mean cost), so that architectures of any size can be drawn.
        """
        return law.samples(self.units, self._tilted(cost, tilt), n, generator)

    def tilt_for(self, cost: CostModel, target: float) -> float:
        """The tilt of `random_samples` whose expected cost is `target`, by bisection; clipped to [-50, 50]."""

        def expected(tilt: float) -> float:
            probs = self._tilted(cost, tilt)
            return float(cost.expected([law.marginals(u, p) for u, p in zip(self.units, probs, strict=True)]))

        low, high = -50.0, 50.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if expected(middle) > target else (low, middle)
        return (low + high) / 2

    def _tilted(self, cost: CostModel | None, tilt: float) -> list[Tensor]:
        equal = [torch.full(u.shape, 1.0 / u.shape[1], dtype=torch.float64) for u in self.units]
        if cost is None or tilt == 0:
            return equal
        gains = self._gains(cost)
        scale = torch.cat([g.flatten() for g in gains]).mean().clamp_min(1e-12)
        result = []
        for probs, gain in zip(equal, gains, strict=True):
            logits = probs.log()
            logits[..., : gain.shape[-1]] -= tilt * gain / scale
            result.append(logits.softmax(-1))
        return result

    def _gains(self, cost: CostModel) -> list[Tensor]:
        """d E[cost] / d marginals at equal probabilities; one `(rows, options)` per unit."""
        equal = [torch.full(u.shape, 1.0 / u.shape[1], dtype=torch.float64) for u in self.units]
        marginals = [law.marginals(u, p).detach().requires_grad_(True) for u, p in zip(self.units, equal, strict=True)]
        with torch.enable_grad():
            return list(torch.autograd.grad(cost.expected(marginals), marginals))

    def export(self, lam: float | None = None, *, extrapolate: bool = False) -> dict[str, Any]:
        """The derived architecture at lambda: argmax of the mean, top-k edges."""
        return self._derive(self.logits(self.position(lam, extrapolate=extrapolate), extrapolate=extrapolate))

    def derive_at(self, u: Tensor) -> dict[str, Any]:
        """The derived architecture at a position of lambda, `()`."""
        return self._derive(self.logits(u))

    def _derive(self, flat: Tensor) -> dict[str, Any]:
        # Logarithms: far from the best option probabilities underflow to ties. Weights that are not shares of a row are
        # compared as they are, as in Fair DARTS.
        raw = self.relaxation in ("sigmoid", "identity")
        flat = flat.detach().cpu()
        values = self._split(self._blocks(flat)) if raw else self._log_probs(flat)
        derived = [law.derive(unit, v) for unit, v in zip(self.units, values, strict=True)]
        return {label: choice for part in derived for label, choice in part.items()}


def _hypernet(
    kind: HypernetKind | Literal["price"], n: int, n_knots: int, axis: Axis | None, seed: int
) -> Hypernet | PriceHypernet:
    if kind == "price":
        return PriceHypernet(n, n_knots=n_knots)
    if isinstance(axis, LiteralAxis) and kind == "linear":
        kind = "linear_literal"
    return Hypernet(kind, n, n_knots=n_knots, domain=(0.0, 1.0) if axis is None else axis.domain, seed=seed)
