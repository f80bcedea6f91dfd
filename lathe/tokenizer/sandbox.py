"""Jinja that a stranger wrote becomes a program that cannot leave its room, nor stay in it for ever.

Every turn of a loop, every call and every filter of one rendering is counted, with the size of what it makes; past a
limit the rendering ends with an error. Knows nothing of chats.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

LIMIT = 1 << 26  # characters or items of one thing
_STEPS = 1_000_000  # turns, calls, filters, and 1,024 characters or items each: some seconds of work
_SECONDS = 60.0  # the last resort, for what is not counted
METER = "__meter__"  # the variable under which a rendering's meter travels


class Meter:
    """What one rendering has done so far."""

    def __init__(self) -> None:
        self._steps = 0
        self._until = time.monotonic() + _SECONDS

    def spend(self, made: Any = None) -> Any:
        """Counts one step, and what it made, which is returned. Raises TemplateError past a limit."""
        size = len(made) if isinstance(made, (str, list, tuple, dict, range)) else 0
        if size > LIMIT:
            raise TemplateError(f"it makes something of more than {LIMIT:,} parts")
        self._steps += 1 + (size >> 10)
        if self._steps > _STEPS or time.monotonic() > self._until:
            raise TemplateError("it does not come to an end: a loop runs on, or a macro calls itself")
        return made

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend()
            yield item


class _Counting(Extension):
    """Puts a meter around loops, filters and joined texts when a template is compiled."""

    def count(self, source: nodes.Template) -> nodes.Template:
        for loop in source.find_all(nodes.For):
            loop.iter = self._metered("_loop", loop.iter)
        for filter in source.find_all(nodes.Filter):
            if filter.node is not None:  # not that of a {% filter %} block, which works on what is written
                filter.node = self._metered("_size", filter.node)
        return self._wrapped(source)

    def _wrapped(self, node: Any) -> Any:
        """Every ~ and every filter's result, from the inside out."""
        for name, value in node.iter_fields():
            if isinstance(value, list):
                setattr(node, name, [self._wrapped(item) if isinstance(item, nodes.Node) else item for item in value])
            elif isinstance(value, nodes.Node):
                setattr(node, name, self._wrapped(value))
        whole = isinstance(node, nodes.Concat) or (isinstance(node, nodes.Filter) and node.node is not None)
        return self._metered("_size", node) if whole else node

    def _metered(self, name: str, node: Any) -> nodes.Expr:
        return self.call_method(name, [nodes.ContextReference(), node], lineno=node.lineno)

    def _loop(self, context: Context, items: Iterable[Any]) -> Iterable[Any]:
        return context[METER].counted(items)

    def _size(self, context: Context, value: Any) -> Any:
        return context[METER].spend(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, counting. A template is compiled by `program`; METER must be among what it is rendered with."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, extensions: Iterable[type[Extension]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[*extensions, _Counting])

    def program(self, source: str) -> Compiled:
        """A template, compiled. Raises jinja2's TemplateSyntaxError."""
        [counting] = [found for found in self.extensions.values() if isinstance(found, _Counting)]
        code = self.compile(counting.count(self.parse(source)))
        return Compiled.from_code(self, code, self.make_globals(None))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = __context[METER]
        if any(isinstance(given, int) and abs(given) > LIMIT for given in (*args, *kwargs.values())):
            raise TemplateError(f"it calls something with a number above {LIMIT:,}")
        if isinstance(__obj, LoopContext) and args:  # {{ loop(children) }} of a recursive loop
            args = (meter.counted(args[0]), *args[1:])
        return meter.spend(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**") and _huge(operator, left, right):
            raise TemplateError(f"it makes something of more than {LIMIT:,} parts")
        if operator == "%" and isinstance(left, str):
            raise TemplateError("it formats text with %")
        return context[METER].spend(super().call_binop(context, operator, left, right))


def _huge(operator: str, left: Any, right: Any) -> bool:
    sizes = [len(value) if isinstance(value, (str, list, tuple)) else None for value in (left, right)]
    if sizes == [None, None]:
        if not (isinstance(left, int) and isinstance(right, int)):
            return False
        return left.bit_length() * (right if operator == "**" else 1) + right.bit_length() > LIMIT >> 10
    count = next((value for value in (left, right) if isinstance(value, int)), 0)
    return count * next(size for size in sizes if size is not None) > LIMIT
