"""A server's life: adapters that come and go, several models, clients that leave, and how it comes to its end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import torch
import torch.nn.functional as F
from serving import Served, adapter, begun, serving, tiny

from lathe.llm import LLM
from lathe.model.layout import Layout

ASKED = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """adapters/one and adapters/two for the tiny model, secret, and model: another one."""
    folder = tmp_path_factory.mktemp("house")
    for seed, name in enumerate(("one", "two"), 5):
        adapter(tiny_model, folder / "adapters" / name, seed)
    (folder / "secret").mkdir()
    tiny(folder, hidden_size=32)
    return folder


@pytest.fixture(scope="module")
def house(tiny_model: Path, folder: Path) -> Iterator[Served]:
    """Two models, one of them with an adapter; others may be put on."""
    adapters = folder / "adapters"
    options = ["--adapter", f"first.v1={adapters / 'one'}", "--adapter-dir", str(adapters), "--admin-key", "boss"]
    with serving(tiny_model, *options, "--also", f"other={folder / 'model'}", "--max-seqs", "16") as server:
        yield server


def said(server: Served, model: str | None = None) -> str:
    answer = server.client.post("/v1/completions", json={**ASKED, **({"model": model} if model else {})})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def counted(server: Served, name: str, model: str = "model") -> float:
    """What the server has counted for a model."""
    told = server.client.get("/metrics").text
    [found] = re.findall(rf'^lathe:{name}{{model_name="{model}"}} (\S+)$', told, re.MULTILINE)
    return float(found)


def test_a_text_is_judged_by_the_adapter_that_is_named(house: Served, folder: Path, tiny_model: Path) -> None:
    ids = [n * 7 % 500 + 3 for n in range(40)]
    told = {}
    for name, path in (("first.v1", folder / "adapters/one"), (None, None)):
        asked = {"prompt": ids, "echo": True, "logprobs": 0, "max_tokens": 0, **({"model": name} if name else {})}
        [choice] = house.client.post("/v1/completions", json=asked).json()["choices"]
        told[name] = choice["logprobs"]["token_logprobs"][1:]
        assert told[name] == pytest.approx(LLM.load(tiny_model, device="cpu", adapter=path).score(ids), abs=1e-5)
    assert told["first.v1"] != pytest.approx(told[None], abs=1e-3)


def test_a_text_is_embedded_by_the_adapter_that_is_named(house: Served, folder: Path, tiny_model: Path) -> None:
    ids = [[n * k % 500 + 3 for n in range(20 + k)] for k in (3, 7, 11)]
    told = {}
    for name, path in (("first.v1", folder / "adapters/one"), (None, None)):
        asked = {"input": ids, **({"model": name} if name else {})}
        told[name] = [item["embedding"] for item in house.client.post("/v1/embeddings", json=asked).json()["data"]]
        decoder = LLM.load(tiny_model, device="cpu", adapter=path).decoder
        for tokens, embedding in zip(ids, told[name], strict=True):
            hidden = decoder(torch.tensor(tokens), Layout.of([len(tokens)]))
            assert embedding == pytest.approx(F.normalize(hidden.mean(0), dim=0).tolist(), abs=1e-5)
    assert told["first.v1"][0] != pytest.approx(told[None][0], abs=1e-3)


def test_adapters_are_models_by_name_and_come_and_go(house: Served, folder: Path, tiny_model: Path) -> None:
    one, two = (folder / "adapters" / name for name in ("one", "two"))
    alone = {
        path: LLM.load(tiny_model, device="cpu", adapter=path).generate(
            ASKED["prompt"], raw=True, max_new_tokens=20, temperature=0
        )
        for path in (None, one, two)
    }
    assert len(set(alone.values())) == 3

    def change(what: str, **body: str) -> int:
        admin = {"X-Api-Key": "boss"}
        return house.client.post(f"/v1/{what}_lora_adapter", json=body, headers=admin).status_code

    assert (said(house), said(house, "first.v1")) == (alone[None], alone[one])
    assert house.client.post("/v1/completions", json={**ASKED, "model": "second"}).status_code == 404
    assert house.client.post("/v1/load_lora_adapter", json={}).status_code == 401
    for path in ("../secret", "/etc", str(folder / "secret"), "nothing", "one/../../secret"):
        assert change("load", lora_name="x", lora_path=path) == 404, path
    assert change("load", lora_name="second", lora_path="two") == 200
    assert change("load", lora_name="second", lora_path="one") == 400
    assert (said(house, "second"), said(house, "first.v1"), said(house)) == (alone[two], alone[one], alone[None])
    listed = house.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in listed] == [
        ("model", None),
        ("other", None),
        ("first.v1", "model"),
        ("second", "model"),
    ]
    assert change("unload", lora_name="second") == 200
    assert change("unload", lora_name="second") == change("unload", lora_name="model") == 404
    assert house.client.post("/v1/completions", json={**ASKED, "model": "second"}).status_code == 404
    assert change("load", lora_name="second", lora_path="one") == 200  # another by the same name
    assert said(house, "second") == alone[one]


def test_several_models_are_served_side_by_side(house: Served) -> None:
    before = [counted(house, "generation_tokens_total", name) for name in ("model", "other")]
    texts = {name: said(house, name) for name in ("model", "other")}
    assert said(house) == texts["model"] != texts["other"]
    after = [counted(house, "generation_tokens_total", name) for name in ("model", "other")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [40, 20]


@pytest.mark.skipif(os.name == "nt", reason="signals of its own kind")
def test_answers_come_to_their_end_when_the_server_is_told_to(tiny_model: Path) -> None:
    with serving(tiny_model) as server:
        whole = said(server)
        body = {**ASKED, "max_tokens": 400, "stream": True, "ignore_eos": True}
        with server.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            statuses = set()
            while not statuses & {503}:
                try:
                    statuses.add(server.client.get("/health").status_code)
                except httpx2.TransportError:  # it has ended before it was asked
                    break
            rest = [line for line in (first, *lines) if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]" and statuses <= {200, 503}
        text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in rest[:-1])
        assert text.startswith(whole)
        assert server.ended() == 0, server.said


@pytest.mark.skipif(os.name == "nt", reason="signals of its own kind")
def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with serving(tiny(tmp_path, max_position_embeddings=1 << 16), "--drain", "600") as server:
        body = {"prompt": "a", "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            while server.client.get("/health").status_code != 503:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGINT)
            assert server.ended(10) == 1
        assert "Traceback" not in server.said


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="nothing tells when a process has begun another")
def test_a_server_that_is_told_to_end_while_it_begins_does_so(tiny_model: Path) -> None:
    process = begun(tiny_model, "--port", "0")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():  # the engine; nobody listens yet
        assert process.poll() is None
        time.sleep(0.001)
    process.terminate()
    assert process.wait(60) == 0


def test_clients_that_come_and_go_leave_nothing_behind(house: Served) -> None:
    """64 at once, a third of which go away in the midst of their answers: the others get what each gets alone."""
    bodies = [{**ASKED, "prompt": f"Tell {n}", "ignore_eos": True, "max_tokens": 12 + n % 20} for n in range(16)]
    alone = [house.client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies]
    descriptors = Path(f"/proc/{house.process.pid}/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0

    async def one(client: httpx2.AsyncClient, n: int) -> str | None:
        body = {**bodies[n % 16], "stream": True}
        if n % 3 == 0:
            body["max_tokens"] = 400
        text = ""
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if n % 3 == 0 and len(text) > n % 7:
                    return None
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        return text

    async def all_of_them() -> list[str | None]:
        limits = httpx2.Limits(max_connections=64)
        async with httpx2.AsyncClient(base_url=house.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(one(client, n) for n in range(64)))

    for n, text in enumerate(asyncio.run(all_of_them())):
        assert text is None if n % 3 == 0 else text == alone[n % 16]
    until = time.monotonic() + 20
    while True:
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        kept = [counted(house, name) for name in names]
        now = len(list(descriptors.iterdir())) if descriptors.exists() else 0
        if kept == [0, 0, 0] and now <= before + 2:
            break
        assert time.monotonic() < until, (kept, before, now)
        time.sleep(0.1)
