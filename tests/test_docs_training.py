"""What the pages on training models show is run, block by block: see test_docs.py."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.parametrize("page", pages.TRAINING.split())
def test_what_the_page_shows_is_so(page: str, walk):
    walk(page)
