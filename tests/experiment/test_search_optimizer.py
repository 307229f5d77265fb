"""Section `search`: the optimizer that draws the weights from their posterior."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.optim.langevin import PreconditionedSGLD

SPACE = {"width": 4, "n_cells": 1, "n_nodes": 2, "operations": ["skip_connect", "conv_3x3"]}


def config(strategy: dict[str, Any], **search: Any) -> Config:
    section = {"epochs": 3, "warmup_epochs": 1, "batch_size": 16, "lambdas": 2, "random": 0, "optimizer": "psgld"}
    values = {"space": {"args": SPACE}, "strategy": strategy, "data": {"limit": 160, "val_limit": 64}}
    values |= {"search": {**section, "learning_rate": 0.003, **search}, "experiment": {"device": "cpu"}}
    return Config.from_dict(values)


class Interrupted(Exception):
    """Stands for the death of the trial."""


def searched(settings: Config, directory: Path, die_in: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The optimizer of the weights, and all tensors."""
    directory.mkdir(exist_ok=True)
    found: list[Any] = []

    def report(terms: dict[str, Any]) -> None:
        if terms["epoch"] == die_in:
            raise Interrupted

    def inspect(reader: Any, architectures: Any) -> None:
        module = reader.strategy.oneshot_module
        (optimizer,) = (o for o in module.trainer.optimizers if not getattr(o, "is_arch_optimizer", False))
        found.extend([optimizer, {name: value.clone() for name, value in module.state_dict().items()}])

    parameters = {"trial": "search-s0", "seed": 3}
    if die_in is not None:
        with pytest.raises(Interrupted):
            run_search(settings, parameters, directory, report)
        return None, {}
    run_search(settings, parameters, directory, report, inspect=inspect)
    return found[0], found[1]


@pytest.mark.parametrize(
    ("scheme", "objects"), [("single_level", 160), pytest.param("bilevel", 80, marks=pytest.mark.slow)]
)
def test_weights_are_drawn_given_all_objects_that_they_see_and_a_search_goes_on(
    scheme: str, objects: int, tmp_path: Path
) -> None:
    settings = config({"name": "dirichlet_darts", "args": {"scheme": scheme}})
    optimizer, whole = searched(settings, tmp_path / "whole")
    assert isinstance(optimizer, PreconditionedSGLD)
    assert {group["n_objects"] for group in optimizer.param_groups} == {objects}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)  # the cosine has ended
    searched(settings, tmp_path / "again", die_in=1)
    _, again = searched(settings, tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_gaussian_weights_have_a_posterior_already() -> None:
    strategy = {"name": "dirichlet_darts", "args": {"weights": "variational"}}
    with pytest.raises(ConfigError, match="psgld draws weights from their posterior, but"):
        validate(config(strategy))
    validate(config(strategy, optimizer="adam"))
