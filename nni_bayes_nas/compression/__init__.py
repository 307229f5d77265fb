"""Variational optimisation with complexity control: weights as functions of lambda, and what of them can go."""

from nni_bayes_nas.compression.hyper_variational import AtLambda, HyperVariational
from nni_bayes_nas.compression.pruning import kept, load_pruned, make_permanent, mean_network, prune, scores
from nni_bayes_nas.compression.training import HyperVariationalModule, finetune
from nni_bayes_nas.compression.weight_hypernet import WeightHypernet

__all__ = [
    "AtLambda",
    "HyperVariational",
    "HyperVariationalModule",
    "WeightHypernet",
    "finetune",
    "kept",
    "load_pruned",
    "make_permanent",
    "mean_network",
    "prune",
    "scores",
]
