"""The web application over a desk: every wire's routes, plugged in at one place, behind the gate."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from lathe.errors import LatheError
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


def wires(path: str, stream: bool, kept: int) -> Wires:
    """Every wire: LitGPT's at this path, with lines for an answer where a request does not say; responses kept."""
    told = {
        litgpt.router: partial(litgpt.router, path=path, stream=stream),
        responses.router: partial(responses.router, kept=kept),
    }
    return tuple(told.get(wire, wire) for wire in WIRES)


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
