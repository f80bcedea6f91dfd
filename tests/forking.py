"""A process that has imported all of Lathe forks for whoever asks (asking.py): a command then starts in milliseconds
where importing PyTorch takes seconds, and is still a process of its own, with its own files and signals.

    python tests/forking.py ADDRESS        until standard input ends

Processes that such a command starts itself are forks, too (`multiprocessing` means one by spawn, and `sys.executable`
is the workshop's `python`). How they start by themselves is what tests/test_launch.py and others try.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing.context
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

ALL = (
    "chat convert course data demo evaluate finetune generate inspect merge occupant pretrain quantize serve tokenizer"
)
MORE = """lathe.llm lathe.api lathe.command lathe.server.app lathe.server.running lathe.server.room lathe.training.loop
    lathe.training.resume lathe.training.curve torch._dynamo matplotlib.figure huggingface_hub.hf_api"""


def main(address: str) -> int:
    for name in (*MORE.split(), *(f"lathe.actions.{name}" for name in ALL.split())):
        importlib.import_module(name)
    multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.context._concrete_contexts["fork"]  # type: ignore[attr-defined]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    gc.freeze()  # looking through what is there would copy it in every fork
    print("ready", flush=True)
    running: dict[int, tuple[socket.socket, Path]] = {}
    waiting: set[int] = set()  # of these, those whose asker waits for their end
    while True:
        links = {running[pid][0]: pid for pid in waiting}
        ready, _, _ = select.select([sys.stdin, listener, *links], [], [], 0.01 if running else None)
        if sys.stdin in ready:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return 0
        for link in links.keys() & {*ready}:
            if not link.recv(64):  # whoever asked is gone: without a word, so must this be
                os.kill(links[link], signal.SIGKILL)
            waiting.remove(links[link])
        if listener in ready:
            link, _ = listener.accept()
            size, files, _, _ = socket.recv_fds(link, 8, 3)
            request = b""
            while len(request) < int.from_bytes(size, "little"):
                request += link.recv(1 << 20)
            words, place, environment = json.loads(request)
            pid = os.fork()
            if pid == 0:
                listener.close()
                leave(become(words, place, environment, files))
            for file in files:
                os.close(file)
            running[pid] = (link, Path(environment["WORKSHOP"], f".{pid}"))
            waiting.add(pid)
            link.sendall(f"{pid}\n".encode())
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                link, note = running.pop(pid)
                waiting.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                code = code if code >= 0 else 128 - code
                note.write_text(str(code))
                with suppress(OSError):
                    link.sendall(f"{code}\n".encode())
                link.close()


def become(words: list[str], place: str, environment: dict[str, str], files: list[int]) -> int:
    """Be the process that was asked for, and return its exit status."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (to the process's end)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    sys.executable = environment["PYTHON_EXEC"]
    try:
        program, *rest = words
        return lathe(ported(rest)) if program == "lathe" else python(rest)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def leave(status: int) -> NoReturn:
    """End as Python does, but for taking apart what was imported: that would copy all of it."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def lathe(words: list[str]) -> int:
    from pages import DEMO, hurried

    from lathe.cli import main

    if words[:1] == ["demo"]:
        words = [*words, *DEMO]
    elif "HURRIED" in os.environ:
        words = hurried(words)
    sys.argv = ["lathe", *words]
    return main(words)


def ported(words: list[str]) -> list[str]:
    """The words, for a server at a port that is free."""
    if words[:1] not in (["serve"], ["runs"]) or "--dry-run" in words:
        return words
    at = words.index("--port") if "--port" in words else len(words)
    return [*words[:at], "--port", os.environ["PORT"], *words[at + 2 :]]


def python(words: list[str]) -> int:
    """What Python's own command line does with -u, -m, -c and a file."""
    sys.orig_argv = [sys.executable, *words]
    words = [word for word in words if word != "-u"]
    match words:
        case ["-m", "lathe", *rest]:
            return lathe(rest)
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", program, *rest]:
            sys.argv = ["-c", *rest]
            exec(program, {"__name__": "__main__"})
        case [file, *rest]:
            sys.argv = [file, *rest]
            sys.path.insert(0, str(Path(file).resolve().parent))
            runpy.run_path(file, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
