"""The engine process: takes requests from the line between steps, and tells after each step what came of it.

It knows tokens and no text. Its one loop never waits while anybody generates, and what goes wrong with one request is
that one's alone.

`["made", {...}]` after a step holds, where there is something to tell:

    begun   [[id, prompt tokens, of which cached], ...]     the prompt has been read
    read    [[id, done, total], ...]                        more of it has
    tokens  [[id, [[token, logprob, [[token, logprob], ...]], ...]], ...]
    ended   [[id, "stop" | "length"], ...]
    state   [running, waiting, pages held, pages]
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from lathe.engine import Engine, Sampling, Sequence, Token
from lathe.errors import LatheError
from lathe.server.line import told
from lathe.server.refusals import Broken
from lathe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer.

    defaults: fields of Sampling, where a request does not say. stops: ids that end an answer.
    about: what else is told of it, by wires and on the screen, as JSON.
    """

    engine: Engine
    tokenizer: Tokenizer
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stops: frozenset[int] = frozenset()
    about: Mapping[str, Any] = field(default_factory=dict)


def occupy(pipe: Connection, load: Callable[[], Loaded]) -> None:
    """Load the model, say that it is ready, and answer until the line ends."""
    try:
        loaded = load()
        _send(pipe, "ready", _introduced(loaded))
    except LatheError as error:
        _send(pipe, "failed", told(error))
        return
    try:
        Room(loaded, pipe).run()
    except (EOFError, OSError):  # the web process is gone
        return


def _introduced(loaded: Loaded) -> dict[str, Any]:
    """What the web process has to know of the model. `words`: a folder with its tokenizer."""
    place, tokenizer = loaded.tokenizer.source, loaded.tokenizer
    if place is None:
        place = Path(tempfile.mkdtemp(prefix="lathe-"))  # the web process removes it when it has read it
        tokenizer.save(place)
    return {
        "words": [str(place), tokenizer.style, loaded.tokenizer.source is None],
        "defaults": dict(loaded.defaults),
        "stops": sorted(loaded.stops),
        "context": loaded.engine.context,
        "vocab": loaded.engine.decoder.spec.vocab,
        "width": loaded.engine.decoder.spec.width,
        "seats": loaded.engine.scheduler.seats,
        "about": dict(loaded.about),
    }


class Room:
    def __init__(self, loaded: Loaded, pipe: Connection) -> None:
        self.loaded, self.engine, self.pipe = loaded, loaded.engine, pipe
        self.open: dict[int, Sequence] = {}
        self.told: dict[int, int] = {}  # of the open ones: how many tokens of the prompt, or of the answer, were told
        self.readings: dict[int, Callable[[], Any]] = {}  # texts to be read for themselves, in the order they came

    def run(self) -> None:
        """Until the line ends, or asks to stop."""
        while True:
            patience = 0 if self.engine.busy or self.readings else None
            while self.pipe.poll(patience):
                word, *rest = json.loads(self.pipe.recv_bytes())
                if word == "stop":
                    return
                self._take(word, *rest)
                patience = 0  # whatever it was, a step follows: it takes back what a cancelled one held
            _send(self.pipe, "made", self._step())
            for id in list(self.readings)[:1]:  # one between two steps, so that nobody waits for more
                self._safely(id, self._read, id)

    def _take(self, word: str, id: int, *rest: Any) -> None:
        """One message."""
        match word:
            case "ask":
                self._safely(id, self._ask, id, **rest[0])
            case "embed" | "judge":
                self.readings[id] = partial(getattr(self.engine, word), *rest)
            case "cancel":
                self.readings.pop(id, None)
                if sequence := self.open.pop(id, None):
                    self.engine.cancel(sequence)

    def _safely(self, id: int, do: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Do something for one request. An error is the answer to it."""
        try:
            do(*arguments, **named)
        except LatheError as error:
            _send(self.pipe, "refused", id, told(error))
        except Exception:
            self._broken(id)

    def _read(self, id: int) -> None:
        _send(self.pipe, "done", id, self.readings.pop(id)())

    def _ask(self, id: int, prompt: list[int], wishes: dict[str, Any], stops: list[int]) -> None:
        sampling = Sampling(**{**self.loaded.defaults, **wishes})
        self.open[id] = self.engine.submit(prompt, sampling, stops)

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
        made: dict[str, Any] = {"begun": [], "read": [], "tokens": [], "ended": []}
        for id, sequence in list(self.open.items()):
            if tokens := news.get(sequence):
                if len(tokens) == len(sequence.made):
                    made["begun"].append([id, sequence.prompt, 0])
                made["tokens"].append([id, [list(token) for token in tokens]])
            elif sequence.cached > before.get(id, sequence.cached):
                made["read"].append([id, sequence.cached, sequence.prompt])
            if sequence.finish:
                made["ended"].append([id, sequence.finish])
                del self.open[id]
        made = {name: rows for name, rows in made.items() if rows}
        pages, scheduler = self.engine.pages, self.engine.scheduler
        held = len(pages.holders) - pages.free
        return made | {"state": [len(scheduler.running), len(scheduler.waiting), held, len(pages.holders)]}

    def _trouble(self, error: Exception) -> None:
        """A step failed. Where memory ran out, the one that came last gives way; else all who ran, whatever it was."""
        running = self.engine.scheduler.running
        tight = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
        guilty = running[-1:] if tight else list(running)
        for id, sequence in list(self.open.items()):
            if sequence in guilty:
                self.engine.cancel(sequence)
                del self.open[id]
                self._broken(id, "There was not enough memory to answer." if tight else "")

    def _broken(self, id: int, found: str = "") -> None:
        """Refuse one request for what happened here; the log has it all."""
        traceback.print_exc()
        sys.stderr.flush()
        fix = "Try again later, or ask for less." if found else "The server's log says more."
        _send(self.pipe, "refused", id, told(Broken(found or "The engine failed on this request.", "", fix)))


def _send(pipe: Connection, *message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode())
