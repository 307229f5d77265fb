"""What can be checked before time is spent; torch is imported only here, and only for trials that are ours."""

from nni_bayes_nas.config import Config
from nni_bayes_nas.registry import PLANS, resolve


def checked(config: Config) -> Config:
    """Build space, strategy and data once; the configuration with the defaults of their arguments filled in.

    A plan whose first trials are all of the user's own kinds is left as it is.

    Raises:
        ConfigError: The user's mistake.
    """
    if not _ours(config):
        return config
    from nni_bayes_nas.experiment.build import validate

    return validate(config)


def with_defaults(config: Config) -> Config:
    """As `checked`, without building anything."""
    if not _ours(config):
        return config
    from nni_bayes_nas.experiment.build import effective

    return effective(config)


def _ours(config: Config) -> bool:
    plan = resolve("plan", config.experiment.plan, PLANS)(config)
    return any(spec.kind in ("search", "retrain") for spec in plan.trials({}, set()))
