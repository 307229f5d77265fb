"""How an experiment runs: the plan, NNI's tuner that executes it, the trials, the run folder."""
