"""What the README and the pages of docs/ point to is there."""

import re
from pathlib import Path

import pytest
import yaml

from nni_bayes_nas.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def anchors(text: str) -> set[str]:
    """Of the headings of a page: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_resolve(page: str) -> None:
    links = [link for link in re.findall(r"(?<!\\)\]\(([^)]+)\)", TEXTS[page]) if "://" not in link]
    lost = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            lost.append(link)
    assert lost == []
    assert links or page == "docs/theory.md"


@pytest.mark.parametrize(
    "block", [block for text in TEXTS.values() for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
)
def test_configurations_are_configurations(block: str) -> None:
    Config.from_dict(yaml.safe_load(block))


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(r"`((?:examples|tests|nni_bayes_nas)/[\w./-]+)`", TEXTS[page])
    assert (named or page == "docs/options.md") and [name for name in named if not (ROOT / name).exists()] == []
