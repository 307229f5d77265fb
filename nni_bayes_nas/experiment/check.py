"""What can be checked before time is spent; torch is imported only here, and only for trials that are ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nni_bayes_nas.config import Config, load_config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.trial import KINDS
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

    require_cuda(config)
    return validate(config)


def require_cuda(config: Config) -> None:
    """Refuses `experiment.device` gpu where torch cannot use one, whatever NVML sees.

    Raises:
        ConfigError: With the remedy.
    """
    if config.experiment.device != "gpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"`experiment.device` gpu needs a GPU that torch can use, torch {torch.__version__} sees none\n"
            "set it to auto or cpu, or install a torch built for the driver's CUDA version"
        )


def check_same(config: Config, output: Path, command: str) -> None:
    """Refuses another configuration than that of the run in ``output``; only the port may differ.

    Args:
        config: What a resume was given.
        output: The run folder.
        command: The command that resumes, ``run`` or ``search``.

    Raises:
        ConfigError: Names the first key that differs.
    """
    # Both with their defaults: under plain nnictl the tuner, which must not import torch, wrote what it was given.
    theirs, ours = (with_defaults(one).to_dict() for one in (load_config(output / "config.yaml"), config))
    own = f"give the run's own: nni-bayes-nas {command} {output}/config.yaml --output {output} --resume"
    refuse_difference(theirs, ours, own)


def refuse_difference(theirs: dict[str, Any], ours: dict[str, Any], remedy: str) -> None:
    """Refuses to resume a run by another configuration, as plain types; only the port may differ.

    Raises:
        ConfigError: Names the first key that differs.
    """
    port = {"port": ours["experiment"]["port"]}
    theirs = {**theirs, "experiment": {**theirs["experiment"], **port}}
    for key, was, now in _differences(theirs, ours):
        raise ConfigError(f"--resume needs the configuration of the run: `{key}` was {was!r}, got {now!r}\n{remedy}")


def _differences(was: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            yield from _differences(was.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif was != now:
        yield path, was, now


def with_defaults(config: Config) -> Config:
    """As `checked`, without building anything."""
    if not _ours(config):
        return config
    from nni_bayes_nas.experiment.build import effective

    return effective(config)


def _ours(config: Config) -> bool:
    plan = resolve("plan", config.experiment.plan, PLANS)(config)
    return any(spec.kind in KINDS for spec in plan.trials({}, set()))
