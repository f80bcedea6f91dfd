"""Turns a terminal, a pipe or one question into a session with a model; knows no tensor."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from lathe.actions.commands import COMMANDS, take
from lathe.actions.conversation import Conversation
from lathe.actions.lines import decoded, piped
from lathe.actions.loading import Adapters, Speaking
from lathe.actions.place import weights_at
from lathe.actions.session import Session
from lathe.actions.terminal import Terminal, busy, harmless, history_file, interrupt, note
from lathe.actions.wishes import SETTINGS, Settings
from lathe.errors import LatheError, PromptError


@dataclass(frozen=True)
class Options(Speaking, Adapters, Settings):
    model: str
    """Folder, file or repo id."""
    question: str | None = None
    """Answer this and end. Without it, a session begins."""
    _: KW_ONLY
    stdin: bool = False
    """Answer all of standard input, as one question, and end; a QUESTION stands after it."""
    system: str | None = None
    """The system message: who the model is to be and how it is to answer."""
    stats: bool = False
    """Tell tokens per second after every answer."""
    history: bool = True
    """Keep what you type for the Up key, in this session and later ones."""


def run(options: Options) -> None:
    """Talk with a model in the terminal.

    Ctrl-C stops an answer and keeps the session; /help lists the commands, Ctrl-D ends.

    Where standard input is not a terminal, each of its lines is a message or a /command, and standard output gets the
    answers and nothing else.
    """
    path = weights_at(options.model, options.checkpoints)
    if options.question is not None or options.stdin:
        answer(options, path)
    elif sys.stdin.isatty():
        converse(options, path)
    else:
        follow(options, path)


def answer(options: Options, path: Path) -> None:
    """Answer one question."""
    parts = [decoded(sys.stdin.buffer.read()).strip("\r\n")] if options.stdin else []
    question = "\n\n".join([*parts, options.question or ""]).rstrip()
    if not question:
        raise PromptError("The question is empty.")
    session = begin(options, path)
    warn(session)
    session.ask(question)


def follow(options: Options, path: Path) -> None:
    """Take the lines of a pipe for what a person would type; unlike a person's, the first error ends the session."""
    session = begin(options, path)
    warn(session)
    with suppress(EOFError):
        for text in piped(sys.stdin.buffer):
            take(session, text)


def converse(options: Options, path: Path) -> None:
    """Talk with a person until they end."""
    after = {"/set": SETTINGS, "/save": "FILE", "/load": "FILE", "/stats": ["on", "off"]}
    terminal = Terminal({word: after.get(word) for word in COMMANDS}, history_file() if options.history else None)
    # A Ctrl-C for an answer that has ended just before must not end the session.
    with suppress(EOFError), interrupt(lambda *_: None):
        session, text = terminal.first(
            load=lambda: begin(options, path),
            greet=lambda session: greet(options.model, session),
            wait=lambda: note("Loading ..."),
        )
        while True:
            respond(session, text)
            text = terminal.read()


def respond(session: Session, text: str) -> None:
    """Take one message of a person; an error, or Ctrl-C, ends the answer and not the session."""
    try:
        with busy():
            take(session, text)
    except LatheError as error:
        print(f"Error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        note("Stopped.")


def begin(options: Options, path: Path) -> Session:
    """Load the model."""
    llm = options.load(path, adapter=options.adapter or None)
    settings = Settings(**{name: getattr(options, name) for name in SETTINGS})
    show = harmless if sys.stdout.isatty() else str
    return Session(llm, settings, Conversation(options.system), sys.stdout, note, show=show, stats=options.stats)


def greet(name: str, session: Session) -> None:
    """Say who is there, and how to get help."""
    weight = session.llm.decoder.like
    what = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
    note(f"{name}: {what}, {session.context} tokens of context. /help lists the commands, Ctrl-D ends.")
    warn(session)


def warn(session: Session) -> None:
    """Say that a model was not made for chats."""
    if not session.llm.tokenizer.has_template:
        note("It has no chat template: it continues what you type, as plain text.")
