"""The page of options is what the docstrings say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from nni_bayes_nas.config import Config

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_options", DOCS / "make_options.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(maker: ModuleType) -> None:
    assert (DOCS / "options.md").read_text(encoding="utf-8") == maker.document(), "run python docs/make_options.py"


def test_every_option_is_there_with_its_default(maker: ModuleType) -> None:
    """Read back, section by section; of an option that nobody describes the page cannot be made."""
    sections = {part.split("`")[1]: part for part in maker.document().split("\n## ")[1:]}
    for name, section in Config().to_dict().items():
        for key, value in section.items() if isinstance(section, dict) else ():
            row = next(line for line in sections[name].splitlines() if line.startswith(f"| `{key}` | "))
            _, default, said = row.removesuffix(" |").removeprefix("| ").split(" | ", 2)
            assert len(said) > 3, key
            if key != "sources":  # sections, of which the page has what is not a default
                shown = None if default == "none" else yaml.safe_load(default.strip("`"))
                assert shown == yaml.safe_load(yaml.safe_dump(value)), key
    assert set(sections) == set(Config().to_dict())
