"""From logits to probabilities and to mixing weights, per unit of a structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from nni_bayes_nas.bayes import concrete, dirichlet, law, logistic_normal, normal

from .pruning import NEVER

Relaxation = Literal["softmax", "gumbel", "sigmoid", "identity", "dirichlet", "logistic_normal"]
RELAXATIONS: tuple[Relaxation, ...] = ("softmax", "gumbel", "sigmoid", "identity", "dirichlet", "logistic_normal")
# Of strategies whose structure has no divergence to a prior.
WITHOUT_PRIOR: tuple[Relaxation, ...] = ("softmax", "gumbel", "sigmoid", "identity")
# Of a logistic-normal structure, as rho of `bayes.normal`, at the beginning of a search: a standard deviation of 1/2.
FIRST_RHO = -0.7
_NEXT_TO_ZERO, _NEXT_TO_INFINITE = 1e-6, 1e3
Mixing = Literal["probabilities", "marginals"]
TemperatureSchedule = Literal["geometric", "linear", "constant"]
# Temperature from 1 to `last`, as the share of the search that is over goes from 0 to 1.
TEMPERATURE_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "geometric": lambda last, progress: float(last**progress),
    "linear": lambda last, progress: 1.0 + (last - 1.0) * progress,
    "constant": lambda last, progress: last,
}


def log_probabilities(
    logits: Tensor, relaxation: Relaxation, pruned: Tensor | None = None, floor: float = dirichlet.FLOOR
) -> Tensor:
    """Log-probabilities of the options, `(*batch, rows, width)`; their exponentials sum to one in every row.

    Of options that are given up, `pruned`, `(rows, width)`, they are `NEVER`: the others have the probabilities that
    they have if none of these is chosen; of a Dirichlet distribution, those of Dir(a) of the others.

    The sigmoids of "sigmoid" (Chu et al., 2020, arXiv 1911.12126) are independent of one another: their shares are
    taken. The raw weights of "identity" are no probabilities: their softmax is taken. Of "dirichlet" it is the mean, of
    "logistic_normal" the softmax of the mean logits, which has its median in the place of each ratio of probabilities.
    `floor` is that of the concentrations, here and below.
    """
    if relaxation == "dirichlet":
        a = dirichlet.concentration(logits, floor)
        if pruned is None:
            return dirichlet.mean(a).log()
        return (a.log() - a.masked_fill(pruned, 0.0).sum(-1, keepdim=True).log()).masked_fill(pruned, NEVER)
    if relaxation == "sigmoid":
        return torch.nn.functional.logsigmoid(logits).log_softmax(-1)
    return (logits if pruned is None else logits.masked_fill(pruned, NEVER)).log_softmax(-1)


def log_probabilities_of_node(logits: Tensor) -> Tensor:
    """Log-probabilities of a node whose edges share one normalizer; "none" takes what is left.

    p_eo = exp(alpha_eo) / max_e' sum_o' exp(alpha_e'o'). The law of the kept edges depends on ratios only, and what
    is derived, the edges with the largest p and their best operations, maximizes a sum of logits.

    Args:
        logits: Without "none", `(*batch, edges, operations)`.

    Returns:
        `(*batch, edges, operations + 1)`.
    """
    mass = logits.logsumexp(-1, keepdim=True)
    shifted = logits - mass.max(-2, keepdim=True).values
    left = -torch.expm1((mass - mass.max(-2, keepdim=True).values).clamp_max(-1e-30))
    return torch.cat([shifted, left.clamp_min(torch.finfo(left.dtype).tiny).log()], -1)


def log_draw(
    logits: Tensor,
    log_probs: Tensor,
    rho: Tensor | None,
    relaxation: Relaxation,
    generator: torch.Generator,
    pruned: Tensor | None = None,
    floor: float = dirichlet.FLOOR,
) -> Tensor:
    """Logarithms of one draw of the probabilities, up to a constant per row; the mean where nothing is drawn.

    Args:
        logits: `(*batch, rows, width)`; of "dirichlet", raw concentrations.
        log_probs: Of the mean.
        rho: Of the logits' standard deviations, for "logistic_normal".
        relaxation: Its draws at temperature 1; `mixing_weights` divides by the temperature.
        generator: Of the noise, on the CPU.
        pruned: Options that are given up. The shares of the others in a draw are a draw of theirs: those of Dir(a) are
            Dir(a of the others).
        floor: Of the concentrations.
    """
    if relaxation == "gumbel":
        return log_probs + concrete.gumbel(tuple(log_probs.shape), generator, log_probs)
    if relaxation == "dirichlet":
        drawn = dirichlet.rsample(dirichlet.concentration(logits, floor), generator).log()
    elif relaxation == "logistic_normal":
        assert rho is not None
        drawn = logistic_normal.log_rsample(logits, normal.sd(rho), 1.0, generator)
    else:
        return log_probs
    return drawn if pruned is None else drawn.masked_fill(pruned, NEVER)


def divergence(
    logits: Tensor,
    rho: Tensor | None,
    relaxation: Relaxation,
    prior: Tensor,
    pruned: Tensor | None = None,
    floor: float = dirichlet.FLOOR,
) -> Tensor:
    """KL of every row to its prior, in nats; `(*batch, rows)`.

    "dirichlet": KL(Dir(a) || Dir(b)). "logistic_normal": to logits N(log b, 1). All others, "gumbel" among them: of the
    option that is drawn, KL(pi || b / sum b).

    Args:
        logits: As for `log_draw`.
        rho: As for `log_draw`.
        relaxation: The family.
        prior: b, concentrations, `(rows, width)`.
        pruned: Options that are given up, `(rows, width)`: posterior and prior are those of the others.
        floor: Of the concentrations.
    """
    gone = torch.zeros_like(prior, dtype=torch.bool) if pruned is None else pruned
    if relaxation == "dirichlet":
        # Equal concentrations next to zero cancel.
        a = dirichlet.concentration(logits, floor).masked_fill(gone, _NEXT_TO_ZERO)
        return dirichlet.kl(a, prior.masked_fill(gone, _NEXT_TO_ZERO).expand_as(a))
    if relaxation == "logistic_normal":
        assert rho is not None
        means = prior.log()
        if pruned is None:
            return logistic_normal.kl(logits, normal.sd(rho), means, 1.0)
        # Logits that say nothing, in either, and none of them the last one, from which the differences are taken.
        wide = torch.ones_like(means).masked_fill(gone, _NEXT_TO_INFINITE)
        order = gone.int().argsort(dim=-1, descending=True, stable=True).expand_as(logits)
        parts = torch.where(gone, means, logits), torch.where(gone, wide, normal.sd(rho)), means, wide
        return logistic_normal.kl(*(x.expand_as(logits).gather(-1, order) for x in parts))
    return concrete.kl_categorical(log_probabilities(logits, relaxation, pruned), prior.log().masked_fill(gone, NEVER))


def mixing_weights(
    unit: law.Unit, logits: Tensor, log_probs: Tensor, relaxation: Relaxation, mixing: Mixing, temperature: float
) -> Tensor:
    """The factors of the options' outputs in one pass.

    Args:
        unit: What is chosen.
        logits: Raw, `(*batch, rows, width)`; used by "sigmoid" and "identity".
        log_probs: With the noise already added, up to a constant per row.
        relaxation: "softmax" and "gumbel" give shares, "sigmoid" sigma(alpha), "identity" alpha itself (the original).
        mixing: "probabilities": softmax(log p / temperature) of every row, as in DARTS; "marginals": the probability
            that the option is part of the architecture, under the law sharpened by the temperature. The latter sum to
            the number of kept edges, and become the derived network as the temperature goes to zero.
        temperature: In (0, 1].

    Returns:
        `(*batch, rows, options)`, with a column for "none" where a node mixes by probabilities.
    """
    if relaxation == "identity":
        return logits
    if relaxation == "sigmoid":
        return (logits / temperature).sigmoid()
    if mixing == "marginals" or isinstance(unit, law.Subset):
        return law.sharpened(unit, log_probs, temperature)
    return (log_probs / temperature).softmax(-1)


def zero_one_loss(logits: Tensor) -> Tensor:
    """-mean (sigma(alpha) - 1/2)^2, the loss of Fair DARTS that drives sigmoids to 0 or 1 (Chu et al., 2020, Eq. 4).

    Args:
        logits: `(*batch, n)`.

    Returns:
        `(*batch,)`, from -1/4 (all decided) to 0.
    """
    return -(logits.sigmoid() - 0.5).square().mean(-1)
