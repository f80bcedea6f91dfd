"""The folder's files become the chat page at "/": static, with no way to anything but the server it came from."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

FOLDER = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    # No script, style, picture or request from or to anywhere else, and no page around this one.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again with its ETag, so that a newer server's page is never an older one's
}


def router() -> APIRouter:
    """GET / and GET /page/NAME. They need no key: the page asks for it, and sends it with what it asks the wires."""
    page = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}
    tags = {name: f'"{sha256(content).hexdigest()[:16]}"' for name, content in files.items()}

    def sent(name: str, request: Request) -> Response:
        headers = {**HEADERS, "ETag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=TYPES[Path(name).suffix], headers=headers)

    @page.api_route("/", methods=["GET", "HEAD"])  # clients of Ollama ask with HEAD whether anybody is there
    async def index(request: Request) -> Response:
        return sent("index.html", request)

    @page.get("/page/{name}")
    async def part(name: str, request: Request) -> Response:
        return sent(name, request) if name in files else PlainTextResponse("Not found", status_code=404)

    return page
