"""Calls in every template's own way of writing: whatever a model of random weights would rather say, OpenAI's client
gets the calls that it asked for, whole and streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from jsonschema import validate
from serving import at_port, tiny

# What tokenizers of such models have as tokens of their own.
MARK = re.compile(
    r"<[|｜][^|｜<>]+[|｜]>|\[/?[A-Z_]{3,}\]|</?(?:think|tool_call|tool_response)>|<(?:start|end)_of_turn>"
)
CITIES = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "maximum": 99}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": CITIES, "now": {"type": "object", "properties": {}, "additionalProperties": False}}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [
        {"type": "function", "function": {"name": name, "description": "A tool", "parameters": schema}}
        for name, schema in SCHEMAS.items()
    ],
    "parallel_tool_calls": False,
    "max_tokens": 800,
    "temperature": 1.0,
    "extra_body": {"thinking_token_budget": 4},
}
TEMPLATES = 23


@pytest.fixture(scope="module")
def client(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """Of a server with a tiny model for each template, by its name."""
    models = {}
    for file in sorted((shared / "data/chat_templates").glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        model = tiny(
            tmp_path_factory.mktemp(file.stem), source, sorted({*MARK.findall(source)}), max_position_embeddings=4096
        )
        words = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps({**words, "bos_token": "<|endoftext|>"}))
        models[file.stem] = model
    assert len(models) == TEMPLATES
    with at_port(models) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def whole(client: openai.OpenAI, asked: dict[str, Any]) -> tuple[list[list[str]], str | None]:
    [choice] = client.chat.completions.create(**asked).choices
    calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()]
    assert not choice.message.content, asked["model"]
    return calls, choice.finish_reason


def streamed(client: openai.OpenAI, asked: dict[str, Any]) -> tuple[list[list[str]], str | None]:
    calls: list[list[str]] = []
    reason = None
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for piece in choice.delta.tool_calls or ():
                if piece.id:
                    calls.append([piece.function.name, ""])
                calls[piece.index][1] += piece.function.arguments or ""
    return calls, reason


def test_calls_that_are_asked_for_come_in_every_template(client: openai.OpenAI) -> None:
    for model in (each.id for each in client.models.list()):
        asked = {**ASKED, "model": model, "seed": 1, "tool_choice": "required"}
        calls, reason = whole(client, asked)
        assert (len(calls), reason) == (1, "tool_calls"), (model, calls, reason)
        validate(json.loads(calls[0][1]), SCHEMAS[calls[0][0]])
        assert streamed(client, asked) == (calls, reason), model
        named = {**ASKED, "model": model, "seed": 3}
        named["tool_choice"] = {"type": "function", "function": {"name": "now"}}
        calls, reason = streamed(client, named)
        assert [(name, json.loads(arguments)) for name, arguments in calls] == [("now", {})], model
        assert (calls, reason) == whole(client, named), model
