"""What a stream of OpenAI's chat completions and one of its completions have in common: usage, times and the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lathe.server.ask import Begun, Reading
from lathe.server.refusals import Refusal
from lathe.server.wires.fields import StreamOptions, Wished
from lathe.server.wires.frames import DONE, frame
from lathe.server.wires.tally import Tally


class Chunks:
    """Writes chunks. path: the route, in whose shape a refusal is told. head: what every chunk begins with.

    Attributes:
        tally: counts the events; whoever writes them gives them to it.
    """

    def __init__(self, asked: Wished, path: str, head: Mapping[str, Any]) -> None:
        self.options, self.tally = asked.stream_options or StreamOptions(), Tally()
        self.asked, self.path, self.head = asked, path, head

    def progress(self, event: Reading | Begun) -> Iterator[str]:
        """How much of the prompt has been read, for a client that wants to know."""
        if self.asked.return_progress:
            yield self.chunk([], prompt_progress=self.tally.progress(event))

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        if self.options.continuous_usage_stats:
            more.setdefault("usage", self.tally.usage())
        elif self.options.include_usage:
            more.setdefault("usage", None)
        if self.asked.timings_per_token and self.tally.made:
            more.setdefault("timings", self.tally.timings())
        return frame({**self.head, "choices": choices, **more})

    def last(self) -> Iterator[str]:
        if self.options.include_usage:
            yield self.chunk([], usage=self.tally.usage(), timings=self.tally.timings())
        yield DONE

    def failed(self, refusal: Refusal) -> Iterator[str]:
        yield frame(refusal.body(self.path))
        yield DONE
