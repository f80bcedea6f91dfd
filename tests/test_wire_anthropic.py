"""Anthropic's own client against a running server: every field does what it says, streamed or not, or is refused."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from serving import EVENTS

from lathe.server.ask import Begun, Ended
from lathe.server.wires.anthropic import Answer
from lathe.server.wires.anthropic_bodies import MessagesBody

HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0}
WEATHER = {
    "name": "get_weather",
    "description": "Weather",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Oslo"]},
            "days": {"type": "integer", "maximum": 9, "minimum": 0},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(tool_server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=tool_server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(tool_server) -> str:
    return tool_server.client.get("/v1/models").json()["data"][0]["id"]


@pytest.fixture
def ask(client: anthropic.Anthropic, model: str):
    """One message, asked for twice: whole, and as events that must come to the same."""

    def both(**fields: Any) -> anthropic.types.Message:
        fields = {**GREEDY, "model": model, **fields}
        extra = {name: fields.pop(name) for name in list(fields) if name in ("temperature", "top_k", "top_p", "seed")}
        whole = client.messages.create(**fields, extra_body=extra)
        with client.messages.stream(**fields, extra_body=extra) as stream:
            events = list(stream)
            last = stream.get_final_message()
        types = [event.type for event in events if event.type in ORDER]
        assert types[0] == "message_start" and types[-2:] == ["message_delta", "message_stop"]
        told, streamed = (each.model_dump() for each in (whole, last))
        for each in (told, streamed):
            each.pop("id")
            each["usage"].pop("cache_read_input_tokens"), each["usage"].pop("input_tokens")
            for block in each["content"]:
                block.pop("id", None)
        assert told == streamed
        assert whole.id.startswith("msg_") and whole.type == "message" and whole.role == "assistant"
        return whole

    return both


def test_models_are_listed_and_found_as_the_client_wants_them(client, tool_server) -> None:
    told = tool_server.client.get("/v1/models").json()
    page = client.models.list()
    found = list(page)  # which asks for more pages where there are any
    assert [each.id for each in found] == [each["id"] for each in told["data"]] and not page.has_next_page()
    assert (page.first_id, page.last_id, page.has_more) == (found[0].id, found[-1].id, False)
    for each, raw in zip(found, told["data"], strict=True):
        anthropic.types.ModelInfo.model_validate_json(json.dumps(raw), strict=True)
        assert (each.type, each.display_name, each.lifecycle) == ("model", each.id, "active")
        assert each.created_at.timestamp() == raw["created"] and each.max_input_tokens == raw["max_model_len"]
        assert client.models.retrieve(each.id) == each
    with pytest.raises(anthropic.NotFoundError, match="none"):
        client.models.retrieve("none")


ORDER = {
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
}


def text(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message(ask, client: anthropic.Anthropic, model: str) -> None:
    told = ask()
    assert text(told) and told.stop_reason == "max_tokens" and told.usage.output_tokens == 12 and told.model == model
    counted = client.messages.count_tokens(model=model, messages=HELLO)
    assert counted.input_tokens == told.usage.input_tokens + told.usage.cache_read_input_tokens
    assert text(ask(max_tokens=5)) == text(told)[: len(text(ask(max_tokens=5)))]


def test_a_system_message_counts(client: anthropic.Anthropic, model: str, ask) -> None:
    bare = client.messages.count_tokens(model=model, messages=HELLO).input_tokens
    for system in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        assert client.messages.count_tokens(model=model, messages=HELLO, system=system).input_tokens > bare
        assert text(ask(system=system)) == text(ask(system="Be brief.")) != text(ask())
    more = client.messages.count_tokens(model=model, messages=HELLO, tools=[WEATHER]).input_tokens
    assert more > bare + 50
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]}]
    joined = [{"role": "user", "content": "Hello\nthere"}]
    assert text(ask(messages=parts)) == text(ask(messages=joined))


def test_sampling(ask) -> None:
    free = text(ask())
    assert (
        text(ask(temperature=1.0, seed=1)) == text(ask(temperature=1.0, seed=1)) != text(ask(temperature=1.0, seed=2))
    )
    assert text(ask(temperature=1.0, top_k=1)) == text(ask(temperature=1.0, top_p=1e-9)) == free


def test_stop_sequences(ask) -> None:
    free = text(ask())
    stop = free[6:9]
    told = ask(stop_sequences=[stop, "never said"])
    assert text(told) == free[: free.index(stop)]
    assert told.stop_reason == "stop_sequence" and told.stop_sequence == stop


def test_a_begun_answer_goes_on(ask) -> None:
    free = text(ask())
    begun = [*HELLO, {"role": "assistant", "content": free[:10].rstrip()}]
    assert free.startswith(free[:10].rstrip()) and text(ask(messages=begun))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"extra_body": {"container": "abc"}}, "container"),
        ({"extra_body": {"mcp_servers": [{}]}}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]},
            "tool_use",
        ),
        ({"messages": [{"role": "user", "content": "long " * 2000}]}, "context"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: anthropic.Anthropic, model: str, fields: dict[str, Any], named: str
) -> None:
    asked = {"model": model, "messages": HELLO, "max_tokens": 5, **fields}
    temperature = {"temperature": asked.pop("temperature")} if "temperature" in asked else {}
    extra = {**asked.pop("extra_body", {}), **temperature}
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(**asked, stream=stream, extra_body=extra)
        body = caught.value.body
        assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
        assert named in body["error"]["message"]


def test_errors_have_anthropics_shape(client: anthropic.Anthropic, tool_server) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="no such model", messages=HELLO, max_tokens=5)
    assert caught.value.body["error"]["type"] == "not_found_error"
    raw = tool_server.client.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert raw.status_code == 400 and raw.json()["type"] == "error"
    told = client.messages.with_raw_response.create(
        model=tool_server.client.get("/v1/models").json()["data"][0]["id"],
        messages=HELLO,
        max_tokens=1,
        extra_body={"wibble": 1, "metadata": {"user_id": "a"}, "thinking": {"type": "enabled", "budget_tokens": 1024}},
    )
    assert json.loads(told.headers["x-lathe-unknown-fields"]) == ["wibble"]


# ---------------------------------------------------------------- bodies and events, without a model


def asked(**fields: Any) -> Any:
    return MessagesBody.model_validate({"max_tokens": 5, "messages": HELLO, **fields}).ask()


def test_blocks_become_messages() -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "21"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [{"type": "text", "text": "no"}],
                    "is_error": True,
                },
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    ask = asked(messages=messages, system="Be brief.")
    calls = [
        {"id": f"toolu_{at}", "type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        for at, city in ((1, "Oslo"), (2, "Paris"))
    ]
    assert ask.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "21"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": '{"error": "no"}'},
        {"role": "user", "content": "Well?"},
    ]


def test_tools_and_thinking_become_those_of_an_ask() -> None:
    ask = asked(tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert (ask.choice.mode, ask.choice.name, ask.choice.parallel) == ("required", None, False)
    assert ask.tools[0].parameters == WEATHER["input_schema"] and ask.think is None and not ask.continues
    named = asked(tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"}, thinking={"type": "disabled"})
    assert named.choice.name == "get_weather" and named.think is False
    formed = asked(output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}})
    assert formed.form.kind == "schema" and formed.effort == "low"
    thinks = asked(thinking={"type": "enabled", "budget_tokens": 1024}, tool_choice={"type": "none"})
    assert (thinks.think, thinks.thought) == (True, 1024)


def test_events_are_told_in_anthropics_order() -> None:
    answer = Answer("tiny", hides=False)
    frames = [frame for event in EVENTS for frame in answer.frames(0, event)] + list(answer.last())
    bodies = [json.loads(frame.split("data: ")[1]) for frame in frames]
    assert all(frame.startswith(f"event: {body['type']}\ndata: ") for frame, body in zip(frames, bodies, strict=True))
    assert [body["type"].removeprefix("content_block_") for body in bodies] == [
        "message_start",
        *("start", "delta", "delta", "delta", "stop"),  # the last delta is the signature
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "stop"),
        "message_delta",
        "message_stop",
    ]
    assert bodies[0]["message"]["usage"] | {"output_tokens": 0} == bodies[0]["message"]["usage"]
    assert (bodies[0]["message"]["usage"]["input_tokens"], bodies[0]["message"]["content"]) == (12, [])
    starts = [body["content_block"] for body in bodies if body["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert starts[2] == {"type": "tool_use", "id": "toolu_a", "name": "get_weather", "input": {}}
    whole = Answer("tiny", hides=False).whole((0, event) for event in EVENTS)
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "toolu_a", "name": "get_weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "toolu_b", "name": "now", "input": {}},
    ]
    assert whole["stop_reason"] == "tool_use" and whole["usage"]["output_tokens"] == 9
    hidden = Answer("tiny", hides=True).whole((0, event) for event in EVENTS)
    assert hidden["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}
    nothing = Answer("tiny", hides=False).whole([(0, Begun(3)), (0, Ended(0, "stop", 1))])
    assert nothing["content"] == [{"type": "text", "text": ""}] and nothing["stop_reason"] == "end_turn"
