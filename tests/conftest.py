"""Settings that every test shares."""

import os

import pytest
from hypothesis import settings

# The same examples in every run, and no deadline: a busy machine must not turn a property red.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("fixed")

# Tests run in two processes (`make test`): with a thread each, they do not take the other one's core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file stay together, for their fixtures; those that start a manager too, for its ports."""
    starts_a_manager = {item.path for item in items if item.get_closest_marker("nni")}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("nni" if item.path in starts_a_manager else str(item.path)))
