"""Turns keys into messages, and text into what is safe to show; knows no model and no command."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from lathe.actions.lines import is_open, message, whole

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

T = TypeVar("T")
# Control characters would let a model's words move the cursor or retitle the window: their pictures are shown instead.
_PICTURES = {code: 0x2400 + code for code in range(32)} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
VISIBLE = _PICTURES | {0x7F: 0x2421, ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}


def harmless(text: str) -> str:
    """Text without what a terminal would take for orders."""
    return text if text.isprintable() else text.translate(VISIBLE)


def dimmed(text: str) -> str:
    """Text for stderr, dim where it is a terminal that may show it so (NO_COLOR is honoured, see no-color.org)."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def note(text: str) -> None:
    """Say something on stderr, beside the results."""
    print(dimmed(text), file=sys.stderr, flush=True)


@contextmanager
def interrupt(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """What Ctrl-C does meanwhile, where the terminal is not reading keys."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def busy() -> Iterator[None]:
    """While the user waits for something: Ctrl-C raises KeyboardInterrupt.

    What is typed stays invisible, so that it does not mix with an answer, and comes up at the next prompt.
    """
    with interrupt(signal.default_int_handler):
        if sys.platform == "win32":
            yield
            return
        import termios

        before = termios.tcgetattr(sys.stdin)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def history_file() -> Path:
    """Where messages are kept from session to session: the folder in which the system wants state of its users."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_STATE_HOME")
    return Path(given or Path.home() / ".local/state") / "lathe" / "history"


class Terminal:
    """Messages from the keyboard.

    Args:
        words: the commands, each with what may follow it: names, "FILE" or nothing; for the Tab key.
        history: the file with earlier messages, to be made where there is none; None to keep nothing. One that cannot
            be written to is as None.
    """

    def __init__(self, words: Mapping[str, Iterable[str] | None], history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        self.keys: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_bindings(),
            completer=_completer(words),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            history=_history(history),
            enable_open_in_editor=True,
            enable_suspend=True,
            output=create_output(always_prefer_tty=True),  # stdout may be a file, for the answers
        )

    def first(self, load: Callable[[], T], greet: Callable[[T], None], wait: Callable[[], None]) -> tuple[T, str]:
        """What `load` makes, in a thread of its own while the first message is typed, and that message.

        greet: called with what was made, as soon as it is there, to print above the prompt. wait: called if the
        message is there sooner. Raises what `load` raises, at once, and EOFError where the user ends.
        """
        from prompt_toolkit.application import get_app, run_in_terminal

        loading: Future[T] = Future()
        greeted = False

        def hail() -> None:
            nonlocal greeted
            if not greeted:
                greeted = True
                greet(loading.result())

        async def watch() -> None:
            app, loaded = get_app(), asyncio.wrap_future(loading)
            await asyncio.wait([loaded])
            if error := loaded.exception():
                app.exit(exception=error)
            else:
                await run_in_terminal(hail)

        with ThreadPoolExecutor(1) as pool:

            def start() -> None:
                nonlocal loading
                loading = pool.submit(load)
                get_app().create_background_task(watch())

            text = self.read(pre_run=start)
            if not loading.done():
                wait()
            with busy():
                made = loading.result()
        hail()
        return made, text

    def read(self, **arguments: Any) -> str:
        """The next message. Raises EOFError where the user ends."""
        return message(self.keys.prompt(**arguments))


def _history(path: Path | None) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # what people ask a model is nobody else's business
            path.open("ab").close()
            return FileHistory(path)
    return InMemoryHistory()


def _completer(words: Mapping[str, Iterable[str] | None]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    files = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            word, space, rest = document.text_before_cursor.partition(" ")
            after = words.get(word) or ()
            if after == "FILE":
                yield from files.get_completions(Document(rest), complete_event)
            else:
                begun = rest if space else word
                for choice in after if space else words:
                    if choice.startswith(begun):
                        yield Completion(f"{choice} " if words.get(choice) else choice, -len(begun))

    return Commands()


def _bindings() -> KeyBindings:
    from prompt_toolkit.document import Document
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not, say, searching the history

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        elif buffer.text.endswith("\\"):
            text = buffer.text[:-1] + "\n"
            buffer.document = Document(text, len(text))
        elif message(buffer.text):  # Enter on an empty line does nothing
            buffer.document = Document(whole(buffer.text))
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("escape", "c-j", filter=typing)  # as Enter arrives when typed ahead of the prompt
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=typing)
    @keys.add("<sigint>", filter=typing)
    def clear_or_end(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    return keys
