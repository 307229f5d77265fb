"""Runs the command line as ``python -m nni_bayes_nas``."""

import sys

from nni_bayes_nas.cli import main

if __name__ == "__main__":
    sys.exit(main())
