"""NNI's own hub: its DARTS space (Liu, Simonyan & Yang, 2019) at the smallest sizes."""

from typing import Any

import pytest
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.hub.pytorch import DARTS as HubSpace
from nni.nas.space import RawFormatModelSpace
from torch.utils.data import TensorDataset

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.complexity.measure import count_parameters
from nni_bayes_nas.strategies import HyperDARTS, RegularizedDARTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("strategy", "sizes", "kind"),
    [
        (lambda: HyperDARTS(warmup_epochs=0), {"width": 4, "num_cells": 3}, "exact"),
        (lambda: RegularizedDARTS(penalty=0.1), {"width": 4, "num_cells": 3}, "exact"),
        # Width and depth are choices too: mixed convolutions, and stages whose first block must be aligned.
        (lambda: HyperDARTS(warmup_epochs=0, lambda_per="step"), {"width": (4, 8), "num_cells": (3, 6)}, "multilinear"),
    ],
    ids=["hyper_darts", "regularized_darts", "width_and_depth"],
)
def test_darts_space(strategy: Any, sizes: dict[str, Any], kind: str) -> None:
    def space() -> Any:
        torch.manual_seed(0)
        return HubSpace(**sizes, dataset="cifar")

    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8))
    evaluator = Classification(
        num_classes=10,
        train_dataloaders=DataLoader(data, batch_size=4),
        val_dataloaders=DataLoader(data, batch_size=4),
        max_epochs=1,
        limit_val_batches=1,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
    )
    search = strategy()
    search(RawFormatModelSpace(space(), evaluator), SequentialExecutionEngine())
    assert evaluator.trainer.global_step == 4  # two batches, two optimizers
    assert search.cost.kind == kind
    models = list(search.list_models(limit=3))
    assert len({Architecture(model.sample).key for model in models}) == len(models)
    for model in models:
        network = space().freeze(model.sample)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        if kind == "exact":
            assert search.predicted_cost("params", model.sample) == count_parameters(network)
