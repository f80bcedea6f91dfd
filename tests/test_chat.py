"""A conversation is what its messages are; a session answers as LLM does; a terminal is driven as by hand."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe import cli
from lathe.actions.commands import COMMANDS, take
from lathe.actions.conversation import Conversation, Exchange, plain
from lathe.actions.lines import message, piped
from lathe.actions.session import SETTINGS, Session, Settings, speed
from lathe.actions.terminal import harmless
from lathe.errors import DataError, LatheError, MissingError, PromptError, UsageError
from lathe.llm import LLM

texts = st.text(st.characters(codec="utf-8"), max_size=30)
conversations = st.builds(
    Conversation, st.none() | texts, st.lists(st.builds(Exchange, texts, texts), max_size=8).map(tuple)
)
CONTEXT = 2048  # stories260K was made for 512; with more it babbles on, which gives time to interrupt it


def size(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) + 1 for message in messages)


# ---------------------------------------------------------------- the conversation


def test_messages_take_turns() -> None:
    said = Conversation("Be kind.").added("Hello?", "Hello!").added("Who?", "Me.")
    assert said.messages("Why?") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Why?"},
    ]
    assert said.undone() == Conversation("Be kind.").added("Hello?", "Hello!")
    assert plain(said.messages("Why?")) == "Be kind.\nHello?Hello!\nWho?Me.\nWhy?"


@given(conversations, texts, st.integers(0, 300), st.integers(0, 8))
def test_the_fewest_oldest_exchanges_are_left_out(said: Conversation, question: str, room: int, before: int) -> None:
    before = min(before, len(said.exchanges))
    start = Conversation(said.system, said.exchanges, before)
    candidates = [Conversation(said.system, said.exchanges, n) for n in range(before, len(said.exchanges) + 1)]
    fitting = [each for each in candidates if size(each.messages(question)) <= room]
    assert start.fitted(question, size, room) == (fitting or candidates[-1:])[0]


@given(conversations)
def test_saved_and_loaded_it_is_the_same(tmp_path_factory: pytest.TempPathFactory, said: Conversation) -> None:
    path = tmp_path_factory.getbasetemp() / "talks/said.json"
    path.parent.mkdir(exist_ok=True)
    said.save(path)
    assert Conversation.load(path) == said
    assert [file.name for file in path.parent.iterdir()] == ["said.json"]


def test_what_is_left_out_is_saved(tmp_path: Path) -> None:
    said = Conversation().added("a", "b").added("c", "d").fitted("e", size, 2)
    assert said.left_out == 2
    said.save(tmp_path / "said.json")
    assert len(Conversation.load(tmp_path / "said.json").exchanges) == 2


@pytest.mark.parametrize(
    "held, word",
    [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"rows": []}', "messages"),
        ('[{"role": "user"}]', "messages"),
        ('[{"role": "user", "content": [{"type": "text", "text": "a"}]}]', "messages"),
        ('[{"role": "assistant", "content": "a"}]', "turn"),
        ('[{"role": "user", "content": "a"}, {"role": "tool", "content": "a"}]', "turn"),
        ('[{"role": "user", "content": "a"}]', "answer"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, held: str, word: str) -> None:
    path = tmp_path / "held.json"
    path.write_text(held)
    with pytest.raises(DataError, match=word):
        Conversation.load(path)
    with pytest.raises(DataError, match="exists"):
        Conversation().save(path)
    assert path.read_text() == held


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="Cannot read"):
        Conversation.load(tmp_path / "none.json")
    with pytest.raises(MissingError, match="Cannot write"):
        Conversation().save(tmp_path / "none" / "said.json")


def test_half_characters_in_a_file_become_whole(tmp_path: Path) -> None:
    (tmp_path / "said.json").write_text(r'[{"role": "system", "content": "a\ud83d"}]')
    assert Conversation.load(tmp_path / "said.json").system == "a?"


# ---------------------------------------------------------------- what is typed, what is shown


@pytest.mark.parametrize(
    "typed, meant",
    [
        (b"one\ntwo\r\n\n  \nthree", ["one", "two", "three"]),
        (b"one\\\ntwo\nthree\\", ["one\ntwo", "three"]),
        (b'"""one\n\n  two"""\nthree\n', ["one\n\n  two", "three"]),
        (b'"""\none\n"""\n"""two"""\n', ["one", "two"]),
        (b'"""left open\nto the end', ['"""left open\nto the end']),
        (b"  indented\n", ["  indented"]),
        ("é ☃\n".encode(), ["é ☃"]),
    ],
)
def test_lines_of_a_pipe(typed: bytes, meant: list[str]) -> None:
    assert list(piped(io.BytesIO(typed))) == meant


def test_a_pipe_that_is_not_utf8() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        list(piped([b"caf\xe9\n"]))


def test_pasted_code_stays_as_it_is() -> None:
    pasted = 'def f():\n    """What."""\n    x = \\\n        1'
    assert message(pasted) == pasted
    assert message('"""Doc."""\ncode') == '"""Doc."""\ncode'


@given(st.text())
def test_nothing_shown_is_an_order_to_the_terminal(text: str) -> None:
    shown = harmless(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    kept = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
    assert re.sub(r"[\u2400-\u2421\ufffd]", "", shown) == re.sub(r"[\u2400-\u2421\ufffd]", "", kept)


# ---------------------------------------------------------------- the session


@pytest.fixture(scope="module")
def models(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A real model that tells stories, as it is and with a chat template."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("teller", "chatter", "broken"):
        shutil.copytree(shared / "data/models/stories260K-hf", folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    shutil.copy(shared / "data/chat_templates/chatml.jinja", folder / "chatter" / "chat_template.jinja")
    os.truncate(folder / "broken" / "model.safetensors", 5000)
    return {path.name: path for path in folder.iterdir()}


class Listened(Session):
    """A session whose answers and notes are kept."""

    def __init__(self, llm: LLM, settings: Settings) -> None:
        self.answers, self.notes = io.StringIO(), list[str]()
        super().__init__(llm, settings, Conversation(), self.answers, self.notes.append)


@pytest.fixture
def begin(models: dict[str, Path]) -> Callable[..., Listened]:
    def begin(model: str = "chatter", max_new_tokens: int | None = 12) -> Listened:
        return Listened(LLM.load(models[model]), Settings(temperature=0.0, max_new_tokens=max_new_tokens))

    return begin


def test_answers_are_those_of_the_whole_conversation(begin: Callable[..., Listened]) -> None:
    session = begin()
    take(session, "/system You tell stories.")
    for question in ("Tell me a story.", "And then?"):
        messages = session.conversation.messages(question)
        take(session, question)
        answer = session.llm.generate(messages, temperature=0, max_new_tokens=12)
        assert session.conversation.exchanges[-1] == (question, answer)
    assert session.answers.getvalue() == "".join(answer + "\n" for _, answer in session.conversation.exchanges)


def test_without_a_template_a_text_goes_on(begin: Callable[..., Listened]) -> None:
    session = begin("teller")
    take(session, "Once upon a time")
    first = session.llm.generate("Once upon a time", raw=True, temperature=0, max_new_tokens=12)
    take(session, "The dog")
    text = f"Once upon a time{first}\nThe dog"
    assert session.conversation.exchanges[-1].answer == session.llm.generate(
        text, raw=True, temperature=0, max_new_tokens=12
    )


def test_undo_regenerate_reset(begin: Callable[..., Listened]) -> None:
    session = begin()
    for command in ("/undo", "/regenerate"):
        with pytest.raises(UsageError, match="Nothing"):
            take(session, command)
    take(session, "/system Kind.")
    take(session, "One?")
    one = session.conversation
    take(session, "Two?")
    two = session.conversation
    take(session, "/regenerate")
    assert session.conversation == two  # greedy: the same again
    take(session, "/undo")
    assert session.conversation == one
    take(session, "/reset")
    assert session.conversation == Conversation("Kind.")


def test_stopped_answers_stay_and_stopped_regeneration_leaves_the_old_one(begin: Callable[..., Listened]) -> None:
    session = begin()
    left = 3

    def stop_soon(piece: str) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return piece

    session.show = stop_soon
    with pytest.raises(KeyboardInterrupt):
        take(session, "Tell me a story.")
    whole = session.llm.generate(Conversation().messages("Tell me a story."), temperature=0, max_new_tokens=12)
    [(_, partial)] = session.conversation.exchanges
    assert session.answers.getvalue().rstrip("\n") in partial
    assert whole.startswith(partial) and 0 < len(partial) < len(whole)
    assert not session.llm.engine.busy

    take(session, "/set max_new_tokens none")
    session.llm.engine.decoder.register_forward_pre_hook(interrupt := _Interrupt())
    before = session.conversation
    with pytest.raises(KeyboardInterrupt):
        take(session, "/regenerate")
    assert session.conversation == before and interrupt.called


class _Interrupt:
    """Ctrl-C while the prompt is read."""

    called = False

    def __call__(self, *_: object) -> None:
        self.called = True
        raise KeyboardInterrupt


def test_a_full_context_drops_the_oldest_and_says_so(begin: Callable[..., Listened]) -> None:
    session = begin()
    long = Conversation("Kind.", tuple(Exchange(f"dog {n} " * 40, "cat " * 40) for n in range(20)))
    session.conversation = long
    take(session, "And then?")
    out = session.conversation.left_out
    assert 0 < out < 20
    assert f"the {out} oldest exchanges are" in session.notes[0]
    shown = Conversation("Kind.", long.exchanges[out:]).messages("And then?")
    assert session.conversation.exchanges[-1].answer == session.llm.generate(shown, temperature=0, max_new_tokens=12)
    assert session.conversation.exchanges[:-1] == long.exchanges  # nothing is lost from what is saved
    room = CONTEXT - 12
    fuller = Conversation("Kind.", long.exchanges[out - 1 :]).messages("And then?")
    assert session._count(shown) <= room < session._count(fuller)


def test_a_question_too_long_for_the_context_changes_nothing(begin: Callable[..., Listened]) -> None:
    session = begin()
    take(session, "One?")
    before = session.conversation
    with pytest.raises(PromptError, match=str(CONTEXT)):
        take(session, "dog " * CONTEXT)
    assert session.conversation == before
    take(session, "Two?")
    assert len(session.conversation.exchanges) == 2


def test_an_answer_that_fills_the_context_is_cut_off_and_says_so(begin: Callable[..., Listened]) -> None:
    session = begin(max_new_tokens=None)
    take(session, "dog " * (CONTEXT // 2 - 60))
    assert session.last and session.last.usage.total_tokens == CONTEXT
    assert "context of 2048 tokens is full" in session.notes[-1]


def test_settings(begin: Callable[..., Listened]) -> None:
    session = begin()
    take(session, "/set")
    assert [line.split()[0] for line in session.notes[-1].splitlines()] == list(SETTINGS)
    take(session, "/set max-new-tokens 5")
    take(session, "/set stop the end")
    assert session.settings == Settings(temperature=0.0, max_new_tokens=5, stop=("the end",))
    take(session, "One?")
    assert session.last and session.last.usage.completion_tokens == 5
    take(session, "/set stop none")
    take(session, "/set max_new_tokens none")
    assert session.settings == Settings(temperature=0.0)
    assert session.told("max_new_tokens") == f"max_new_tokens {CONTEXT} (by default)"
    assert begin("teller", max_new_tokens=None).told("max_new_tokens") == "max_new_tokens 256 (by default)"
    take(session, "/set regex (ja|nein)")
    take(session, "/set logit-bias 1=-2,3=4")
    assert session.settings.wishes()["logit_bias"] == {1: -2.0, 3: 4.0}
    take(session, "Two?")
    assert session.conversation.exchanges[-1].answer in ("ja", "nein")
    take(session, "/set regex none")
    with pytest.raises(MissingError, match="cannot be read"):
        take(session, "/set schema none.json")


@pytest.mark.parametrize(
    "typed, words",
    [
        ("/svae x", ["/svae", 'Did you mean "/save"?']),
        ("/frobnicate", ["/help"]),
        ("/set temprature 1", ['Did you mean "temperature"?']),
        ("/set temperature hot", ["must be a number"]),
        ("/set temperature -1", ["temperature", "0"]),
        ("/undo 3", ["nothing more"]),
        ("/save", ["/save FILE"]),
        ("/load none.json", ["none.json"]),
        ("/stats maybe", ["on", "off"]),
        ("/stats", ["answered"]),
    ],
)
def test_mistakes_change_nothing(begin: Callable[..., Listened], typed: str, words: list[str]) -> None:
    session = begin()
    before = session.conversation, session.settings
    with pytest.raises(LatheError) as raised:
        take(session, typed)
    assert all(word in str(raised.value) for word in words)
    assert (session.conversation, session.settings) == before


def test_help_names_every_command_and_a_slash_can_begin_a_message(begin: Callable[..., Listened]) -> None:
    session = begin()
    take(session, "/help")
    assert all(word in session.notes[-1] for word in COMMANDS)
    take(session, " /etc/fstab is what?")
    assert session.conversation.exchanges[-1].question == "/etc/fstab is what?"
    take(session, "/stats")
    assert session.last and session.notes[-1] == speed(session.last, CONTEXT)
    for word in ("/quit", "/exit"):
        with pytest.raises(EOFError):
            take(session, word)


# ---------------------------------------------------------------- the command, without a terminal


def lathe(monkeypatch: pytest.MonkeyPatch, words: list[str], stdin: bytes = b"") -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    return cli.main(["chat", *words])


def test_a_pipe_is_a_session_and_stdout_is_the_answers(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "said.json"
    typed = f"Tell me.\n/stats\nAnd \\\nthen?\n/regen\n/save {saved}\n/quit\nnot reached\n"
    options = ["--temperature", "0", "--max-new-tokens", "9", "--system", "Kind."]
    assert lathe(monkeypatch, [str(models["chatter"]), *options], typed.encode()) == 0
    said = Conversation.load(saved)
    assert said.system == "Kind." and [question for question, _ in said.exchanges] == ["Tell me.", "And \nthen?"]
    first, second = (answer for _, answer in said.exchanges)
    out, err = capsys.readouterr()
    assert out == f"{first}\n{second}\n{second}\n"
    assert "tokens/s" in err and "\x1b" not in err


def test_a_mistake_in_a_pipe_ends_it(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lathe(monkeypatch, [str(models["teller"])], b"/quti\nnot reached\n") == 2
    out, err = capsys.readouterr()
    assert out == "" and "no chat template" in err and 'Did you mean "/quit"?' in err


def test_one_question(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = LLM.load(models["chatter"])
    options = [str(models["chatter"]), "--temperature", "0", "--max-new-tokens", "9"]
    assert lathe(monkeypatch, [*options, "/quit is a word."]) == 0
    assert capsys.readouterr().out == llm.generate("/quit is a word.", temperature=0, max_new_tokens=9) + "\n"
    assert lathe(monkeypatch, [*options, "Go on.", "--stdin"], b"A dog.\nA cat.\n") == 0
    whole = "A dog.\nA cat.\n\nGo on."
    assert capsys.readouterr().out == llm.generate(whole, temperature=0, max_new_tokens=9) + "\n"
    assert lathe(monkeypatch, [*options, ""]) == 2
    assert "empty" in capsys.readouterr().err


# ---------------------------------------------------------------- the command, in a terminal


class Keyboard:
    """A pseudo-terminal with `lathe chat` in it: type, and wait for what should appear."""

    def __init__(self, words: list[str], state: Path) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        # No answers to questions about the cursor come from this terminal.
        more = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lathe", "chat", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | more,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, pattern: str, seconds: float = 60) -> str:
        """Everything up to and with the first match; waits for it, and forgets what was shown so far."""
        import select

        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not come; on the screen is: {self.shown!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # how Linux says that nobody writes any more
                data = b""
            assert data, f"{pattern!r} did not come before the end: {self.shown!r}"
            self.shown += re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])|\r", "", data.decode("utf-8", "replace"))
        before, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return before

    def status(self) -> int:
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def keyboard(tmp_path: Path) -> Iterator[Callable[..., Keyboard]]:
    pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    opened: list[Keyboard] = []

    def keyboard(*words: str) -> Keyboard:
        opened.append(Keyboard(list(words), tmp_path / "state"))
        return opened[-1]

    yield keyboard
    for each in opened:
        each.close()


def test_a_session_in_a_terminal(keyboard: Callable[..., Keyboard], models: dict[str, Path], tmp_path: Path) -> None:
    saved, long = tmp_path / "said.json", tmp_path / "long.json"
    Conversation(None, (Exchange("dog " * 300, "cat " * 300),) * 4).save(long)
    there = keyboard(str(models["chatter"]), "--temperature", "0")
    there.wait(rf"{CONTEXT} tokens of context\. /help")
    there.type("Tell me\x1b\ra story\r")  # Alt+Enter between
    there.wait('"Here')  # the answer streams, and would take seconds
    there.type("typed ahead\x03")
    there.wait(r"Stopped\.")
    there.type("\x15/set max_new_tokens 9\r")  # Ctrl-U: away with what was typed ahead
    there.wait(r"max_new_tokens 9\n")
    there.type("And then?\r")
    there.wait(r"max_new_tokens is reached")
    there.type(f"/save {saved}\r")
    there.wait(r"Saved 2 exchanges")
    said = Conversation.load(saved)
    assert [question for question, _ in said.exchanges] == ["Tell me\na story", "And then?"]
    there.type("/undo\r")
    there.wait(r"Taken back: And then\?")
    there.type("/sa\t" + f"{tmp_path / 'less.json'}\r")
    there.wait(r"Saved 1 exchange to")
    assert Conversation.load(tmp_path / "less.json") == said.undone()
    there.type(f"/load {saved}\r")
    there.wait(r"Loaded 2 exchanges")
    there.type(f"/load {long}\r")
    there.wait(r"Loaded 4 exchanges")
    there.type("Short?\r")
    there.wait(r"context of 2048 tokens is full: the \d oldest exchanges are no longer shown")
    there.wait(r"max_new_tokens is reached")
    there.type("/svae\r")
    there.wait(r'Did you mean "/save"\?')
    there.type("\x1b[A\x1b[A\r")  # Up, twice
    there.wait(r"Short\?")
    there.wait(r"max_new_tokens is reached")
    there.wait(">")
    there.type("some words\x03")  # clears the line, so that the next ends
    there.type("\x03")
    assert there.status() == 0
    history = tmp_path / "state" / "lathe" / "history"
    assert "+Tell me\n+a story\n" in history.read_text() and history.stat().st_mode & 0o777 == 0o600


def test_a_model_that_cannot_be_read_ends_the_prompt(
    keyboard: Callable[..., Keyboard], models: dict[str, Path]
) -> None:
    there = keyboard(str(models["broken"]), "--no-history")
    there.wait(">")
    there.type("half a mess")
    there.wait(r"Error: .*model\.safetensors is cut short")
    assert there.status() == 2
    assert "Traceback" not in there.shown
