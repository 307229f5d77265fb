"""Searches of one run that differ in more than their seeds: what may differ, and the configuration of each."""

from __future__ import annotations

from typing import Any

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError

_SECTIONS = ("strategy.args.", "search.")
_KEYS = ("data.limit", "data.skip")
# They decide which searches there are, or what all of them have to give.
_OF_ALL = ("search.searches", "search.replicas", "search.variants", "search.lambdas", "search.random", "search.samples")


def varied(config: Config, changes: dict[str, Any]) -> Config:
    """The configuration of one search, without variants of its own.

    Args:
        config: That of the run.
        changes: Value by path, as an entry of `search.variants`.

    Raises:
        ConfigError: A path that may not differ, or a value that is not allowed there.

    >>> varied(Config(), {"strategy.args.penalty": 0.1, "data.limit": 100}).data.limit
    100
    """
    values = config.to_dict()
    values["search"]["variants"] = []
    for path, value in changes.items():
        if not isinstance(path, str) or path in _OF_ALL or not (path.startswith(_SECTIONS) or path in _KEYS):
            raise ConfigError(
                f"`search.variants` may change {', '.join(_KEYS)} and what lies below strategy.args and search, got "
                f"{path!r}; what all searches have in common is set in the configuration itself"
            )
        *parents, last = path.split(".")
        target: Any = values
        for name in parents:
            target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ConfigError(f"`search.variants` names {path!r}, but `{'.'.join(parents)}` has nothing below it")
        target[last] = value
    return Config.from_dict(values)


def searches(config: Config) -> list[tuple[int, dict[str, Any]]]:
    """Seed and changes of every search: all seeds of the first variant, all of the second, ..."""
    seeds = [config.seed + i for i in range(config.search.searches)]
    return [(seed, dict(changes)) for changes in config.search.variants or [{}] for seed in seeds]
