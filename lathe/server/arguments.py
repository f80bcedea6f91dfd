"""The arguments of a call, where they are no JSON -> rules: between tags, with bare keys, or in parentheses.

They come in the order of their schema, which is followed as far as types, items, enumerations and what is required.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lathe.server.rules import Rules
from lathe.server.schemas import json_rule, members, resolved, texts, within
from lathe.tokenizer.turns import Arguments

Schema = Mapping[str, Any]
_SCALARS = ("integer", "number", "boolean", "null")
_TYPES = (*_SCALARS, "array", "object")
_DEEPEST = 6  # objects within objects whose bare keys are held to a schema
_QUOTED = r"""/"([^"\\\n]|\\.)*"|'([^'\\\n]|\\.)*'/"""


def tagged(rules: Rules, tags: Arguments, schema: Schema) -> str:
    """Every argument between tags; texts as they are, all else as JSON."""
    named, needed = members(schema)
    end, space = tags.end.rstrip(), tags.end[len(tags.end.rstrip()) :]
    parts = []
    for key, about in named.items():
        about = resolved(schema, about)
        kind = about.get("type")
        lead = rules.literal(tags.begin + key + tags.values.get(str(kind), tags.values["string"]))
        if options := texts(about):
            value = f"({' | '.join(rules.literal(option + end) for option in options)})"
        elif kind in _TYPES:
            value = f"{rules.rule(json_rule(within(schema, about), lenient=True))} {rules.literal(end)}"
        else:
            value = rules.upto(end)
        parts.append(f"({lead} {value} {rules.literal(space)}){'' if key in needed else '?'}")
    if not named and schema.get("additionalProperties", bool(schema)):
        lead = f"{rules.literal(tags.begin)} /[\\w.-]+/ {rules.literal(tags.values['string'])}"
        parts.append(f"({lead} {rules.upto(end)} {rules.literal(space)})*")
    return " ".join(parts)


def loose(rules: Rules, quote: str, schema: Schema) -> str:
    """Arguments with bare keys, and `quote` around texts; without the braces around them."""
    return rules.listed(_bare_members(rules, quote, schema, schema, 0), ",")


def _bare_members(rules: Rules, quote: str, about: Schema, root: Schema, deep: int) -> list[tuple[str, bool]]:
    named, needed = members(about)
    return [
        (f"{rules.literal(key + ':')} {_bare(rules, quote, value, root, deep)}", key in needed)
        for key, value in named.items()
    ]


def _bare(rules: Rules, quote: str, about: Schema, root: Schema, deep: int) -> str:
    about = resolved(root, about)
    kind, items = about.get("type"), about.get("items")
    if options := texts(about):
        return f"({' | '.join(rules.literal(quote + option + quote) for option in options)})"
    if kind in _SCALARS:
        return rules.rule(json_rule(within(root, about), lenient=True))
    text = f"{rules.literal(quote)} {rules.upto(quote)}"
    if kind == "string":
        return text
    if kind == "object" and members(about)[0] and deep < _DEEPEST:
        return f'"{{" {rules.listed(_bare_members(rules, quote, about, root, deep + 1), ",")} "}}"'
    if kind == "array" and isinstance(items, Mapping) and deep < _DEEPEST:
        item = rules.rule(_bare(rules, quote, items, root, deep + 1))
        return f'"[" ({item} ("," {item})*)? "]"'
    return _anything(rules, text)


def _anything(rules: Rules, text: str) -> str:
    """Any value with bare keys."""
    value = rules.place()
    pair = rules.rule(f'/[^:{{}}\\[\\],<>]+/ ":" {value}')
    scalar = rules.rule(json_rule({"type": ["number", "boolean", "null"]}))
    return rules.fill(
        value, f'{text} | {scalar} | "{{" ({pair} ("," {pair})*)? "}}" | "[" ({value} ("," {value})*)? "]"'
    )


def keywords(rules: Rules, schema: Schema) -> str:
    """key=value, as Python or JSON writes values; without the parentheses around them."""
    named, needed = members(schema)
    listed = [
        (f"{rules.literal(key + '=')} {_value(rules, about, schema)}", key in needed) for key, about in named.items()
    ]
    return rules.listed(listed, ", ")


def _value(rules: Rules, about: Schema, root: Schema) -> str:
    about = resolved(root, about)
    kind, options = about.get("type"), about.get("enum")
    if isinstance(options, list) and options:
        return f"({' | '.join(json.dumps(repr(option), ensure_ascii=False) for option in options)})"
    if kind == "boolean":
        return '("True" | "False" | "true" | "false")'
    if kind == "string":
        return _QUOTED
    value = rules.rule(json_rule(within(root, about), lenient=True))
    return value if kind in _TYPES else f"({_QUOTED} | {value})"
