"""What is asked of a posterior, against the architectures that there are."""

from __future__ import annotations

import itertools
import math
from typing import Any

from nni_bayes_nas.bayes import law
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.posterior_file import MERGED_AT_MOST


def check_samples(config: Config, strategy: Any, space: Any) -> None:
    """Refuse more architectures of the posterior than there are, and some of one that depends on lambda."""
    wanted = config.search.samples
    if config.search.derive != "mean" and strategy.axis is not None:
        raise ConfigError(
            f"search.derive looks at the loss alone, got {config.search.derive!r} for a strategy with a range of "
            "lambda, whose sizes it would undo; set it to 'mean', or leave lambda_range out."
        )
    if not wanted:
        return
    if strategy.axis is not None:
        raise ConfigError(
            f"search.samples are of a posterior without lambda, got {wanted} for a strategy with a range of lambda; "
            "set search.samples to 0, or leave lambda_range out."
        )
    others = _count(strategy, space, wanted + 1) - 1
    if wanted > others:
        raise ConfigError(
            f"search.samples must be distinct architectures beside the derived one, of which there are {others} at the "
            f"end of the search, got {wanted}; lower it."
        )


def check_refinement(config: Config, strategy: Any, space: Any) -> None:
    """Refuse a refinement that leaves no architecture, or trains more than there are; sizes are the search's model."""
    most = config.refine.max_params
    if config.experiment.plan != "posterior_refinement":
        return
    there_are = _count(strategy, space, config.refine.evaluations)
    if config.refine.evaluations > there_are:
        raise ConfigError(
            f"refine.evaluations must be distinct architectures, of which there are {there_are} at the end of the "
            f"search, got {config.refine.evaluations}; lower it."
        )
    if most is None:
        return
    smallest, _ = strategy.extreme("params", -1.0)
    least = round(strategy.exact_cost("params", smallest))
    if least > most:
        raise ConfigError(
            f"refine.max_params must leave architectures, but the smallest of the space has {least} parameters, got "
            f"{most}; raise it, or take a smaller space."
        )


def _count(strategy: Any, space: Any, enough: int) -> int:
    """Distinct networks at the end of the search, counted until there are enough.

    Architectures that compute the same are one where the space says which, has few, and the search drops no options,
    which ones being unknown before it.
    """
    units, key = strategy.units_at_the_end(), getattr(space, "isomorphism_key", None)
    forms = math.prod(law.count(unit) for unit in units)
    if key is None or not enough <= forms <= MERGED_AT_MOST or strategy.step.keep_options:
        return forms
    seen = set()
    for parts in itertools.product(*map(law.enumerate_choices, units)):
        seen.add(key({label: choice for part in parts for label, choice in part.items()}))
        if len(seen) == enough:
            break
    return len(seen)
