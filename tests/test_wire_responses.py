"""OpenAI's own client against a running server's responses: every field does what it says, streamed or not."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serving import EVENTS

from lathe.server.ask import Ask, Begun, Ended
from lathe.server.wires.responses import Answer
from lathe.server.wires.responses_bodies import ResponsesBody

GREEDY: dict[str, Any] = {"input": "Hello there", "max_output_tokens": 12, "temperature": 0}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
EXTRAS = ("top_k", "min_p", "seed")


@pytest.fixture(scope="module")
def client(tool_server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def ask(client: openai.OpenAI, model: str):
    """One response, asked for twice: whole, and as events that must come to the same."""

    def both(**fields: Any) -> Response:
        fields = {**GREEDY, "model": model, **fields}
        extra = {name: fields.pop(name) for name in list(fields) if name in EXTRAS}
        whole = client.responses.create(**fields, extra_body=extra)
        events = list(client.responses.create(**fields, extra_body=extra, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
        assert events[-1].type == f"response.{whole.status}"
        told, streamed = (bare(each.model_dump()) for each in (whole, events[-1].response))
        assert told == streamed
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert deltas == whole.output_text
        assert whole.id.startswith("resp_") and whole.object == "response"
        return whole

    return both


def bare(told: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from time to time."""
    del told["id"], told["created_at"], told["completed_at"], told["usage"]["input_tokens_details"]
    for item in told["output"]:
        del item["id"]
        item.pop("call_id", None)
    return told


def test_a_response(ask, client: openai.OpenAI, model: str) -> None:
    told = ask()
    assert told.status == "incomplete" and told.incomplete_details.reason == "max_output_tokens"
    assert told.usage.output_tokens == 12 and told.usage.total_tokens == 12 + told.usage.input_tokens
    assert told.output[0].id.startswith("msg_") and told.output[0].role == "assistant" and told.output_text
    as_chat = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello there"}], max_tokens=12, temperature=0
    )
    assert as_chat.choices[0].message.content == told.output_text
    assert as_chat.usage.prompt_tokens == told.usage.input_tokens
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Hello there"}]}]
    assert ask(input=items).output_text == told.output_text
    assert ask(metadata={"a": "b"}).metadata == {"a": "b"}


def test_instructions_and_earlier_items(ask) -> None:
    briefly = ask(instructions="Be brief.")
    items = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
    assert briefly.output_text == ask(input=items).output_text != ask().output_text
    assert briefly.instructions == "Be brief."
    first = ask()
    later = [{"role": "user", "content": "Hello there"}, *first.output, {"role": "user", "content": "And?"}]
    plain = [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And?"},
    ]
    items = [item if isinstance(item, dict) else item.model_dump(exclude_none=True) for item in later]
    assert ask(input=items).output_text == ask(input=plain).output_text


def test_sampling_and_logprobs(ask) -> None:
    free = ask().output_text
    one, same, other = (ask(temperature=1.0, seed=seed).output_text for seed in (1, 1, 2))
    assert one == same != other
    assert ask(temperature=1.0, top_p=1e-9).output_text == ask(temperature=1.0, top_k=1).output_text == free
    told = ask(top_logprobs=2, include=["message.output_text.logprobs"]).output[0].content[0].logprobs
    assert len(told) == 12 and all(len(word.top_logprobs) == 2 for word in told)
    assert b"".join(bytes(word.bytes) for word in told).decode(errors="replace") == free
    assert ask(top_logprobs=0).output[0].content[0].logprobs == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input.0.id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "["}]}, "input.0.arguments"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**{"model": model, **GREEDY, **fields}, stream=stream)
        assert caught.value.param is not None and caught.value.param.startswith(param)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**{**GREEDY, "model": "no such model"})


# ---------------------------------------------------------------- bodies and events, without a model


def body(**fields: Any) -> ResponsesBody:
    return ResponsesBody.model_validate({"input": "Hi", **fields})


def asked(**fields: Any) -> Ask:
    told = body(**fields)
    return told.ask(told.items(lambda id: None))


def test_items_become_messages() -> None:
    items = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "get_weather",
            "arguments": '{"city": "Oslo"}',
        },
        {"type": "function_call", "call_id": "call_2", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "21"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "no"}]},
    ]
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}},
        {"id": "call_2", "type": "function", "function": {"name": "get_weather", "arguments": {}}},
    ]
    assert asked(input=items, instructions="Be brief.").prompt == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "21"},
        {"role": "tool", "tool_call_id": "call_2", "content": "no"},
    ]


def test_tools_forms_and_reasoning_become_those_of_an_ask() -> None:
    ask = asked(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert (ask.choice.mode, ask.choice.parallel, ask.tools[0].name) == ("required", False, "get_weather")
    other = {**WEATHER, "name": "other"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
    assert [tool.name for tool in asked(tools=[WEATHER, other], tool_choice=allowed).tools] == ["other"]
    formed = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    ask = asked(text={"format": formed}, reasoning={"effort": "none"})
    assert ask.form is not None and (ask.form.kind, ask.form.field, ask.think) == ("schema", "text.format", False)
    ask = asked(text={"format": {"type": "json_object"}}, reasoning={"effort": "high", "summary": "auto"})
    assert ask.form is not None and ask.form.kind == "json" and ask.think and ask.effort == "high"
    assert asked(text={"format": {"type": "text"}}).form is None


def test_events_are_told_in_openais_order() -> None:
    answer = Answer(body(tools=[WEATHER]), "tiny")
    frames = [frame for event in EVENTS for frame in answer.frames(0, event)] + list(answer.last())
    told = [json.loads(frame.split("data: ")[1]) for frame in frames]
    types = [each["type"].removeprefix("response.") for each in told]
    assert types == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for each in told:
        assert events.validate_python(each).type == each["type"]
    last = told[-1]["response"]
    assert last["usage"]["output_tokens_details"]["reasoning_tokens"] == 3
    assert last["usage"]["input_tokens_details"]["cached_tokens"] == 8
    assert [item["type"] for item in last["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["status"] for item in last["output"]] == ["completed"] * 4
    assert last["output"][2]["arguments"] == '{"city": "Oslo"}' and last["output"][2]["call_id"] == "call_a"
    whole = Answer(body(tools=[WEATHER]), "tiny").whole((0, event) for event in EVENTS)
    assert bare(json.loads(json.dumps(whole))) == bare(last)
    nothing = Answer(body(), "tiny").whole([(0, Begun(3)), (0, Ended(0, "stop", 1))])
    assert nothing["output"][0]["content"][0]["text"] == "" and nothing["status"] == "completed"


def test_progress_and_times_are_told_where_asked(tool_server, model: str) -> None:
    asked = {
        "input": "Hello",
        "max_output_tokens": 3,
        "stream": True,
        "return_progress": True,
        "timings_per_token": True,
    }
    raw = tool_server.client.post("/responses", json=asked).text
    told = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: ")]
    assert any("prompt_progress" in each for each in told) and "timings" in told[-1]
    assert all("timings" in each for each in told if each["type"] == "response.output_text.delta")
