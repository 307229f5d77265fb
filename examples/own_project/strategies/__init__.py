"""Strategies of this project's own; a folder of this name does not get in the way of nni_bayes_nas.strategies."""
