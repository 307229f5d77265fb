"""What the README points to is there."""

import re
from pathlib import Path

import pytest
import yaml

from nni_bayes_nas.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_resolve() -> None:
    links = [link for link in re.findall(r"(?<!\\)\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 3
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, re.S))
def test_configurations_are_configurations(block: str) -> None:
    Config.from_dict(yaml.safe_load(block))


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:examples|tests|nni_bayes_nas)/[\w./-]+)`", README)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
