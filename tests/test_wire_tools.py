"""Tools, forms and reasoning end to end: a model of random weights is held to what was asked, on every wire."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from jsonschema import validate

CITIES = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"get_weather": CITIES, "now": NOTHING}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A tool", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
HELLO = [{"role": "user", "content": "Weather?"}]


@pytest.fixture(scope="module")
def client(tool_server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def chat(client: openai.OpenAI, model: str):
    """One completion's choice, asked for whole and in chunks that must come to the same."""

    def both(**fields: Any) -> Any:
        asked = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 200, **fields}
        choice = client.chat.completions.create(**asked).choices[0]
        calls: dict[int, list[str]] = {}
        content, reason = "", None
        for chunk in client.chat.completions.create(**asked, stream=True):
            for part in chunk.choices:
                content += part.delta.content or ""
                reason = part.finish_reason or reason
                for call in part.delta.tool_calls or ():
                    if call.id is not None:
                        assert call.index == len(calls) and call.type == "function"
                        calls[call.index] = [call.function.name, ""]
                    calls[call.index][1] += call.function.arguments or ""
        told = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()]
        assert (content, reason, [*calls.values()]) == (choice.message.content or "", choice.finish_reason, told)
        return choice

    return both


def fits(calls: Any) -> None:
    assert calls
    for call in calls:
        validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_made_and_fits(chat, seed: int) -> None:
    choice = chat(tools=TOOLS, tool_choice="required", temperature=1.0, seed=seed, parallel_tool_calls=False)
    fits(choice.message.tool_calls)
    assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1
    assert choice.message.tool_calls[0].id.startswith("call_") and choice.message.content is None
    named = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "now"}}, parallel_tool_calls=False)
    assert [(call.function.name, json.loads(call.function.arguments)) for call in named.message.tool_calls] == [
        ("now", {})
    ]


def test_calls_may_be_many_only_where_they_may(chat) -> None:
    biased = {"max_tokens": 300, "temperature": 1.5, "extra_body": {"top_k": 50}}
    counts = {
        len(chat(tools=TOOLS, tool_choice="required", seed=seed, **biased).message.tool_calls) for seed in range(4)
    }
    assert max(counts) > 1


def test_where_the_model_decides_it_may_say_anything(chat) -> None:
    free, none = chat(max_tokens=12), chat(tools=TOOLS, tool_choice="none", max_tokens=12)
    assert none.message.content == free.message.content  # it is not even told of them
    assert not chat(tools=TOOLS, max_tokens=12).message.tool_calls


def test_results_go_back_to_the_model(chat) -> None:
    call = chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False).message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "21"}
    told = chat(tools=TOOLS, messages=[*HELLO, call.model_dump(exclude_none=True), result], max_tokens=12)
    assert told.message.content


@pytest.mark.parametrize("seed", range(3))
def test_forms_are_kept_to(chat, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": CITIES, "strict": True}}
    choice = chat(response_format=form, temperature=1.0, seed=seed)
    validate(json.loads(choice.message.content), CITIES)
    assert choice.finish_reason == "stop"
    both = chat(response_format=form, tools=TOOLS, temperature=1.0, seed=seed, parallel_tool_calls=False)
    if both.message.tool_calls:
        fits(both.message.tool_calls)
    else:
        validate(json.loads(both.message.content), CITIES)
    required = chat(response_format=form, tools=TOOLS, tool_choice="required", seed=seed, parallel_tool_calls=False)
    fits(required.message.tool_calls)


def test_reasoning_is_told_apart(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 12}
    told = client.chat.completions.create(**asked, reasoning_effort="high")
    message, usage = told.choices[0].message, told.usage
    assert not message.content and message.model_extra["reasoning_content"] == message.model_extra["reasoning"]
    assert usage.completion_tokens_details.reasoning_tokens == 12
    for think in ({"reasoning_effort": "none"}, {}):
        told = client.chat.completions.create(**asked, **think)
        assert told.choices[0].message.content and told.usage.completion_tokens_details.reasoning_tokens == 0
    thought = client.responses.create(model=model, input="Weather?", max_output_tokens=12, reasoning={"effort": "high"})
    assert [item.type for item in thought.output] == ["reasoning"]
    assert thought.usage.output_tokens_details.reasoning_tokens == 12


def test_responses_call_tools_and_keep_to_forms(client: openai.OpenAI, model: str) -> None:
    tools = [{"type": "function", **tool["function"], "strict": True} for tool in TOOLS]
    asked = {"model": model, "input": "Weather?", "tools": tools, "temperature": 0, "parallel_tool_calls": False}
    told = client.responses.create(**asked, tool_choice="required")
    [call] = told.output
    assert call.type == "function_call" and call.id.startswith("fc_") and told.status == "completed"
    validate(json.loads(call.arguments), SCHEMAS[call.name])
    with client.responses.stream(**asked, tool_choice={"type": "function", "name": "now"}) as stream:
        types = [event.type for event in stream]
        last = stream.get_final_response()
    assert types[-1] == "response.completed" and "response.function_call_arguments.done" in types
    assert (last.output[0].name, json.loads(last.output[0].arguments)) == ("now", {})
    history = [{"role": "user", "content": "Weather?"}, call.model_dump(exclude_none=True)]
    history += [{"type": "function_call_output", "call_id": call.call_id, "output": "21"}]
    assert client.responses.create(**{**asked, "input": history}, max_output_tokens=8).output_text
    form = {"format": {"type": "json_schema", "name": "a", "schema": CITIES, "strict": True}}
    told = client.responses.create(model=model, input="Weather?", text=form)
    validate(json.loads(told.output_text), CITIES)


def test_messages_call_tools_and_keep_to_forms(tool_server, model: str) -> None:
    client = anthropic.Anthropic(base_url=tool_server.url, api_key="none", max_retries=0)
    tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    asked = {"model": model, "messages": HELLO, "max_tokens": 200, "tools": tools}
    alone = {"disable_parallel_tool_use": True}
    told = client.messages.create(**asked, tool_choice={"type": "any", **alone})
    [call] = told.content
    assert call.type == "tool_use" and call.id.startswith("toolu_") and told.stop_reason == "tool_use"
    validate(call.input, SCHEMAS[call.name])
    with client.messages.stream(**asked, tool_choice={"type": "tool", "name": "now", **alone}) as stream:
        last = stream.get_final_message()
    assert [(block.name, block.input) for block in last.content] == [("now", {})] and last.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21"}
    history = [*HELLO, {"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [result]}]
    assert client.messages.create(**{**asked, "messages": history, "max_tokens": 8}).content[0].text
    form = {"format": {"type": "json_schema", "schema": CITIES}}
    told = client.messages.create(model=model, messages=HELLO, max_tokens=200, output_config=form)
    validate(json.loads(told.content[0].text), CITIES)
    thought = client.messages.create(
        model=model, messages=HELLO, max_tokens=12, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert [block.type for block in thought.content] == ["thinking"] and thought.content[0].thinking
    with client.messages.stream(model=model, messages=HELLO, max_tokens=12, thinking={"type": "adaptive"}) as stream:
        assert stream.get_final_message().content[0].thinking


@pytest.mark.parametrize(
    ("schema", "says"),
    [({"type": "hiccup"}, "hiccup"), ({"type": "string", "pattern": "(?=a)"}, "look"), ({"not": {}}, "not")],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_by_name(
    client: openai.OpenAI, model: str, schema: dict[str, Any], says: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client.chat.completions.create(model=model, messages=HELLO, response_format=form)
    assert caught.value.param == "response_format"
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client.responses.create(
            model=model, input="Hi", text={"format": {"type": "json_schema", "name": "a", "schema": schema}}
        )
    assert caught.value.param == "text.format"
    bad = {
        "type": "function",
        "function": {"name": "bad", "parameters": {"type": "object", "properties": {"a": {"$ref": "#/x"}}}},
    }
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=HELLO, tools=[*TOOLS, bad])
    assert caught.value.param == "tools.2"
