"""A model behind its line, as the web process sees it: what it is, who waits for it, and what has come for whom."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lathe.errors import LatheError
from lathe.server.line import Line, Message, heard, told
from lathe.server.metrics import Metrics
from lathe.server.prompts import EFFORT
from lathe.server.refusals import Broken
from lathe.tokenizer import Tokenizer
from lathe.tokenizer.turns import Turns
from lathe.tokenizer.turns_learning import learn

Inbox = asyncio.Queue[tuple[Any, ...]]  # (id, "begun" | "read" | "tokens" | "ended" | "refused" | "done", what of it)

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class Served:
    """One model.

    Attributes:
        name: what it is called first. held: answers that were admitted and are not finished.
        state: what its engine said of itself last, see `room.Room.state`. metrics: what was counted.
        adapters: the names of those that requests can name.
        ready, gone: set when it is loaded, and when it is no more; `wrong` says why.
        tokenizer, turns; context, in tokens; vocab, how many ids there are; width; seats, answers made at once;
        defaults, fields of Sampling, and usual, those of them that nobody asked for; stops, ids that end an answer;
        about, what else is told: all once it is ready.
    """

    def __init__(self, name: str, line: Line) -> None:
        self.name, self.line = name, line
        self.ready, self.gone = asyncio.Event(), asyncio.Event()
        self.wrong: LatheError | None = None
        self.held = 0
        self.state: dict[str, int] = {}
        self.metrics = Metrics()
        self.adapters: list[str] = []
        self._inboxes: dict[int, Inbox] = {}
        self._ids = itertools.count()

    @property
    def thinks(self) -> bool:
        """Whether it can be asked to reason."""
        return self.turns.reasoning is not None or EFFORT in (self.tokenizer.template or "")

    def wished(self, wishes: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of Sampling for a request with these wishes: who says how to sample gets nothing usual besides."""
        says = wishes.keys() & NEUTRAL.keys()
        neutral = {name: NEUTRAL[name] for name in self.usual} if says else {}
        return {**self.defaults, **neutral, **wishes}

    def open(self) -> None:
        """Listen, in the event loop that is running."""
        self.line.open(self._take)

    def _take(self, message: Message) -> None:
        match message:
            case ["made", made]:
                self.state = made["state"]
                for kind in ("read", "begun", "tokens", "ended"):
                    for id, *rest in made.get(kind, ()):
                        self._post(id, kind, *rest)
            case ["refused" | "done" as kind, id, value]:
                self._post(id, kind, value)
            case ["ready", facts]:
                self._introduction = asyncio.ensure_future(self._introduce(facts))
            case ["failed", error]:
                self._lost(heard(error))
            case ["gone", status]:
                self._lost(Broken(f"The engine process has ended by itself, with status {status}."))

    def _post(self, id: int, *message: Any) -> None:
        if id in self._inboxes:  # else it was cancelled meanwhile
            self._inboxes[id].put_nowait((id, *message))

    async def _introduce(self, facts: Mapping[str, Any]) -> None:
        place, style, ours = facts["words"]
        try:
            self.tokenizer, self.turns = await asyncio.to_thread(_words, Path(place), style, ours)
        except LatheError as error:
            return self._lost(error)
        except Exception:  # as of a template that does what nobody thought of: else the model would be loading for ever
            traceback.print_exc()
            return self._lost(Broken("The model's tokenizer or chat template cannot be read.", "", "See above."))
        self.context, self.vocab, self.width = facts["context"], facts["vocab"], facts["width"]
        self.seats, self.adapters = facts["seats"], facts["adapters"]
        self.defaults, self.usual = facts["defaults"], facts["usual"]
        self.stops, self.about = facts["stops"], facts["about"]
        self.ready.set()
        return None

    def _lost(self, error: LatheError) -> None:
        self.wrong = self.wrong or error
        self.ready.set()
        self.gone.set()
        for id in self._inboxes:
            self._post(id, "refused", told(Broken("The engine has ended.")))

    def expect(self, inbox: Inbox, count: int) -> list[int]:
        """So many new ids; what comes for them goes to `inbox`."""
        ids = [next(self._ids) for _ in range(count)]
        self._inboxes.update(dict.fromkeys(ids, inbox))
        return ids

    def forget(self, id: int, cancel: bool) -> None:
        """Take no more of what comes for an id. cancel: nothing more of it is to be made, either."""
        if self._inboxes.pop(id, None) is not None and cancel:
            self.line.send("cancel", id)

    async def told(self, word: str, *arguments: Any) -> Any:
        """What the engine process answers to a message, in one word. Raises what it raises there."""
        inbox: Inbox = asyncio.Queue()
        [id] = self.expect(inbox, 1)
        answered = False
        try:
            self.line.send(word, id, *arguments)
            _, kind, value = await inbox.get()
            answered = True
        finally:
            self.forget(id, cancel=not answered)
        if kind == "refused":
            raise heard(value)
        return value


def _words(place: Path, style: str | None, ours: bool) -> tuple[Tokenizer, Turns]:
    """A tokenizer from its folder, and how its template writes turns. ours: the folder is of no further use."""
    tokenizer = Tokenizer.open(place)
    if ours:
        shutil.rmtree(place, ignore_errors=True)
    if style is not None:
        tokenizer = tokenizer.styled(style)
    if tokenizer.template is None:
        return tokenizer, Turns()
    ends = [token for id in tokenizer.eos_ids if (token := tokenizer.get(id))]
    return tokenizer, learn(tokenizer.render, tokenizer.template, ends=ends, marks=tokenizer.marks)
