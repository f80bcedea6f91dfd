"""The gate before every route: keys, hosts, origins and sizes; and a server that is told to listen carelessly."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from serving import serving
from starlette.testclient import TestClient

from lathe import cli
from lathe.server import running
from lathe.server.gate import ADMIN, Gate, Rules, loopback

KEY, ADMINS = "sk-één", "sk-admin"


def client(**rules) -> TestClient:
    """Of an application whose routes say what they got."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def told(path: str, request: Request) -> dict[str, str]:
        return {"path": path, "body": (await request.body()).decode()}

    app.add_middleware(Gate, rules=Rules(**rules))
    return TestClient(app, base_url="http://127.0.0.1:8000")


# ------------------------------------------------------------ keys


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/docs", "/openapi.json", "/v1/nothing", "/health/"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer other"}, {"Authorization": "Basic sk"}, {"X-Api-Key": ""}, {"Host": "x/health?"}],
)
def test_everything_needs_a_key(path: str, headers: dict[str, str]) -> None:
    answer = client(keys=(KEY,)).get(path, headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "name, value", [("Authorization", "Bearer {}"), ("authorization", "bearer {}"), ("X-Api-Key", "{}")]
)
def test_any_of_the_keys_lets_in(name: str, value: str) -> None:
    asked = client(keys=("sk-a", KEY))
    for key in ("sk-a", KEY):
        assert asked.get("/v1/models", headers={name: value.format(key).encode()}).status_code == 200


def test_health_and_the_page_need_none() -> None:
    asked = client(keys=(KEY,))
    assert [asked.get(path).status_code for path in ("/health", "/", "/page/page.js")] == [200] * 3
    assert asked.get("/page/../v1/models").status_code == 401


def test_what_changes_the_server_needs_the_admins_key() -> None:
    keyed = client(keys=(KEY,), admin=ADMINS)
    for path in ADMIN:
        for asked, key, status in [(client(), "x", 403), (keyed, KEY, 401), (keyed, ADMINS, 200)]:
            assert asked.post(path, json={}, headers={"X-Api-Key": key.encode()}).status_code == status
    assert keyed.get("/v1/models", headers={"X-Api-Key": ADMINS}).status_code == 200


# ------------------------------------------------------------ from where


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.com", "127.0.0.1.evil.com", "[", ""])
def test_a_loopback_server_is_called_by_its_own_names(host: str) -> None:
    asked = client(hosts=frozenset({"127.0.0.1", "localhost", "::1"}))
    assert asked.get("/v1/models", headers={"Host": host}).status_code == 403
    for own in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert asked.get("/v1/models", headers={"Host": own}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://localhost.evil.com", "http://notlocalhost", "https://app.example", "http://app.example:81", "null"],
)
def test_pages_from_elsewhere_are_refused(origin: str) -> None:
    asked = client(origins=("http://app.example",))
    wants = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answers = [
        asked.options("/v1/chat/completions", headers=wants),
        asked.post("/v1/chat/completions", json={}, headers={"Origin": origin}),
        asked.get("/v1/models", headers={"Origin": origin}),
    ]
    assert [answer.status_code for answer in answers] == [200, 403, 200]  # a question, whose answer says no
    assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)


@pytest.mark.parametrize("allowed, told", [("http://app.example", "http://app.example"), ("*", "*")])
def test_a_page_that_is_named_may_ask(allowed: str, told: str) -> None:
    asked = client(origins=(allowed,), keys=(KEY,))
    origin = {"Origin": "http://app.example"}
    wants = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-a"}
    before = asked.options("/v1/chat/completions", headers=wants)
    assert before.status_code == 200 and before.headers["access-control-allow-headers"] == "authorization, x-a"
    after = asked.post("/v1/x", json={}, headers={**origin, "Authorization": f"Bearer {KEY}".encode()})
    refused = asked.post("/v1/x", json={}, headers=origin)
    assert (after.status_code, refused.status_code) == (200, 401)
    assert {answer.headers["access-control-allow-origin"] for answer in (before, after, refused)} == {told}
    assert "access-control-allow-credentials" not in after.headers


@pytest.mark.parametrize("origin", ["http://localhost", "http://127.0.0.1:3000", "http://[::1]:3000"])
def test_pages_of_this_machine_may_ask_where_they_are_named(origin: str) -> None:
    asked, foreign = client(origins=("localhost",)), {"Origin": "http://localhost.evil.com"}
    told = asked.post("/v1/x", json={}, headers={"Origin": origin})
    assert (told.status_code, told.headers["access-control-allow-origin"]) == (200, origin)
    assert asked.post("/v1/x", json={}, headers=foreign).status_code == 403
    assert client().post("/v1/x", json={}, headers={"Origin": origin}).status_code == 403
    for broken in ("http://[", "http://evil.com//localhost", "null"):
        assert asked.post("/v1/x", json={}, headers={"Origin": broken}).status_code == 403


def test_the_servers_own_page_may_ask() -> None:
    assert client().post("/v1/x", json={}, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200


def test_loopback() -> None:
    assert [loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.com", "")] == [False] * 5


# ------------------------------------------------------------ with how much


def test_bodies_have_a_most() -> None:
    asked = client(most=100)
    assert asked.post("/x", content=b'"' + b"a" * 98 + b'"', headers=JSON).status_code == 200
    whole = asked.post("/x", content=b"a" * 101, headers=JSON)
    parts = asked.post("/x", content=(b"a" for _ in range(101)), headers=JSON)  # chunked: it does not say how long
    lies = asked.post("/x", content=b"{}", headers={**JSON, "Content-Length": "9" * 40})
    assert [answer.status_code for answer in (whole, parts, lies)] == [413] * 3


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "path, kind, status",
    [
        ("/v1/x", "application/json; charset=utf-8", 200),
        ("/v1/x", "text/plain", 415),
        ("/v1/x", "application/x-www-form-urlencoded", 415),
        ("/v1/x", "", 415),
        ("/api/chat", "application/x-www-form-urlencoded", 200),
    ],
)
def test_bodies_are_json(path: str, kind: str, status: int) -> None:
    assert client().post(path, content=b"{}", headers={"Content-Type": kind}).status_code == status


@pytest.mark.parametrize("make", [lambda n: b"[" * n + b"]" * n, lambda n: b'{"a":' * n + b"1" + b"}" * n])
def test_json_has_a_deepest_level(make: Callable[[int], bytes]) -> None:
    asked = client()
    statuses = [asked.post("/x", content=make(n), headers=JSON).status_code for n in (127, 128, 129, 1000, 100_000)]
    assert statuses == [200, 200, 400, 400, 400]
    wide = json.dumps([[n] for n in range(1000)]).encode()
    assert asked.post("/x", content=wide, headers=JSON).status_code == 200
    assert asked.post("/x", content=b'{"text": "' + b"[" * 1000 + b'"}', headers=JSON).status_code == 200


def test_headers_have_a_most() -> None:
    assert client().get("/x", headers={"X-Long": "a" * (33 << 10)}).status_code == 431


def test_every_answer_has_its_requests_id() -> None:
    asked = client(keys=(KEY,))
    assert asked.get("/v1/x", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {asked.get("/v1/x", headers={"X-Request-Id": id}).headers["x-request-id"] for id in ("", "a b", "c" * 200)}
    assert len(made) == 3 and all(len(id) == 32 for id in made)


# ------------------------------------------------------------ a server


def test_a_server_for_other_machines_needs_a_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["serve", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--insecure" in capsys.readouterr().err


@contextmanager
def listening(app: FastAPI) -> Iterator[socket.socket]:
    """A client's socket to a server of the application, in a thread, with connections as Lathe has them."""
    server = uvicorn.Server(uvicorn.Config(app, http=running.Patient, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with socket.create_connection(server.servers[0].sockets[0].getsockname()[:2], timeout=10) as connection:
            yield connection
    finally:
        server.should_exit = True
        thread.join()


def test_who_does_not_say_what_it_wants_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "HEADERS_WITHIN", 0.2)
    with listening(FastAPI()) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert connection.recv(1) == b""


def test_who_does_not_read_its_answer_is_taken_to_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "READ_WITHIN", 0.2)
    app, closed = FastAPI(), threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"a" * 65536
                await asyncio.sleep(0)
        finally:
            closed.set()

    @app.get("/")
    async def told() -> StreamingResponse:
        return StreamingResponse(endless())

    with listening(app) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(20):  # who reads, however slowly, is not
            time.sleep(0.02)
            assert connection.recv(1 << 20)
            assert not closed.is_set()
        assert closed.wait(10)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert cli.main(["serve", str(tmp_path), "--port", str(other.getsockname()[1])]) == 2
    assert "Cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_a_server_with_keys_from_a_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n\nsk-two\n")
    with serving(tiny_model, "--api-key-file", str(tmp_path / "keys"), "--max-body", "1000") as server:
        ask = server.client
        assert ask.get("/v1/models").status_code == 401
        assert ask.get("/v1/models", headers={"Authorization": "Bearer sk-two"}).status_code == 200
        assert ask.get("/metrics").status_code == ask.get("/docs").status_code == 401
        keyed = {"X-Api-Key": "sk-one"}
        assert "lathe:num_requests_running" in ask.get("/metrics", headers=keyed).text
        docs = ask.get("/docs", headers=keyed).text
        assert "/v1/chat/completions" in docs and "<script" not in docs and "http" not in docs.replace("http-equiv", "")
        assert ask.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert ask.post("/v1/completions", json={"prompt": "a" * 1000}, headers=keyed).status_code == 413
        asked = {"prompt": "a", "max_tokens": 3, "temperature": 0}
        assert ask.post("/v1/completions", json=asked, headers=keyed).json()["usage"]["completion_tokens"] == 3
        counted = ask.get("/metrics", headers=keyed).text
        assert 'lathe:generation_tokens_total{model_name="model"} 3' in counted
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "
        for said, status in [(head + b"a" * (40 << 10), 431), (head + b"a" * (70 << 10), 431), (b"no HTTP", 400)]:
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
                raw.sendall(said + b"\r\n\r\n")
                raw.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: raw.recv(1000), b""))
            first, _, body = answer.partition(b"\r\n\r\n")
            assert first.startswith(f"HTTP/1.1 {status} ".encode())
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
