"""Tools, forms and reasoning by OpenAI's client: what is asked for is what comes, whatever a model would rather say.

The model has random weights: whatever is well formed in its answers, the server has held it to.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any, Literal

import openai
import pytest
from jsonschema import validate
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 120}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "get_time"}}
EXTRAS = frozenset("structured_outputs guided_regex guided_choice guided_json grammar json_schema".split()) | {
    "thinking_token_budget",
    "reasoning_budget_tokens",
}


@pytest.fixture(scope="module")
def client(tool_server) -> openai.OpenAI:
    """Of a model whose template knows tools and reasoning."""
    return openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def plain(server) -> openai.OpenAI:
    """Of a model that has neither."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def chat(client: openai.OpenAI):
    return partial(both, client)


@pytest.fixture
def write(plain: openai.OpenAI):
    return partial(both, plain)


def both(client: openai.OpenAI, **fields: Any):
    """One answer, asked for twice: whole, and in chunks that must come to the same."""
    fields = {**GREEDY, "model": "model", **fields}
    extra = {name: fields.pop(name) for name in list(fields) if name in EXTRAS}
    [whole] = client.chat.completions.create(**fields, extra_body=extra).choices
    chunks = list(client.chat.completions.create(**fields, extra_body=extra, stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [whole.finish_reason]
    assert "".join(delta.content or "" for delta in deltas) == (whole.message.content or "")
    for name in ("reasoning", "reasoning_content"):  # by either name
        told = "".join((delta.model_extra or {}).get(name) or "" for delta in deltas)
        assert told == (whole.message.model_extra.get(name) or "")
    calls = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()]
    assert joined(deltas) == calls
    return whole


def joined(deltas) -> list[tuple[str, str]]:
    """The calls of a stream: the first piece of each has its id, type and name, the others more of its arguments."""
    calls: list[list[str]] = []
    for piece in (piece for delta in deltas for piece in delta.tool_calls or ()):
        if piece.index == len(calls):
            assert piece.id and piece.type == "function" and piece.function.name
            calls.append([piece.function.name, piece.function.arguments or ""])
        else:
            assert piece.index == len(calls) - 1 and piece.id is None and piece.function.name is None
            calls[-1][1] += piece.function.arguments
    return [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_that_is_required_comes_and_fits(chat, parallel: bool) -> None:
    told = chat(tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=parallel)
    calls = told.message.tool_calls
    assert calls and (parallel or len(calls) == 1)
    if told.finish_reason != "length":
        assert told.finish_reason == "tool_calls"
        for call in calls:
            arguments = json.loads(call.function.arguments)
            validate(arguments, CITY if call.function.name == "get_weather" else {"type": "object"})
    assert len({call.id for call in calls}) == len(calls)


def test_the_call_that_is_named_comes(chat) -> None:
    told = chat(tools=[WEATHER, TIME], tool_choice=NAMED)
    assert {call.function.name for call in told.message.tool_calls} == {"get_time"}


def test_no_call_comes_where_none_is_wanted(chat) -> None:
    told = chat(tools=[WEATHER], tool_choice="none", max_tokens=20)
    assert told.message.tool_calls is None and told.finish_reason == "length"
    assert chat(tools=[WEATHER], max_tokens=20).finish_reason == "length"  # left to itself, the model does not call


def test_calls_and_their_results_go_back_in(client: openai.OpenAI, chat) -> None:
    told = chat(tools=[WEATHER, TIME], tool_choice=NAMED).message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "noon"} for call in told.tool_calls]
    history = [*HELLO, told.model_dump(exclude_none=True), *results, {"role": "user", "content": "So?"}]
    for call in history[1]["tool_calls"]:
        call["function"]["arguments"] = "{}"  # the model may have been cut short in the midst of them
    again = chat(messages=history, tools=[WEATHER, TIME], max_tokens=5)
    assert again.finish_reason == "length"
    broken = json.loads(json.dumps(history))
    broken[1]["tool_calls"][0]["function"]["arguments"] = "{"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="model", messages=broken)
    assert refused.value.param == "messages.1.tool_calls.0.function.arguments"


class Weather(BaseModel):
    city: Literal["Paris", "Oslo"]
    days: int


def test_the_client_parses_what_it_asked_for(client: openai.OpenAI, plain: openai.OpenAI) -> None:
    fields = {**GREEDY, "model": "model", "seed": 3}
    parsed = plain.chat.completions.parse(**fields, response_format=Weather)
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    with plain.chat.completions.stream(**fields, response_format=Weather) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
    tool = openai.pydantic_function_tool(Weather)
    called = client.chat.completions.parse(**fields, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": CITY}}}, CITY),
        ({"response_format": {"type": "json_object", "schema": CITY}}, CITY),
        ({"json_schema": CITY}, CITY),
        ({"guided_json": CITY}, CITY),
        ({"structured_outputs": {"json": CITY}}, CITY),
        ({"guided_regex": "[ab]{3}c"}, r"[ab]{3}c"),
        ({"structured_outputs": {"regex": "[ab]{3}c"}}, r"[ab]{3}c"),
        ({"guided_choice": ["a.b", "(c)"]}, r"a\.b|\(c\)"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, r"yes|no"),
        ({"grammar": 'root ::= "a"{5,5} [xy]'}, r"a{5}[xy]"),
        ({"structured_outputs": {"grammar": 'start: "a" /b+c/'}}, r"ab+c"),
    ],
)
def test_the_text_is_what_it_must_be(write, asked: dict[str, Any], fits: Any) -> None:
    told = write(**asked, logprobs=True)
    assert told.finish_reason == "stop"
    if isinstance(fits, str):
        assert re.fullmatch(fits, told.message.content)
    else:
        validate(json.loads(told.message.content), fits)


def test_any_object_is_one_as_far_as_it_goes(write) -> None:
    told = write(response_format={"type": "json_object"})
    assert told.message.content.lstrip().startswith("{")
    if told.finish_reason == "stop":
        assert isinstance(json.loads(told.message.content), dict)
    assert write(response_format={"type": "text"}, max_tokens=4) == write(max_tokens=4)


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_object", "schema": {"type": "hiccup"}}},
        {"json_schema": {"type": 5}},
        {"guided_regex": "("},
        {"grammar": "root ::= this is (not valid"},
        {"guided_grammar": "start: unknown_rule"},
        {"guided_json": {}, "guided_regex": "a"},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "hiccup"}}}],
            "tool_choice": "required",
        },
        {"tools": [TIME, TIME]},
        {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "nobody"}}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_is_none_is_refused(tool_server, asked: dict[str, Any], stream: bool) -> None:
    answer = tool_server.client.post("/v1/chat/completions", json={**GREEDY, **asked, "stream": stream})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_reasoning_is_told_apart(chat) -> None:
    told = chat(reasoning_effort="high", max_tokens=20)
    assert told.message.model_extra["reasoning"] and not told.message.content  # the template has begun it
    plain = chat(reasoning_effort="none", max_tokens=20)
    assert plain.message.content and "reasoning" not in plain.message.model_extra


@pytest.mark.parametrize(
    "asked", [{"thinking_token_budget": 5}, {"reasoning_budget_tokens": 5}, {"reasoning_effort": "low"}]
)
def test_reasoning_has_an_end(chat, asked: dict[str, Any]) -> None:
    """A budget in tokens; or an effort, which is a part of the answer where the template does not know the word."""
    told = chat(**{"reasoning_effort": "max", **asked}, max_tokens=25)
    thought = told.message.model_extra["reasoning"]
    assert told.message.content and told.finish_reason == "length"
    free = chat(reasoning_effort="max", max_tokens=25).message.model_extra["reasoning"]
    assert free.startswith(thought) and len(thought) < len(free)
    forced = chat(**{"reasoning_effort": "max", **asked}, tools=[TIME], tool_choice=NAMED)
    assert forced.message.model_extra["reasoning"] and forced.message.tool_calls


def test_a_model_that_does_not_reason_says_so(server, tool_server) -> None:
    body = {**GREEDY, "max_tokens": 1, "reasoning_effort": "high"}
    told = [each.client.post("/v1/chat/completions", json=body).headers for each in (server, tool_server)]
    assert [json.loads(headers.get("x-lathe-unknown-fields", "[]")) for headers in told] == [["reasoning_effort"], []]


def test_reasoning_is_counted(client: openai.OpenAI) -> None:
    asked = {**GREEDY, "max_tokens": 9, "extra_body": {"thinking_token_budget": 9}}
    told = client.chat.completions.create(model="model", **asked, reasoning_effort="max")
    assert told.usage.completion_tokens_details.reasoning_tokens == told.usage.completion_tokens == 9
