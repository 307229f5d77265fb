"""Pure mathematics on tensors: no NNI, no Lightning, no device choice, no global random state."""
