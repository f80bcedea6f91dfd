"""Turns the words after `lathe` into an action and its options, runs it, and turns errors into one paragraph.

Knows the actions' names; imports only the module of the one that is run, and it last.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lathe import __version__
from lathe.errors import LatheError, UsageError, did_you_mean

ACTIONS = {
    "download": "Bring a model from the Hugging Face Hub to this machine.",
    "models": "List the families and the well-known repos.",
    "generate": "Print the text that follows a prompt.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Answer over HTTP, as OpenAI's and other APIs do.",
    "data": "Show what training would see in a data set, and check it.",
    "pretrain": "Train a model on text, from random weights or from given ones.",
    "finetune": "Teach a model by examples, with an adapter beside it or whole.",
    "runs": "Compare trainings in the browser, while they go on.",
    "evaluate": "Measure models on tasks, and compare them.",
    "merge": "Put an adapter into its base: a model that needs neither.",
    "tokenizer": "Make a tokenizer from texts.",
    "convert": "Write a model in another form: for transformers, LitGPT or llama.cpp.",
    "quantize": "Write a model in fewer bits, and say what that costs.",
    "inspect": "Show what a model is and check its files.",
    "bench": "Time a model on this machine, beside what the machine could do.",
    "demo": "Train a small model on Python's own manual and let it speak: offline, in about two minutes.",
    "completion": "Print the script that completes lathe's words in your shell.",
}
# LitGPT's verbs that no action is: the module in `actions` that has one, and its options and function there. They
# work as LitGPT's users type them and do not stand in --help. The others are other words for actions, as `compat` says.
VERBS = {
    "convert_to_litgpt": ("litgpt", "ToLitgpt", "to_litgpt"),
    "convert_from_litgpt": ("litgpt", "FromLitgpt", "from_litgpt"),
    "convert_pretrained_checkpoint": ("litgpt", "Pretrained", "pretrained"),
    "merge_lora": ("litgpt", "MergeLora", "merge_lora"),
}

# What the machine refuses and the user can put right: no space, no permission, a file where a folder should be.
OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line (that of the process by default) and return its exit status.

    0: done. 1: the action's own verdict, or a bug, shown with its traceback. 2: what the user can put right, one
    paragraph on stderr. 130: interrupted.
    """
    try:
        status = dispatch(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return status
    except LatheError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has had enough. Python flushes stdout once more when it ends: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OUTSIDE:
            where = "" if error.filename is None else f"{error.filename}: "
            print(f"Error: {where}{error.strerror}.", file=sys.stderr)
            return 2
        import traceback

        traceback.print_exc()
        print("This is a bug in Lathe: please report it, with the lines above.", file=sys.stderr)
        return 1


def dispatch(words: Sequence[str]) -> int:
    """Run the action that the first word names, with the options that follow. Raises LatheError."""
    if words and words[0] == "--version":
        print(f"lathe {__version__}")
        return 0
    known = available()
    if words and not words[0].startswith("-"):
        words = translated(words, (*known, *VERBS))
    if words and words[0] not in (*known, *VERBS, "--help", "-h"):
        fix = did_you_mean(words[0], known) or "See lathe --help."
        raise UsageError(f'There is no action "{words[0]}".', "A command is: lathe ACTION MODEL [--options].", fix)
    from lathe.command import command, read, root

    if not words or words[0] not in (*known, *VERBS):
        root({name: ACTIONS[name] for name in known}).help_print([])
        return 0
    options, run = load(words[0])
    given = words[1:]
    if hasattr(options, "understood"):  # which options there are may depend on some of them
        options, given = options.understood(given)
    resolved = read(command(words[0], options, run.__doc__), options, given)
    return 0 if resolved is None else run(resolved) or 0


def translated(words: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The words, LitGPT's in Lathe's, which are then shown. known: what has options. Raises LatheError."""
    from lathe import compat
    from lathe.options import options

    if compat.action(words[0]) not in known:
        return words

    def switches(action: str) -> list[str]:
        each = options(load(action)[0]) if action in known else ()
        return [option.key for option in each if option.is_switch]

    meant = compat.meant(words, switches, piped())
    if (told := meant.told()) and os.environ.get("RANK", "0") == "0":
        print(told, file=sys.stderr)
    os.environ.update(meant.environment)
    return meant.words


def piped() -> bool:
    """Whether something may come from standard input: it is a pipe or a file, and no terminal."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or none of the system's
        return sys.stdin is not None
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def available() -> list[str]:
    """The actions whose module is there; none is imported."""
    return [name for name in ACTIONS if name == "completion" or importlib.util.find_spec(f"lathe.actions.{name}")]


def load(name: str) -> tuple[type, Callable[[Any], int | None]]:
    """The options dataclass and the function of an action."""
    if name == "completion":
        return Completion, complete
    where, options, function = VERBS.get(name, (name, "Options", "run"))
    module = importlib.import_module(f"lathe.actions.{where}")
    return getattr(module, options), getattr(module, function)


@dataclass(frozen=True)
class Completion:
    shell: Literal["bash", "zsh", "fish"]
    """The shell to complete in."""


def complete(options: Completion) -> None:
    """Print the script that completes lathe's words in your shell.

    Save it where the shell looks for it:

      lathe completion bash > ~/.local/share/bash-completion/completions/lathe
      lathe completion fish > ~/.config/fish/completions/lathe.fish
      lathe completion zsh > FOLDER/_lathe  (a folder in $fpath)
    """
    from lathe.command import command, root

    loaded = {name: load(name) for name in available()}
    commands = [command(name, cls, run.__doc__) for name, (cls, run) in loaded.items()]
    print(root({name: ACTIONS[name] for name in loaded}, commands).generate_completion(shell=options.shell))
