"""The engine process: takes requests from the line between steps, and tells after each step what came of it.

It knows tokens and no text. Its one loop never waits while anybody generates, and what goes wrong with one request is
that one's alone.

`["made", {...}]` holds what there is to tell after a step:

    begun   [[id, prompt tokens, of which cached], ...]     the prompt has been read
    read    [[id, done, total], ...]                        more of it has
    tokens  [[id, [[token, logprob, [[token, logprob], ...]], ...]], ...]
    ended   [[id, "stop" | "length"], ...]
    state   {...}, see `Room.state`
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lathe.engine import Constraint, Engine, Grammars, Sampling, Sequence, Token
from lathe.engine.embed import Embedded
from lathe.engine.judge import Text
from lathe.engine.thoughts import Bound, Bounded
from lathe.errors import CheckpointError, LatheError
from lathe.server.line import told
from lathe.server.refusals import Broken, Unready
from lathe.tokenizer import Tokenizer

QUIET = 1.0  # seconds without a request, after which what the first grammar would wait for is done


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer.

    adapt: puts the adapter in a folder on, by a name, for requests that name it. adapters: what
        clients call those that are on, see `line.key`.
    defaults: fields of Sampling, where a request does not say. usual: those of them that nobody asked for. stops: ids
        that end an answer.
    about: what else is told of it, by wires and on the screen, as JSON.
    """

    engine: Engine
    tokenizer: Tokenizer
    grammars: Grammars
    adapt: Callable[[str, Path], None]
    adapters: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    usual: tuple[str, ...] = ()
    stops: frozenset[int] = frozenset()
    about: Mapping[str, Any] = field(default_factory=dict)


def occupy(pipe: Connection, load: Callable[[], Loaded]) -> None:
    """Load the model, say that it is ready, and answer until the line ends."""
    with pipe, suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the web process is gone: nobody asks
        try:
            loaded = load()
        except LatheError as error:
            return _send(pipe, "failed", told(error))
        _send(pipe, "ready", _introduced(loaded))
        Room(loaded, pipe).run()
    return None


def _introduced(loaded: Loaded) -> dict[str, Any]:
    """What the web process has to know of the model. `words`: a folder with its tokenizer."""
    place, tokenizer = loaded.tokenizer.source, loaded.tokenizer
    if place is None:
        place = Path(tempfile.mkdtemp(prefix="lathe-"))  # the web process removes it when it has read it
        tokenizer.save(place)
    return {
        "words": [str(place), tokenizer.style, loaded.tokenizer.source is None],
        "defaults": dict(loaded.defaults),
        "usual": list(loaded.usual),
        "stops": sorted(loaded.stops),
        "context": loaded.engine.context,
        "vocab": loaded.engine.decoder.spec.vocab,
        "width": loaded.engine.decoder.spec.width,
        "seats": loaded.engine.scheduler.seats,
        "adapters": list(loaded.adapters),
        "about": dict(loaded.about),
    }


@dataclass(frozen=True)
class Asked:
    """What is asked of the engine. wishes: fields of Sampling. stops: ids. grammar: what the answer must be.
    bound: fields of `Bound`, its marks as text.

    more: further answers to the same prompt, by their ids, with what differs in their wishes. The engine has them wait
        for what the first reads.
    """

    prompt: list[int]
    wishes: dict[str, Any]
    stops: list[int]
    adapter: str | None = None
    grammar: str | None = None
    bound: dict[str, Any] | None = None
    salt: str = ""
    priority: int = 0
    more: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


class Room:
    """open: sequences that are being made. compiling: requests whose grammar is. texts: those that are judged or
    embedded beside them."""

    def __init__(self, loaded: Loaded, pipe: Connection) -> None:
        self.loaded, self.engine, self.pipe = loaded, loaded.engine, pipe
        self.open: dict[int, Sequence] = {}
        self.compiling: dict[int, tuple[Asked, Future[Constraint]]] = {}
        self.texts: dict[int, Text | Embedded] = {}
        self._said: dict[str, Any] = {}

    def run(self) -> None:
        """Until the line ends, or asks to stop."""
        while True:
            patience = 0.0 if self.engine.busy else 0.005 if self.compiling else None
            if patience is None and not self.pipe.poll(QUIET):
                self.loaded.grammars.prepare()
            while self.pipe.poll(patience):
                word, *rest = json.loads(self.pipe.recv_bytes())
                if word == "stop":
                    return
                self._take(word, *rest)
                patience = 0  # whatever it was, a step follows: it takes back what a cancelled one held
            for id in [id for id, (_, future) in self.compiling.items() if future.done()]:
                self._safely(id, self._submit, id, *self.compiling.pop(id))
            if (made := self._step()) != self._said:
                _send(self.pipe, "made", made)
                self._said = {"state": made["state"]}

    @property
    def state(self) -> dict[str, int]:
        """Sequences that run and that wait; pages in the pool, and those that somebody holds."""
        pages, scheduler = self.engine.pages, self.engine.scheduler
        pool = len(pages.holders)
        waiting = len(scheduler.waiting) + len(self.compiling)
        return {"running": len(scheduler.running), "waiting": waiting, "pages": pool, "held": pool - pages.free}

    def _take(self, word: str, id: int, *rest: Any) -> None:
        """One message."""
        match word:
            case "ask":
                self._safely(id, self._ask, id, Asked(**rest[0]))
            case "adapt":
                self._safely(id, self._do, id, partial(self.loaded.adapt, rest[0], Path(rest[1])))
            case "take off":
                self._safely(id, self._do, id, partial(self.engine.take_off, rest[0]))
            case "judge":
                self._safely(id, self._judge, id, *rest)
            case "embed":
                self._safely(id, self._embed, id, *rest)
            case "cancel":
                self.compiling.pop(id, None)
                if sequence := self.open.pop(id, None) or self.texts.pop(id, None):
                    self.engine.cancel(sequence)

    def _safely(self, id: int, do: Callable[..., None], *arguments: Any) -> None:
        """Do something for one request. An error is the answer to it."""
        try:
            do(*arguments)
        except LatheError as error:
            _send(self.pipe, "refused", id, told(error))
        except Exception:
            self._broken(id)

    def _do(self, id: int, work: Callable[[], Any]) -> None:
        _send(self.pipe, "done", id, work())

    def _judge(self, id: int, tokens: list[int], adapter: str | None, top: int, salt: str) -> None:
        self.texts[id] = self.engine.read(tokens, top=top, adapter=adapter, salt=salt)

    def _embed(self, id: int, tokens: list[int], adapter: str | None) -> None:
        self.texts[id] = self.engine.embedding(tokens, adapter=adapter)

    def _ask(self, id: int, asked: Asked) -> None:
        if asked.grammar is None:
            self._submit(id, asked)
        else:
            self.compiling[id] = asked, self.loaded.grammars.begin(asked.grammar)

    def _submit(self, id: int, asked: Asked, constraint: Future[Constraint] | None = None) -> None:
        self.open[id] = self.engine.submit(
            asked.prompt,
            Sampling(**{**self.loaded.defaults, **asked.wishes}),
            asked.stops,
            adapter=asked.adapter,
            constraint=self._bounded(asked, constraint.result() if constraint else None),
            salt=asked.salt,
            priority=asked.priority,
        )
        for other, wishes in asked.more:  # their grammar, if there is one, has been compiled by now
            self._safely(other, self._ask, other, replace(asked, wishes=asked.wishes | wishes, more=[]))

    def _bounded(self, asked: Asked, constraint: Constraint | None) -> Constraint | None:
        """What an answer must be, with an end to its thoughts where there is to be one."""
        if asked.bound is None:
            return constraint
        marks = {name: asked.bound[name].encode() for name in ("begin", "end")}
        bound = Bound(asked.bound["most"], **marks, close=tuple(asked.bound["close"]))
        return Bounded(bound, self.loaded.tokenizer.spelling, self.engine.decoder.spec.vocab, constraint)

    def _step(self) -> dict[str, Any]:
        """One step of the engine, and what there is to tell of it."""
        before = {id: sequence.cached for id, sequence in self.open.items() if not sequence.made}
        try:
            came = self.engine.step()
        except Exception as error:
            self._trouble(error)
            came = []
        news: dict[Sequence, list[Token]] = {}
        for sequence, token in came:
            news.setdefault(sequence, []).append(token)
        made: dict[str, list[list[Any]]] = {"begun": [], "read": [], "tokens": [], "ended": []}
        for id, sequence in list(self.open.items()):
            if tokens := news.get(sequence):
                if len(tokens) == len(sequence.made):
                    made["begun"].append([id, sequence.prompt, sequence.reused])
                made["tokens"].append([id, [list(token) for token in tokens]])
            elif sequence.cached > before.get(id, sequence.cached):
                made["read"].append([id, sequence.cached, sequence.prompt])
            if sequence.finish:
                del self.open[id]
                if sequence.failure:
                    kind = Broken if isinstance(sequence.failure, CheckpointError) else Unready
                    _send(self.pipe, "refused", id, told(kind(sequence.failure.found, "", sequence.failure.fix)))
                elif sequence.finish == "failed" and sequence.error:
                    _send(self.pipe, "refused", id, told(sequence.error))
                else:
                    made["ended"].append([id, sequence.finish])
        for id, text in [(id, text) for id, text in self.texts.items() if text.finish]:
            del self.texts[id]
            if text.failure:
                _send(self.pipe, "refused", id, told(Unready(text.failure.found, "", text.failure.fix)))
            else:
                _send(self.pipe, "done", id, text.told)
        return {name: rows for name, rows in made.items() if rows} | {"state": self.state}

    def _trouble(self, error: Exception) -> None:
        """A step failed, not for want of memory: nobody knows through whom, so all who ran are refused.

        Raises the error where nobody did.
        """
        running = self.engine.scheduler.running
        asked: dict[int, Sequence] = {**self.open, **self.texts}
        guilty = [id for id, sequence in asked.items() if sequence in running]
        if not guilty:
            raise error
        for id in guilty:
            self.open.pop(id, None)
            self.texts.pop(id, None)
            self.engine.cancel(asked[id])
            self._broken(id)

    def _broken(self, id: int) -> None:
        """Refuse one request for what happened here; the log has it all."""
        traceback.print_exc()
        sys.stderr.flush()
        broken = Broken("The engine failed on this request.", "", "The server's log says more.")
        _send(self.pipe, "refused", id, told(broken))


def _send(pipe: Connection, *message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode())
