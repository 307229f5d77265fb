"""Progressive pruning: options that a search has given up, stage by stage (Chen et al., 2021, arXiv 2006.10355)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from nni_bayes_nas.bayes import law
from nni_bayes_nas.errors import SpaceError

# Logarithm of the probability of an option that is given up: its exponential is 0, and it is finite.
NEVER = -1e4


def given_up(unit: law.Unit, probs: Tensor, keep: int) -> Tensor:
    """The options of a unit that are not among the `keep` most probable of their row; those given up before are not.

    Absence of an edge is kept; what is chosen from a set without operations is left as it is.

    Args:
        unit: What is chosen.
        probs: `(positions, rows, width)`, at some positions of lambda: an option stays that is probable at one of them.
        keep: Options that stay in every row.

    Returns:
        `(rows, width)`, True for options that go.
    """
    best = probs.amax(0)
    options = unit.shape[1] - isinstance(unit, law.Node)
    result = torch.zeros_like(best, dtype=torch.bool)
    if isinstance(unit, law.Subset) or keep >= options:
        return result
    order = best[:, :options].argsort(dim=-1, descending=True, stable=True)
    return result.scatter(-1, order[:, keep:], True)


def left_of(unit: law.Unit, keep: int) -> law.Unit:
    """A unit of as many options as are left of one, if `keep` stay in every row."""
    if isinstance(unit, law.Subset):
        return unit
    if isinstance(unit, law.Node):
        return dataclasses.replace(unit, operations=unit.operations[:keep])
    return dataclasses.replace(unit, options=unit.options[:keep])


def stages_over(progress: float, n: int) -> int:
    """How many of n stages, and one more, of equal length are over at a share of the search."""
    return min(n, int(progress * (n + 1)))


def check_keep(units: Sequence[law.Unit], keep: Sequence[int]) -> None:
    """Raise SpaceError where nothing would ever be given up."""
    most = max((u.shape[1] - isinstance(u, law.Node) for u in units if not isinstance(u, law.Subset)), default=0)
    if keep and keep[0] >= most:
        raise SpaceError(
            f"keep_options must leave fewer options than the {most} of the largest choice, got {list(keep)}; "
            "lower it, or leave it out."
        )
