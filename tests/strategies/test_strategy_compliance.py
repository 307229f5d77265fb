"""Every strategy passes the suite, on a chain of choices and on cells."""

from typing import Any, ClassVar

from nni_bayes_nas.compliance import StrategyCompliance


class TestHyperDARTS(StrategyCompliance):
    name = "hyper_darts"


class TestHyperDARTSPenaltyPerStep(StrategyCompliance):
    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {
        "complexity": "penalty",
        "hypernet": "linear",
        "lambda_per": "step",
        "cost": "macs",
    }


class TestHyperDARTSOnCells(StrategyCompliance):
    name = "hyper_darts"
    space: ClassVar[dict[str, Any]] = {"name": "cell", "args": {"width": 4, "n_cells": 2, "n_nodes": 2}}


class TestRegularizedDARTS(StrategyCompliance):
    name = "regularized_darts"
    args: ClassVar[dict[str, Any]] = {"l1": 1e-3, "penalty": 0.1}
