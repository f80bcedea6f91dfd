"""Handing a model over to another engine: the commands are those of the engine, on a folder that it reads, and answers
come through the gate as they left the engine."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn
from serving import serving

from lathe.actions import engines, handover
from lathe.actions.serve import Options, gate
from lathe.errors import MissingError, UsageError
from lathe.server import proxy

HELLO = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 12, "temperature": 0}


def handed(options: Options) -> int:
    return handover.run(options, gate(options), {})


def planned(capsys, model: Path, **options) -> list[list[str]]:
    handed(Options(str(model), dry_run=True, **options))
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def lora(folder: Path, **changes) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 12, **changes}))
    return folder


def test_a_folder_is_served_as_it_is(capsys, tiny_model):
    options = {"served_model_name": "tiny", "port": 9000, "max_seqs": 8, "precision": "bf16", "api_key": ("k",)}
    address = ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "9000"]
    launch = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(tiny_model)]
    more = ["8", "--dtype", "bfloat16", "--api-key", "k"]
    served = planned(capsys, tiny_model, engine="vllm", **options)
    assert served == [["vllm", "serve", str(tiny_model), *address, "--max-num-seqs", *more]]
    served = planned(capsys, tiny_model, engine="sglang", **options)
    assert served == [[*launch, *address, "--max-running-requests", *more]]
    [two] = planned(capsys, tiny_model, engine="vllm", **{**options, "api_key": ("k", "l")})
    assert two[-3:] == ["--api-key", "k", "l"]
    with pytest.raises(UsageError, match="SGLang knows one"):
        planned(capsys, tiny_model, engine="sglang", **{**options, "api_key": ("k", "l")})


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_word_is_one_that_the_engine_knows(tiny_model, tmp_path, precision):
    """As their newest versions have them, see tests/oracles/engine_options.py."""
    known = json.loads((Path(__file__).parent / "data/engine_options.json").read_text())
    adapters = {"a": lora(tmp_path / "a"), "b": lora(tmp_path / "b", r=200)}
    for name, engine in engines.ENGINES.items():
        theirs = known[name]["options"]
        several = adapters if name != "llamacpp" else {"a": adapters["a"]}
        device = "auto" if name == "vllm" else "cpu"
        wanted = engines.Wanted(tiny_model, "tiny", tmp_path, "::1", 1, several, 3, precision, device, ("k",))
        *_, command = engine.commands(wanted)
        for option, value in zip(command, [*command[1:], ""], strict=True):
            if option.startswith("--"):
                choices = theirs[option[2:]]
                assert choices is None or value in map(str, choices), (name, option, value)


def test_what_an_engine_cannot_read_is_written_for_it_once(capsys, tiny_model, tmp_path):
    options = {"engine": "llamacpp", "served_model_name": "org/tiny", "checkpoints": tmp_path}
    file = tmp_path / "handover" / "org--tiny.gguf"
    convert, serve = planned(capsys, tiny_model, **options)
    assert convert == [sys.executable, "-m", "lathe", "convert", str(tiny_model), str(file), "--force"]
    assert serve[:3] == ["llama-server", "--model", str(file)]
    file.parent.mkdir()
    file.touch()
    assert planned(capsys, tiny_model, **options) == [serve]
    os.utime(file, (0, 0))  # older than the model
    assert planned(capsys, tiny_model, **options) == [convert, serve]
    [convert, serve] = planned(capsys, file, **{**options, "engine": "vllm"})
    assert convert[4:6] == [str(file), str(tmp_path / "handover" / "org--tiny")]
    assert convert[6:] == ["--force"]
    assert serve[:3] == ["vllm", "serve", convert[5]]
    [convert, serve] = planned(capsys, tiny_model, **options, precision="fp16")
    assert convert[5:] == [serve[2], "--dtype", "fp16", "--force"] and serve[2] != str(file)
    with pytest.raises(UsageError, match="served as it is"):
        handed(Options(str(file), **options, precision="fp16", dry_run=True))


def test_adapters_go_with_the_model_or_into_it(tiny_model, tmp_path):
    adapters = {"a": lora(tmp_path / "a"), "b": lora(tmp_path / "b", rank_pattern={"q_proj": 20})}
    wanted = engines.Wanted(tiny_model, "tiny", tmp_path / "made", adapters=adapters)
    [command] = engines.vllm(wanted)
    assert command[-5:-2] == ["--max-lora-rank", "32", "--lora-modules"]
    assert [json.loads(word) for word in command[-2:]] == [
        {"name": name, "path": str(place)} for name, place in adapters.items()
    ]
    huge = {"c": lora(tmp_path / "huge", r=1024)}
    with pytest.raises(UsageError, match="up to 512"):
        engines.vllm(engines.Wanted(tiny_model, "tiny", tmp_path, adapters=huge))
    with pytest.raises(UsageError, match="one model under one name"):
        engines.llamacpp(wanted)
    merged = engines.Wanted(tiny_model, "tiny", tmp_path / "made", adapters={"a": adapters["a"]})
    [convert, serve] = engines.llamacpp(merged)
    assert convert[-3:-1] == ["--adapter", str(adapters["a"])]
    assert serve[serve.index("--alias") + 1] == "a"
    dora = engines.Wanted(tiny_model, "tiny", tmp_path, adapters={"c": lora(tmp_path / "c", use_dora=True)})
    with pytest.raises(UsageError, match="lathe merge"):
        engines.sglang(dora)


def test_what_cannot_be_done_is_said(tiny_model, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="pip install vllm"):
        handed(Options(str(tiny_model), engine="vllm"))
    with pytest.raises(UsageError, match="--quantize is for Lathe's own engine"):
        handed(Options(str(tiny_model), engine="vllm", quantize="int8", dry_run=True))
    with pytest.raises(UsageError, match="--draft is for Lathe's own engine"):
        handed(Options(str(tiny_model), engine="vllm", draft="ngram", dry_run=True))
    with pytest.raises(UsageError, match="--cors-origin is the gate's"):
        handed(Options(str(tiny_model), engine="vllm", cors_origin=("*",), dry_run=True))
    with pytest.raises(UsageError, match="lets other machines use the model"):
        handed(Options(str(tiny_model), engine="vllm", host="0.0.0.0", dry_run=True))
    with pytest.raises(UsageError, match="--engine ray"):
        Options(str(tiny_model), replicas=2)
    with pytest.raises(UsageError, match="here there are none"):
        Options(str(tiny_model), engine="ray", dry_run=True)


# What plays llama-server: it is ready after a while, knows its own key alone, and answers with what it was told.
STAND_IN = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.tell(200, {"status": "ok"})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        mine = self.headers["authorization"] == "Bearer " + words["--api-key"]
        self.tell(200 if mine else 401, {"model": words["--alias"], "file": words["--model"], "asked": body})
    def tell(self, status, told):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())
time.sleep(0.3)
words |= dict(zip(sys.argv[sys.argv.index("--jinja") + 1::2], sys.argv[sys.argv.index("--jinja") + 2::2]))
ThreadingHTTPServer((words["--host"], int(words["--port"])), Handler).serve_forever()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for llama-server is a shell script")
def test_the_gate_stands_before_an_engine_until_one_of_them_ends(tiny_model, tmp_path, monkeypatch):
    file = tmp_path / "handover" / "mine.gguf"
    file.parent.mkdir()
    file.touch()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    script = tmp_path / "llama-server"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "stand_in.py"} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    words = ["--engine", "llamacpp", "--gate", "--checkpoints", str(tmp_path), "--api-key", "secret"]
    with serving(tiny_model, *words, "--served-model-name", "mine") as front:
        assert front.client.get("/").text.startswith("<!doctype html>")
        until = time.monotonic() + 60
        while (health := front.client.get("/health")).status_code == 503 and time.monotonic() < until:
            time.sleep(0.05)
        assert health.json() == {"status": "ok"}
        assert front.client.post("/v1/chat/completions", json=HELLO).status_code == 401
        key = {"Authorization": "Bearer secret"}
        answer = front.client.post("/v1/chat/completions", json=HELLO, headers=key)
        assert answer.json() == {"model": "mine", "file": str(file), "asked": HELLO}
        front.process.terminate()
        assert front.ended() == 0
    script.write_text("#!/bin/sh\nexit 7\n")
    with serving(tiny_model, *words, "--served-model-name", "mine") as front:
        assert front.ended() == 7


@pytest.fixture(scope="module")
def front(server) -> Iterator[httpx2.Client]:
    """A proxy in this process before the server that all tests share."""
    port = int(server.url.rpartition(":")[2])
    app = uvicorn.Server(uvicorn.Config(proxy.application("127.0.0.1", port), port=0, log_level="warning"))
    thread = threading.Thread(target=app.run)
    thread.start()
    while not app.started:
        time.sleep(0.01)
    with httpx2.Client(base_url=f"http://127.0.0.1:{app.servers[0].sockets[0].getsockname()[1]}", timeout=60) as client:
        yield client
    app.should_exit = True
    thread.join()


def test_what_comes_through_is_what_was_said(front, server):
    direct = server.client
    for path in ("/v1/models", "/v1/models/none", "/health", "/nothing?a=b%20c"):
        assert (front.get(path).status_code, front.get(path).json()) == (
            direct.get(path).status_code,
            direct.get(path).json(),
        )
    one, other = (client.post("/v1/chat/completions", json=HELLO).json() for client in (front, direct))
    assert one["choices"] == other["choices"]
    bad = front.post("/v1/chat/completions", json={**HELLO, "temperature": -1})
    assert bad.status_code == 400 and "temperature" in bad.json()["error"]["message"]


def test_a_stream_comes_as_it_is_made_and_ends_when_the_client_goes(front, server):
    body = {**HELLO, "max_tokens": 400, "stream": True}
    with front.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        arrived = [time.monotonic() for _ in response.iter_lines()]
    assert arrived[-1] - arrived[0] > 0.02  # not all at once
    with front.stream("POST", "/v1/chat/completions", json={**body, "n": 8}) as response:
        next(response.iter_lines())
    # What the client left is given up there, too: else this would wait for 3,200 tokens.
    begun = time.monotonic()
    assert front.post("/v1/chat/completions", json={**HELLO, "max_tokens": 1}).status_code == 200
    assert time.monotonic() - begun < 30


def test_an_engine_that_is_not_there_is_a_503():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    from starlette.testclient import TestClient

    with TestClient(proxy.application("127.0.0.1", port)) as client:
        assert client.get("/v1/models").status_code == 503
        assert client.get("/").status_code == 200
