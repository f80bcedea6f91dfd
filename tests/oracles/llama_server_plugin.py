"""A plugin for llama.cpp's own server tests: some are left out, with a reason, and nothing is started to download."""

from __future__ import annotations

from pathlib import Path

import pytest

DESELECTED = Path(__file__).with_name("llama_server_deselected.txt")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    import utils  # llama.cpp's, which is on the path by now

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.ServerProcess.start.__defaults__ = (600,)  # seconds to wait for a server, on a machine that has much to do


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the file names, by its id, or by that of its function or file, and say why."""
    rows = [line for line in DESELECTED.read_text().splitlines() if line and not line.startswith("#")]
    reasons = dict(row.split(" # ", 1) for row in rows)
    for item in items:
        for named, why in reasons.items():
            if item.nodeid == named or item.nodeid.startswith((f"{named}[", f"{named}::")):
                item.add_marker(pytest.mark.skip(reason=why))
