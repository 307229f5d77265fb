"""Bayesian architecture search with complexity control, as strategies for Microsoft NNI."""

__version__ = "0.1.0"
