"""Signs that a differentiable search collapses, and when they are a reason to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nni_bayes_nas.complexity.expected import CostModel

# Share of parameter-free operations from which on a search has collapsed; growth of the eigenvalue that Zela et al.
# (2020, arXiv 1909.09656) stop at, 1 / .75, between two windows of epochs; and of its first entropy, what is left of a
# structure that has nothing more to decide.
SHARE, GROWTH, WINDOW, DECIDED = 0.6, 1.0 / 0.75, 3, 0.01


def parameter_free_share(cost: CostModel, marginals: Sequence[Tensor]) -> Tensor | None:
    """Expected share of the options that are part of the architecture and have no parameters, `()`.

    Of the choices between options with and without; None where there is no such choice.

    Args:
        cost: Parameters of every part of the space.
        marginals: Probabilities that options are part of the architecture, `(rows, options)` a unit.
    """
    free = [torch.ones(n, dtype=torch.bool) for n in cost.n_options]
    for term in cost.terms:
        for unit, options in term.gates:
            free[unit][list(options)] = False
    pairs = [(m.flatten(), f.to(m.device)) for m, f in zip(marginals, free, strict=True) if 0 < int(f.sum()) < len(f)]
    if not pairs:
        return None
    kept = torch.stack([m.sum() for m, _ in pairs]).sum()
    return torch.stack([m[f].sum() for m, f in pairs]).sum() / kept


def largest_eigenvalue(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], generator: torch.Generator, iterations: int = 10
) -> float:
    """The largest eigenvalue of the Hessian whose product with v is d(gradients . v)/d parameters.

    By power iteration, which finds the one of largest absolute value; where that is negative, again on the Hessian less
    it, whose eigenvalues are none below 0. The Rayleigh quotient of the last vector.

    Args:
        gradients: Of the loss, with graph.
        parameters: In the same order.
        generator: Of the first vector, on the CPU.
        iterations: Products of an iteration.
    """
    value = _power(gradients, parameters, generator, iterations, 0.0)
    return value if value >= 0 else value + _power(gradients, parameters, generator, iterations, -value)


def _power(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], generator: torch.Generator, iterations: int, shift: float
) -> float:
    """Of the Hessian plus `shift` times the identity, the eigenvalue of largest absolute value."""
    v = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters]
    value = 0.0
    for _ in range(iterations):
        norm = math.sqrt(sum(float((x * x).sum()) for x in v))
        if not norm > 0:
            return 0.0
        v = [x / norm for x in v]
        product = torch.autograd.grad(
            gradients, parameters, grad_outputs=v, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        product = tuple(y.detach() + shift * x for x, y in zip(v, product, strict=True))
        value = sum(float((x * y).sum()) for x, y in zip(v, product, strict=True))
        v = list(product)
    return value


def reason(history: Sequence[Mapping[str, float]]) -> str | None:
    """Why a search should end, in words; None to go on.

    Args:
        history: Of the epochs in which the structure learned, in order: "parameter_free", "entropy", and "curvature"
            where it could be measured.
    """
    if not history:
        return None
    now, first = history[-1], history[0]
    if now.get("parameter_free", 0.0) >= SHARE:
        return (
            f"{100 * now['parameter_free']:.0f} % of what the architecture keeps has no parameters (from "
            f"{100 * SHARE:.0f} % on a search has collapsed); try the guards auxiliary, normalize and a longer warm-up"
        )
    curves = [row["curvature"] for row in history if "curvature" in row]
    if len(curves) >= 2 * WINDOW:
        before, after = (sum(part) / WINDOW for part in (curves[-2 * WINDOW : -WINDOW], curves[-WINDOW:]))
        if before > 0 and after > GROWTH * before:
            return (
                f"the largest eigenvalue of the structure's Hessian has grown from {before:.3g} to {after:.3g} within "
                f"{WINDOW} epochs (limit: {GROWTH:.2f} times), after which derived networks get worse; end earlier, "
                "or regularize the weights"
            )
    if len(history) > 1 and now["entropy"] <= DECIDED * first["entropy"]:
        return (
            f"everything is decided: the entropy is {now['entropy']:.3g} nats, {first['entropy']:.3g} when the "
            "structure began to learn"
        )
    return None
