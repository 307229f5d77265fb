"""What the tests of several strategies need: the table of NNI's hub that the example has."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "02_plug_into_hub.py"


@pytest.fixture(scope="session")
def example() -> Any:
    """The example as a module; what it does to the filters of warnings ends here."""
    spec = importlib.util.spec_from_file_location("plug_into_hub", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        spec.loader.exec_module(module)
    return module
