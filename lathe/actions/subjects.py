"""A model's name, or a server's address, becomes who is examined, and the folder where the results of that lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from lathe import __version__, hub
from lathe.actions.place import named, plain, weights_at

if TYPE_CHECKING:
    from lathe.actions.evaluate import Options
    from lathe.evaluation.asks import Subject


def of(options: Options, model: str | None) -> tuple[Subject, Path]:
    """Who answers for one of the models: itself in this process, or a server. Raises LatheError."""
    return served(options, model) if options.url is not None else loaded(options, str(model))


def served(options: Options, model: str | None) -> tuple[Subject, Path]:
    from lathe.evaluation.remote import Remote
    from lathe.tokenizer import Tokenizer

    words = options.tokenizer
    tokenizer = Tokenizer.open(hub.find(words, options.checkpoints, weights=False)) if words else None
    key = options.api_key or os.environ.get("OPENAI_API_KEY")
    subject = Remote(str(options.url), model, key=key, tokenizer=tokenizer, longest=options.max_length)
    several = len(options.model) > 1
    base = options.out_dir or Path("evaluate")
    return subject, base / plain(subject.name) if several or not options.out_dir else base


def loaded(options: Options, model: str) -> tuple[Subject, Path]:
    from lathe.evaluation.local import Local

    path = weights_at(model, options.checkpoints)
    adapters = [hub.find(each.rpartition("=")[2], options.checkpoints) for each in options.adapter]
    place = folder(options, model, path, adapters)
    llm = options.load(
        path, devices=options.devices, adapter=options.adapter or None, prompt_style=options.prompt_style
    )
    ways = (options.quantize, options.precision, options.prompt_style, str(llm.decoder.like.device.type))
    subject = Local(
        llm.decoder,
        llm.tokenizer,
        llm.stops,
        name=named(model),
        identity=identity([path, *adapters], options.checkpoints, *ways),
        batch_tokens=options.batch_tokens,
        longest=options.max_length,
    )
    return subject, place


def folder(options: Options, model: str, path: Path, adapters: Sequence[Path]) -> Path:
    """Where the results of a model go: beside it, if that is the user's to write to, each way to load it by itself."""
    several = len(options.model) > 1
    cached = any(part.startswith("models--") for part in path.resolve().parts)
    home = path if path.is_dir() else path.parent
    if options.out_dir is not None:
        return options.out_dir / plain(named(model)) if several else options.out_dir
    if cached or not os.access(home, os.W_OK):
        base = Path("evaluate") / plain(named(model))
    else:
        base = home / "evaluate" if path.is_dir() else home / "evaluate" / path.stem
    precision = None if options.precision == "auto" else options.precision
    ways = [word for word in (*(place.name for place in adapters), options.quantize, precision) if word]
    return base / "-".join(ways) if ways else base


def identity(paths: Sequence[Path], checkpoints: Path, *ways: str | None) -> str:
    """32 hex digits that change with whatever may change a model's answers: its files, and how it is loaded."""
    from lathe.checkpoint import adapters

    stands = [adapters.base(path, checkpoints) for path in paths if adapters.describes(path)]
    files = [file for path in (*paths, *stands) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    stats = [(file.name, (s := file.stat()).st_size, s.st_mtime_ns) for file in files if file.is_file()]
    return blake2b(repr((__version__, stats, ways)).encode(), digest_size=16).hexdigest()
