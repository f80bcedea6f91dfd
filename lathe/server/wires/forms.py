"""What a body says that its answer must be, in vLLM's and llama.cpp's ways, becomes a Form."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lathe.server.ask import Form
from lathe.server.refusals import Misused

LONGEST_GRAMMAR = 1 << 16


class StructuredOutputs(BaseModel):
    """vLLM's way to say what the text must be: one of these."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None


def structured(asked: StructuredOutputs) -> Form | None:
    forms: list[Form] = []
    if isinstance(asked.json_, dict):
        forms.append(Form("schema", asked.json_))
    elif asked.json_ is not None:
        raise Misused("structured_outputs", "structured_outputs.json is not a JSON schema.", "It must be an object.")
    if asked.json_object:
        forms.append(Form("json"))
    if asked.regex:
        forms.append(Form("regex", asked.regex))
    if asked.choice:
        forms.append(choice(asked.choice))
    if asked.grammar:
        forms.append(grammar_of("structured_outputs.grammar", asked.grammar))
    if len(forms) > 1:
        raise Misused("structured_outputs", "structured_outputs asks for several forms at once.", fix="Ask for one.")
    return forms[0] if forms else None


def choice(choices: list[str]) -> Form:
    """One of these texts and nothing else: a regular expression with each letter taken literally."""
    return Form("regex", "|".join(f"({_literally(text)})" for text in choices))


def grammar_of(field: str, grammar: str) -> Form:
    """A grammar in Lark, or in llama.cpp's GBNF."""
    from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

    if len(grammar) > LONGEST_GRAMMAR:
        raise Misused(field, f"The grammar is longer than {LONGEST_GRAMMAR} characters.")
    try:
        return Form("lark", any_to_lark(grammar))
    except (GbnfToLarkError, RecursionError) as error:
        raise Misused(field, f"The grammar cannot be read: {error}.") from None


def _literally(text: str) -> str:
    """Text as a regular expression of Rust's, in which only these have a meaning."""
    return "".join(f"\\{letter}" if letter in r"\.+*?()|[]{}^$#&-~" else letter for letter in text)
