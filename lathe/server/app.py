"""The web application over a desk: every wire's routes, plugged in at one place, behind the gate; and its running."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from lathe.errors import LatheError, UsageError
from lathe.server import metrics, page, reference
from lathe.server.desk import Desk
from lathe.server.gate import Gate, Rules
from lathe.server.refusals import Refusal
from lathe.server.wires import (
    adapters,
    anthropic,
    chat,
    completions,
    embeddings,
    litgpt,
    llamacpp,
    models,
    ollama,
    responses,
    tokens,
)

HEADERS_WITHIN = 20.0  # seconds

# Every wire: a function that makes its routes over a desk. A route that raises a LatheError answers with its Refusal.
Wires = tuple[Callable[[Desk], APIRouter], ...]
WIRES: Wires = (
    adapters.router,
    anthropic.router,
    chat.router,
    completions.router,
    embeddings.router,
    litgpt.router,
    llamacpp.router,
    models.router,
    ollama.router,
    responses.router,
    tokens.router,
)


def with_predict(path: str, stream: bool) -> Wires:
    """Every wire; LitGPT's at this path, and with lines for an answer where a request does not say."""
    predict = partial(litgpt.router, path=path, stream=stream)
    return tuple(predict if wire is litgpt.router else wire for wire in WIRES)


def application(desk: Desk, wires: Wires = WIRES, rules: Rules | None = None) -> FastAPI:
    """All routes, behind a gate with these rules. The desk listens from the application's start to its end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk.open()
        yield
        await desk.close()

    app = FastAPI(title="Lathe", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, rules=rules or Rules())
    for wire in wires:
        app.include_router(wire(desk))
    app.include_router(page.router())
    app.include_router(_about(desk, app))

    @app.exception_handler(LatheError)
    async def refused(request: Request, error: LatheError) -> JSONResponse:
        return _answer(request, Refusal.of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _answer(
                request, Refusal(400, "invalid_request_error", f"The body is no JSON: {first['ctx']['error']}.")
            )
        place = ".".join(str(part) for part in first["loc"][1:])
        message = f"{place}: {first['msg']}." if place else f"{first['msg']}."
        return _answer(request, Refusal(400, "invalid_request_error", message, place or None))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        return _answer(request, Refusal(error.status_code, kind, str(error.detail), headers=error.headers or {}))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        # What it was is in the log, by uvicorn, and none of the client's business.
        return _answer(request, Refusal(500, "server_error", "The server failed on this request."))

    return app


def _about(desk: Desk, app: FastAPI) -> APIRouter:
    """What is said of the server itself."""
    routes = APIRouter(tags=["Server"])

    @routes.get("/health")
    async def health() -> JSONResponse:
        """200 when every model is ready, 503 while one is loading or the server ends, 500 when an engine is gone."""
        try:
            for name in desk.served:
                desk.find(name)
        except LatheError as error:
            refusal = Refusal.of(error)
            return JSONResponse({"status": "unavailable", **refusal.body("/")}, refusal.status, dict(refusal.headers))
        return JSONResponse({"status": "ok"})

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def counts() -> PlainTextResponse:
        """Counts for Prometheus."""
        told = {name: (served.metrics, served.state) for name, served in desk.served.items()}
        return PlainTextResponse(metrics.text(told), media_type=metrics.TYPE)

    @routes.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference.page(app.openapi()))

    return routes


def _answer(request: Request, refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body(request.scope["path"]), refusal.status, dict(refusal.headers))


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
    """uvicorn's connection, which ends where a request's headers do not come within HEADERS_WITHIN seconds."""

    waiting: asyncio.TimerHandle | None = None

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
        super().connection_lost(exc)

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


def serve(
    desk: Desk, bound: socket.socket, rules: Rules, wires: Wires = WIRES, *, drain: float, ready: Callable[[], None]
) -> int:
    """Answer on a socket until told to end. ready: called when the models are loaded. Returns the exit status.

    Raises what a model failed of when it was loaded, and Broken where an engine ends before it should.
    """
    config = uvicorn.Config(
        application(desk, wires, rules),
        http=Patient,
        ws="none",
        log_level="warning",
        h11_max_incomplete_event_size=64 << 10,  # more than the gate lets in, so that it can say so
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
