"""What stands at the head of an answer in OpenAI's shape: its id, who made it, and which fields were not understood."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from lathe import __version__

UNKNOWN = "X-Lathe-Unknown-Fields"


def head(kind: str, model: str) -> dict[str, Any]:
    """kind: what the id begins with, as "chatcmpl"."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"build-lathe-{__version__}",
    }


def warning(unknown: Sequence[str]) -> dict[str, str]:
    """A header that names the fields of the body that nobody knows, as a JSON list; none where there are none."""
    return {UNKNOWN: json.dumps([name[:64] for name in unknown[:16]])} if unknown else {}
