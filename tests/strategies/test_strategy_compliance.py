"""Every strategy passes the suite, on a chain of choices and on cells."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

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


class TestHyperDARTSOnCellsWithDropout(StrategyCompliance):
    """Noise of torch's own generator must repeat, and must not outlive a look at a derived network."""

    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {"one_hot_passes": 2}
    space: ClassVar[dict[str, Any]] = {
        "name": "cell",
        "args": {
            "width": 4,
            "n_cells": 2,
            "n_nodes": 2,
            "dropout": 0.3,
            "operations": ["skip_connect", "sep_conv_3x3"],
        },
    }


class TestHyperDARTSOrder2(StrategyCompliance):
    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {"order": 2, "one_hot_passes": 1}


class TestHyperDARTSOrder2ByFiniteDifference(StrategyCompliance):
    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {"order": 2, "second_order": "finite_difference", "one_hot_passes": 0}


class TestDirichletDARTSThatPrunes(StrategyCompliance):
    """What is given up is part of a checkpoint; operations see a part of the channels."""

    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {"partial_channels": 2, "keep_options": [3, 2]}
    space: ClassVar[dict[str, Any]] = {"name": "cell", "args": {"width": 4, "n_cells": 1, "n_nodes": 2}}
    epochs = 4


class TestHyperDARTSWithAnAutomaticRange(StrategyCompliance):
    """What lambda means is part of a checkpoint, as are prices."""

    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {"complexity": "penalty", "lambda_range": "auto"}
    # The search that resumes has made its first observation, in the last quarter of the steps.
    epochs = 12

    def test_the_search_moves_the_range(self, undisturbed: tuple[Path, dict[str, Any]]) -> None:
        assert undisturbed[1]["search"]["lambda_range"] != pytest.approx([1e-3, 1.0])


class TestHyperDARTSThatExploresARange(TestHyperDARTSWithAnAutomaticRange):
    """At no price the range is found in the first half, and penalized with in the second."""

    args: ClassVar[dict[str, Any]] = {"complexity": "penalty", "lambda_range": "auto", "hypernet": "linear"}
    epochs = 4


class TestHyperDARTSGumbel(StrategyCompliance):
    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {"relaxation": "gumbel", "hypernet": "mlp"}


class TestHyperDARTSSigmoid(StrategyCompliance):
    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {"relaxation": "sigmoid", "hypernet": "piecewise_linear"}


class TestHyperDARTSLiterally(StrategyCompliance):
    """The seed: alpha = lambda b1 + b2, and the raw sum of alpha times the operation."""

    name = "hyper_darts"
    args: ClassVar[dict[str, Any]] = {
        "axis": "literal",
        "hypernet": "linear",
        "relaxation": "identity",
        "complexity": "none",
        "lambda_range": [1e-4, 0.1],
        "l1": 1e-3,
    }


class TestDirichletDARTS(StrategyCompliance):
    name = "dirichlet_darts"


class TestDirichletDARTSOnCellsWithGuards(StrategyCompliance):
    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {"scheme": "bilevel", "auxiliary": 1.0, "auxiliary_end": 0.0, "normalize": True}
    space: ClassVar[dict[str, Any]] = {"name": "cell", "args": {"width": 4, "n_cells": 2, "n_nodes": 2}}


class TestDirichletDARTSWithGaussianWeights(StrategyCompliance):
    """Noise of weights is torch's own, and must repeat."""

    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {"weights": "variational", "dependence": "gated"}


@pytest.mark.slow
class TestDirichletDARTSWithScaledWeightsOnTwoLevels(StrategyCompliance):
    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {"weights": "variational", "dependence": "scaled", "scheme": "bilevel"}


@pytest.mark.slow
class TestConcreteInTwoPasses(StrategyCompliance):
    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {"family": "concrete", "accumulate": True}


@pytest.mark.slow
class TestJointPosteriorByFlipout(StrategyCompliance):
    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {
        "weights": "variational",
        "estimator": "flipout",
        "weight_hypernet": "piecewise_linear",
        "lambda_range": [0.1, 1.0],
    }


class TestDirichletDARTSOverLambda(StrategyCompliance):
    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {"lambda_range": [0.01, 1.0], "complexity": "target", "complexity_weight": 20.0}


class TestLogisticNormal(StrategyCompliance):
    name = "dirichlet_darts"
    args: ClassVar[dict[str, Any]] = {"family": "logistic_normal", "one_hot_passes": 1}
