"""Run folders below a folder become a page in the browser that compares their curves while they go on.

A server on this machine alone, that only reads: it hands out the page, the list of runs, and of each run its
metrics.jsonl from a byte on, and its report.html. Runs are named by their place in the list, never by a path.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import KW_ONLY, dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lathe.errors import MissingError, UsageError

METRICS, REPORT = "metrics.jsonl", "report.html"
DEPTH = 4  # folders below the one given
CHUNK = 1 << 22  # bytes of metrics in one answer
HOSTS = ("localhost", "127.0.0.1")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@dataclass(frozen=True)
class Options:
    folder: Path = Path("out")
    """Where runs are: a run's folder, or one that has some below it."""
    _: KW_ONLY
    port: int = 8090
    """Of the page on this machine; 0 takes any that is free."""
    open: bool = True
    """Show the page in the browser."""


def run(options: Options) -> None:
    """Compare runs in the browser, while they go on.

    The page is for this machine only; it changes nothing. Ctrl-C ends it.
    """
    if not options.folder.is_dir():
        raise MissingError(f"{options.folder} is no folder.", "It should be one that runs write to.")
    try:
        server = serve(options.folder, options.port)
    except (OSError, OverflowError) as error:
        fix = "Choose another, or --port 0 for any."
        raise UsageError(f"--port {options.port} cannot be had: {error}.", fix=fix) from None
    address = f"http://{HOSTS[1]}:{server.server_port}/"
    print(f"The runs below {options.folder}: {address}  (Ctrl-C ends)", flush=True)
    if options.open:
        import webbrowser

        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return
    finally:
        server.server_close()


def serve(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the page, bound and not yet serving."""
    return ThreadingHTTPServer((HOSTS[1], port), partial(Page, folder))


def runs(folder: Path) -> dict[str, Path]:
    """The run folders at and below a folder by their names from there, in order; links are not followed."""
    found: dict[str, Path] = {}
    for place, names, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        deep = len(inside.parts) >= DEPTH
        names[:] = [] if deep else sorted(name for name in names if not name.startswith((".", "step-")))
        if METRICS in files:
            found[inside.as_posix() if inside.parts else folder.resolve().name] = Path(place)
    return found


class Page(BaseHTTPRequestHandler):
    """One request for something below a folder."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        # A page of another site that has its name point here would send that name.
        if self.headers.get("Host", "").rpartition(":")[0] not in HOSTS:
            return self.send_error(HTTPStatus.FORBIDDEN)
        asked = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(asked.query).items()}
        match asked.path:
            case "/":
                return self.answer(page().encode(), "text/html")
            case "/api/runs":
                return self.answer(json.dumps(self.listed()).encode(), "application/json")
            case "/api/metrics" | "/report":
                place = runs(self.folder).get(query.get("run", ""))
                file = place and place / (REPORT if asked.path == "/report" else METRICS)
                if file is not None and file.is_file():
                    return self.whole(file) if asked.path == "/report" else self.lines(file, query.get("from", "0"))
        return self.send_error(HTTPStatus.NOT_FOUND)

    def listed(self) -> dict[str, object]:
        """Each run: made tells a new metrics.jsonl from one that grew. age: seconds since something was written."""
        found = []
        for name, place in runs(self.folder).items():
            told = (place / METRICS).stat()
            found.append(
                {
                    "id": name,
                    "made": told.st_ino,
                    "bytes": told.st_size,
                    "age": max(0.0, time.time() - told.st_mtime),
                    "report": (place / REPORT).is_file(),
                    "finished": (place / "final").is_dir() and (place / "final").stat().st_mtime >= told.st_mtime - 1,
                }
            )
        return {"folder": str(self.folder.resolve()), "runs": found}

    def lines(self, file: Path, begin: str) -> None:
        """The whole lines from a byte on, at most CHUNK of them, and in X-Next where the next begin."""
        if not begin.isdecimal():
            return self.send_error(HTTPStatus.BAD_REQUEST)
        with file.open("rb") as opened:
            opened.seek(int(begin))
            text = opened.read(CHUNK)
        text = text[: text.rfind(b"\n") + 1]
        return self.answer(text, "text/plain", {"X-Next": str(int(begin) + len(text))})

    def whole(self, file: Path) -> None:
        self.answer(file.read_bytes(), "text/html")

    def answer(self, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        told = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        guards = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
        for name, value in {**told, **guards, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """The terminal is for what the user asked for."""


def page() -> str:
    """The page that asks for all else."""
    from lathe.training.report import asset

    return PARTS.format(style=asset("page.css"), script=f"{asset('charts.js')}{asset('runs.js')}")


PARTS = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs</title>
<style>
{style}</style>
<main></main>
<script>
{script}</script>
</html>
"""
