"""Turns what was typed in a session, a message or a /command, into an answer or a change; knows no keyboard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lathe.actions.conversation import Conversation
from lathe.actions.session import SETTINGS, Session, speed
from lathe.errors import UsageError, did_you_mean


class Command(NamedTuple):
    """argument: what may follow it, by name. obey: raises LatheError, and then nothing is changed."""

    argument: str
    help: str
    obey: Callable[[Session, str], None]


def take(session: Session, typed: str) -> None:
    """Obey a /command, or ask the model. A message that begins with a slash is typed with a space before it.

    Raises LatheError, the conversation being as before; EOFError at /quit.
    """
    if not typed.startswith("/"):
        session.ask(typed.lstrip() if typed.lstrip().startswith("/") else typed)
        return
    word, argument = (*typed.split(maxsplit=1), "")[:2]
    command = COMMANDS.get(ALIASES.get(word, word))
    if not command:
        guess = did_you_mean(word, COMMANDS) or "/help lists the commands."
        raise UsageError(f"There is no command {word}.", guess, "To send it as a message, put a space before it.")
    if argument and not command.argument:
        raise UsageError(f"{word} takes nothing more.")
    command.obey(session, argument.strip())


def show_help(session: Session, _: str) -> None:
    lines = [f"{f'{word} {command.argument}':18}{command.help}" for word, command in COMMANDS.items()]
    session.note("\n".join([*lines, *KEYS]))


def system(session: Session, argument: str) -> None:
    if argument:
        text = None if argument == "none" else argument
        session.conversation = replace(session.conversation, system=text)
    session.note(f"The system message is: {session.conversation.system or 'none'}")


def change(session: Session, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if value:
        session.change(name, value.strip())
    session.note("\n".join(session.told(name) for name in ([name] if name else SETTINGS)))


def regenerate(session: Session, _: str) -> None:
    session.regenerate()


def undo(session: Session, _: str) -> None:
    session.conversation, question = session.without_last()
    session.note(f"Taken back: {_short(question)}")


def save(session: Session, argument: str) -> None:
    path = _path(argument, "/save")
    session.conversation.save(path)
    session.note(f"Saved {_count(session.conversation)} to {path}.")


def load(session: Session, argument: str) -> None:
    path = _path(argument, "/load")
    session.conversation = Conversation.load(path)
    said = session.conversation.exchanges
    last = f" The last question was: {_short(said[-1].question)}" if said else ""
    session.note(f"Loaded {_count(session.conversation)} from {path}.{last}")


def reset(session: Session, _: str) -> None:
    session.conversation = Conversation(session.conversation.system)
    session.note("All that was said is forgotten.")


def stats(session: Session, argument: str) -> None:
    if argument not in ("", "on", "off"):
        raise UsageError(f'/stats is "{argument}".', "It must be on, off, or nothing, for the last answer.")
    if argument:
        session.stats = argument == "on"
        session.note(f"The speed is {'told after every answer' if session.stats else 'no longer told'}.")
    elif session.last:
        session.note(speed(session.last, session.context))
    else:
        raise UsageError("Nothing has been answered yet.")


def leave(session: Session, _: str) -> None:
    raise EOFError


def _path(argument: str, word: str) -> Path:
    if not argument:
        raise UsageError(f"{word} needs the name of a file.", f"Type {word} FILE.")
    return Path(argument).expanduser()


def _count(conversation: Conversation) -> str:
    count = len(conversation.exchanges)
    return "1 exchange" if count == 1 else f"{count} exchanges"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


COMMANDS = {
    "/help": Command("", "Show this.", show_help),
    "/system": Command("TEXT", "Set the system message; none removes it. Alone: show it.", system),
    "/set": Command("NAME VALUE", "Change how answers are made; none is the default. Alone: show all.", change),
    "/regenerate": Command("", "Answer the last question anew.", regenerate),
    "/undo": Command("", "Take back the last question and its answer.", undo),
    "/save": Command("FILE", "Write the conversation to a file.", save),
    "/load": Command("FILE", "Go on with a saved conversation in place of this one.", load),
    "/reset": Command("", "Forget what was said; keep the system message and the settings.", reset),
    "/stats": Command("on|off", "Tell the speed after every answer. Alone: of the last one.", stats),
    "/quit": Command("", "End.", leave),
}
# As other chat programs call them.
ALIASES = {"/?": "/help", "/exit": "/quit", "/bye": "/quit", "/clear": "/reset", "/regen": "/regenerate"}
KEYS = (
    "Enter             Send. Alt+Enter, or \\ and Enter, begins a new line.",
    '"""               Begins a message of many lines, which ends with """.',
    "Up, Ctrl-R        Earlier messages; search them.",
    "Tab               Complete a command, a setting or a file.",
    "Ctrl-C            Stop an answer, clear what is typed, or end; Ctrl-D ends too.",
)
