"""Variational optimisation with complexity control: weights as functions of lambda, and what of them can go."""

from nni_bayes_nas.compression.curve import accuracy_pruning_curve, description_length
from nni_bayes_nas.compression.hyper_variational import AtLambda, HyperVariational
from nni_bayes_nas.compression.packing import load_packed, pack, unpack
from nni_bayes_nas.compression.pruning import kept, load_pruned, make_permanent, mean_network, prune, scores
from nni_bayes_nas.compression.shrink import shrink
from nni_bayes_nas.compression.training import HyperVariationalModule, finetune
from nni_bayes_nas.compression.weight_hypernet import WeightHypernet

__all__ = [
    "AtLambda",
    "HyperVariational",
    "HyperVariationalModule",
    "WeightHypernet",
    "accuracy_pruning_curve",
    "description_length",
    "finetune",
    "kept",
    "load_packed",
    "load_pruned",
    "make_permanent",
    "mean_network",
    "pack",
    "prune",
    "scores",
    "shrink",
    "unpack",
]
