"""Plans: which trials come next, given the results so far."""
