"""What an Ask wants of its answer (tools, form, reasoning) -> one grammar that holds a model to it, as text.

The grammar writes calls the way the model itself does (`tokenizer.turns`), in Lark's notation as llguidance reads it:
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. Special tokens stand in it as tokens, <[id]>, all
else as text, however it is cut into tokens. Reasoning comes first and is free; what follows it is held to the form.

auto: text, up to the mark that begins a call; from there on, calls to the tools on offer whose arguments fit their
schemas. required, or a name: such calls and nothing else. With a form, too: text of that form, or calls. An answer of
calls has no text after them. Where no mark begins a call, a text cannot begin with {.

JSON follows all that llguidance knows of JSON Schema. Schemas of tools may say more, which is let be; that of a form
may not. Arguments that are no JSON follow their schemas less closely (`arguments`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lathe.errors import LatheError
from lathe.server import arguments
from lathe.server.ask import Form, Tool, ToolChoice
from lathe.server.refusals import Unsupported
from lathe.server.rules import ANY, SPACE, Rules, slashed
from lathe.server.schemas import json_rule, moved, wanted
from lathe.tokenizer.turns import Calls, Reasoning, Turns
from lathe.tokenizer.turns_calling import entry_mark

_AUTO = ToolChoice()
_FIELD = re.compile(r" // ([\w.]+)$")  # as `Rules.rule` writes it


def grammar(
    turns: Turns,
    special: Mapping[str, int],
    *,
    tools: Sequence[Tool] = (),
    choice: ToolChoice = _AUTO,
    form: Form | None = None,
    prompt: str = "",
) -> str | None:
    """The grammar of an answer, or None where anything may be said.

    Args:
        turns: how the model writes.
        special: the special tokens, and their ids.
        prompt: what the answer continues, as text: whether it is within reasoning, or behind it.

    Raises:
        Unsupported: tools, choice or form cannot be held to; it says which.
    """
    named = chosen(tools, choice)
    if not named and form is None:
        return None
    try:
        places = {tool.name: at for at, tool in enumerate(tools)}
        return _Grammar(turns, special, named, choice, form, places).whole(prompt)
    except RecursionError:
        field = "tools" if named else str(form and form.field)
        raise Unsupported(field, "A schema is nested too deeply.", fix="Make it simpler.") from None


def blamed(grammar: str, error: LatheError) -> LatheError:
    """What was found wrong with a grammar, as what is wrong with the field whose rule it was found in."""
    found = re.search(r"\b(\d+)\(\d+\): (.*)", error.found, re.DOTALL)
    if found is None:
        return error
    named = [(at, origin[1]) for at, line in enumerate(grammar.split("\n"), 1) if (origin := _FIELD.search(line))]
    before = [field for at, field in named if at < int(found[1])]
    after = [field for at, field in named if at >= int(found[1])]  # a rule of several lines has it in its last
    field = (after or before[-1:] or [""])[0]
    return Unsupported(field, f"What {field} asks for cannot be held to: {found[2]}") if field else error


def chosen(tools: Sequence[Tool], choice: ToolChoice) -> list[Tool]:
    """The tools that may be called. Raises Unsupported where the choice is none that can be met."""
    if choice.mode == "none":
        return []
    found = [tool for tool in tools if choice.name in (None, tool.name)]
    if not found and (choice.name is not None or choice.mode == "required"):
        wanted = "a tool" if choice.name is None else f'"{choice.name}"'
        raise Unsupported(
            "tool_choice",
            f"tool_choice asks for {wanted} to be called.",
            f"The tools of this request are {', '.join(tool.name for tool in tools) or 'none'}.",
        )
    return found


class _Grammar:
    """One answer's grammar."""

    def __init__(
        self,
        turns: Turns,
        special: Mapping[str, int],
        tools: Sequence[Tool],
        choice: ToolChoice,
        form: Form | None,
        places: Mapping[str, int],
    ) -> None:
        self.reasoning, self.calls = turns.reasoning, turns.calls or Calls("json")
        self.turns, self.tools, self.form, self.places = turns, tools, form, places
        self.asked = bool(tools) and (choice.mode == "required" or choice.name is not None)
        self.several = choice.parallel and self.calls.several
        self.entry = entry_mark(self.calls)
        self.rules = Rules(special)

    def whole(self, prompt: str) -> str:
        start = self.harmony() if self.calls.form == "harmony" else self.answer(prompt)
        return "\n".join([f"start: {start}", *self.rules.written])

    def answer(self, prompt: str) -> str:
        """Thoughts, as far as the prompt leaves room for them, and what follows them."""
        if self.reasoning is None:
            return self.body("")
        if self.turns.opened(prompt):
            return f"{self.thought(self.reasoning, opened=True)} {SPACE} {self.body('')}"
        if self.turns.closed(prompt):
            return self.body("")
        return f"({self.thought(self.reasoning, opened=False)} {SPACE})? {self.body(self.reasoning.begin)}"

    def thought(self, reasoning: Reasoning, *, opened: bool) -> str:
        then = f" {SPACE} ({self.rules.literal(reasoning.then)})?" if reasoning.then else ""
        if opened:
            return self.rules.upto(reasoning.end) + then
        begin = self.rules.literal(reasoning.begin)
        if begin.endswith(">"):  # a token: what follows it is another text
            return f"{begin} {self.rules.upto(reasoning.end)}{then}"
        return self.rules.upto(reasoning.end, f"{begin} {ANY}") + then

    def body(self, begin: str) -> str:
        """What is no thought. begin: the mark of a thought, with which it does not begin."""
        if not self.tools:
            assert self.form is not None
            return self.said(self.form)
        if self.asked:
            return self.called()
        if self.form is None:
            return self.auto(begin)
        if not self.entry and self.form.kind in ("json", "schema"):  # as one: text would not tell them apart
            return self.bare(self.form)
        return f"({self.said(self.form)} | {self.called()})"

    def auto(self, begin: str) -> str:
        """Text, or calls behind it."""
        if not self.entry:
            text = self.rules.rule(r"/(?s:[ \t\r\n]*([^ \t\r\n{].*)?)/")
            return f"({text} | {SPACE} {self.called()})"
        text = ANY
        if begin and not self.rules.token(begin):
            other = rf"/(?s:[ \t\r\n]*{slashed(re.escape(begin))}.*)/"
            text = self.rules.terminal(f"{ANY} & ~{other}")
        return f"({text} | {self.rules.upto(self.entry, text)} {self.called(self.entry)})"

    def said(self, form: Form) -> str:
        """Text of a form."""
        match form.kind:
            case "json" | "schema":
                return self.rules.rule(json_rule(wanted(form)), field=form.field)
            case "regex":
                return self.rules.rule(f"/{slashed(str(form.source))}/", field=form.field)
            case "lark":
                return self.rules.rule(f"%lark {{\n{form.source}\n}}", field=form.field)

    # ------------------------------------------------------------ calls

    def called(self, begun: str = "") -> str:
        """One call or more. begun: what is there of them already."""
        calls, literal = self.calls, self.rules.literal
        if not self.entry and calls.form == "json":
            return self.bare(None)
        opening, first = calls.opening.lstrip(), calls.before
        if opening:
            opening = opening.removeprefix(begun)
        else:
            first = first.lstrip().removeprefix(begun)
        bodies = [(tool.name, *self.arguments(tool)) for tool in self.tools]

        def one(before: str) -> str:
            heads = [(literal(before + name + calls.between + head), body) for name, head, body in bodies]
            return self.rules.rule(" | ".join(f"{head} {body} {literal(calls.after)}" for head, body in heads))

        call = one(first)
        others = call if first == calls.before else one(calls.before)
        more = f"({literal(calls.separator)} {others})*" if self.several else ""
        return f"{literal(opening)} {call} {more} {literal(calls.closing)}".strip()

    def arguments(self, tool: Tool) -> tuple[str, str]:
        """What the arguments of a call begin with, as text, and the rest of them, as rules."""
        calls, schema = self.calls, tool.parameters
        match calls.form:
            case "tagged" if calls.tags is not None:
                return "", arguments.tagged(self.rules, calls.tags, schema)
            case "loose":
                return "{", f'{arguments.loose(self.rules, calls.quote, schema)} "}}"'
            case "python":
                return "(", f'{arguments.keywords(self.rules, schema)} ")"'
            case _:
                body = json_rule({"type": "object", **schema}, lenient=True)
                return "", self.rules.rule(body, field=f"tools.{self.places[tool.name]}")

    def bare(self, form: Form | None) -> str:
        """A call that no mark begins, as JSON; or JSON of the form."""
        schemas = {} if form is None else {"form": wanted(form)}
        options: list[dict[str, Any]] = [{"$ref": f"#/$defs/{name}"} for name in schemas]
        for at, tool in enumerate(self.tools):
            schemas[f"tool{at}"] = {"type": "object", **tool.parameters}
            named = {str(self.calls.name): {"const": tool.name}, self.calls.arguments: {"$ref": f"#/$defs/tool{at}"}}
            options.append({"type": "object", "properties": named, "required": [*named], "additionalProperties": False})
        field = "tools" if form is None else form.field
        return self.rules.rule(json_rule({"anyOf": options, "$defs": moved(schemas)}, lenient=True), field=field)

    def harmony(self) -> str:
        """Thoughts and preambles, then the answer in its own channel, or one call."""
        literal = self.rules.literal
        ended = f"{self.rules.upto('<|end|>')} {literal('<|start|>assistant')}"
        heads = [literal(f"<|channel|>{channel}<|message|>") for channel in ("analysis", "commentary", "final")]
        options = [] if self.asked else [f"{heads[2]} {self.said(self.form) if self.form else ANY}"]
        for tool in self.tools:
            _, body = self.arguments(tool)
            to = f" to=functions.{tool.name}"
            for head in (f"<|channel|>commentary{to} <|constrain|>json", f"{to}<|channel|>commentary json"):
                options.append(f"{literal(head + '<|message|>')} {body}")
        return f"({heads[0]} {ended} | {heads[1]} {ended})* ({' | '.join(options)})"
