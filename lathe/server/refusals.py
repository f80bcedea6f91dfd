"""What is wrong with a request becomes an HTTP status and a body in the shape that the path's clients expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lathe.errors import LatheError, PromptError


class Full(LatheError):
    """Too many requests wait already. after: seconds until it may be worth trying again."""

    after = 1


class Unready(LatheError):
    """The server is loading a model, or ending, or has no memory for this now."""

    after = 2


class Unknown(LatheError):
    """No model, route or thing has this name."""


class Gone(LatheError):
    """The client has gone away, and nobody waits for the answer."""


class Misused(LatheError):
    """A field of the body, by `param`, that says what cannot be."""

    def __init__(self, param: str, found: str, expected: str = "", fix: str = "") -> None:
        super().__init__(found, expected, fix)
        self.param = param


class Unsupported(Misused):
    """A field, by `param`, or what it asks for, that this server does not have or not here."""


class Overflow(PromptError):
    """A prompt that the context does not hold. prompt, context: in tokens."""

    def __init__(self, prompt: int, context: int) -> None:
        super().__init__(
            f"The prompt is too long: {prompt} tokens.",  # clients know it by these words, and make it shorter
            f"This model's maximum context length is {context} tokens, the answer included.",
            "Shorten the prompt.",
        )
        self.prompt, self.context = prompt, context


class Broken(LatheError):
    """The engine could not do it, and it is not the request's fault. Its text says nothing of the inside."""


@dataclass(frozen=True)
class Refusal:
    """status: HTTP's. kind: OpenAI's `type`. param: the field that is at fault. more: further members of the body."""

    status: int
    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: LatheError) -> Refusal:
        said = str(error)
        match error:
            case Full():
                return cls(429, "rate_limit_error", said, code="queue_full", headers={"Retry-After": str(error.after)})
            case Unready():
                return cls(503, "unavailable_error", said, headers={"Retry-After": str(error.after)})
            case Unknown():
                return cls(404, "not_found_error", said, code="not_found")
            case Unsupported():
                return cls(400, "invalid_request_error", said, error.param, "unsupported_parameter")
            case Misused():
                return cls(400, "invalid_request_error", said, error.param, "invalid_value")
            case Gone():
                return cls(499, "cancelled", said)
            case Overflow():
                more = {"n_prompt_tokens": error.prompt, "n_ctx": error.context}
                return cls(400, "exceed_context_size_error", said, code="context_length_exceeded", more=more)
            case Broken():
                return cls(500, "server_error", said)
            case _:
                return cls(400, "invalid_request_error", said)

    def body(self, path: str) -> dict[str, Any]:
        """As clients of the wire at `path` expect it."""
        if path.startswith("/v1/messages"):
            named = self.param is not None and self.param not in self.message
            message = f"{self.param}: {self.message}" if named else self.message
            return {"type": "error", "error": {"type": ANTHROPIC.get(self.status, "api_error"), "message": message}}
        if path.startswith("/api/"):
            return {"error": self.message}
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, **self.more}
        return {"error": error}


ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
