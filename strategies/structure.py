"""The distribution over structures: where its parameters come from and what is read off it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_bayes_nas.bayes import law
from nni_bayes_nas.complexity.axis import LambdaAxis
from nni_bayes_nas.complexity.expected import CostModel
from nni_bayes_nas.complexity.hypernet import Hypernet, HypernetKind


class SoftmaxStructure(nn.Module):
    """Mixing weights softmax(alpha(u)) per choice and edge, alpha a hypernetwork of u.

    With a `constant` hypernetwork it is the structure of DARTS (Liu, Simonyan & Yang, 2019, Eq. 2). The softmax is
    deterministic: a draw is the mean, and what is exported never depends on a draw.

    Args:
        units: What is chosen in the space, in a fixed order.
        hypernet: Where the logits come from.
        n_knots: Knots of a `piecewise_linear` hypernetwork.
        axis: Range of lambda; None for a structure that does not depend on it.
        seed: Of the initial logits, N(0, 1e-3^2) as in DARTS, equal at all knots.
    """

    def __init__(
        self,
        units: Sequence[law.Unit],
        *,
        hypernet: HypernetKind = "constant",
        n_knots: int = 5,
        axis: LambdaAxis | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.units = tuple(units)
        self.axis = axis
        widths = sorted({unit.shape[1] for unit in self.units})
        # Units of one width share one softmax: a call per edge costs more than the whole group.
        self._groups: list[tuple[int, list[int]]] = [
            (width, [i for i, unit in enumerate(self.units) if unit.shape[1] == width]) for width in widths
        ]
        total = sum(rows * width for rows, width in (unit.shape for unit in self.units))
        self.logits = Hypernet(hypernet, total, n_knots=n_knots)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.logits.knots.copy_(1e-3 * torch.randn(total, generator=generator).expand_as(self.logits.knots))

    def position(self, lam: float | None) -> Tensor:
        """Position u of lambda on the axis, `()`; 0 for a structure without an axis."""
        u = 0.0 if self.axis is None or lam is None else self.axis.to_u(lam)
        return self.logits.knots.new_tensor(u)

    def probs(self, u: Tensor) -> list[Tensor]:
        """Mean probabilities at u; `(*batch,)` -> one `(*batch, rows, width)` per unit."""
        flat = self.logits(u)
        result: list[Tensor] = [flat] * len(self.units)
        start = 0
        for width, members in self._groups:
            rows = sum(self.units[i].shape[0] for i in members)
            block = flat[..., start : start + rows * width].reshape(*flat.shape[:-1], rows, width).softmax(-1)
            start += rows * width
            at = 0
            for i in members:
                n = self.units[i].shape[0]
                result[i] = block[..., at : at + n, :]
                at += n
        return result

    def draw(self, u: Tensor) -> dict[str, Tensor]:
        """Mixing weights for one pass, by unit label, as a `Binding` holds them; u is `()` or `(batch,)`."""
        return as_weights(self.units, self.probs(u))

    def mean(self, lam: float | None = None) -> dict[str, Tensor]:
        """Mean mixing weights at lambda, by unit label."""
        return as_weights(self.units, self.probs(self.position(lam)))

    def marginals(self, u: Tensor, temperature: float = 1.0) -> list[Tensor]:
        """Probability of every option to be part of the architecture; one `(*batch, rows, options)` per unit.

        Below temperature 1 the law is sharpened towards the derived architecture.
        """
        pairs = zip(self.units, self.probs(u), strict=True)
        if temperature == 1.0:
            return [law.marginals(unit, p) for unit, p in pairs]
        return [law.sharpened(unit, p, temperature) for unit, p in pairs]

    def entropy(self, lam: float | None = None) -> Tensor:
        """Entropy of the law of architectures at lambda, in nats; `()`."""
        probs = self.probs(self.position(lam))
        return torch.stack([law.entropy(unit, p) for unit, p in zip(self.units, probs, strict=True)]).sum()

    def expected_cost(self, cost: CostModel, u: Tensor, temperature: float = 1.0) -> Tensor:
        """E[cost] under the (sharpened) law at u, in the unit of `cost`; `(*batch,)`."""
        return cost.expected(self.marginals(u, temperature))

    def log_prob(self, choices: Mapping[str, Any], lam: float | None = None) -> Tensor:
        """Log-probability of an architecture at lambda, in nats; `()`."""
        probs = self.probs(self.position(lam))
        parts = [law.log_prob(unit, p, dict(choices)) for unit, p in zip(self.units, probs, strict=True)]
        return torch.stack(parts).sum()

    def sample(self, lam: float | None = None, n: int = 1, *, generator: torch.Generator) -> list[dict[str, Any]]:
        """`n` architectures drawn from the law at lambda."""
        return _draws(self.units, [p.detach().cpu() for p in self.probs(self.position(lam))], n, generator)

    def random_samples(
        self, n: int, *, generator: torch.Generator, cost: CostModel | None = None, tilt: float = 0.0
    ) -> list[dict[str, Any]]:
        """`n` architectures drawn without looking at the data: the random baseline.

        Without a tilt all options are equally probable. With one, an option's probability is multiplied by
        exp(-tilt * cost / mean cost), so that architectures of any size can be drawn.
        """
        return _draws(self.units, self._tilted(cost, tilt), n, generator)

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
        marginals = [law.marginals(u, p).detach().requires_grad_(True) for u, p in zip(self.units, equal, strict=True)]
        with torch.enable_grad():
            gains = torch.autograd.grad(cost.expected(marginals), marginals)
        scale = torch.cat([g.flatten() for g in gains]).mean().clamp_min(1e-12)
        result = []
        for probs, gain in zip(equal, gains, strict=True):
            logits = probs.log()
            logits[..., : gain.shape[-1]] -= tilt * gain / scale
            result.append(logits.softmax(-1))
        return result

    def export(self, lam: float | None = None) -> dict[str, Any]:
        """The derived architecture at lambda: argmax of the mean, top-k edges."""
        probs = [p.detach() for p in self.probs(self.position(lam))]
        return {k: v for unit, p in zip(self.units, probs, strict=True) for k, v in law.derive(unit, p).items()}


def _draws(
    units: Sequence[law.Unit], probs: Sequence[Tensor], n: int, generator: torch.Generator
) -> list[dict[str, Any]]:
    def one() -> dict[str, Any]:
        parts = [law.sample(unit, p, generator) for unit, p in zip(units, probs, strict=True)]
        return {label: choice for part in parts for label, choice in part.items()}

    return [one() for _ in range(n)]


def as_weights(units: Sequence[law.Unit], probs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Probabilities per unit as a `Binding` holds them: rows are kept for nodes only."""
    return {
        unit.label: p if isinstance(unit, law.Node) else p.squeeze(-2) for unit, p in zip(units, probs, strict=True)
    }
