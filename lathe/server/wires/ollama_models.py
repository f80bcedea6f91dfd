"""What is served becomes Ollama's lists and descriptions of models; knows no request."""

from __future__ import annotations

from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

from lathe.server.desk import Desk, Named
from lathe.server.served import Served

TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # as GGUF calls them
NEVER = "9999-12-31T23:59:59Z"  # when a model is unloaded


def now() -> str:
    """RFC 3339, in UTC."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def resolved(desk: Desk, name: str) -> str:
    """A name as it is here: Ollama's clients add a tag where there is none."""
    return name if name in desk.names else name.removesuffix(":latest")


def listed(named: Named, since: str) -> dict[str, Any]:
    """One of /api/tags. since: when the server was started, for a model is not modified while it is served."""
    return {**_told(named), "modified_at": since}


def running(named: Named) -> dict[str, Any]:
    """One of /api/ps."""
    served = named.served
    size = served.about.get("bytes", 0)
    apart = 0 if served.about.get("device") == "cpu" else size
    return {**_told(named), "expires_at": NEVER, "size_vram": apart, "context_length": served.context}


def shown(named: Named, since: str) -> dict[str, Any]:
    """/api/show. The template is the checkpoint's own, in Jinja; where Ollama's would be in Go's."""
    served = named.served
    family = served.about.get("family", "")
    defaults = {name: value for name, value in served.defaults.items() if value is not None}
    return {
        "modelfile": f"FROM {named.name}\n",
        "parameters": "\n".join(f"{name} {value}" for name, value in defaults.items()),
        "template": served.tokenizer.template or "",
        "details": details(named),
        "model_info": {
            "general.architecture": family,
            "general.basename": named.name,
            "general.parameter_count": served.about.get("parameters", 0),
            f"{family}.context_length": served.context,
            f"{family}.vocab_size": served.vocab,
        },
        "capabilities": capabilities(served),
        "modified_at": since,
    }


def capabilities(served: Served) -> list[str]:
    """As far as the chat template says: which it tells of tools, or lets think."""
    turns = served.turns
    can = {"tools": turns.calls is not None and turns.calls.told, "thinking": turns.reasoning is not None}
    return ["completion", *(name for name, known in can.items() if known)]


def details(named: Named) -> dict[str, Any]:
    served = named.served
    family = served.about.get("family", "")
    return {
        "parent_model": served.name if named.adapter else "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _size(served.about.get("parameters", 0)),
        "quantization_level": TYPES.get(served.about.get("dtype", ""), ""),
    }


def _told(named: Named) -> dict[str, Any]:
    digest = sha256(named.name.encode()).hexdigest()  # clients compare it; the weights' own would take long to make
    size = named.served.about.get("bytes", 0)
    return {"name": named.name, "model": named.name, "size": size, "digest": digest, "details": details(named)}


def _size(parameters: int) -> str:
    """As Ollama writes it: 7.6B, 135M, 260K."""
    for least, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= least:
            value = parameters / least
            return f"{value:.1f}{unit}" if value < 100 else f"{value:.0f}{unit}"
    return str(parameters)
