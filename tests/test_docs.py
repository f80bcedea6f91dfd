"""What README and docs/ show is run, block by block, in the order of each page: see walking.py, and pages.py for what
stands for what. The pages are divided among four files, so that they can be walked side by side."""

from __future__ import annotations

import re

import pages
import pytest
from pages import PAGES


def test_every_page_is_walked():
    names = [
        f"{name}.md" for part in (pages.USING, pages.TRAINING, pages.SERVING, pages.OTHERS) for name in part.split()
    ]
    assert sorted(names) == sorted(PAGES)


def test_what_is_only_shown_or_stands_for_something_is_there():
    shown = [block for page in PAGES for block in pages.blocks(page) if block.is_shown]
    assert len(shown) == len(pages.SHOWN)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.values())
    assert not [pattern for pattern in pages.STANDS if not re.search(pattern, text)]


@pytest.mark.parametrize("page", pages.OTHERS.split())
def test_what_the_page_shows_is_so(page: str, walk):
    walk(page)


@pytest.mark.parametrize(
    "language, text, says",
    [
        ("rust", "fn main() {}\n", "nothing here runs a block of rust"),
        ("", "lathe generate MODEL --temprature 0\n", "ended with status 2"),
        ("", "$ lathe --version\nlathe 0.0\n", "prints lathe"),
        ("python", "import lathes\n", "No module named"),
    ],
)
def test_a_block_that_is_not_so_fails(language: str, text: str, says: str, workshop):
    from walking import Walk

    with pytest.raises(AssertionError, match=says):
        Walk(workshop, "index.md", None).run(pages.Block("index.md", 0, language, text, ""))


def test_links_lead_somewhere():
    for page in PAGES.values():
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            made = target.startswith("reference/")  # when the site is built, which tells of broken ones
            assert made or target.startswith("http") or (page.parent / target).exists(), f"{target} in {page.name}"
