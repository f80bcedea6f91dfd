"""A pickle program becomes plain data, on a machine of our own that cannot import, call or look up anything in Python.

It knows the instructions that torch.save writes, and gives the names it is told a meaning; any other instruction or
name is refused. Python's `pickle` is not used; `pickletools`, which only takes a program apart, reads the instructions.
It knows no tensor and no file format.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from lathe.errors import CheckpointError, UnsafeError

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
}
KEY_BITS = 60  # Python hashes wider integers modulo 2^61 - 1: a program could make a million of them collide


@dataclass(frozen=True)
class Function:
    """Our stand-in for a function or class that a program calls: arguments -> value; ValueError if they do not fit."""

    call: Callable[[tuple], Any]


@dataclass(frozen=True)
class Class:
    """Our stand-in for a class whose objects are only data: what a program makes of it is a `Record`."""

    name: str


@dataclass(frozen=True, eq=False)
class Record:
    """An object of a class named `kind`: its attributes, or where it keeps something else of itself, that as "state".

    It equals only itself, so that it can be a key.
    """

    kind: str
    fields: dict[str, Any]


def run(program: BytesIO, names: Mapping[str, Any], load: Callable[[Any], Any], path: Path) -> Any:
    """What the pickle program that begins at the stream's position builds; the stream is left behind its end.

    Args:
        names: what "module.name" means: a `Function`, a `Class`, or a value to stand there.
        load: what a persistent id means; ValueError if it is not one.
        path: the file it came from, for errors.

    The result holds what `names` and `load` gave, and Record, dict, list, tuple, str, bytes, int, float, bool and None
    of its own. One thing may appear in it many times, even inside itself, as in any pickle: do not walk it to all its
    depths. Time and memory are in proportion to the length of the program.

    Raises:
        UnsafeError: the program uses a name or an instruction that a checkpoint has no need of.
        CheckpointError: the program is damaged.
    """
    try:
        return _run(program, names, load)
    except _Refused as refused:
        raise UnsafeError(
            f"{path} {refused}, which no plain checkpoint does; nothing of it was run.",
            fix="Get it as safetensors or, if you trust its author, load it with torch and save its tensors alone.",
        ) from None
    except (ValueError, IndexError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged: the pickle program in it makes no sense near byte {program.tell()} ({error}).",
            fix="Download or copy it again.",
        ) from error


class _Refused(Exception):
    """What a program asked for and does not get, as the predicate of a sentence."""


def _run(program: BytesIO, names: Mapping[str, Any], load: Callable[[Any], Any]) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stack under each open mark
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass  # genops ends at STOP
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "TUPLE1":
                stack.append((stack.pop(),))
            case "TUPLE2":
                b, a = stack.pop(), stack.pop()
                stack.append((a, b))
            case "TUPLE3":
                c, b, a = stack.pop(), stack.pop(), stack.pop()
                stack.append((a, b, c))
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS":
                items, stack = stack, below.pop()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [key, value])
            case "SETITEMS":
                items, stack = stack, below.pop()
                _update(stack[-1], items)
            case "GLOBAL":
                stack.append(_find(names, arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if type(name) is not str or type(module) is not str:
                    raise ValueError("a name that is not text")
                stack.append(_find(names, f"{module}.{name}"))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                if type(function) is not Function or type(args) is not tuple:
                    raise ValueError("a call of what is no function")
                stack.append(function.call(args))
            case "NEWOBJ":
                args, kind = stack.pop(), stack.pop()
                if type(kind) is not Class or args != ():
                    raise ValueError("an object of what is no class, or made of something")
                stack.append(Record(kind.name, {}))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "BINPERSID":
                stack.append(load(stack.pop()))
            case constant if constant in CONSTANTS:
                stack.append(CONSTANTS[constant])
            case value if value in VALUES:
                stack.append(arg)
            case unknown:
                raise _Refused(f"uses the pickle instruction {unknown} {arg!r:.80}")
    return stack.pop()


def _find(names: Mapping[str, Any], name: str) -> Any:
    if name not in names:
        raise _Refused(f"asks for {name!r:.200} to be imported")
    return names[name]


def _build(target: Any, state: Any) -> None:
    if type(target) is Record:
        named = type(state) is dict and all(type(name) is str for name in state)
        target.fields.update(state if named else {"state": state})
    elif type(target) is not dict:  # an OrderedDict: a state dict keeps the versions of its modules in attributes
        raise ValueError("attributes given to what has none")


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise ValueError("an item added to what is no list")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
        raise ValueError("an entry added to what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (
            type(key) in (str, bool, bytes, Record)
            or key is None
            or (type(key) is int and key.bit_length() <= KEY_BITS)
        ):
            raise ValueError("a key that no checkpoint has")
        target[key] = value
