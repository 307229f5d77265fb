"""Settings that every test shares."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples in every run, and no deadline: a busy machine must not turn a property red.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """What runs as a trial in the tests' own process takes them for 0, and would for every test after it."""
    yield
    torch.set_flush_denormal(False)
