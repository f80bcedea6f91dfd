"""Turns a question into an answer that streams and is remembered; knows no keyboard, no command and no tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from lathe.actions.conversation import Conversation, Message, plain
from lathe.actions.wishes import SETTINGS, Settings
from lathe.errors import UsageError, did_you_mean
from lathe.options import Option
from lathe.values import convert

if TYPE_CHECKING:
    from lathe.llm import LLM, Completion

ANSWER = 1024  # tokens of the context kept free for an answer, but never more than a quarter of it


class Session:
    """One conversation with a loaded model.

    Args:
        out: takes the answers. show: makes a piece of an answer fit for it.
        note: takes all else there is to say, a paragraph at a time.
        stats: tell the speed after every answer.

    Raises UsageError for settings out of range.
    """

    def __init__(
        self,
        llm: LLM,
        settings: Settings,
        conversation: Conversation,
        out: TextIO,
        note: Callable[[str], None],
        *,
        show: Callable[[str], str] = str,
        stats: bool = False,
    ) -> None:
        self.llm, self.conversation = llm, conversation
        self.out, self.note, self.show, self.stats = out, note, show, stats
        self.context = llm.engine.context
        self.last: Completion | None = None
        self.defaults = dict(llm.defaults)
        if llm.tokenizer.has_template and "max_new_tokens" not in llm.generation:
            self.defaults["max_new_tokens"] = self.context  # such a model ends its answers itself
        self.settings = self._checked(settings)

    def ask(self, question: str, after: Conversation | None = None) -> None:
        """Stream the answer, and remember it as what follows `after`, by default the conversation so far.

        What there is of an answer that KeyboardInterrupt stops is remembered too. Raises PromptError for a question
        that is too long even alone, TokenizerError where the chat template refuses it; nothing is changed then.
        """
        wishes = self.defaults | self.settings.wishes()
        reserve = min(self.settings.max_new_tokens or ANSWER, self.context // 4)
        fitted = (after or self.conversation).fitted(question, self._count, self.context - reserve)
        reply = self.llm.stream(self._prompt(fitted.messages(question)), **wishes)
        if fitted.left_out > self.conversation.left_out:
            self.note(f"The context of {self.context} tokens is full: {_oldest(fitted.left_out)} to the model.")
        try:
            for piece in reply:
                self.out.write(self.show(piece))
                self.out.flush()
        finally:
            reply.close()
            self.last = reply.completion
            if self.last.text:
                self.conversation = fitted.added(question, self.last.text)
            self.out.write("\n")
            self.out.flush()
        self._comment(self.last)

    def regenerate(self) -> None:
        """Answer the last question anew; if that comes to nothing, the old answer stays. Raises as `ask`."""
        before, question = self.without_last()
        self.ask(question, before)

    def without_last(self) -> tuple[Conversation, str]:
        """The conversation before the last question, and that question. Raises UsageError where there is none."""
        if not self.conversation.exchanges:
            raise UsageError("Nothing has been asked yet.")
        return self.conversation.undone(), self.conversation.exchanges[-1].question

    def _prompt(self, messages: list[Message]) -> str | list[Message]:
        return messages if self.llm.tokenizer.has_template else plain(messages)

    def _count(self, messages: list[Message]) -> int:
        tokenizer = self.llm.tokenizer
        if tokenizer.has_template:
            return len(tokenizer.encode(tokenizer.render(messages), special=False))
        return len(tokenizer.encode(plain(messages)))

    def _comment(self, answer: Completion) -> None:
        if not answer.text:
            self.note("The model had nothing to say. The question is not kept.")
        if answer.finish_reason == "length":
            full = answer.usage.total_tokens >= self.context
            limit = f"the context of {self.context} tokens is full" if full else "max_new_tokens is reached (see /set)"
            self.note(f"The answer is cut off: {limit}.")
        if self.stats:
            self.note(speed(answer, self.context))

    # ------------------------------------------------------------ settings

    def change(self, name: str, value: str) -> None:
        """Set what is called `name` to what is written as `value`; "none" is the default. Raises UsageError."""
        option = setting(name)
        new = option.default if value == "none" else convert(option.hint, value, option.key)
        self.settings = self._checked(replace(self.settings, **{option.key: new}))

    def told(self, name: str) -> str:
        """A setting and its value, in one line. Raises UsageError."""
        name = setting(name).key
        value, default = getattr(self.settings, name), self.defaults.get(name, "none")
        if value is None or value == ():
            return f"{name} {default} (by default)"
        return f"{name} {' '.join(map(repr, value)) if isinstance(value, tuple) else value}"

    def _checked(self, settings: Settings) -> Settings:
        from lathe.engine import Sampling

        Sampling(**self.defaults | settings.sampling())
        settings.form()
        return settings


def setting(name: str) -> Option:
    """The setting called `name`. Raises UsageError."""
    found = SETTINGS.get(name.replace("-", "_"))
    if not found:
        fix = did_you_mean(name, SETTINGS)
        raise UsageError(f"There is no setting {name}.", f"There are {', '.join(SETTINGS)}.", fix)
    return found


def speed(answer: Completion, context: int) -> str:
    """How much was read and written, how fast, and how full the context is, in one line."""
    usage, steps = answer.usage, answer.usage.completion_tokens - 1
    rate = f" at {steps / answer.decode_seconds:.1f} tokens/s" if steps > 0 else ""
    read = f"{usage.prompt_tokens} read in {answer.prefill_seconds:.2f} s"
    return f"{usage.completion_tokens} tokens{rate}, {read}, context {usage.total_tokens} of {context}"


def _oldest(count: int) -> str:
    return (
        "the oldest exchange is no longer shown" if count == 1 else f"the {count} oldest exchanges are no longer shown"
    )
