"""An Ask's prompt becomes the text and the tokens that the model reads, as its template and its turns want them.

Takes as long as templates and tokenizers take, so it is done in threads. Knows no line and no wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from lathe.errors import PromptError
from lathe.server.ask import Ask
from lathe.server.grammar import grammar as held_to
from lathe.tokenizer import Tokenizer
from lathe.tokenizer.turns import Turns
from lathe.tokenizer.turns_history import dressed

EFFORT = "reasoning_effort"  # as templates that know of it call it
# How much of an answer may be thought where the template has no such word. OpenAI and Anthropic give no numbers; these
# are OpenRouter's, for models that know a number of tokens only:
# https://openrouter.ai/docs/guides/best-practices/reasoning-tokens
SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95, "max": 0.95}


@dataclass(frozen=True)
class Prompt:
    """tokens: what the model reads. text: the same, of a conversation; None of a text or ids, which are continued."""

    tokens: list[int]
    text: str | None = None


def read(tokenizer: Tokenizer, turns: Turns, ask: Ask) -> Prompt:
    """Raises PromptError where there is none, TokenizerError where template or tokenizer refuse it."""
    prompt = ask.prompt
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("The prompt is empty.", "It must hold at least one character.")
        return Prompt(tokenizer.encode(prompt))
    if all(isinstance(item, int) for item in prompt):
        return Prompt(list(cast("Sequence[int]", prompt)))
    text = render(tokenizer, turns, ask)
    return Prompt(tokenizer.encode(text, special=False), text)  # the template writes all special tokens itself


def render(tokenizer: Tokenizer, turns: Turns, ask: Ask) -> str:
    """The text of an Ask's messages, by the chat template. Raises TokenizerError where it refuses them."""
    words = {**({EFFORT: ask.effort} if ask.effort else {}), **ask.words}
    if ask.think is not None:
        words[turns.switch or "enable_thinking"] = ask.think
    offered = [{"type": "function", "function": asdict(tool)} for tool in ask.tools if ask.choice.mode != "none"]
    messages, tools = dressed(turns, cast("Sequence[Mapping[str, Any]]", ask.prompt), offered)
    opens = ask.opens and not ask.continues
    text = tokenizer.render(messages, tools=tools or None, add_generation_prompt=opens, **words)
    if not ask.continues:
        return text
    last = str(messages[-1].get("content") or "").strip()
    return text[: text.rindex(last) + len(last)] if last in text else text


def bound(tokenizer: Tokenizer, turns: Turns, ask: Ask, prompt: Prompt, longest: int) -> dict[str, Any] | None:
    """How long an answer may think, as `engine.Bound` has it, but with marks as text; None for as long as it likes.

    longest: tokens of the whole answer.
    """
    if prompt.text is None or turns.closed(prompt.text):
        return None
    assert turns.reasoning is not None
    most = ask.thought
    if most is None and EFFORT not in (tokenizer.template or "") and ask.effort in SHARES:
        most = int(longest * SHARES[ask.effort])
    if most is None or most >= longest:
        return None
    begin = "" if turns.opened(prompt.text) else turns.reasoning.begin
    close = tokenizer.encode(turns.reasoning.end, special=False)
    return {"most": most, "begin": begin, "end": turns.reasoning.end, "close": close}


def grammar(tokenizer: Tokenizer, turns: Turns, ask: Ask, prompt: Prompt) -> str | None:
    """What an Ask wants its answer held to; None where anything may be said. Raises Unsupported."""
    if not ask.tools and ask.form is None:
        return None
    special = {
        mark: id
        for mark, is_special in tokenizer.marks.items()
        if is_special and (id := tokenizer.id(mark)) is not None
    }
    how = Turns() if prompt.text is None else turns  # a text that is continued has no turns
    return held_to(how, special, tools=ask.tools, choice=ask.choice, form=ask.form, prompt=prompt.text or "")
