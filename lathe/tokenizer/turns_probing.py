"""What a chat template writes after the last question, asked in the ways that tell how its model writes turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.errors import TokenizerError
from lathe.tokenizer.turns_pieces import FIRST, NAMES, OTHERS, SECOND

Render = Callable[..., str]

_KEYS = ("reasoning_content", "reasoning", "thinking")
_SWITCHES = ("enable_thinking", "thinking", "open_thinking")
QUESTION, SAID, THOUGHT = "lathe asks", "lathe says", "lathe thinks"
USER = {"role": "user", "content": QUESTION}


def _tool(name: str) -> dict[str, Any]:
    properties = {FIRST: {"type": "string"}, SECOND: {"type": "string"}}
    properties |= {f"key_{kind}": {"type": kind} for kind in OTHERS}
    parameters = {"type": "object", "properties": properties, "required": [FIRST]}
    return {"type": "function", "function": {"name": name, "description": "A probe.", "parameters": parameters}}


TOOLS = [_tool(name) for name in NAMES]


@dataclass(frozen=True)
class Probe:
    """ends: the tokens that end a turn. Its methods give None where the template refuses."""

    render: Render
    ends: tuple[str, ...]

    def tail(self, *answers: Mapping[str, Any], opens: bool = False, **more: Any) -> str | None:
        text = self.written([USER, *answers], add_generation_prompt=opens, **more)
        if text is None and "tools" not in more:  # a template for tools alone
            text = self.written([USER, *answers], add_generation_prompt=opens, tools=TOOLS, **more)
        if text is None:
            return None
        return text.rpartition(QUESTION)[2] if QUESTION in text else None

    def answer(self, **fields: Any) -> str | None:
        return self.tail({"role": "assistant", **fields})

    def key(self) -> str | None:
        """The key of a message in which the template reads its reasoning."""
        for key in _KEYS:
            if THOUGHT in (self.answer(content=SAID, **{key: THOUGHT}) or ""):
                return key
        return None

    def system(self) -> bool:
        """Whether the template writes a system message."""
        led = self.written([{"role": "system", "content": SAID}, USER])
        return SAID in (led or "") or self.written([USER]) is None

    def prompts(self) -> tuple[str | None, list[str]]:
        """The variable that turns reasoning on and off, and how an answer may be opened."""
        plain, switch = self.tail(opens=True), None
        found = [plain] if plain is not None else []
        for name in _SWITCHES:
            both = [self.tail(opens=True, **{name: on}) for on in (True, False)]
            if switch is None and both[0] != both[1]:
                switch = name
            found += [text for text in both if text is not None and text not in found]
        if switch is None:  # it may be said to the model in words
            for name in _SWITCHES:
                if len({self.written([USER], **{name: on}) for on in (True, False)}) > 1:
                    return name, found
        return switch, found

    def written(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> str | None:
        """What the template writes; None where it refuses."""
        try:
            return self.render(messages, **more)
        except TokenizerError:
            return None
