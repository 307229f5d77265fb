"""Runs the command line as ``python -m nni_bayes_nas``."""

from nni_bayes_nas.cli import process

if __name__ == "__main__":
    process()
