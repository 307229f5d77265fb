"""Stochastic gradients as draws of a posterior: samplers, statistics of gradients, and what is still optimized."""

from nni_bayes_nas.optim.constant_sgd import ConstantSGD
from nni_bayes_nas.optim.langevin import SGLD, PreconditionedSGLD
from nni_bayes_nas.optim.selective import SelectiveOptimization
from nni_bayes_nas.optim.statistics import GradientStatistics

__all__ = ["SGLD", "ConstantSGD", "GradientStatistics", "PreconditionedSGLD", "SelectiveOptimization"]
