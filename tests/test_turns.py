"""How models write their turns: found from real templates, and read back the same however the text is cut."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lathe.tokenizer.template import Template
from lathe.tokenizer.turns import HARMONY, Calls, Reasoning, Turns
from lathe.tokenizer.turns_history import dressed
from lathe.tokenizer.turns_learning import learn
from lathe.tokenizer.turns_parsing import Call, Delta, Parser, Text

ENDS = ("</s>", "<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<end_of_turn>", "<|end_of_text|>", "<|end|>")
THINK = Reasoning("<think>", "</think>")
HERMES = Calls("json", "", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
TOOLS: Mapping[str, Mapping[str, Any]] = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "run": {"type": "object", "properties": {"code": {"type": "string"}}},
}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": 'Zürich "old" town 🏔', "days": 3, "flags": [True, None, {"a": -1.5}], "more": {"b": {}}}),
    ("run", {"code": "  if x < 1:\n    print('<b>\\n</b>')\n\n"}),
]


def render(source: str) -> Callable[..., str]:
    template = Template(source)
    given = {"bos_token": "<s>", "eos_token": "</s>", "now": datetime(2025, 1, 31)}
    return lambda messages, **more: template.render(messages, **{**given, **more}).text


@cache
def found(source: str) -> Turns:
    return learn(render(source), source, ends=ENDS)


def read(turns: Turns, pieces: Sequence[str], tools: Any = TOOLS, opened: bool = False) -> dict[str, Any]:
    """What a parser makes of an answer that comes in these pieces."""
    parser = Parser(turns, tools, opened=opened, ids=iter("abcdefgh").__next__)
    deltas: list[Delta] = [delta for piece in pieces for delta in parser.push(piece)] + parser.flush()
    said: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    for delta in deltas:
        if isinstance(delta, Text):
            assert delta.text and "".join(pieces)[delta.start :].startswith(delta.text)
            said[delta.kind] += delta.text
        elif delta.name is not None:
            assert delta.index == len(said["calls"])
            said["calls"].append([delta.name, delta.arguments])
        else:
            assert delta.index == len(said["calls"]) - 1 and delta.arguments
            said["calls"][-1][1] += delta.arguments
    return said


def cuts(text: str) -> Iterator[list[str]]:
    """The text as a whole, cut at every byte, and byte by byte."""
    data = text.encode()
    for parts in [
        [data],
        *([data[:at], data[at:]] for at in range(len(data))),
        [data[at : at + 1] for at in range(len(data))],
    ]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        yield [decoder.decode(part) for part in parts]


def same(turns: Turns, text: str, **given: Any) -> dict[str, Any]:
    """What the answer says, the same for every cut."""
    whole = read(turns, [text], **given)
    for pieces in cuts(text):
        assert read(turns, pieces, **given) == whole, pieces
    return whole


def called(said: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in said["calls"]]


# ---------------------------------------------------------------- real templates


@pytest.fixture(scope="session")
def sources(shared: Path) -> dict[str, str]:
    """Template -> its source."""
    known = {file.stem: file.read_text(encoding="utf-8") for file in (shared / "data/chat_templates").glob("*.jinja")}
    for name in ("minimind", "qwen2.5", "qwen3", "phi-3-mini"):
        config = json.loads((shared / f"data/tokenizers/{name}/tokenizer_config.json").read_bytes())
        known[f"tokenizers/{name}"] = config["chat_template"]
    return known


# template -> form of its calls, what begins them, whether it tells of tools, reasoning, switch
REAL = {
    "deepseek-r1-distill-qwen": ("named", "<｜tool▁calls▁begin｜>", False, THINK, "enable_thinking"),
    "deepseekv3": ("named", "<｜tool▁calls▁begin｜>", False, THINK, None),
    "granite-3.3": ("json", '<|tool_call|>[{"name": "', True, THINK, "thinking"),
    "llama3_1": ("json", '{"name": "', True, None, None),
    "llama3_2": ("json", '{"name": "', True, None, None),
    "mistral-nemo": ("json", '[TOOL_CALLS][{"name": "', True, None, None),
    "mistral-v3-spm": ("json", '[TOOL_CALLS] [{"name": "', True, None, None),
    "qwen2_5": ("json", '<tool_call>\n{"name": "', True, None, None),
    "qwen3": ("json", '<tool_call>\n{"name": "', True, THINK, "enable_thinking"),
    "qwen3_instruct_2507": ("json", '<tool_call>\n{"name": "', True, None, None),
    "qwen3_training": ("json", '<tool_call>\n{"name": "', True, THINK, "enable_thinking"),
    "smollm3": ("json", '<tool_call>\n{"name": "', True, THINK, "enable_thinking"),
    "tokenizers/minimind": ("json", '<tool_call>\n{"name": "', True, THINK, "open_thinking"),
    "tokenizers/qwen2.5": ("json", '<tool_call>\n{"name": "', True, None, None),
    "tokenizers/qwen3": ("json", '<tool_call>\n{"name": "', True, THINK, "enable_thinking"),
}


def test_every_template_says_how_its_model_writes(sources: dict[str, str]) -> None:
    assert len(sources) == 27 and REAL.keys() < sources.keys()
    for name, source in sources.items():
        turns = found(source)
        # Of one that knows neither tools nor thoughts: what most write, and somebody else must tell of tools.
        form, begins, told, reasoning, switch = REAL.get(name, ("json", '<tool_call>\n{"name": "', False, None, None))
        calls = turns.calls
        assert calls and (calls.form, calls.told) == (form, told), name
        assert (calls.opening + calls.before).startswith(begins), name
        assert (turns.reasoning, turns.switch) == (reasoning, switch), name


def written(source: str, turns: Turns, asked: Sequence[tuple[str, dict[str, Any]]], **said: Any) -> str | None:
    """An answer with calls as its template writes it into the history, up to the end of the turn."""
    ids = {"any": ["call_1", "call_2"], "short": ["abcdefgh1", "abcdefgh2"]}
    calls = []
    for at, (name, arguments) in enumerate(asked):
        id = ids.get(turns.history.ids, [f"functions.{name}:{at}"] * 2)[at]
        given = arguments if turns.history.objects else json.dumps(arguments, ensure_ascii=False)
        calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": given}})
    user = {"role": "user", "content": "USER"}
    answer = {"role": "assistant", "content": "" if turns.history.blank else None, "tool_calls": calls, **said}
    schemas = [
        {"type": "function", "function": {"name": n, "description": "", "parameters": p}} for n, p in TOOLS.items()
    ]
    more = {"tools": schemas}
    text = render(source)([user, answer], add_generation_prompt=False, **more).rpartition("USER")[2]
    opening = render(source)([user], **more).rpartition("USER")[2]
    cut = next(at for at in range(len(text)) if not opening.startswith(text[: at + 1]))
    begin = text.rfind("<", 0, cut) if text[:cut].rfind("<") > text[:cut].rfind(">") else cut
    ends = [at for end in ENDS if (at := text.find(end, begin)) >= 0]
    return text[begin : min(ends)] if ends else text[begin:]


@pytest.mark.parametrize("name", [name for name in REAL if name not in ("granite-3.3", "smollm3")])
def test_calls_as_a_template_writes_them_are_read_back(sources: dict[str, str], name: str) -> None:
    turns = found(sources[name])
    assert turns.calls is not None
    asked = ASKED if turns.calls.several else ASKED[:1]
    text = written(sources[name], turns, asked)
    assert text and called(same(turns, text)) == asked
    for call in asked:
        one = written(sources[name], turns, [call])
        assert one and called(same(turns, one)) == [call]


def test_reasoning_and_answers_as_a_template_writes_them_are_read_back(sources: dict[str, str]) -> None:
    for name in ("qwen3", "qwen3_training", "tokenizers/minimind"):
        turns = found(sources[name])
        user, thought = {"role": "user", "content": "Hi"}, "It is\n\n  a greeting."
        answer = {"role": "assistant", "content": "Hello!\n\nYou.", turns.history.thoughts: thought}
        text = render(sources[name])([user, answer], add_generation_prompt=False).rpartition("assistant\n")[2]
        said = same(turns, text.removesuffix("<|im_end|>\n"))
        assert said == {"content": "Hello!\n\nYou.", "reasoning": thought, "calls": []}


def test_whether_the_prompt_opens_the_thought(sources: dict[str, str]) -> None:
    hello = [{"role": "user", "content": "Hello <think>"}]
    for name, words, opened in [
        ("qwen3", {}, False),
        ("qwen3", {"enable_thinking": False}, False),
        ("deepseek-r1-distill-qwen", {"enable_thinking": True}, True),
        ("deepseek-r1-distill-qwen", {"enable_thinking": False}, False),
        ("deepseekv3", {}, True),
        ("tokenizers/minimind", {"open_thinking": True}, True),
        ("smollm3", {}, False),
        ("llama3_1", {}, False),
    ]:
        turns = found(sources[name])
        prompt = render(sources[name])(hello, **words)
        assert turns.opened(prompt) is opened, name
        assert turns.closed(prompt) is ((words != {} and not opened) or name == "llama3_1"), name
        if turns.reasoning:
            assert turns.opening and turns.opened(f"{prompt}<think>\nSo") and turns.closed(f"{prompt}</think> So"), name
    assert same(turns, "Well <think>.</think> So.", opened=False)["content"] == "Well <think>.</think> So."
    turns = found(sources["deepseekv3"])
    assert same(turns, "Hm. <think>\n</think>\n\nSo. </think>", opened=True) == {
        "content": "So. </think>",
        "reasoning": "Hm. <think>",
        "calls": [],
    }
    assert same(turns, "Hm", opened=True) == {"content": "", "reasoning": "Hm", "calls": []}


# ---------------------------------------------------------------- every way of writing a call


def looped(call: str, opening: str = "", separator: str = "", closing: str = "", argument: str = "") -> str:
    """A template in whose history calls are written so: {{ name }}, {{ arguments }} and {{ at }} stand in `call`, and
    {{ key }} and {{ value }} in `argument`."""
    loop = f"{{% for key, value in arguments.items() %}}{argument}{{% endfor %}}" if argument else ""
    return (
        "{%- macro said(value) -%}{{ value if value is string else value | tojson }}{%- endmacro -%}"
        "{%- macro loose(value) -%}{%- if value is string -%}<|q|>{{ value }}<|q|>{%- elif value is mapping -%}"
        "{ {%- for k, v in value.items() -%}{{ k }}:{{ loose(v) }}{{ ',' if not loop.last }}{%- endfor -%} }"
        "{%- elif value is iterable -%}[{%- for v in value -%}{{ loose(v) }}{{ ',' if not loop.last }}{%- endfor -%}]"
        "{%- else -%}{{ value | tojson }}{%- endif -%}{%- endmacro -%}"
        "{%- if tools %}{{ tools | tojson }}{% endif -%}"
        "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content or '' }}"
        f"{{%- if m.tool_calls -%}}{{{{ {opening!r} }}}}{{%- for c in m.tool_calls -%}}"
        "{%- set name = c.function.name -%}{%- set arguments = c.function.arguments -%}{%- set at = loop.index0 -%}"
        f"{call.replace('ARGUMENTS', loop)}"
        f"{{{{ '' if loop.last else {separator!r} }}}}{{%- endfor -%}}{{{{ {closing!r} }}}}{{%- endif -%}}<|end|>"
        "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
    )


JSON_CALL = """{{ '{"name": "' + name + '", "arguments": ' + arguments | tojson + '}' }}"""
WAYS = {
    "hermes": (looped("<tool_call>\n" + JSON_CALL + "{{ '\n</tool_call>' }}", separator="\n"), "json", "<tool_call>"),
    "mistral list": (looped(JSON_CALL, "[TOOL_CALLS][", ", ", "]"), "json", "[TOOL_CALLS]"),
    "mistral names": (looped("[TOOL_CALLS]{{ name }}[CALL_ID]{{ c.id }}[ARGS]{{ arguments | tojson }}"), "named", ""),
    "kimi": (
        looped(
            "<|call_begin|>functions.{{ name }}:{{ at }}<|argument|>{{ arguments | tojson }}<|call_end|>",
            "<|calls_begin|>",
            "",
            "<|calls_end|>",
        ),
        "named",
        "<|calls_begin|>",
    ),
    "deepseek": (
        looped("<｜begin｜>{{ name }}<｜sep｜>{{ arguments | tojson }}<｜call▁end｜>", "<｜calls｜>", "", "<｜end｜>"),
        "named",
        "<｜calls｜>",
    ),
    "functionary": (looped("<function={{ name }}>{{ arguments | tojson }}</function>"), "named", "<function="),
    "only key": (looped("{{ {name: arguments} | tojson }}", "<|tools|>[", ", ", "]<|tools_end|>"), "json", "<|tools|>"),
    "qwen3-coder": (
        looped(
            "<tool_call>\n<function={{ name }}>\nARGUMENTS</function>\n</tool_call>",
            "",
            "\n",
            "",
            "<parameter={{ key }}>\n{{ said(value) }}\n</parameter>{{ '\n' }}",
        ),
        "tagged",
        "<tool_call>",
    ),
    "glm": (
        looped(
            "<tool_call>{{ name }}{{ '\n' }}ARGUMENTS</tool_call>",
            "",
            "\n",
            "",
            "<arg_key>{{ key }}</arg_key>\n<arg_value>{{ said(value) }}</arg_value>{{ '\n' }}",
        ),
        "tagged",
        "<tool_call>",
    ),
    "typed": (
        looped(
            '<invoke name="{{ name }}">\nARGUMENTS</invoke>{{ "\n" }}',
            "<calls>\n",
            "",
            "</calls>",
            '<parameter name="{{ key }}" string="{{ "true" if value is string else "false" }}">'
            "{{ said(value) }}</parameter>{{ '\n' }}",
        ),
        "tagged",
        "<calls>",
    ),
    "gemma": (looped("<start_call>call:{{ name }}{{ loose(arguments) }}<end_call>"), "loose", "<start_call>"),
    "python": (
        looped(
            "{{ name }}(ARGUMENTS)",
            "<|calls|>[",
            ", ",
            "]<|calls_end|>",
            "{{ key }}={{ value | tojson }}{{ ', ' if not loop.last }}",
        ),
        "python",
        "<|calls|>",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_calls_is_found_and_read(way: str) -> None:
    source, form, begins = WAYS[way]
    turns = found(source)
    assert turns.calls and turns.calls.form == form and turns.calls.several and turns.calls.told
    assert (turns.calls.opening + turns.calls.before).startswith(begins)
    for asked in (ASKED, ASKED[:1], ASKED[1:], [("run", {})]):
        text = written(source, turns, asked)
        assert text
        said = same(turns, text)
        assert called(said) == asked and said["content"] == ""
        said = same(turns, f"Let me see. \n\n{text}\n\nWell?")
        assert called(said) == asked and said["content"] == "Let me see.Well?"
        assert read(turns, [text], tools=None)["content"] == text.rstrip()  # nobody asked for calls


def test_harmony() -> None:
    turns = found("{{ '<|start|><|channel|><|message|>' }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert turns.calls and turns.calls.form == "harmony"
    text = (
        "<|channel|>analysis<|message|>Weather. \nSo:<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "I will look. <|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json"
        '<|message|>{"city": "Oslo"}<|call|>'
    )
    said = same(turns, text)
    assert called(said) == [("get_weather", {"city": "Oslo"})]
    assert said["reasoning"] == "Weather. \nSo:" and said["content"] == "I will look. "
    said = same(turns, "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Hi <b>")
    assert said == {"reasoning": "a", "content": "Hi <b>", "calls": []}
    assert turns.kept({"<|channel|>", "<|end|>", "<pad>"}, tools=False) == {"<|channel|>", "<|end|>"}
    assert "<|start|>" in HARMONY


# ---------------------------------------------------------------- what is no call


@pytest.mark.parametrize(
    "text",
    [
        "a < b, <tool_ca",
        "See <tool_call> in the manual.",
        '<tool_call>\n{"city": "Oslo"}\n</tool_call>',
        '<tool_call>{"name": 3}',
        "<tool_call>",
        "  indented\n\n",
        "[TOOL_CALLS]",
        "{}",
        '{"name": "Bob", "arguments": {}} is JSON',
    ],
)
def test_what_only_looks_like_a_call_is_content(text: str) -> None:
    said = same(Turns(THINK, HERMES), text)
    assert said == {"content": text, "reasoning": "", "calls": []}


def test_calls_are_read_as_models_write_them_too() -> None:
    turns = Turns(THINK, HERMES)
    loosely = '<tool_call>{ "arguments" : {"city":"Oslo"} ,\n"id": [1, "}"], "name":"get_weather"}</tool_call>'
    assert called(same(turns, loosely)) == [("get_weather", {"city": "Oslo"})]
    quoted = '<tool_call>\n{"name": "run", "parameters": "{\\"code\\": \\"1\\"}"}\n</tool_call>'
    assert called(same(turns, quoted)) == [("run", {"code": "1"})]
    assert called(same(turns, '<tool_call>{"name": "run"}</tool_call>')) == [("run", {})]
    cut = same(turns, '<think>\nHm\n</think>\n\n<tool_call>\n{"name": "run", "arguments": {"code": "1')
    assert cut == {"content": "", "reasoning": "Hm", "calls": [["run", '{"code": "1']]}
    llama = Turns(
        None, Calls("json", "", '{"name": "', '", "parameters": ', "}", arguments="parameters", several=False)
    )
    assert called(same(llama, '\n{"name": "run", "parameters": {"code": "1"}}')) == [("run", {"code": "1"})]
    two = '{"name": "run", "parameters": {"code": "1"}}; {"name": "run", "parameters": {}}'
    assert called(same(llama, two)) == [("run", {"code": "1"}), ("run", {})]
    assert called(same(llama, '<|python_tag|>{"name": "run", "parameters": {"code": "1"}}')) == [("run", {"code": "1"})]
    assert called(same(llama, '<|python_tag|>run.call(code="a, b)")')) == [("run", {"code": "a, b)"})]
    for said in ('{"name": "Bob", "parameters": {}}', '{"a": 1}', "{ no", 'It: {"name": "run", "parameters": {}}'):
        assert same(llama, said) == {"content": said, "reasoning": "", "calls": []}


def test_each_call_has_an_id_of_its_own() -> None:
    parser = Parser(Turns(None, HERMES), TOOLS)
    text = '<tool_call>{"name": "run", "arguments": {}}</tool_call>' * 3
    first = [delta for delta in parser.push(text) if isinstance(delta, Call) and delta.id]
    assert len({call.id for call in first}) == 3 == parser.calls and not parser.thinking
    assert [call.index for call in first] == [0, 1, 2]


def test_marks_that_are_special_tokens_are_kept() -> None:
    turns = Turns(THINK, WAYS_CALLS := found(WAYS["mistral names"][0]).calls)
    special = {"[TOOL_CALLS]", "[ARGS]", "<think>", "</s>", "[INST]"}
    assert turns.kept(special, tools=True) == {"[TOOL_CALLS]", "[ARGS]", "<think>"} and WAYS_CALLS
    assert turns.kept(special, tools=False) == {"<think>"}


# ---------------------------------------------------------------- what a template is given

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "SYSTEM"},
    {"role": "user", "content": "USER"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "THOUGHT",
        "reasoning": "THOUGHT",
        "tool_calls": [
            {"id": "call_x1", "type": "function", "function": {"name": "run", "arguments": '{"code": "ONE"}'}},
            {"id": "call_x2", "type": "function", "function": {"name": "run", "arguments": {"code": "TWO"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_x1", "content": "RESULT1"},
    {"role": "tool", "tool_call_id": "call_x2", "content": "RESULT2"},
]
SCHEMAS = [{"type": "function", "function": {"name": "run", "description": "RUNS", "parameters": TOOLS["run"]}}]


def test_nothing_of_a_conversation_is_lost_by_any_template(sources: dict[str, str]) -> None:
    for name, source in sources.items():
        turns = found(source)
        messages, tools = dressed(turns, CONVERSATION, SCHEMAS)
        text = render(source)(messages, tools=tools or None)
        lost = [word for word in ("USER", "ONE", "TWO", "RESULT1", "RESULT2", "RUNS") if word not in text]
        assert not lost, (name, lost, messages)
        assert "SYSTEM" in text or name == "mistral-nemo", name  # which writes it only where a user speaks last
        assert '\\"code\\"' not in text and "&#34;" not in text, name
        if turns.history.thoughts:
            assert text.count("THOUGHT") == 1, name
    plain = [{"role": "user", "content": "USER"}]
    assert dressed(Turns(), plain) == (plain, [])


WORDS = (
    "<tool_call> </tool_call> <think> </think> <function= <parameter= </parameter> </function> [TOOL_CALLS] call:"
    " <start_call> <|q|> <|calls|> <calls> <invoke <arg_key> <|channel|> final <|message|> <|end|> to=functions.run"
    ' name arguments "name" "arguments" run get_weather code city [ ] { } ( ) = : , " "> > < \\ 1 é'
).split()
PIECES = st.lists(st.sampled_from([*WORDS, " ", "\n"]), max_size=24)


@given(st.sampled_from([*WAYS, "harmony", "bare"]), PIECES, st.data())
@settings(max_examples=600, deadline=None)
def test_whatever_a_model_writes_is_read_the_same_however_it_is_cut(way: str, pieces: list[str], data: Any) -> None:
    turns = {
        "harmony": Turns(None, Calls("harmony")),
        "bare": Turns(THINK, Calls("json", "", '{"name": "', '", "parameters": ', "}", arguments="parameters")),
    }.get(way) or replace(found(WAYS[way][0]), reasoning=THINK)
    text = "".join(pieces)
    opened = data.draw(st.booleans())
    whole = read(turns, [text], opened=opened)
    assert read(turns, list(text), opened=opened) == whole
    cut = data.draw(st.integers(0, len(text)))
    assert read(turns, [text[:cut], text[cut:]], opened=opened) == whole
    if not whole["calls"] and way != "harmony" and not opened and "<think>" not in text:
        assert "".join(whole["content"].split()) == "".join(text.split())  # nothing is lost
