"""What an answer must be, in words a user has (a JSON schema, a regular expression) -> a grammar for `engine.Grammars`.

Grammars are in Lark's notation as llguidance reads it. Knows no vocabulary, no model and no tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lathe.errors import UsageError

# Models write JSON with and without a space, or indented on lines; a weak one would write spaces for ever if it could.
SPACES = r" |\n[ \t]{0,24}"


def of_schema(schema: str | bool | Mapping[str, Any]) -> str:
    """JSON that a schema allows, on one line or indented on several. schema: as JSON text, or as what that says.

    Raises UsageError for text that is no JSON, or JSON that is no schema.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The JSON schema is no JSON: {error}.") from None
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, Mapping):
        raise UsageError("The JSON schema is not an object.", 'It must be as {"type": "object", "properties": ...}.')
    ways = {"whitespace_pattern": SPACES}
    try:
        return f"start: %json {json.dumps({'x-guidance': ways, **schema})}"
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The JSON schema cannot be written as JSON: {error}.") from None


def of_regex(pattern: str) -> str:
    r"""Text that a regular expression matches from its first character to its last.

    As in Rust's `regex`: no references and nothing that looks ahead or back; \d is 0 to 9.
    https://docs.rs/regex/latest/regex/#syntax
    """
    from llguidance import regex_to_lark

    return f"start: /{regex_to_lark(pattern, use_ascii='d')}/"
