"""The events of the requests behind one answer become its usage, as OpenAI counts, and its times, as llama.cpp does."""

from __future__ import annotations

import time
from typing import Any

from lathe.server.ask import Begun, Ended, Event, Reading, Said


class Tally:
    """Counts what has come so far. prompt, cached, made, reasoned: in tokens, of all requests and answers together."""

    def __init__(self) -> None:
        self.prompt = self.cached = self.made = self.reasoned = 0
        self._said: dict[tuple[int, int], int] = {}
        self._seconds = (0.0, 0.0)  # reading and making, of the longest answer that has ended
        self._begun = time.perf_counter()
        self._first: float | None = None

    def count(self, which: int, event: Event) -> None:
        match event:
            case Begun():
                self.prompt += event.prompt
                self.cached += event.cached
            case Said():  # only until the answer's end tells it exactly, with the tokens that wrote nothing
                self._first = self._first or time.perf_counter()
                self.made += len(event.words)
                at = which, event.index
                self._said[at] = self._said.get(at, 0) + len(event.words)
            case Ended():
                self.made += event.tokens - self._said.pop((which, event.index), 0)
                self.reasoned += event.reasoning
                self._seconds = max(self._seconds, event.seconds, key=sum)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.made,
            "total_tokens": self.prompt + self.made,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoned},
        }

    def timings(self) -> dict[str, Any]:
        """In milliseconds, as far as it has come."""
        read, made = self.prompt - self.cached, self.made
        now = time.perf_counter()
        first = self._first or now
        reading, making = self._seconds if any(self._seconds) else (first - self._begun, now - first)
        return {
            "cache_n": self.cached,
            "prompt_n": read,
            "prompt_ms": reading * 1e3,
            "prompt_per_token_ms": reading * 1e3 / max(read, 1),
            "prompt_per_second": read / reading if reading else 0.0,
            "predicted_n": made,
            "predicted_ms": making * 1e3,
            "predicted_per_token_ms": making * 1e3 / max(made, 1),
            "predicted_per_second": made / making if making else 0.0,
        }

    def progress(self, event: Reading | Begun) -> dict[str, Any]:
        """How much of the prompt has been read."""
        total, done = (event.prompt, event.prompt) if isinstance(event, Begun) else (event.total, event.done)
        millis = (time.perf_counter() - self._begun) * 1e3
        return {"total": total, "cache": self.cached, "processed": done, "time_ms": millis}
