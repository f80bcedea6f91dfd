"""Turns a model and an address into a running server, and the server into an exit status; knows no tensor.

The model is loaded in the engine process, by `occupant.load`; this one imports no torch.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lathe import hub
from lathe.actions.bounds import at_least
from lathe.actions.loading import Speaking
from lathe.actions.occupant import load
from lathe.actions.place import named, weights_at
from lathe.actions.terminal import dimmed
from lathe.errors import MissingError, UsageError

if TYPE_CHECKING:
    from lathe.server.desk import Desk
    from lathe.server.gate import Rules


@dataclass(frozen=True)
class Options(Speaking):
    model: str
    """Folder, file or repo id."""
    _: KW_ONLY
    host: str = "127.0.0.1"
    """The address to listen on; 127.0.0.1 is this machine alone."""
    port: int = 8000
    """The port to listen on; 0 for any that is free."""
    served_model_name: str | None = None
    """What clients call the model. By default its repo id, or the name of its folder or file."""
    also: tuple[str, ...] = ()
    """NAME=MODEL: serve another model beside the first, in a process of its own. May be given several times."""
    adapter: tuple[str, ...] = ()
    """NAME=PATH: an adapter for the model, a folder or repo id. Requests name it as their model; those that do not are
    answered without it. May be given several times."""
    adapter_dir: Path | None = None
    """Let the admin put on adapters from this folder while the server runs, by /v1/load_lora_adapter."""
    admin_key: str | None = None
    """The admin's key. It is one of the keys, too."""
    devices: int | Literal["auto"] = 1
    """Over how many GPUs the layers are spread, one after the other; auto takes all."""
    cache_tokens: int | None = None
    """How many tokens of all prompts and answers are kept at once. By default as many as --max-seqs answers of the
    longest context need, or as there is memory for."""
    api_key: tuple[str, ...] = ()
    """A key that clients must send, as Authorization: Bearer KEY or X-Api-Key: KEY. May be given several times."""
    api_key_file: Path | None = None
    """A file with such keys, one a line: other users of this machine can see what is typed, and not what is in it."""
    insecure: bool = False
    """Listen for other machines without a key: whoever reaches the port may use the model."""
    cors_origin: tuple[str, ...] = ()
    """Let web pages of this origin, as https://example.org, use the server; localhost lets those of this machine, at
    whatever port, * lets all. May be given several times."""
    allowed_host: tuple[str, ...] = ()
    """A name by which the server may be called, beside localhost, as behind a proxy. May be given several times."""
    max_body: int = 32 << 20
    """The largest body of a request in bytes."""
    api_path: str = "/predict"
    """Where requests of LitGPT's kind are answered."""
    stream: bool = False
    """Answer requests of LitGPT's kind, where they do not say, with a line for each piece of the text."""
    any_model_name: bool = False
    """Answer for this model whatever a request calls it, as clients with a name of their own built in need it."""
    strict: bool = False
    """Refuse requests with fields that nobody knows, which are otherwise named in the answer's header."""
    seed: int | None = None
    """Answer requests that name no seed as if they named this one; by default each is answered anew."""
    max_queue: int = 256
    """How many answers may wait their turn; further requests get 429, and are told when to come again."""
    max_seqs: int = 64
    """How many answers are made at once."""
    kept_responses: int = 1000
    """How many answers of /v1/responses are kept, in memory and for a day at most, so that requests can go on from one
    by previous_response_id; 0 for none."""
    drain: float = 30.0
    """Seconds that answers have to come to their end when the server is told to end."""
    max_new_tokens: int | None = None
    """The longest answer in tokens, for requests that do not say. By default, as the next three, what the model's
    generation_config.json says."""
    temperature: float | None = None
    """How varied answers are, for requests that do not say."""
    top_k: int | None = None
    """Among how many tokens they choose, for requests that do not say."""
    top_p: float | None = None
    """How probable these are together, for requests that do not say."""
    engine: Literal["lathe", "vllm", "sglang", "llamacpp", "ray"] = "lathe"
    """What runs the model. vllm, sglang and llamacpp are given the same folder, and must be installed; ray runs
    replicas of Lathe's own engine."""
    replicas: int = 1
    """With --engine ray: how many there are, on one machine or many."""
    gate: bool = False
    """Stand in front of another --engine, with this server's page, keys and limits."""
    dry_run: bool = False
    """Print the commands that run another --engine, and run none."""

    def __post_init__(self) -> None:
        at_least(0, self, "port", "max_queue", "drain", "kept_responses", "temperature", "top_k", "top_p")
        at_least(1, self, "max_seqs", "max_body", "replicas", "max_new_tokens")
        at_least(16, self, "cache_tokens")
        if self.devices != "auto":
            at_least(1, self, "devices")
        if self.port > 65535:
            raise UsageError(f"--port is {self.port}.", "It must be at most 65535.")
        if self.adapter_dir is not None and self.admin_key is None:
            raise UsageError("--adapter-dir is given, and there is no --admin-key.", "Nobody could load any.")
        for option, values in (("--also", self.also), ("--adapter", self.adapter)):
            if wrong := next((value for value in values if not re.fullmatch(r"[\w.-]+=.+", value)), None):
                raise UsageError(f"{option} is {wrong}.", "It must be NAME=PATH.")
        if not self.api_path.startswith("/"):
            raise UsageError(f"--api-path is {self.api_path}.", "It begins with a slash.")
        if self.replicas > 1 and self.engine != "ray":
            raise UsageError(f"--replicas is {self.replicas}.", "", "Add --engine ray, which has them.")
        if self.gate and self.engine in ("lathe", "ray"):
            raise UsageError("--gate is of no use here.", "Lathe's own engine, and its replicas in Ray, are behind it.")
        if self.dry_run and self.engine in ("lathe", "ray"):
            found = f"--dry-run is given, and --engine is {self.engine}."
            raise UsageError(found, "It prints the commands of vllm, sglang and llamacpp; here there are none.")
        for origin in self.cors_origin:
            if origin not in ("*", "localhost") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise UsageError(
                    f"--cors-origin is {origin}.",
                    "An origin looks like https://example.org; * is any, localhost any of this machine.",
                )


@contextmanager
def quit_early() -> Iterator[None]:
    """SIGTERM or Ctrl-C end the process with status 0 also while nobody waits for them yet."""
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@quit_early()
def run(options: Options) -> int:
    """Answer over HTTP, as OpenAI's and other APIs do.

    The model is loaded in a process of its own, while this one listens already: /health tells when it is ready. Ctrl-C
    or SIGTERM lets the answers that are being made come to their end, and a second one does not.
    """
    adapters = {name: hub.find(path, options.checkpoints) for name, path in _pairs(options.adapter).items()}
    if options.engine == "ray":
        from lathe.actions import replicas

        return replicas.run(options, gate(options), partial(load, options, adapters=adapters))
    if options.engine != "lathe":
        from lathe.actions import handover

        return handover.run(options, gate(options), adapters)

    from lathe.server.line import Line
    from lathe.server.refusals import Broken

    models = {options.served_model_name or named(options.model): options.model} | _pairs(options.also)
    places = {name: weights_at(model, options.checkpoints) for name, model in models.items()}
    if len(models) <= len(options.also) or models.keys() & adapters.keys():
        raise UsageError("Two models or adapters have the same name.", "Clients tell them apart by it.")
    lines: dict[str, Line] = {}
    try:
        for name, place in places.items():  # first of all: it takes longest
            lines[name] = Line.begin(partial(load, options, place, None if lines else adapters))

        from lathe.server.app import application, wires
        from lathe.server.desk import Desk
        from lathe.server.running import listen, serve

        rules = gate(options)
        bound = listen(options.host, options.port)
        desk = Desk(lines, options.max_queue, options.strict, options.any_model_name, options.adapter_dir)
        port = bound.getsockname()[1]
        ready = partial(greet, desk, options.host, port)
        app = application(desk, wires(options.api_path, options.stream, options.kept_responses), rules)
        return serve(app, desk, bound, drain=options.drain, ready=ready)
    except Broken as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    finally:
        for line in lines.values():
            line.close(patience=0)


def gate(options: Options) -> Rules:
    """Who may come in. Raises UsageError where everybody could, from other machines, and nobody said so."""
    from lathe.server.gate import Rules, loopback

    keys = (*options.api_key, *_lines(options.api_key_file)) if options.api_key_file else options.api_key
    here = loopback(options.host)
    if not here and not keys and not options.insecure:
        found = f"--host {options.host} lets other machines use the model, and there is no key."
        raise UsageError(found, "", "Give an --api-key-file or --api-key, or --insecure if that is meant.")
    hosts = frozenset({"localhost", "127.0.0.1", "::1", options.host, *options.allowed_host})
    return Rules(keys, options.admin_key, hosts if here else None, options.cors_origin, options.max_body)


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    """NAME=PATH, several times, by name. Raises UsageError for two of one name."""
    pairs = {name: path for name, _, path in (pair.partition("=") for pair in given)}
    if len(pairs) < len(given):
        raise UsageError(f"Two of {', '.join(given)} have the same name.", "Clients tell them apart by it.")
    return pairs


def _lines(file: Path) -> list[str]:
    """The lines of a file that hold something. Raises MissingError, UsageError."""
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"The keys in {file} cannot be read: {error}.") from None
    if not any(lines):
        raise UsageError(f"There is no key in {file}.", "It must hold one a line.")
    return [line for line in lines if line]


def greet(desk: Desk, host: str, port: int) -> None:
    """Say where the server is and what it serves."""
    where = f"[{host}]" if ":" in host else host
    print(f"Serving at http://{where}:{port}", file=sys.stderr)
    for served in desk.served.values():
        told = {name: value for name, value in served.defaults.items() if value is not None}
        lines = [
            f"  {served.name}: {served.about['dtype']} on {served.about['device']}, "
            f"{served.context:,} tokens of context, {served.seats} answers at once",
            f"    by default {', '.join(f'{name} {value}' for name, value in told.items())}",
            *(f"    adapter {name}" for name in served.adapters),
        ]
        print("\n".join(map(dimmed, lines)), file=sys.stderr, flush=True)
