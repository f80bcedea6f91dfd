"""What stands before every route: who may come in, from where, and with how much. Pure ASGI; knows no route's meaning.

Everything is guarded but what is named in OPEN, decided on the path as the server got it, never on a rebuilt address.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lathe.server.refusals import Refusal

OPEN = re.compile(r"/|/health|/page/[\w.-]+")  # need no key
ADMIN = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")  # need the admin's
LENIENT = "/api/"  # Ollama's clients do not say that they send JSON
HEADERS = 32 << 10  # bytes of all headers together
DEEPEST = 128  # levels of a JSON body
BODILY = ("POST", "PUT", "PATCH", "DELETE")
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Rules:
    """keys: any of them lets in; none: everybody may. admin: the key for what changes the server; None: nobody may.

    hosts: names by which the server may be called; None for any. origins: web pages that may call it; "*" is any, and
    "localhost" any that this machine serves.
    most: bytes of a body. patience: seconds for a whole body to come.
    """

    keys: tuple[str, ...] = ()
    admin: str | None = None
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    most: int = 32 << 20
    patience: float = 60.0


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Refused(Exception):
    """A request that is let no further."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.refusal = Refusal(status, kind, message, headers=headers or {})


class Gate:
    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there are no other ways in
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        headers = {name.lower(): value for name, value in scope["headers"]}
        more = [(b"x-request-id", _named(headers))]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            origin = headers.get(b"origin", b"").decode("latin-1")
            shared = self._shared(origin)
            more += shared
            self._check(scope, headers, origin)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:  # not yet a request
                return await _preflight(answer, shared, headers.get(b"access-control-request-headers", b""))
            self._know(scope["path"], headers)
            if scope["method"] in BODILY:
                scope, receive = await self._bodily(scope, headers, receive)
        except Refused as error:
            return await _refuse(answer, scope["path"], error.refusal)
        return await self.app(scope, receive, answer)

    # ------------------------------------------------------------ from where

    def _shared(self, origin: str) -> list[tuple[bytes, bytes]]:
        """The headers that let a web page of this origin read the answer, if it may."""
        named = self.rules.origins
        ours = "localhost" in named and loopback(_hostname(origin.partition("//")[2]))
        if not origin or not (ours or "*" in named or origin in named):
            return []
        told = "*" if "*" in named else origin
        exposed = (b"access-control-expose-headers", b"x-request-id, retry-after")
        return [(b"access-control-allow-origin", told.encode("latin-1")), (b"vary", b"Origin"), exposed]

    def _check(self, scope: Scope, headers: Mapping[bytes, bytes], origin: str) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADERS:
            raise Refused(431, "invalid_request_error", f"The headers have more than {HEADERS} bytes.")
        host = headers.get(b"host", b"").decode("latin-1")
        if self.rules.hosts is not None and _hostname(host) not in self.rules.hosts:
            raise Refused(403, "permission_error", "The server is not called by this Host.")
        if origin and scope["method"] in BODILY and not self._shared(origin) and origin.partition("//")[2] != host:
            fix = "Pages of this origin may not use the server, unless it is started with --cors-origin."
            raise Refused(403, "permission_error", fix)

    # ------------------------------------------------------------ who

    def _know(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        rules = self.rules
        given = _key(headers)
        if path in ADMIN:
            if rules.admin is None:
                raise Refused(403, "permission_error", "The server was started without --admin-key.")
            allowed: Collection[str] = (rules.admin,)
        elif not rules.keys or OPEN.fullmatch(path):
            return
        else:
            allowed = (*rules.keys, *((rules.admin,) if rules.admin else ()))
        if not sum(hmac.compare_digest(given, key.encode()) for key in allowed):  # all, so that the time tells nothing
            fix = "It is sent as Authorization: Bearer KEY, or as X-Api-Key: KEY."
            told = f"{'No key' if not given else 'A wrong key'} was sent. {fix}"
            raise Refused(401, "authentication_error", told, {"WWW-Authenticate": "Bearer"})

    # ------------------------------------------------------------ with how much

    async def _bodily(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> tuple[Scope, Receive]:
        """The request once its body is there, as a whole and within bounds."""
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told[:20]) > self.rules.most:
            raise self._large()
        try:
            body = await asyncio.wait_for(self._whole(receive), self.rules.patience)
        except asyncio.TimeoutError:
            message = f"The body did not come within {self.rules.patience:g} seconds."
            raise Refused(408, "invalid_request_error", message, {"Connection": "close"}) from None
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if body and kind != b"application/json":
            if not scope["path"].startswith(LENIENT):
                raise Refused(415, "invalid_request_error", "The body must be of Content-Type application/json.")
            others = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
            scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        if body.count(b"[") + body.count(b"{") > DEEPEST and await asyncio.to_thread(_deep, body):
            message = f"The body is JSON of more than {DEEPEST} levels."
            raise Refused(400, "invalid_request_error", message)
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return scope, again

    async def _whole(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.rules.most:
                raise self._large()
        return b"".join(parts)

    def _large(self) -> Refused:
        message = f"The body has more than {self.rules.most:,} bytes."
        return Refused(413, "invalid_request_error", message, {"Connection": "close"})


def _named(headers: Mapping[bytes, bytes]) -> bytes:
    """The request's id: the client's, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()


def _hostname(host: str) -> str:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def key(scope: Scope) -> bytes:
    """The key that a request was sent with; none where there is none."""
    return _key({name.lower(): value for name, value in scope["headers"]})


def _key(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def _deep(body: bytes) -> bool:
    """Whether JSON has more levels than it may; what is no JSON is somebody else's to refuse."""
    try:
        level = [json.loads(body)]
    except RecursionError:
        return True
    except ValueError:
        return False
    for _ in range(DEEPEST):
        level = [
            item
            for value in level
            if isinstance(value, (list, dict))
            for item in (value if isinstance(value, list) else value.values())
        ]
    return any(isinstance(value, (list, dict)) for value in level)


async def _preflight(send: Send, shared: list[tuple[bytes, bytes]], wanted: bytes) -> None:
    """What a browser asks before it lets a page ask: without the headers, it does not. wanted: those the page sends."""
    allowed = [(b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"), (b"access-control-max-age", b"600")]
    if re.fullmatch(rb"[\w, -]{1,2000}", wanted):
        allowed.append((b"access-control-allow-headers", wanted))
    await send({"type": "http.response.start", "status": 200, "headers": allowed if shared else []})
    await send({"type": "http.response.body"})


async def _refuse(send: Send, path: str, refusal: Refusal) -> None:
    body = json.dumps(refusal.body(path)).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
