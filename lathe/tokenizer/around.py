"""What stands around each message of a conversation becomes the source of a chat template; knows no style by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Around = tuple[str, str]


@dataclass(frozen=True)
class Style:
    """What stands before and after each message. {bos} and {eos} are the tokenizer's.

    Args:
        user, answer, system: around a message of each role. What stands before an answer begins the assistant's turn.
        default: the system message of a conversation that has none.
        stops: texts or tokens, besides EOS, at which an answer ends.
        begin: before everything.
        between: before every question but the first.
        inside: the system message stands within the first question, before its text.
        extra: around the further `input` that a message has in instruction sets.
        default_with_extra: the default system message where there is one.
    """

    user: Around
    answer: Around
    system: Around = ("", "\n\n")
    default: str = ""
    stops: tuple[str, ...] = ()
    begin: str = ""
    between: str = ""
    inside: bool = False
    extra: Around = ("\n\n", "")
    default_with_extra: str = ""


_SOURCE = """\
{%- if messages[0].role == 'system' %}{% set system, turns = messages[0].content, messages[1:] %}
{%- elif DEFAULT_WITH_EXTRA and messages[0].input %}{% set system, turns = DEFAULT_WITH_EXTRA, messages %}
{%- else %}{% set system, turns = DEFAULT, messages %}
{%- endif %}
{%- set system = SYSTEM_BEFORE ~ system ~ SYSTEM_AFTER if system else '' %}
{{- BEGIN ~ (system if not INSIDE or not turns else '') }}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {{- (BETWEEN if not loop.first else '') ~ USER_BEFORE ~ (system if INSIDE and loop.first else '') }}
        {{- message.content ~ (EXTRA_BEFORE ~ message.input ~ EXTRA_AFTER if message.input else '') ~ USER_AFTER }}
    {%- elif message.role == 'assistant' %}
        {{- ANSWER_BEFORE }}
        {%- generation %}{{ message.content ~ ANSWER_AFTER }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('This prompt style has no place for a message of the role ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{{- ANSWER_BEFORE if add_generation_prompt else '' }}
"""


def source(style: Style, bos: str = "") -> str:
    """A style as a chat template, which transformers and llama.cpp understand too.

    Args:
        bos: what the tokenizer puts before every text; not a second time, if the style begins with it.
    """
    words = {name: value for name, value in vars(style).items() if isinstance(value, str)}
    for name in ("user", "answer", "system", "extra"):
        words[f"{name}_before"], words[f"{name}_after"] = getattr(style, name)
    words["begin"] = ("" if style.begin.startswith(bos) else bos) + style.begin
    given: Mapping[str, str] = {name.upper(): _quoted(text) for name, text in words.items()}
    given = {**given, "INSIDE": "true" if style.inside else "false"}
    return re.sub(r"\b[A-Z_]{5,}\b", lambda found: given.get(found[0], found[0]), _SOURCE)


def _quoted(text: str) -> str:
    """A text as Jinja writes it, with the tokenizer's own tokens where {bos} and {eos} stand."""
    parts: list[Any] = re.split(r"\{(bos|eos)\}", text)
    quoted = [
        f"({part}_token or '')" if at % 2 else json.dumps(part, ensure_ascii=False) for at, part in enumerate(parts)
    ]
    return f"({' ~ '.join(quoted)})" if len(quoted) > 1 else quoted[0]
