"""A plugin for llama.cpp's own server tests: some are left out, with a reason, and nothing is started to download."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `llama_server_deselected.txt` names: an id, or all of a file or function, and the reason."""
    rows = [line.split(None, 1) for line in DESELECTED.read_text().splitlines() if line and not line.startswith("#")]
    out = [item for item in items if any(_meant(item.nodeid, row[0]) for row in rows)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


DESELECTED = Path(__file__).with_name("llama_server_deselected.txt")


def _meant(found: str, named: str) -> bool:
    return found == named or (found.startswith(named) and found[len(named)] in ":[")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    import utils  # llama.cpp's, which is on the path by now

    utils.ServerPreset.load_all = staticmethod(lambda: None)
