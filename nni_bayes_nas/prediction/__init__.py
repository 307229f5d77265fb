"""Predicting the architecture for all data from searches on small parts of it."""

from nni_bayes_nas.prediction.canonical import canonical
from nni_bayes_nas.prediction.predictor import Fitting, Predictor
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.tokens import Grammar, Vocabulary, decode, encode

__all__ = ["Fitting", "Grammar", "Predictor", "SparseArchitecture", "Vocabulary", "canonical", "decode", "encode"]
