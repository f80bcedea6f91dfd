"""The calls of one rendered answer -> the texts around their names and arguments, and which belong to each call.

Knows what the probes of `turns_learning` asked for, and no template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from lathe.tokenizer.turns import ID, INDEX, Arguments, Calls, Form

MARK = r"<[^<>\s][^<>]{0,60}>|\[[^\[\]\n]{1,40}\]"
NAMES = ("probe_one", "probe_two")
FIRST, SECOND = "alpha_key", "omega_key"
ONE, TWO = "alpha value", "omega value"
ASKED = {FIRST: ONE, SECOND: TWO}  # what each call is given
OTHERS: Mapping[str, Any] = {"integer": 1717, "boolean": True, "array": [1717], "object": {"k": 1717}}


def common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def common_end(one: str, other: str) -> int:
    """How many characters two texts end with alike."""
    return common(one[::-1], other[::-1])


def outside(text: str, at: int, *, forward: bool) -> int:
    """`at`, or where it is outside of the mark that it falls into."""
    for found in re.finditer(MARK, text):
        if found.start() < at < found.end():
            return found.end() if forward else found.start()
    return at


def read(body: str, count: int, ids: Sequence[str], written: Callable[[str], str | None]) -> Calls | None:
    """How `count` calls to NAMES are written, each with ASKED for arguments.

    Args:
        body: the calls and nothing else.
        ids: theirs, where they stand as they are.
        written: JSON type -> what stands between a key and a value of that type.
    """
    for id in ids:
        body = body.replace(id, ID)
    form, spans = _objects(body, ASKED)
    if form == "json":
        return _json(body, count, spans)
    if form == "named":
        return _pieces(body, count, spans, "named")
    quote = re.search(rf"{FIRST}\s*:(\S+?){ONE}", body)
    braces = re.search(rf"{NAMES[0]}\s*\{{\s*{FIRST}", body)
    if quote and braces:
        regions = [(found.start(), found.end()) for found in re.finditer(r"\{[^{}]*\}", body)]
        found = _pieces(body, count, regions, "loose")
        return found and replace(found, quote=quote[1])
    if re.search(rf"{NAMES[0]}\(\s*{FIRST}\s*=", body):
        regions = [(found.start(), found.end()) for found in re.finditer(r"\([^()]*\)", body)]
        return _pieces(body, count, regions, "python")
    return _tagged(body, count, written)


def _objects(body: str, arguments: Mapping[str, Any]) -> tuple[Form | None, list[tuple[int, int]]]:
    """Where the arguments stand, as JSON; and whether the calls are JSON as a whole."""
    decoder, spans, at = json.JSONDecoder(), [], 0
    whole: Form | None = None
    while (at := body.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(body, at)
        except ValueError:
            at += 1
            continue
        if value == arguments:
            spans.append((at, end))
            whole = whole or "named"
            at = end
        elif isinstance(value, dict) and arguments in value.values():
            whole = "json"
            at += 1
        else:
            at += 1
    return whole, spans


def _json(body: str, count: int, spans: Sequence[tuple[int, int]]) -> Calls | None:
    found = _pieces(body, count, spans, "json")
    if found is None:
        return None
    keys = re.findall(r'"([^"]*)"\s*:', body)
    if NAMES[0] in keys:
        return replace(found, name=None)
    name = re.findall(r'"([^"]*)"\s*:\s*"$', found.before)
    arguments = re.findall(r'"([^"]*)"\s*:\s*$', found.between)
    return replace(found, name=name[-1], arguments=arguments[-1]) if name and arguments else None


def _pieces(body: str, count: int, spans: Sequence[tuple[int, int]], form: Form) -> Calls | None:
    """The texts around names and arguments, sorted into those of every call and those around all of them."""
    if len(spans) < count:
        return None
    places = [body.find(name) for name in NAMES[:count]]
    if any(place < 0 or place > span[0] for place, span in zip(places, spans, strict=False)):
        return None
    ends = [place + len(name) for place, name in zip(places, NAMES, strict=False)]
    first, last = body[: places[0]], body[spans[count - 1][1] :]
    mids = [body[end : span[0]] for end, span in zip(ends, spans, strict=False)]
    if count == 1:
        before, between, after = (_indexed(text, "") for text in (first, mids[0], last))
        return Calls(form, "", before, between, after, several=False)
    middle = body[spans[0][1] : places[1]]
    both = _indexed(first, middle), _indexed(middle, first), _indexed(mids[0], mids[1])
    first, middle, between = both
    before = first[len(first) - common_end(first, middle) :]
    before = before[_outside_start(before, first) :]
    after = last[: common(last, middle[: len(middle) - len(before)])]
    opening, closing = first[: len(first) - len(before)], last[len(after) :]
    separator = middle[len(after) : len(middle) - len(before)]
    return Calls(form, opening, before, between, after, separator, closing)


def _outside_start(before: str, first: str) -> int:
    """How much of what is common before two names is the end of a mark whose beginning is not, and so is not theirs."""
    at = len(first) - len(before)
    return outside(first, at, forward=True) - at


def _indexed(text: str, other: str) -> str:
    """`text` with a slot where it has a number that `other` has one higher or lower: a call's place among the calls."""
    numbers = set(re.findall(r"(?<!\w)\d(?!\w)", other))
    return re.sub(r"(?<!\w)\d(?!\w)", lambda found: found[0] if found[0] in numbers else INDEX, text)


def _tagged(body: str, count: int, written: Callable[[str], str | None]) -> Calls | None:
    """Arguments between tags: <parameter=KEY>VALUE</parameter> and its like."""
    places = [found.start() for found in re.finditer(FIRST, body)]
    values = [found.start() for found in re.finditer(ONE, body)]
    if len(places) < count or len(values) < count:
        return None
    head = body[: places[0]].rpartition(NAMES[0])
    lead = head[2]
    string = body[places[0] + len(FIRST) : values[0]]
    second = body.find(SECOND)
    between = body[values[0] + len(ONE) : second]
    begin = lead[len(lead) - common_end(lead, between) :]
    begin = begin[max(begin.rfind("<"), 0) :]
    if "<" not in begin:
        return None
    end = between[: len(between) - len(begin)]
    spans = []
    for place in places[:count]:
        last = body.find(TWO, place) + len(TWO)
        same = common(body[last:], end)
        spans.append((place - len(begin), last + same))
    found = _pieces(body, count, spans, "tagged")
    kinds = {kind: written(kind) or string for kind in OTHERS}
    return found and replace(found, tags=Arguments(begin, {"string": string, **kinds}, end))
