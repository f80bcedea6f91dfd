"""Messages -> one text, by a checkpoint's own chat template, rendered in a sandbox it cannot leave.

Offers templates what transformers' `apply_chat_template` offers them; knows no tokenizer and no checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template as Compiled
from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context

from lathe.errors import TokenizerError
from lathe.tokenizer.sandbox import LIMIT, METER, Meter, Sandbox

_WRITTEN = "__written__"  # the variable under which a rendering's spans travel to the generation tag


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Args:
        text: what the model is to read.
        answers: (start, end) of each part, in characters, that the template marks as the assistant's own with
            `{% generation %}`; empty for the many templates that mark nothing.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class _Writing:
    """The text of one rendering as far as it is written, and the spans that its generation tags have marked."""

    def __init__(self) -> None:
        self.size = 0
        self.spans: list[tuple[int, int]] = []


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  the way jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark", [nodes.ContextReference()]), [], [], body).set_lineno(line)

    def _mark(self, context: Context, caller: Callable[[], str]) -> str:
        text, writing = caller(), context[_WRITTEN]
        writing.spans.append((writing.size, writing.size + len(text)))
        return text


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **sort: Any) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **sort)


def _compile(source: str) -> Compiled:
    environment = Sandbox([_Generation, LoopControlExtension])
    environment.filters["tojson"] = _to_json
    # A function rather than the class, whose attributes a template has no business with.
    environment.globals.update(raise_exception=_raise_exception, dict=lambda *pairs, **named: dict(*pairs, **named))
    return environment.program(source)


def _plain(value: Any) -> Any:
    """`value` as JSON's own types: a template may call any method of what it is given, so it gets nothing else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise TokenizerError(
        f"The conversation holds a {type(value).__name__}.",
        "Messages and tools are made of texts, numbers, true, false, null, lists and objects.",
    )


class Template:
    """A chat template.

    Args:
        source: Jinja, as checkpoints carry it.

    Raises:
        TokenizerError: the source is not a template.
    """

    def __init__(self, source: str) -> None:
        try:
            self._compiled = _compile(source)
        except TemplateSyntaxError as error:
            raise TokenizerError(
                f"The chat template cannot be read: {error.message}, in line {error.lineno}.",
                fix="Repair it, or generate from plain text without a template.",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **variables: Any,
    ) -> Rendered:
        """The conversation as the template writes it.

        Args:
            messages: {"role": ..., "content": ...} and whatever else the template knows; keys that are None are left
                out, since templates ask whether a key is there.
            tools: JSON schemas of the functions on offer.
            add_generation_prompt: end with the words that begin the assistant's turn.
            now: what the template's clock shows; the time of the call by default.
            variables: further names the template may use: bos_token, enable_thinking, ...

        Raises:
            TokenizerError: the template refuses the conversation or fails on it; its own message is quoted.
        """
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            raise TokenizerError(
                "The conversation is empty, or not made of messages.",
                'A message is an object like {"role": "user", "content": "Hello"}.',
            )
        writing = _Writing()
        names = {
            "messages": [{key: item for key, item in message.items() if item is not None} for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **variables,
        }
        names = _plain(names)
        names |= {
            "strftime_now": lambda form: (now or datetime.now()).strftime(form),
            _WRITTEN: writing,
            METER: Meter(),
        }
        parts = []
        try:
            for part in self._compiled.generate(names):
                parts.append(part)
                writing.size += len(part)
                if writing.size > LIMIT:
                    raise TemplateError(f"it writes more than {LIMIT:,} characters")
        # A template is a program of its own: on messages it was not made for it fails with whatever Python raises.
        except Exception as error:
            said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise TokenizerError(
                f"The chat template refuses this conversation: {said.rstrip('.')}.",
                fix="Change the messages to what it asks for, or generate from plain text without a template.",
            ) from error
        return Rendered("".join(parts), tuple(writing.spans))
