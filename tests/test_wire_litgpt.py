"""LitGPT's /predict: what its clients send and read, over the same engine as everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from serving import in_process
from starlette.testclient import TestClient

from lathe.llm import LLM
from lathe.server.wires import litgpt

GREEDY = {"temperature": 0, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def client(tiny_model: Path) -> Iterator[TestClient]:
    with in_process(tiny_model, litgpt.router, partial(litgpt.router, path="/tell", stream=True)) as client:
        yield client


def said(response) -> list[str]:
    assert response.status_code == 200, response.text
    return [json.loads(line)["output"] for line in response.text.splitlines()]


def test_the_answer_is_what_the_model_says_to_a_user(client, tiny_model):
    alone = LLM.load(tiny_model, device="cpu").complete("Hello there", **GREEDY)
    response = client.post("/predict", json={"prompt": "Hello there", **GREEDY})
    assert response.json() == {"output": alone.text}
    pieces = said(client.post("/predict", json={"prompt": "Hello there", "stream": True, **GREEDY}))
    assert "".join(pieces) == alone.text
    assert len(pieces) > 1


def test_a_server_of_streams_streams_unless_told_otherwise(client):
    body = {"prompt": "Hello there", **GREEDY}
    whole = client.post("/tell", json={**body, "stream": False}).json()["output"]
    assert "".join(said(client.post("/tell", json=body))) == whole


def test_a_system_prompt_and_a_seed_are_heard(client):
    body = {"prompt": "Hello there", "max_new_tokens": 12, "temperature": 1.5}
    answers = [
        client.post("/predict", json={**body, **more}).json()["output"]
        for more in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "sys_prompt": "Be brief."})
    ]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


@pytest.mark.parametrize(
    "body", [{}, {"prompt": 5}, {"prompt": "a", "temperature": -1}, {"prompt": "a", "top_p": 2}, {"prompt": "a" * 9999}]
)
def test_what_is_wrong_is_said(client, body):
    response = client.post("/predict", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_fields_that_nobody_knows_are_named(client):
    response = client.post("/predict", json={"prompt": "a", "max_new_tokens": 1, "temprature": 0})
    assert response.headers["X-Lathe-Unknown-Fields"] == '["temprature"]'
