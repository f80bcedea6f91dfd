"""A command that serves a model is run, alone or behind the gate, until one of them ends; knows no engine's words."""

from __future__ import annotations

import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lathe.actions.engines import ENGINES, Command, Wanted
from lathe.actions.place import named, weights_at
from lathe.errors import MissingError, UsageError

if TYPE_CHECKING:
    from lathe.actions.serve import Options
    from lathe.server.gate import Rules

# What every engine can be told, and what the gate can; all else is for Lathe's own engine.
TAKEN: tuple[str, ...] = (
    "model",
    "host",
    "port",
    "served_model_name",
    "adapter",
    "api_key",
    "api_key_file",
    "insecure",
    "max_seqs",
)
TAKEN += ("engine", "gate", "dry_run", "device", "precision", "checkpoints")
GATES = ("admin_key", "cors_origin", "allowed_host", "max_body")


def run(options: Options, let_in: Rules, adapters: Mapping[str, Path]) -> int:
    """Serve as `lathe serve` is told to, by its --engine. let_in: who may come. Returns the exit status.

    Raises MissingError where the engine is not installed, UsageError for what it cannot do.
    """
    for option in fields(options):
        if option.name in TAKEN or getattr(options, option.name) == option.default:
            continue
        if option.name not in GATES or not options.gate:
            gates = option.name in GATES
            whose = "is the gate's" if gates else "is for Lathe's own engine"
            found = f"--{option.name.replace('_', '-')} {whose}."
            raise UsageError(found, "", "Add --gate." if gates else "Leave it out.")
    place = weights_at(options.model, options.checkpoints)
    name = options.served_model_name or named(options.model)
    made = options.checkpoints / "handover"
    address, keys = (options.host, options.port), () if options.gate else let_in.keys
    if options.gate and not options.dry_run:  # where and how nobody else comes in
        address, keys = ("127.0.0.1", free_port()), (secrets.token_hex(),)
    wanted = Wanted(place, name, made, *address, adapters, options.max_seqs, options.precision, options.device, keys)
    commands = ENGINES[options.engine].commands(wanted)
    if options.dry_run:
        print("\n".join(map(shlex.join, commands)))
        return 0
    require(options.engine)
    *before, last = commands
    last[0] = located(last[0]) or last[0]
    for command in before:
        print(shlex.join(command), file=sys.stderr)
        if status := subprocess.run(command).returncode:
            return status
    print(shlex.join(last), file=sys.stderr)
    return gated(last, wanted, options, let_in) if options.gate else alone(last)


def require(engine: str) -> None:
    one = ENGINES[engine]
    if not (find_spec(one.module) if one.module else located(one.program)):
        raise MissingError(f"{engine} is not installed.", "", f"{one.how}; --dry-run shows the command.")


def located(program: str) -> str | None:
    """Where a program is, on the PATH or beside this Python."""
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))


def alone(command: Command) -> int:
    """Run a server until it ends, and give it the signals to end that this process gets. Returns its exit status."""
    process = subprocess.Popen(command)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def gated(command: Command, wanted: Wanted, options: Options, let_in: Rules) -> int:
    """Run a server, and this one in front of it, until one of them ends. Returns the exit status."""
    import uvicorn

    from lathe.server.proxy import application
    from lathe.server.running import listen

    bound = listen(options.host, options.port)
    config = uvicorn.Config(application(wanted.host, wanted.port, let_in, *wanted.keys), log_level="warning", ws="none")
    server = uvicorn.Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn hears them, ends, and raises them again for who was before it
    process = subprocess.Popen(command)
    watching = threading.Thread(target=watch, args=(process, server), daemon=True)
    try:
        watching.start()
        print(f"Serving {wanted.name} at http://{options.host}:{bound.getsockname()[1]}", file=sys.stderr, flush=True)
        server.run([bound])
        return process.poll() or 0  # None where this one ended first
    finally:
        process.terminate()
        process.wait()


def watch(process: subprocess.Popen[bytes], server: Any) -> None:
    """End a server when the process behind it has ended."""
    process.wait()
    server.should_exit = True


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
