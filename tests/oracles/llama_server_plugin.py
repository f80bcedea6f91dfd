"""A plugin for llama.cpp's own server tests: some are left out, with a reason, and nothing is started to download.

A text that llama.cpp's own random numbers draw is not compared where the reason says so; all else of such a test is. A
server that was started with the same options before is taken again, rather than another begun.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

DESELECTED = Path(__file__).with_name("llama_server_deselected.txt")
AT_ONCE = 4  # servers that are kept
DRAWN = "drawn"  # a property of tests
OWN = ("process", "ready", "server_port")  # what a start gives a server; all else says which one it is


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    import utils  # llama.cpp's, which is on the path by now

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    config.pluginmanager.register(Kept(utils.ServerProcess), "kept servers")


class Kept:
    """The servers that run, by what they were told, the one that was used last at the end."""

    def __init__(self, kind: Any) -> None:
        self.running: OrderedDict[str, Any] = OrderedDict()
        self.start, self.ask = kind.start, kind.make_request
        kind.start, kind.stop = lambda server, timeout_seconds=0: self.begin(server), lambda server: None
        kind.make_request = lambda server, *words, **more: self.asked(server, *words, **more)

    def asked(self, server: Any, method: str, path: str, data: Any = None, **more: Any) -> Any:
        """A request. llama-server's --verbose is what chats say that do not say; Lathe has only what they say."""
        verbose = server.debug and path.endswith("/chat/completions")
        answer = self.ask(server, method, path, {"verbose": True, **data} if verbose else data, **more)
        answer.headers = CaseInsensitiveDict(answer.headers)  # as HTTP has it
        return answer

    def begin(self, server: Any) -> None:
        told = {name: value for name, value in vars(server).items() if name not in OWN and name[0] != "_"}
        key = repr(sorted(told.items()))
        if key not in self.running:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                server.server_port = free.getsockname()[1]
            self.start(server, 600)  # seconds to wait, on a machine that has much to do
            self.running[key] = server
        self.running.move_to_end(key)
        vars(server).update({name: value for name, value in vars(self.running[key]).items() if name in OWN})
        if len(self.running) > AT_ONCE:
            ended(self.running.popitem(last=False)[1])

    def pytest_sessionfinish(self) -> None:
        for server in self.running.values():
            ended(server)


def ended(server: Any) -> None:
    server.process.terminate()
    server.process.wait()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the file names, by its id, or by that of its function or file, and say why; or let its text be."""
    rows = [line for line in DESELECTED.read_text().splitlines() if line and not line.startswith("#")]
    for item in items:
        for row in rows:
            named, how, why = row.partition(" ~ ") if " ~ " in row else row.partition(" # ")
            if item.nodeid != named and not item.nodeid.startswith((f"{named}[", f"{named}::")):
                continue
            if how == " ~ ":
                item.user_properties.append((DRAWN, why))
            else:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Any text will do in the tests whose text is drawn."""
    module: Any = getattr(item, "module", None)
    compare = module.match_regex
    if any(name == DRAWN for name, _ in item.user_properties):
        module.match_regex = lambda regex, text: bool(text)
    try:
        return (yield)
    finally:
        module.match_regex = compare
