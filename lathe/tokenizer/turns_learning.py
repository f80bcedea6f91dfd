"""A chat template -> how its model writes turns, by rendering conversations that differ in one thing.

A model was trained on what its template writes, so an answer with calls looks as the template writes one into the
history. Nothing is decided by a model's name. What a template does not write at all is looked for in its instructions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from lathe.tokenizer.turns import Calls, History, Reasoning, Turns
from lathe.tokenizer.turns_pieces import (
    ASKED,
    MARK,
    NAMES,
    ONE,
    OTHERS,
    TWO,
    common,
    common_end,
    outside,
    read,
)
from lathe.tokenizer.turns_probing import SAID, THOUGHT, TOOLS, USER, Probe, Render

_IDS = ("aB3dE5gH7", "kL8mN2pQ4")


def learn(render: Render, source: str, *, ends: Collection[str] = (), marks: Collection[str] = ()) -> Turns:
    """How the model of a chat template writes.

    Args:
        render: `Tokenizer.render`.
        source: the template itself.
        ends: the tokens that end a turn.
        marks: all tokens that are found in a text as they are spelt.
    """
    probe = Probe(render, tuple(end for end in ends if end))
    thoughts, system = probe.key(), probe.system()
    switch, prompts = probe.prompts()
    reasoning = _reasoning(probe, prompts, source, marks)
    if "<|channel|>" in source and "<|message|>" in source:
        return Turns(None, Calls("harmony", several=False), None, History(thoughts or "thinking", system=system))
    calls, history = _calls(probe, reasoning)
    if calls is None:
        calls = _hinted(probe, source)
    history = replace(history, thoughts=thoughts, system=system)
    return Turns(reasoning, calls, switch, history, _opening(probe, prompts, reasoning))


# ---------------------------------------------------------------- reasoning


def _reasoning(probe: Probe, prompts: Sequence[str], source: str, marks: Collection[str]) -> Reasoning | None:
    history = _history_opening(probe)
    key = probe.key()
    if key is not None:
        text = probe.answer(content=SAID, **{key: THOUGHT}) or ""
        before, _, rest = text.partition(THOUGHT)
        between = rest.partition(SAID)[0].strip()
        end = re.match(MARK, between)
        if end:
            begins = re.findall(MARK, before)
            begin = begins[-1] if begins else ""
            if begin in history and end[0] not in history:
                begin = ""
            return Reasoning(begin, end[0], between[end.end() :].strip())
    for prompt in prompts:  # an answer opened within a thought, or after an empty one
        added = prompt[outside(prompt, common(prompt, history), forward=False) :].strip()
        if pair := re.fullmatch(rf"(?P<begin>({MARK})\w*)\s*(?P<end>{MARK})", added):
            return Reasoning(pair["begin"], pair["end"])
    for begin in [*re.findall(rf"(?:{MARK})$", "\n".join(prompt.strip() for prompt in prompts), re.M), "<think>"]:
        end_mark = begin[0] + "/" + begin[1:]
        if (begin in source and end_mark in source) or {begin, end_mark} <= set(marks):
            return Reasoning(begin, end_mark)
    return None


def _opening(probe: Probe, prompts: Sequence[str], reasoning: Reasoning | None) -> str:
    """What stands before every answer, without the mark of a thought."""
    begin = reasoning.begin if reasoning else ""
    opening = _history_opening(probe)
    for prompt in prompts:
        opening = prompt[: outside(prompt, common(prompt, opening), forward=False)]
    return (opening.partition(begin)[0] if begin else opening).strip()


def _history_opening(probe: Probe) -> str:
    """What stands between a question and an earlier answer."""
    text = probe.tail({"role": "assistant", "content": SAID}, {"role": "user", "content": "lathe goes on"})
    return (text or "").partition(SAID)[0]


# ---------------------------------------------------------------- calls


def _variants() -> Iterator[tuple[History, int]]:
    ids: tuple[Literal["any", "short", "place"], ...] = ("any", "short", "place")
    for count in (2, 1):
        for kind in ids:
            for objects in (True, False):
                for blank in (False, True):
                    yield History(None, objects, blank, kind), count


def _message(history: History, count: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    ids = _ids(history)
    given: Any = arguments if history.objects else json.dumps(arguments)
    calls = [
        {"id": ids[at], "type": "function", "function": {"name": NAMES[at], "arguments": given}} for at in range(count)
    ]
    return {"role": "assistant", "content": "" if history.blank else None, "tool_calls": calls}


def _ids(history: History) -> Sequence[str]:
    match history.ids:
        case "any":
            return [f"call_{id}" for id in _IDS]
        case "short":
            return _IDS
        case "place":
            return [f"functions.{name}:{at}" for at, name in enumerate(NAMES)]


def _calls(probe: Probe, reasoning: Reasoning | None) -> tuple[Calls | None, History]:
    for history, count in _variants():
        text = probe.tail(_message(history, count, ASKED), tools=TOOLS)
        if text is None or any(text.count(name) < 1 for name in (*NAMES[:count], ONE, TWO)):
            continue
        if any(wrong in text for wrong in (json.dumps(json.dumps(ASKED))[1:-1], "&#34;")):  # quoted twice
            continue
        body = _body(text, probe, reasoning)
        ids = _ids(history) if history.ids != "place" else ()
        found = read(body, count, ids, partial(_value, probe, history))
        if found is not None:
            return replace(found, told=_told(probe)), history
    return None, History()


def _told(probe: Probe) -> bool:
    return NAMES[0] in (probe.written([USER], tools=TOOLS) or "")


def _body(text: str, probe: Probe, reasoning: Reasoning | None) -> str:
    """The calls alone: without what opens any answer, an empty thought, and what ends the turn."""
    plain = probe.answer(content=SAID) or ""
    cut = common(text, plain)
    cut = outside(text, cut, forward=False)
    start = text[:cut].rstrip()
    body = text[len(start) :]
    if reasoning is not None:
        head = body[: body.find(NAMES[0])]
        if reasoning.end in head:
            body = body[head.rindex(reasoning.end) + len(reasoning.end) :]
        if reasoning.then and body.lstrip().startswith(reasoning.then):
            body = body.lstrip()[len(reasoning.then) :]
    last = body.rfind(TWO) + len(TWO)
    stops = [at for end in probe.ends if (at := body.find(end, last)) >= 0]
    if stops:
        body = body[: min(stops)]
    else:
        same = common_end(body, plain)
        body = body[: outside(body, max(last, len(body) - same), forward=True)]
    return body.strip()


def _value(probe: Probe, history: History, kind: str) -> str | None:
    """What stands between a key and a value of another type."""
    text = probe.tail(_message(history, 1, {f"key_{kind}": OTHERS[kind]}), tools=TOOLS) or ""
    after = text.partition(f"key_{kind}")[2]
    found = re.search(r"1717|[Tt]rue", after)
    if not found:
        return None
    lead = after[: found.start()]
    return lead[: len(lead.rstrip("[{'\"k: "))] if kind in ("array", "object") else lead


# ---------------------------------------------------------------- from instructions


def _hinted(probe: Probe, source: str) -> Calls:
    """A call as the instructions show one: JSON after a mark. Without any, as most models write one."""
    told = _told(probe)
    hint = re.search(r"<\|?tool_calls?\|?>|\[TOOL_CALLS\]", source)
    if not hint or hint[0][0] + "/" + hint[0][1:] in source:
        mark = hint[0] if hint else "<tool_call>"
        before, after = mark + '\n{"name": "', "}\n" + mark[0] + "/" + mark[1:]
        return Calls("json", "", before, '", "arguments": ', after, "\n", told=told, shown=False)
    return Calls("json", hint[0] + "[", '{"name": "', '", "arguments": ', "}", ", ", "]", told=told, shown=False)
