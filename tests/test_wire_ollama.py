"""Ollama's wire: its own client, and raw requests, get what the engine says, in the shapes of Ollama's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import in_process
from starlette.testclient import TestClient

from lathe.server.ask import Begun, Called, Ended, Said
from lathe.server.wires import ollama

HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY = {"temperature": 0, "num_predict": 16}
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def client(tiny_model: Path) -> Iterator[TestClient]:
    with in_process(tiny_model, ollama.router) as client:
        yield client


def lines(response) -> list[dict]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def chat(client, **more):
    return client.post("/api/chat", json={"model": "tiny", "messages": HELLO, **more})


def test_chat_streams_unless_told_otherwise(client, alone):
    expected = alone.complete(HELLO, temperature=0, max_new_tokens=16)
    *told, last = lines(chat(client, options=GREEDY))
    assert "".join(line["message"]["content"] for line in told) == expected.text
    assert all(line["message"]["content"] and not line["done"] and line["model"] == "tiny" for line in told)
    assert (last["done"], last["done_reason"], last["message"]) == (
        True,
        "length",
        {"role": "assistant", "content": ""},
    )
    assert (last["prompt_eval_count"], last["eval_count"]) == (expected.usage.prompt_tokens, 16)
    assert all(isinstance(last[name], int) for name in DURATIONS)
    assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"]

    whole = chat(client, options=GREEDY, stream=False).json()
    assert whole["message"] == {"role": "assistant", "content": expected.text}
    assert whole.keys() == last.keys()


@pytest.mark.parametrize("raw", [False, True])
def test_generate_is_asked_or_continued(client, alone, raw):
    expected = alone.complete("Hello there", raw=raw, temperature=0, max_new_tokens=16).text
    body = {"model": "tiny:latest", "prompt": "Hello there", "raw": raw, "options": GREEDY}
    *told, last = lines(client.post("/api/generate", json=body))
    assert "".join(line["response"] for line in told) == expected
    assert last["response"] == "" and last["done"]
    assert client.post("/api/generate", json={**body, "stream": False}).json()["response"] == expected


def test_options_are_honoured(client, alone):
    text = alone.complete(HELLO, temperature=0, max_new_tokens=40).text
    stop = text[9:12]
    stopped = chat(client, options={**GREEDY, "num_predict": 40, "stop": [stop]}, stream=False).json()
    assert (stopped["message"]["content"], stopped["done_reason"]) == (text[: text.index(stop)], "stop")

    def drawn(**options) -> str:
        options = {"temperature": 1.2, "num_predict": 8, **options}
        return chat(client, options=options, stream=False).json()["message"]["content"]

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert drawn(seed=1, top_k=1) == alone.complete(HELLO, temperature=0, max_new_tokens=8).text


def test_num_ctx_is_the_room_for_prompt_and_answer(client):
    limited = chat(client, options={"num_ctx": 40, "temperature": 0}, stream=False).json()
    assert limited["prompt_eval_count"] + limited["eval_count"] == 40
    assert limited["done_reason"] == "length"
    refused = chat(client, options={"num_ctx": 5})
    assert refused.status_code == 400
    assert "maximum context length is 5 tokens" in refused.json()["error"]


def test_logprobs_are_those_of_the_words(client):
    told = chat(client, options=GREEDY, stream=False, logprobs=True, top_logprobs=2).json()
    assert b"".join(bytes(word["bytes"]) for word in told["logprobs"]).decode(errors="replace")
    assert all(word["top_logprobs"][0]["logprob"] == word["logprob"] for word in told["logprobs"])  # greedy
    assert all(len(word["top_logprobs"]) == 2 for word in told["logprobs"])


def test_calls_and_thoughts_are_told_as_ollama_does():
    events = [
        Begun(7),
        Said(0, "Hm.", "reasoning"),
        Called(0, 0, id="call_1", name="weather"),
        Called(0, 0, '{"city": "Pa'),
        Called(0, 0, 'ris"}'),
        Called(0, 1, "{}", id="call_2", name="time"),
        Ended(0, "tool_calls", 12, seconds=(0.5, 1.5)),
    ]
    answer = ollama.Answer("tiny", chat=True, logprobs=False)
    told = [json.loads(line) for event in events for line in answer.frames(0, event)]
    whole = ollama.Answer("tiny", chat=True, logprobs=False).whole([(0, event) for event in events])
    calls = [
        {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}},
        {"id": "call_2", "function": {"index": 1, "name": "time", "arguments": {}}},
    ]
    assert [line["message"].get("thinking") for line in told] == ["Hm.", None, None]
    assert told[1]["message"]["tool_calls"] == whole["message"]["tool_calls"] == calls
    assert whole["message"]["thinking"] == "Hm."
    assert whole["done_reason"] == told[-1]["done_reason"] == "stop"
    assert (whole["prompt_eval_duration"], whole["eval_duration"]) == (500_000_000, 1_500_000_000)


def test_without_a_question_there_is_nothing_to_do(client):
    for path, field in (("chat", "message"), ("generate", "response")):
        for keep_alive, reason in ((None, "load"), ("5m", "load"), (0, "unload")):
            body = {"model": "tiny", **({} if keep_alive is None else {"keep_alive": keep_alive})}
            told = client.post(f"/api/{path}", json=body).json()
            assert (told["done"], told["done_reason"], field in told) == (True, reason, True)


@pytest.mark.parametrize(
    "path, more, named",
    [
        ("chat", {"model": "other"}, "other"),
        ("chat", {"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "images"),
        ("chat", {"format": "yaml"}, "format"),
        ("chat", {"options": {"mirostat": 2}}, "mirostat"),
        ("chat", {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "last tokens"),
        ("chat", {"options": {"temperature": "hot"}}, "temperature"),
        ("chat", {"messages": [{"role": "wizard", "content": "a"}]}, "role"),
        ("generate", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("generate", {"prompt": "a", "template": "{{ .Prompt }}"}, "template"),
        ("generate", {"prompt": "a", "context": [1, 2]}, "context"),
        ("generate", {"prompt": "a", "images": ["aGk="]}, "images"),
        ("show", {"model": "other"}, "other"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(client, path, more, named):
    body = {"model": "tiny", **({"messages": HELLO} if path == "chat" else {}), **more}
    response = client.post(f"/api/{path}", json=body)
    assert response.status_code == (404 if named == "other" else 400)
    assert named in response.json()["error"]
    assert list(response.json()) == ["error"]


def test_what_changes_nothing_is_accepted_and_what_nobody_knows_is_named(client):
    options = {**GREEDY, "num_thread": 4, "num_gpu": 1, "mirostat": 0, "repeat_last_n": 64, "num_banana": 1}
    response = chat(client, options=options, stream=False, keep_alive="10m")
    assert response.status_code == 200
    assert response.headers["X-Lathe-Unknown-Fields"] == '["options.num_banana"]'


def test_a_body_needs_no_content_type_but_from_another_page(client):
    body = json.dumps({"model": "tiny", "messages": HELLO, "stream": False, "options": {"num_predict": 1}})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/api/chat", content=body, headers=form).status_code == 200
    foreign = client.post("/api/chat", content=body, headers={**form, "Origin": "https://elsewhere.example"})
    assert foreign.status_code == 403
    assert client.post("/api/chat", content=b"{").status_code == 400


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))
FIELDS = "messages prompt format options think tools images keep_alive logprobs top_logprobs stream system raw".split()
OPTIONS = "num_ctx temperature top_k top_p min_p seed stop repeat_penalty repeat_last_n".split()


@given(
    st.sampled_from(["chat", "generate", "show"]),
    st.dictionaries(st.sampled_from(FIELDS), JSON | st.just(HELLO), max_size=4),
    st.dictionaries(st.sampled_from(OPTIONS), JSON, max_size=3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_breaks_it(client, path, body, options):
    body = {"model": "tiny", "options": {**options, "num_predict": 1}, **body}
    response = client.post(f"/api/{path}", content=json.dumps(body).encode(errors="replace"))
    assert response.status_code < 500, response.text
    assert response.status_code == 200 or isinstance(response.json()["error"], str)


def test_ollamas_own_client_reads_all_of_it(tool_server):
    client = pytest.importorskip("ollama", reason="the ollama client is not installed")
    mine = client.Client(host=tool_server.url)
    [listed] = mine.list().models
    name = listed.model
    assert listed.details.format == "safetensors"
    whole = mine.chat(name, HELLO, options=GREEDY)
    parts = list(mine.chat(name, HELLO, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].done and parts[-1].eval_count == whole.eval_count == 16
    whole = mine.generate(name, "Hello there", options=GREEDY).response
    assert "".join(part.response for part in mine.generate(name, "Hello there", options=GREEDY, stream=True)) == whole
    shown = mine.show(name)
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"] == 1024
    [running] = mine.ps().models
    assert (running.model, running.context_length) == (name, 1024)
    with pytest.raises(client.ResponseError, match="other") as refused:
        mine.chat("other", HELLO)
    assert refused.value.status_code == 404


def test_thinking_and_forms_are_asked_for_in_ollamas_words(tool_server):
    client = pytest.importorskip("ollama", reason="the ollama client is not installed")
    mine = client.Client(host=tool_server.url)
    [listed] = mine.list().models
    thought = mine.chat(listed.model, HELLO, think=True, options=GREEDY).message
    assert thought.thinking and not thought.content
    parts = [part.message.thinking for part in mine.chat(listed.model, HELLO, think=True, options=GREEDY, stream=True)]
    assert "".join(part or "" for part in parts) == thought.thinking
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    schema["additionalProperties"] = False
    options = {"temperature": 1, "seed": 3, "num_predict": 100}
    told = json.loads(mine.chat(listed.model, HELLO, format=schema, options=options).message.content)
    assert isinstance(told["sure"], bool) and len(told) == 1
    assert isinstance(json.loads(mine.generate(listed.model, "a", format=schema, options=options).response), dict)
