"""Tool calls as a model writes them -> their names and arguments, the latter as JSON, while they come.

Read more loosely than a template writes: JSON in any order and spacing, space around every mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from lathe.tokenizer.turns import ID, INDEX, PYTHON_TAG, Arguments, Calls
from lathe.tokenizer.turns_reading import Give, Reader, Reading, as_json, escaped

_MARK = re.compile(r"[^>\]]*[>\]]")
_SLOTS = re.compile(f"[{ID}{INDEX}]")
_ARGUMENTS = ("arguments", "parameters")


class CallReader:
    """Reads calls from a text, each of which it begins by its name.

    Args:
        text: where they are read from.
        calls: how they are written.
        tools: the JSON schema of each tool's arguments, by name.
        begin, argue: are given a call's name, and then more of its arguments.
    """

    def __init__(
        self,
        text: Reader,
        calls: Calls,
        tools: Mapping[str, Mapping[str, Any]],
        begin: Callable[[str], None],
        argue: Give,
    ) -> None:
        self._text, self._calls, self._tools, self._begin, self._argue = text, calls, tools, begin, argue
        self.entry, self.stray = entry_mark(calls), _stray(calls)

    def bare(self) -> Reading[None]:
        """Calls that no mark begins: an answer that is the JSON of calls to known tools, and nothing else."""
        text = self._text
        text.record()
        while (yield from text.space()) == "{" and (yield from self._json_call()):
            yield from text.expect([";", ","])
            text.record()
        text.restore()

    def after(self, mark: str) -> Reading[bool]:
        """The calls that follow a mark; False if there are none, or the last is broken off."""
        calls, text = self._calls, self._text
        if calls.form in ("json", "python"):
            listed = yield from text.expect(["["])
            named = calls.form == "python" or mark == PYTHON_TAG
            one = self._python_call if named and (yield from text.space()) != "{" else self._json_call
            while (yield from one()):
                parted = yield from text.expect([",", ";", "]"] if listed else [])
                if parted == "]" or (parted is None and (yield from text.space()) != "{"):
                    return True
            return False
        opening, lead = calls.opening.strip().removeprefix(mark).strip(), calls.before.strip()
        if not calls.opening.strip():
            lead = lead.removeprefix(mark).strip()
        elif opening and (yield from text.expect([opening])) is None:
            return False
        while (yield from self._pass(lead)) and (yield from self._named_call()):
            if not calls.opening.strip() or (yield from self._closed()):
                return True
        return False

    def _closed(self) -> Reading[bool]:
        calls = self._calls
        options = {calls.separator.strip(): False, calls.closing.strip(): True}
        found = yield from self._text.expect([option for option in options if option])
        return found is not None and options[found]

    def _json_call(self) -> Reading[bool]:
        """{"name": ..., "arguments": {...}}, in any order; {NAME: {...}} where that is the way."""
        calls, text, name = self._calls, self._text, ""
        early: list[str] | None = None  # the arguments, if they come before the name or are quoted
        names, arguments = ("name", calls.name), (*_ARGUMENTS, calls.arguments)
        if (yield from text.expect(["{"])) is None:
            return False
        while (yield from text.expect(["}"])) is None:
            key = yield from text.string()
            if key is None or (yield from text.expect([":"])) is None:
                return False
            if calls.name is None and not name:
                name, key = key, calls.arguments
                self._begin(name)
            if key in names and not name:
                name = (yield from text.string()) or ""
                if not name or (not entry_mark(calls) and name not in self._tools):
                    return False
                self._begin(name)
                self._argue("".join(early or []))
            elif key in arguments and early is None:
                early = []
                give = self._argue if name else early.append
                if (yield from text.space()) == '"':  # an object that was written as a text, once more
                    give((yield from text.string()) or "")
                elif not (yield from text.value(give)):
                    return False
            elif not (yield from text.value(lambda _: None)):
                return False
            yield from text.expect([","])
        if name and early is None:
            self._argue("{}")
        return bool(name)

    def _named_call(self) -> Reading[bool]:
        """A name, then arguments as JSON, between tags, or with bare keys."""
        calls, text = self._calls, self._text
        name = yield from text.name()
        if not name or not (yield from self._pass(calls.between)):
            return False
        if calls.tags is not None:
            self._begin(name)
            return (yield from self._tagged(calls.tags, name))
        if (yield from text.space()) != "{":
            return False
        self._begin(name)
        if calls.form == "loose":
            whole = yield from text.loose(calls.quote, self._argue)
        else:
            whole = yield from text.value(self._argue)
        return whole and (yield from self._pass(calls.after))

    def _pass(self, mark: str) -> Reading[bool]:
        """Skips a mark, space aside, with whatever stands in its slots."""
        parts = _SLOTS.split(mark)
        if len(parts) > 1 and parts[-1].strip():
            return (yield from self._text.until([parts[-1].strip()], lambda _: None)) is not None
        return not mark.strip() or (yield from self._text.expect([mark.strip()])) is not None

    def _tagged(self, tags: Arguments, name: str) -> Reading[bool]:
        calls, text, count, begin = self._calls, self._text, 0, tags.begin.strip()
        ends, kinds = (
            [tags.end.rstrip(), tags.end.strip()],
            {value.strip(): kind for kind, value in tags.values.items()},
        )
        after = calls.after.strip() or calls.closing.strip()
        self._argue("{")
        while (found := (yield from text.expect([begin, after]))) == begin:
            parts: list[str] = []
            lead = yield from text.until(list(kinds), parts.append)
            if lead is None:
                return False
            key, kind = "".join(parts).strip(), kinds[lead]
            space = tags.values[kind].rpartition(lead)[2]
            yield from text.skip(space)
            self._argue(f"{', ' if count else ''}{json.dumps(key, ensure_ascii=False)}: ")
            count += 1
            value: list[str] = []
            quoted = kind == "string" if len(kinds) > 1 else _is_text(self._tools.get(name, {}), key)
            self._argue('"' if quoted else "")
            give = (lambda piece: self._argue(escaped(piece))) if quoted else value.append
            if (yield from text.until(ends, give)) is None:
                return False
            self._argue('"' if quoted else as_json("".join(value).strip()))
        self._argue("}" if found else "")
        return found is not None

    def _python_call(self) -> Reading[bool]:
        """name(key=value, ...)"""
        text = self._text
        name = yield from text.name()
        if not name or (yield from text.expect(["("])) is None:
            return False
        self._begin(name.removesuffix(".call"))
        self._argue("{")
        count = 0
        while (yield from text.expect([")"])) is None:
            key = yield from text.name()
            if not key or (yield from text.expect(["="])) is None:
                return False
            value = yield from text.literal(",)")
            if value is None:
                return False
            self._argue(f"{', ' if count else ''}{json.dumps(key, ensure_ascii=False)}: {value}")
            count += 1
            yield from text.expect([","])
        self._argue("}")
        return True


def entry_mark(calls: Calls) -> str:
    """The mark that begins calls: as much of what stands before the first name as can be nothing else, or nothing."""
    lead = (calls.opening + calls.before).strip()
    if calls.form == "json":  # up to the list or the object
        return re.split(r"[\[{]\s*[{\"]", lead)[0].strip()
    found = _MARK.match(lead)
    return found[0] if found else lead


def _stray(calls: Calls) -> list[str]:
    """What may still follow calls that are read to their end, and says nothing."""
    after, closing = calls.after, calls.closing
    if calls.form in ("json", "python"):
        after, closing = (_SLOTS.split(text)[-1].lstrip('"}], \n\t') for text in (after, closing))
    options = (after.strip(), closing.strip(), (after + closing).strip())
    return [text for text in options if text and not _SLOTS.search(text)]


def _is_text(schema: Mapping[str, Any], key: str) -> bool:
    """Whether the schema lets the property be nothing but a text."""
    properties = schema.get("properties")
    about = properties.get(key) if isinstance(properties, Mapping) else None
    return isinstance(about, Mapping) and about.get("type") == "string"
