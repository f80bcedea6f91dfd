"""Grammars of answers: a model held to one can say exactly what was asked, in its own way of writing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from jsonschema import validate
from test_turns import TOOLS, WAYS, called, found, read, written

from lathe.engine.constrain import Grammars
from lathe.errors import UsageError
from lathe.server.ask import Form, Tool, ToolChoice
from lathe.server.grammar import blamed, grammar
from lathe.server.refusals import Unsupported
from lathe.tokenizer.turns import Calls, Reasoning, Turns

THINK = Reasoning("<think>", "</think>")
HERMES = Calls("json", "", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
OFFERED = [
    Tool("get_weather", "", {**TOOLS["get_weather"], "required": ["city"]}),
    Tool("run", "", TOOLS["run"]),
]
END = 256


class Held:
    """A grammar over a vocabulary of bytes and special tokens."""

    def __init__(self, turns: Turns, special: Sequence[str] = (), **asked: Any) -> None:
        self.special = {token: END + 1 + at for at, token in enumerate(special)}
        self.grammar = grammar(turns, self.special, **asked)
        self.words = Grammars(
            lambda: [bytes([byte]) for byte in range(256)] + [b"<end>", *(token.encode() for token in special)],
            [END, *self.special.values()],
            [END],
            END + 1 + len(special),
        )

    def ids(self, text: str) -> list[int]:
        for token in self.special:
            text = text.replace(token, chr(0xE100 + self.special[token]))
        found: list[int] = []
        for letter in text:
            found += [ord(letter) - 0xE100] if 0xE100 <= ord(letter) < 0xE400 else letter.encode()
        return found

    def judge(self, text: str) -> str:
        """ "whole" if the text can be an answer, "begun" if only the beginning of one, else where it goes wrong."""
        assert self.grammar is not None
        constraint = self.words.constraint(self.grammar)
        for at, token in enumerate(self.ids(text)):
            if constraint.complete or not bool(constraint.mask()[token]):
                return f"wrong at {at}: {text.encode()[max(at - 20, 0) : at + 5]!r}"
            constraint.accept(token)
            assert constraint.error is None
        return "whole" if bool(constraint.mask()[END]) or constraint.complete else "begun"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [False, True])
def test_calls_are_held_to_the_models_own_way_of_writing(way: str, tokens: bool) -> None:
    source, _, _ = WAYS[way]
    turns = found(source)
    special = [
        mark for mark in ("[TOOL_CALLS]", "[ARGS]", "<|calls_begin|>", "<|calls|>", "<tool_call>") if mark in source
    ]
    asked = [("get_weather", {"city": "Zürich", "days": 3}), ("run", {"code": "if x:\n  print('<b>')\n"})]
    both, one = (written(source, turns, some) or "" for some in (asked, asked[:1]))
    assert called(read(turns, [both])) == asked
    for choice in (ToolChoice(), ToolChoice("required"), ToolChoice("required", parallel=False)):
        held = Held(turns, special if tokens else (), tools=OFFERED, choice=choice)
        assert held.judge(one) == "whole"
        assert held.judge(both) == ("whole" if choice.parallel else held.judge(both)) and held.judge(both) != "begun"
        assert (held.judge("Well, no.") == "whole") is (choice.mode == "auto")
        if choice.mode == "auto":
            assert held.judge("Let me see.\n" + both) == "whole"
        wrong = one.replace("get_weather", "get_whatever")
        assert held.judge(wrong).startswith("wrong")
        assert held.judge(one.replace("city", "town")).startswith("wrong")
    held = Held(turns, special if tokens else (), tools=OFFERED, choice=ToolChoice(name="run"))
    assert held.judge(written(source, turns, asked[1:]) or "") == "whole"
    assert held.judge(one).startswith("wrong")


def test_which_arguments_are_required() -> None:
    for way in WAYS:
        source = WAYS[way][0]
        turns = found(source)
        held = Held(turns, tools=OFFERED, choice=ToolChoice("required"))
        assert held.judge(written(source, turns, [("get_weather", {"days": 3})]) or "").startswith("wrong"), way
        assert held.judge(written(source, turns, [("get_weather", {"city": "a"})]) or "") == "whole", way
        assert held.judge(written(source, turns, [("get_weather", {"city": "a", "days": "b"})]) or "").startswith(
            "wrong"
        )
        assert held.judge(written(source, turns, [("run", {})]) or "") == "whole", way


RICH = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["c", "<f>"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 20},
        "sure": {"type": "boolean"},
        "places": {
            "type": "array",
            "items": {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "required": ["x"]},
        },
    },
    "required": ["days"],
    "additionalProperties": False,
    "$defs": {"n": {"type": "integer", "enum": [1, 22]}},
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_grammar_lets_through_is_a_call_that_fits(way: str) -> None:
    turns = found(WAYS[way][0])
    tools = [Tool("plan", "", RICH), Tool("plan_all", "", {"type": "object", "properties": {}})]
    held = Held(turns, tools=tools, choice=ToolChoice("required"))
    random, seen = Random(7), 0
    for _ in range(25):
        constraint, made = held.words.constraint(held.grammar or ""), bytearray()
        while not constraint.complete and len(made) < 500:
            allowed = constraint.mask().nonzero().flatten().tolist()
            wanted = [id for id in allowed if id == END or chr(id) not in " \t\r\n"] or allowed
            token = END if END in allowed and random.random() < 0.3 else random.choice(wanted)
            if token == END:
                break
            constraint.accept(token)
            made.append(token)
        else:
            if not constraint.complete:
                continue
        said = read(turns, [made.decode(errors="replace")], {tool.name: tool.parameters for tool in tools})
        assert said["calls"] and not said["content"], made
        for name, arguments in called(said):
            seen += 1
            validate(arguments, RICH if name == "plan" else {"type": "object"})
            assert name in ("plan", "plan_all")
    assert seen >= 5


# ---------------------------------------------------------------- forms and reasoning


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (Form("json"), '{"a": [1, {}]}', "[1]"),
        (Form("schema", RICH), '{"unit": "c", "days": 3}', '{"unit": "k"}'),
        (Form("schema", json.dumps(RICH)), '{\n  "days": 3\n}', '{"days": -1}'),
        (Form("regex", "a/b+|c\\/\nd"), "a/bb", "a/c"),
        (Form("regex", "a/b+|c\\/\nd"), "c/\nd", "c/d"),
        (Form("lark", 'start: "x" b+ "}"\nb: "b" | "{"'), "xb{}", "x}"),
    ],
)
def test_forms(form: Form, good: str, bad: str) -> None:
    for reasoning, prompt, before, after in [
        (None, "", "", ""),
        (THINK, "<think>\n\n</think>\n\n", "", ""),
        (THINK, "<think>\n", "So {</thin> ", "</think>\n\n"),
        (THINK, "", "", ""),
        (THINK, "", "<think>\nSo {<tool_call>", "</think>\n\n"),
    ]:
        held = Held(Turns(reasoning, HERMES), form=form, prompt=prompt)
        assert held.judge(before + after + good) == "whole"
        assert held.judge(before + after + bad).startswith("wrong")
        assert held.judge(before + after + good + " x").startswith("wrong")
        token = Held(Turns(reasoning, HERMES), ["<think>", "</think>"], form=form, prompt=prompt)
        assert token.judge(before + after + good) == "whole"
        assert token.judge(before + after + bad).startswith("wrong")
    closed = Held(Turns(THINK, HERMES), form=form, prompt="<think>\n\n</think>\n\n")
    assert closed.judge("<think>" + good).startswith("wrong")


CALL = '<tool_call>\n{"name": "run", "arguments": {"code": "1"}}\n</tool_call>'


def test_reasoning_comes_before_calls_and_is_free() -> None:
    for special in ([], ["<think>", "</think>"], ["<tool_call>"]):
        for choice in (ToolChoice(), ToolChoice("required")):
            held = Held(Turns(THINK, HERMES), special, tools=OFFERED, choice=choice)
            thought = (
                "<think>\nI write <tool_call> or not.\n</think>\n\n" if not special else "<think>\nSo.\n</think>\n\n"
            )
            assert held.judge(thought + CALL) == held.judge(CALL) == "whole"
            assert held.judge("<think>never ended") == "begun"
            assert held.judge(thought + "<tool_call>\nwell").startswith("wrong")
            assert (held.judge(thought + "Well.") == "whole") is (choice.mode == "auto")
            opened = Held(Turns(THINK, HERMES), special, tools=OFFERED, choice=choice, prompt="<think>\n")
            assert opened.judge("So.\n</think>\n\n" + CALL) == "whole" and opened.judge("<tool") == "begun"


def test_tools_win_over_a_form_while_a_call_is_made() -> None:
    held = Held(Turns(THINK, HERMES), tools=OFFERED, form=Form("schema", RICH))
    assert held.judge('{"days": 3}') == held.judge(CALL) == held.judge("<think>a</think>" + CALL) == "whole"
    assert held.judge("Well.").startswith("wrong") and held.judge('{"days": 3} ' + CALL).startswith("wrong")
    required = Held(Turns(THINK, HERMES), tools=OFFERED, choice=ToolChoice("required"), form=Form("schema", RICH))
    assert required.judge(CALL) == "whole" and required.judge('{"days": 3}').startswith("wrong")
    none = Held(Turns(THINK, HERMES), tools=OFFERED, choice=ToolChoice("none"), form=Form("schema", RICH))
    assert none.judge('{"days": 3}') == "whole" and none.judge(CALL).startswith("wrong")


def test_where_no_mark_begins_a_call() -> None:
    llama = Turns(
        None, Calls("json", "", '{"name": "', '", "parameters": ', "}", arguments="parameters", several=False)
    )
    held = Held(llama, tools=OFFERED)
    assert held.judge('{"name": "run", "parameters": {"code": "1"}}') == held.judge(" Well {.") == "whole"
    assert held.judge("") == "whole" and held.judge('{"days"').startswith("wrong")
    assert held.judge('{"name": "walk"').startswith("wrong")
    formed = Held(llama, tools=OFFERED, form=Form("schema", RICH))
    assert formed.judge('{"days": 3}') == formed.judge('{"name": "run", "parameters": {}}') == "whole"


def test_harmony() -> None:
    special = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"]
    turns = Turns(None, Calls("harmony", several=False))
    thought = "<|channel|>analysis<|message|>So.<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.run <|constrain|>json<|message|>{"code": "1"}'
    final = "<|channel|>final<|message|>"
    auto = Held(turns, special, tools=OFFERED)
    assert auto.judge(thought + call) == auto.judge(thought + final + "Hi.") == auto.judge(call) == "whole"
    assert auto.judge(thought + call.replace("run", "walk")).startswith("wrong")
    required = Held(turns, special, tools=OFFERED, choice=ToolChoice(name="run"))
    assert required.judge(thought + call) == "whole" and required.judge(thought + final).startswith("wrong")
    formed = Held(turns, special, form=Form("json"))
    assert formed.judge(thought + final + "{}") == "whole" and formed.judge(final + "Hi").startswith("wrong")


def test_nothing_is_held_to_nothing() -> None:
    assert grammar(Turns(THINK, HERMES), {}) is None
    assert grammar(Turns(THINK, HERMES), {}, tools=OFFERED, choice=ToolChoice("none")) is None
    with pytest.raises(Unsupported, match="walk") as caught:
        grammar(Turns(THINK, HERMES), {}, tools=OFFERED, choice=ToolChoice(name="walk"))
    assert caught.value.param == "tool_choice"
    with pytest.raises(Unsupported):
        grammar(Turns(THINK, HERMES), {}, choice=ToolChoice("required"))
    with pytest.raises(Unsupported, match="schema"):
        grammar(Turns(), {}, form=Form("schema", "[1"))


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (Form("schema", {"type": "hiccup"}), "hiccup"),
        (Form("schema", {"type": "string", "pattern": "(?=a)"}), "look-around"),
        (Form("schema", {"not": {}}, "text.format"), "not"),
        (Form("regex", "a(?!b)"), "look-around"),
        (Form("regex", "(a"), "unclosed"),
        (Form("lark", 'start: "a" nowhere\n\n\nother: "b"'), "nowhere"),
        (Form("lark", "start: } {"), ""),
    ],
)
def test_what_cannot_be_held_to_is_blamed_on_its_field(form: Form, says: str) -> None:
    for reasoning in (None, THINK):
        held = Held(Turns(reasoning, HERMES), form=form)
        with pytest.raises(UsageError) as caught:
            held.words.constraint(held.grammar or "")
        error = blamed(held.grammar or "", caught.value)
        assert isinstance(error, Unsupported) and error.param == form.field and says in str(error)


def test_a_tool_that_cannot_be_held_to_is_named() -> None:
    bad = Tool("bad", "", {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}})
    held = Held(Turns(None, HERMES), tools=[*OFFERED, bad])
    with pytest.raises(UsageError) as caught:
        held.words.constraint(held.grammar or "")
    error = blamed(held.grammar or "", caught.value)
    assert isinstance(error, Unsupported) and error.param == "tools.2" and "nowhere" in str(error)
    other = UsageError("The machine is tired.")
    assert blamed(held.grammar or "", other) is other
