"""Retiarii model spaces. Import as `nni_bayes_nas.search_spaces`."""

if __name__ != "nni_bayes_nas.search_spaces":
    raise ImportError("import nni_bayes_nas.search_spaces, not search_spaces")
