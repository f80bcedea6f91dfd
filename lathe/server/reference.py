"""The OpenAPI document becomes a plain page that needs no network and no script: every route with its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}code{background:#8882}td{padding:0 1em}"
)


def page(document: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document."""
    body = "\n".join(_routes(document))
    title = escape(str(document["info"]["title"]))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    lead = f'<h1>{title}</h1><p>As a document for programs: <a href="/openapi.json">/openapi.json</a></p>'
    return f"{head}{lead}{body}</html>"


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(route.get('description', ''))}</p>"
            fields = _fields(route, document)
            if fields:
                rows = "".join(
                    f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td></tr>" for name, kind in fields
                )
                yield f"<table>{rows}</table>"


def _fields(route: Mapping[str, Any], document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The names and types of a body's fields."""
    content = route.get("requestBody", {}).get("content", {})
    schema = _resolved(content.get("application/json", {}).get("schema", {}), document)
    needed = schema.get("required", ())
    return [
        (name, _kind(field, document) + (", required" if name in needed else ""))
        for name, field in schema.get("properties", {}).items()
    ]


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def _kind(field: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    if choices := field.get("anyOf"):
        kinds = dict.fromkeys(_kind(choice, document) for choice in choices)
        return " or ".join(kind for kind in kinds if kind != "null")
    if "items" in field:
        return f"list of {_kind(field['items'], document)}"
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    return field.get("$ref", "").rpartition("/")[2] or str(field.get("type", "anything"))
