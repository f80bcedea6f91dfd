"""A server's life: adapters that come and go, several models, clients that leave, and how it comes to its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest
from serving import adapter, serving, tiny

from lathe.llm import LLM

ASKED = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}


def said(server, model: str | None = None) -> str:
    answer = server.client.post("/v1/completions", json={**ASKED, **({"model": model} if model else {})})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_adapters_are_models_by_name_and_come_and_go(tiny_model: Path, tmp_path: Path) -> None:
    one, two = (adapter(tiny_model, tmp_path / "adapters" / name, seed) for seed, name in enumerate(("one", "two"), 5))
    (tmp_path / "secret").mkdir()
    options = ["--adapter", f"first.v1={one}", "--adapter-dir", str(tmp_path / "adapters"), "--admin-key", "boss"]
    alone = {
        path: LLM.load(tiny_model, device="cpu", adapter=path).generate(
            ASKED["prompt"], raw=True, max_new_tokens=20, temperature=0
        )
        for path in (None, one, two)
    }
    assert len(set(alone.values())) == 3
    with serving(tiny_model, *options) as server:
        admin = {"X-Api-Key": "boss"}

        def change(what: str, **body: str) -> int:
            return server.client.post(f"/v1/{what}_lora_adapter", json=body, headers=admin).status_code

        assert (said(server), said(server, "first.v1")) == (alone[None], alone[one])
        assert server.client.post("/v1/completions", json={**ASKED, "model": "second"}).status_code == 404
        assert server.client.post("/v1/load_lora_adapter", json={}).status_code == 401
        for path in ("../secret", "/etc", str(tmp_path / "secret"), "nothing", "one/../../secret"):
            assert change("load", lora_name="x", lora_path=path) == 404, path
        assert change("load", lora_name="second", lora_path="two") == 200
        assert change("load", lora_name="second", lora_path="one") == 400
        assert (said(server, "second"), said(server, "first.v1"), said(server)) == (alone[two], alone[one], alone[None])
        listed = server.client.get("/v1/models").json()["data"]
        assert [(model["id"], model["parent"]) for model in listed] == [
            ("model", None),
            ("first.v1", "model"),
            ("second", "model"),
        ]
        assert change("unload", lora_name="second") == 200
        assert change("unload", lora_name="second") == change("unload", lora_name="model") == 404
        assert server.client.post("/v1/completions", json={**ASKED, "model": "second"}).status_code == 404
        assert change("load", lora_name="second", lora_path="one") == 200  # another by the same name
        assert said(server, "second") == alone[one]


def test_several_models_are_served_side_by_side(tiny_model: Path, tmp_path: Path) -> None:
    other = tiny(tmp_path, hidden_size=32)
    with serving(tiny_model, "--also", f"other={other}", "--served-model-name", "one") as server:
        texts = {name: said(server, name) for name in ("one", "other")}
        assert said(server) == texts["one"] != texts["other"]
        counted = server.client.get("/metrics").text
    assert 'lathe:generation_tokens_total{model_name="one"} 40' in counted
    assert 'lathe:generation_tokens_total{model_name="other"} 20' in counted


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


def test_clients_that_come_and_go_leave_nothing_behind(tiny_model: Path) -> None:
    """64 at once, a third of which go away in the midst of their answers: the others get what each gets alone."""
    with serving(tiny_model, "--max-seqs", "16") as server:
        bodies = [{**ASKED, "prompt": f"Tell {n}", "ignore_eos": True, "max_tokens": 12 + n % 20} for n in range(16)]
        alone = [server.client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies]
        descriptors = Path(f"/proc/{server.process.pid}/fd")
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
            async with httpx2.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
                return await asyncio.gather(*(one(client, n) for n in range(64)))

        for n, text in enumerate(asyncio.run(all_of_them())):
            assert text is None if n % 3 == 0 else text == alone[n % 16]
        until = time.monotonic() + 20
        while True:
            told = dict(
                line.rsplit(" ", 1) for line in server.client.get("/metrics").text.splitlines() if line[0] != "#"
            )
            kept = [told[f'lathe:{name}{{model_name="model"}}'] for name in KEPT]
            now = len(list(descriptors.iterdir())) if descriptors.exists() else 0
            if [float(number) for number in kept] == [0, 0, 0] and now <= before + 2:
                break
            assert time.monotonic() < until, (kept, before, now)
            time.sleep(0.1)


KEPT = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
