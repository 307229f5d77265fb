"""What a bound takes beside the loss: divergences, by hand."""

import math

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import NumericsError
from nni_bayes_nas.experiment.search import run_search
from nni_bayes_nas.layers.variational import VariationalConv2d, collect_kl, variational_layers
from nni_bayes_nas.search_spaces.nasbench201 import NasBench201Space
from nni_bayes_nas.strategies import DirichletDARTS
from nni_bayes_nas.strategies.bayesian import BayesianModule


def strategy(space, shape, **options):
    torch.manual_seed(0)
    made = DirichletDARTS(weights="variational", input_shape=shape, **options)
    made._mutating = made.mutate_model(space)
    return made


SEARCH = {"epochs": 3, "warmup_epochs": 1, "batch_size": 32, "lambdas": 2, "random": 0}


def test_the_divergence_of_the_weights_is_gated_by_the_mixing_weights():
    """By hand: sum over the layers of their KL times the weight that their operation has."""
    made = strategy(NasBench201Space(in_channels=3, width=4, cells_per_stage=1), (3, 8, 8), dependence="gated")
    weights = made.structure.mean()
    options = made.module_options()
    module = BayesianModule.__new__(BayesianModule)
    torch.nn.Module.__init__(module)
    module.bayes, module.binding, module.current_step = options["bayes"], made._binding, 0
    module.__dict__["gates"], module._gate_table, module.step_options = options["gates"], None, made.step
    module.__dict__["_per_object"] = lambda divergences, part: divergences
    ours = module.weight_divergences([weights], "train")["weight_kl"]
    expected = torch.zeros(())
    for name, kl in collect_kl(made._mutating).items():
        layer = variational_layers(made._mutating)[name]
        assert isinstance(layer, torch.nn.Module) and (isinstance(layer, VariationalConv2d) or layer.weight.dim() == 2)
        for way in options["gates"][layer]:
            factor = torch.ones(())
            for label, (option,) in ((k, tuple(v)) for k, v in way.items()):
                factor = factor * weights[label][option]
            expected = expected + factor * kl
    torch.testing.assert_close(ours, expected)


def test_mixing_weights_count_twice_for_operations_that_end_in_gaussian_layers():
    class Two(ModelSpace):
        def __init__(self):
            super().__init__()
            chain = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
            options = {"linear": nn.Conv2d(1, 1, 1), "normalized": chain, "skip": nn.Identity()}
            self.layer = LayerChoice(options, label="layer")

        def forward(self, x):
            return self.layer(x).mean((1, 2))

    made = strategy(Two(), (1, 8, 8), dependence="scaled")
    assert made.module_options()["factors"] == {"layer": {0: 1, 1: 1}}
    made = strategy(NasBench201Space(in_channels=3, width=4, cells_per_stage=1), (3, 8, 8), dependence="scaled")
    # Convolutions of one pixel and of nine, of the five operations of every edge.
    assert made.module_options()["factors"] == {unit.label: {2: 1, 3: 1} for unit in made.structure.units}


@pytest.mark.parametrize("dependence", ["gated", "scaled"])
def test_the_bound_of_an_architecture_counts_what_is_on_and_what_is_improbable(dependence, tmp_path, monkeypatch):
    """By hand: KL of the layers that it has, and its prior, per object; "none" is four times as probable a priori."""
    space = {"name": "nasbench201", "args": {"width": 4, "cells_per_stage": 1}}
    args = {"weights": "variational", "dependence": dependence, "none_prior": 4.0, "kl_weights": 0.5}
    config = Config.from_dict(
        {
            "space": space,
            "data": {"limit": 192},
            "search": SEARCH,
            "strategy": {"name": "dirichlet_darts", "args": args},
        }
    )
    made, real = [], DirichletDARTS.configure_oneshot_module

    def kept(self, training_module):
        made.append(real(self, training_module))
        return made[-1]

    monkeypatch.setattr(DirichletDARTS, "configure_oneshot_module", kept)
    run_search(config, {"trial": "search-s0", "seed": 0}, tmp_path, lambda row: None)
    (module,) = made
    labels = [unit.label for unit in module.structure.units]
    empty, full = (dict.fromkeys(labels, operation) for operation in ("none", "nor_conv_3x3"))
    m = module.n_training("all")
    in_cells = sum(
        float(layer.kl().detach())
        for layer, ways in module.gates.items()
        if any(way.values() for way in ways) and any(3 in options for way in ways for options in way.values())
    )
    always = sum(float(layer.kl().detach()) for layer, ways in module.gates.items() if not any(ways))
    cost = {name: module.divergence_of(choices) * m for name, choices in (("empty", empty), ("full", full))}
    assert cost["empty"] == pytest.approx(-6 * math.log(4 / 8) + 0.5 * always, rel=1e-4)
    assert cost["full"] == pytest.approx(-6 * math.log(1 / 8) + 0.5 * (always + in_cells), rel=1e-4)


def test_a_divergence_that_is_not_finite_names_its_choice():
    made = strategy(NasBench201Space(in_channels=3, width=4, cells_per_stage=1), (3, 8, 8))
    module = BayesianModule.__new__(BayesianModule)
    torch.nn.Module.__init__(module)
    module.bayes, module.current_step, module.structure = made.bayes, 7, made.structure
    with torch.no_grad():
        next(made.structure.parameters()).view(-1)[7] = float("nan")  # of the second edge, of five options each
    with pytest.raises(NumericsError, match="`structure_kl of cell/0_2` is nan at step 7"):
        module._structure_kl(torch.zeros(()))
