"""Cost of a module, the axis of the complexity parameter lambda, and hypernetworks of it. Knows no NNI."""
