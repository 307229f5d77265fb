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

    That of the Hessian on the Krylov space of a random vector (Lanczos, 1950; every vector is made orthogonal to all
    before it): from below, exact after as many products as there are distinct eigenvalues. Power iteration would find a
    mixture where the spectrum reaches as far below 0 as above.

    Args:
        gradients: Of the loss, with graph.
        parameters: In the same order.
        generator: Of the first vector, on the CPU.
        iterations: Products, at most.

    Returns:
        NaN where a product is not finite.
    """
    sizes = [p.numel() for p in parameters]
    v = torch.cat([torch.randn(p.shape, generator=generator, dtype=torch.float64).flatten() for p in parameters])
    found: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(iterations, len(v))):
        norm = float(v.norm())
        if found and norm <= 1e-9 * max(map(abs, [*diagonal, *beside])):
            break  # the space is that of the Hessian itself
        if found:
            beside.append(norm)
        found.append(v / norm)
        parts = [x.reshape(p.shape).to(p) for x, p in zip(torch.split(found[-1], sizes), parameters, strict=True)]
        product = torch.autograd.grad(
            gradients, parameters, grad_outputs=parts, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        v = torch.cat([y.detach().flatten().to("cpu", torch.float64) for y in product])
        if not bool(torch.isfinite(v).all()):
            return math.nan
        diagonal.append(float(v @ found[-1]))
        for _ in range(2):  # twice: once leaves what single precision has put in
            for one in found:
                v = v - (v @ one) * one
    reduced = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, value in enumerate(beside):
        reduced[i, i + 1] = reduced[i + 1, i] = value
    return float(torch.linalg.eigvalsh(reduced)[-1])


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
