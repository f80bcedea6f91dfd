"""An application and a socket become a server that runs until it is told to end; knows no route and no wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from http import HTTPStatus
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lathe.errors import UsageError
from lathe.server.desk import Desk
from lathe.server.refusals import Refusal

HEADERS_WITHIN = 20.0  # seconds
READ_WITHIN = 120.0  # seconds in which a client that is behind reads what waits for it
LONGEST_HEAD = 64 << 10  # bytes of headers that are read at all: more than the gate lets in, which says so more kindly


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound and listens. Raises UsageError where the address is taken or not to be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        fix = "Choose another --port, or 0 for any that is free."
        raise UsageError(f"Cannot listen on {host}, port {port}: {error.strerror}.", "", fix) from None
    return bound


class Patient(H11Protocol):
    """uvicorn's connection, which ends where a request's headers do not come within HEADERS_WITHIN seconds, or the
    client does not read its answer: then as if it had gone."""

    waiting: asyncio.TimerHandle | None = None
    behind: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._wait(False)
        elif self.waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(False)
        self._read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.behind = self.loop.call_later(READ_WITHIN, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def send_400_response(self, msg: str) -> None:
        """What h11 could not read is refused as everything else is."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        found = f"The headers have more than {LONGEST_HEAD} bytes." if status == 431 else "This is no HTTP request."
        body = json.dumps(Refusal(status, "invalid_request_error", found).body("/")).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        head = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _read(self) -> None:
        if self.behind is not None:
            self.behind.cancel()
            self.behind = None

    def _wait(self, begin: bool = True) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
        self.waiting = self.loop.call_later(HEADERS_WITHIN, self.transport.close) if begin else None


class Server(uvicorn.Server):
    """Ends on the first SIGTERM or Ctrl-C, when all answers are made or `drain` seconds later; on a second at once."""

    def __init__(self, config: uvicorn.Config, desk: Desk, drain: float) -> None:
        super().__init__(config)
        self.desk, self.drain = desk, drain
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        taken = (signal.SIGINT, signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.end)

        before = {number: signal.signal(number, handle) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        if self.desk.draining:
            self.force_exit = self.should_exit = True
        self.desk.draining = True
        self._ending = self._ending or asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.desk.idle(), self.drain)
        self.should_exit = True


def serve(app: FastAPI, desk: Desk, bound: socket.socket, *, drain: float, ready: Callable[[], None]) -> int:
    """Answer on a socket until told to end. app: over the desk. ready: called when the models are loaded.

    Returns the exit status. Raises what a model failed of when it was loaded, and Broken where an engine ends before it
    should.
    """
    config = uvicorn.Config(
        app,
        http=Patient,
        ws="none",
        log_level="warning",
        h11_max_incomplete_event_size=LONGEST_HEAD,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config, desk, drain)

    async def run() -> int:
        serving = asyncio.ensure_future(server.serve([bound]))
        try:
            if await _first(serving, desk.loaded()):
                ready()
                await _first(serving, desk.lost())
        finally:
            server.should_exit = True
            await serving
            await desk.close(patience=0 if server.force_exit else 5)
            if server.force_exit:  # which spares uvicorn this
                await server.lifespan.shutdown()
        return 1 if server.force_exit else 0

    return asyncio.run(run())


async def _first(serving: asyncio.Future[None], other: Coroutine[Any, Any, None]) -> bool:
    """Whether the other ends before the serving does; raises what it raises."""
    task = asyncio.ensure_future(other)
    done, _ = await asyncio.wait([serving, task], return_when=asyncio.FIRST_COMPLETED)
    if task in done:
        await task
        return True
    task.cancel()
    return False
