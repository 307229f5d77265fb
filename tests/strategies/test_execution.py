"""What a strategy makes of its option `execution`, and a search that changes it."""

import json
import shutil

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.strategies import HyperDARTS, RegularizedDARTS
from nni_bayes_nas.strategies.fused import FusedNodes


@pytest.mark.slow
def test_a_search_goes_on_in_the_other_mode(tmp_path):
    """One step in one mode, the next one in the other: the loss is what the first mode goes on to."""

    def losses(folder, epochs, execution):
        config = Config.from_dict(
            {
                "space": {"name": "cell", "args": {"width": 4}},
                "data": {"limit": 160},
                "strategy": {"name": "hyper_darts", "args": {"execution": execution}},
                "search": {"epochs": epochs, "warmup_epochs": 0, "batch_size": 64, "lambdas": 2, "random": 0},
            }
        )
        run_search(config, {"trial": "search-s0", "seed": 0}, folder, lambda row: None)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [row["terms"]["train_loss"] for row in rows if "train_loss" in row.get("terms", {})]

    for first, second in (("plain", "fused"), ("fused", "plain")):
        folders = [tmp_path / f"{first}-{name}" for name in ("stays", "changes")]
        folders[0].mkdir()
        begun = losses(folders[0], 1, first)
        shutil.copytree(*folders)
        stays, changes = losses(folders[0], 2, first), losses(folders[1], 2, second)
        assert len(stays) == len(changes) == 2 and stays[0] == changes[0] == begun[0]
        assert changes[1] == pytest.approx(stays[1], abs=1e-5)


@pytest.mark.parametrize("strategy", [HyperDARTS, RegularizedDARTS])
def test_the_option_decides(strategy, monkeypatch):
    ran = []
    run = FusedNodes.__call__
    monkeypatch.setattr(FusedNodes, "__call__", lambda *args, **kwargs: ran.append(1) or run(*args, **kwargs))
    for execution, times in (("plain", 0), ("fused", 2), ("auto", 2)):
        made = strategy(execution=execution, input_shape=(1, 8, 8))
        net = made.mutate_model(CellSpace(width=4, n_nodes=1))
        made._binding.weights = made.structure.mean(None)
        ran.clear()
        net(torch.randn(2, 1, 8, 8))
        assert len(ran) == times


def test_alone_on_a_gpu_auto_is_plain():
    elsewhere, here = torch.empty(1, device="meta"), torch.empty(1)
    for options, on_gpu in (({}, False), ({"cuda_graphs": True}, True), ({"execution": "fused"}, True)):
        made = RegularizedDARTS(**options)
        made.mutate_model(CellSpace(width=4, n_nodes=1))
        assert made._binding.fuses(here) and made._binding.fuses(elsewhere) == on_gpu


def test_a_network_that_takes_images_apart_as_they_lie_gets_them_as_they_come():
    """`view` works on one order in memory alone."""

    class Viewing(ModelSpace):
        def __init__(self):
            super().__init__()
            candidates = {str(k): nn.Conv2d(3, 2, k, padding=k // 2) for k in (1, 3)}
            self.layer, self.head = LayerChoice(candidates, label="layer"), nn.Linear(2 * 5 * 5, 4)

        def forward(self, x):
            return self.head(self.layer(x).view(len(x), -1))

    made = RegularizedDARTS()
    net = made.mutate_model(Viewing())
    assert made.measure(net, (3, 5, 5))["params"].constant == 204
    made._binding.weights = made.structure.mean(None)
    assert net(torch.randn(2, 3, 5, 5)).shape == (2, 4)


@pytest.mark.parametrize("strategy", [HyperDARTS, RegularizedDARTS])
def test_unknown_execution_is_refused(strategy):
    with pytest.raises(ConfigError, match="execution must be one of auto, plain, fused, got 'fast'"):
        strategy(execution="fast")
