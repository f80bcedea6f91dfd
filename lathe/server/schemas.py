"""JSON schemas of clients, as grammars take them in: put together, referred to, and what of them is let be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lathe.server.ask import Form
from lathe.server.refusals import Unsupported

_BETWEEN = r"[ \t\r\n]{1,24}"  # space within JSON: a model may write it, but not for ever


def json_rule(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """JSON of a schema, as the body of a rule. lenient: what llguidance does not know of the schema is let be."""
    said = schema.get("x-guidance")
    guidance = {"whitespace_pattern": _BETWEEN, "lenient": lenient, **(said if isinstance(said, Mapping) else {})}
    return f"%json {json.dumps({**schema, 'x-guidance': guidance})}"


def wanted(form: Form) -> Mapping[str, Any]:
    """The schema of a form that is JSON."""
    if form.kind == "json":
        return {"type": "object"}
    try:
        schema = json.loads(form.source) if isinstance(form.source, str) else form.source
    except ValueError:
        schema = None
    if not isinstance(schema, Mapping):
        raise Unsupported(form.field, "The schema is no JSON object.", fix="Give a JSON Schema.")
    return schema


def moved(schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Schemas as definitions of one, with what they refer to within themselves."""

    def within_it(value: Any, to: str) -> Any:
        if isinstance(value, Mapping):
            found = {key: within_it(item, to) for key, item in value.items()}
            place = found.get("$ref")
            if isinstance(place, str) and place.startswith("#"):
                found["$ref"] = f"#/$defs/{to}{place[1:]}"
            return found
        return [within_it(item, to) for item in value] if isinstance(value, list) else value

    return {name: within_it(schema, name) for name, schema in schemas.items()}


def resolved(root: Mapping[str, Any], about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a schema refers to within `root`, if it does; {} where there is nothing, or no end."""
    for _ in range(8):
        place = about.get("$ref")
        if not isinstance(place, str):
            return about
        found: Any = root
        for step in place.removeprefix("#").split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        about = found if isinstance(found, Mapping) and place.startswith("#/") else {}
    return {}


def members(schema: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], set[str]]:
    """The schemas of an object's properties, and which of them it must have."""
    found, needed = schema.get("properties"), schema.get("required")
    named = found.items() if isinstance(found, Mapping) else ()
    schemas = {str(key): about if isinstance(about, Mapping) else {} for key, about in named}
    return schemas, {key for key in needed if isinstance(key, str)} if isinstance(needed, list) else set()


def texts(schema: Mapping[str, Any]) -> list[str]:
    """The only texts that a value may be, if there are such."""
    options = schema.get("enum")
    if isinstance(options, list) and all(isinstance(option, str) for option in options):
        return options
    return []


def within(root: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """A schema within another, with what it may refer to."""
    return {**{key: root[key] for key in ("$defs", "definitions") if key in root}, **about}
