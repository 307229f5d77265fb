"""Settings that every test shares."""

from hypothesis import settings

# The same examples in every run, and no deadline: a busy machine must not turn a property red.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("fixed")
