"""Requests become the same requests to an engine's server behind this one, and its answers, as they come, theirs.

An application to stand behind the gate: keys, limits and the page are here, the model is there. A client that goes away
ends its request there, too. Knows no wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import h11
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lathe.server import page
from lathe.server.gate import Gate, Rules
from lathe.server.refusals import Broken, Refusal, Unready

PIECE = 1 << 16
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# Of a connection rather than of a request (RFC 9110, 7.6.1), or of the client's dealings with this server.
OWN = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade host"
    b" authorization x-api-key date server".split()
)
Headers = Iterable[tuple[bytes, bytes]]


def application(host: str, port: int, rules: Rules | None = None, key: str | None = None) -> FastAPI:
    """The page, and for everything else the server at an address, behind a gate with these rules.

    key: lets in there; clients need not know it.
    """
    app = FastAPI(title="Lathe", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(page.router())

    @app.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def passed_on(request: Request) -> Response:
        return Passing(request, host, port, key)

    app.add_middleware(Gate, rules=rules or Rules())
    return app


class Passing(Response):
    """A response that is fetched while it is sent."""

    def __init__(self, request: Request, host: str, port: int, key: str | None) -> None:
        self.request, self.address, self.key = request, (host, port), key
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self.request.body()  # the gate has seen to its size
        fetching = asyncio.ensure_future(self._fetch(body, send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait([fetching, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            fetching.cancel()  # which closes the connection, where the client has gone first
            with suppress(asyncio.CancelledError):
                await fetching

    async def _fetch(self, body: bytes, send: Send) -> None:
        begun = False
        try:
            async with _connected(*self.address) as (reader, writer):
                events = _exchange(reader, writer, self._head(len(body)), body)
                async for event in events:
                    if isinstance(event, h11.Response):
                        begun = True
                        headers = [(name, value) for name, value in event.headers if name not in OWN]
                        await send({"type": "http.response.start", "status": event.status_code, "headers": headers})
                    elif isinstance(event, h11.Data):
                        await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (OSError, h11.RemoteProtocolError) as error:
            if begun:  # its end is missing, and the connection that breaks off says so
                raise
            unready = isinstance(error, ConnectionRefusedError)
            refusal = Refusal.of(Unready("The engine is not there yet.") if unready else Broken("The engine failed."))
            path = self.request.scope["path"]
            response = JSONResponse(refusal.body(path), refusal.status, dict(refusal.headers))
            await response(self.request.scope, self.request.receive, send)

    def _head(self, length: int) -> h11.Request:
        scope = self.request.scope
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        kept = [(name, value) for name, value in scope["headers"] if name not in OWN and name != b"content-length"]
        host = f"{self.address[0]}:{self.address[1]}".encode()
        own = [(b"host", host), (b"connection", b"close"), (b"content-length", str(length).encode())]
        own += [(b"authorization", f"Bearer {self.key}".encode())] if self.key else []
        return h11.Request(method=scope["method"], target=scope["raw_path"] + query, headers=[*own, *kept])


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _connected(host: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: h11.Request, body: bytes
) -> AsyncIterator[h11.Event]:
    """The events of the answer to one request. Raises RemoteProtocolError for what is no HTTP or breaks off."""
    connection = h11.Connection(h11.CLIENT)
    writer.write(connection.send(head) + connection.send(h11.Data(data=body)) + connection.send(h11.EndOfMessage()))
    await writer.drain()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(PIECE))
        elif isinstance(event, h11.EndOfMessage):
            return
        else:
            assert not isinstance(event, type)
            yield event
