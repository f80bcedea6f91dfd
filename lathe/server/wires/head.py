"""What stands at the head of an answer in OpenAI's shape: its id, who made it, and which fields were not understood."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from lathe.server.ask import Ask
from lathe.server.desk import Served
from lathe.server.refusals import Misused, Unsupported

UNKNOWN = "X-Lathe-Unknown-Fields"


def head(kind: str, model: str | None, served: Served) -> dict[str, Any]:
    """kind: what the id begins with, as "chatcmpl". model: its name, as the client has it."""
    about = served.about
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model or served.name,
        "system_fingerprint": f"build-lathe-{about['dtype']}-{about['device']}",  # the same seed gives the same there
    }


def warning(unknown: Sequence[str]) -> dict[str, str]:
    """A header that names the fields of the body that nobody knows, as a JSON list; none where there are none."""
    return {UNKNOWN: json.dumps([name[:64] for name in unknown[:16]])} if unknown else {}


def known(unknown: list[str], strict: bool) -> list[str]:
    """The same names. Raises Misused for the first of them where the server is strict."""
    if unknown and strict:
        found = f'"{unknown[0]:.64}" is not a field of this request.'
        raise Misused(unknown[0], found, fix="Leave it out.")
    return unknown


def idle(field: str, ask: Ask, served: Served, strict: bool) -> list[str]:
    """The field by which a model was asked to reason that does not. Raises Unsupported where the server is strict."""
    if served.thinks or not (ask.think or ask.effort):
        return []
    if strict:
        raise Unsupported(field, f"{field} asks for reasoning, and the model does not reason.", fix="Leave it out.")
    return [field]
